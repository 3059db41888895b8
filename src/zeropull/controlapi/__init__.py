"""The private API between control plane, gateway and nodes: watch and report."""
