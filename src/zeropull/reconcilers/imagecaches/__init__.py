"""The image cache of each endpoint: built, attached, kept within its budget, purged."""
