"""Layers on disk: pulled and converted in one pass, verified, mounted."""
