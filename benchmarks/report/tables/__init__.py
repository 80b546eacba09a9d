"""Findings and stored results as text: what a subcommand prints."""
