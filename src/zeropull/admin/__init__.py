"""What the command line asks of a running control plane, and its figures for Prometheus."""
