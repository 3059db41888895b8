"""Generations over the network: a source serves them, a receiver on each node brings them."""
