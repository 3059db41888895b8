"""Image caches on disk: layers converted in one pass, verified, mounted, kept as generations."""
