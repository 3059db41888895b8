"""Endpoints whose variants have a model of their own: one copy on each instance."""
