"""Commands; the only reader of flags, environment and configuration files."""
