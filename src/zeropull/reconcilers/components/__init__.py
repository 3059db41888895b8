"""Endpoints with inference components: copies of several models on shared instances."""
