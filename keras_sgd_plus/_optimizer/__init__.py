"""The optimizer that a user makes: arguments, documentation, configuration."""
