"""What nodes and gateways are told: assignments and routes, built from the stored documents."""
