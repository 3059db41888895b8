"""What the kernel offers and Python's standard library does not: mounts, nftables, tracing."""
