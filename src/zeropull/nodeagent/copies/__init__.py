"""Copies on a node: each one's life from assignment to end, and the tasks that run them."""
