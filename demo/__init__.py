"""The demo: a real image, a real endpoint, and one more instance three ways."""
