"""Containers on a node: OCI specs, networks, logs, health, start and end."""
