"""Images on a node: the ladder from a cache volume to a registry pull, and the data cache."""
