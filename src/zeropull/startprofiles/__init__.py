"""Start profiles: recorded at an image's first start, read ahead at later ones."""
