"""The room of the optimizer: arguments, config, saved state, live settings."""
