"""The image caches of endpoints on the control plane's disk, kept as generations."""
