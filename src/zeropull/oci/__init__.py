"""OCI vocabulary: references, digests, descriptors, manifests, image configs, chain IDs. No I/O."""
