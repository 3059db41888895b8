"""Which copy goes on which instance; when an instance is needed or idle. Pure."""
