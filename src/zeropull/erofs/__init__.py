"""Layer tar streams to EROFS: tar parser, tree of a layer, metadata images. Pure."""
