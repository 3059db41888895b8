"""Compressed streams to plain bytes, large ones in a process of their own."""
