"""The optimizer as an object: its arguments, config, saved state and live settings."""
