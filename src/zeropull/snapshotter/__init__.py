"""containerd's snapshots service as a proxy plugin that serves cached layers by chain ID."""
