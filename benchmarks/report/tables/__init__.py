"""Findings and stored results as text, for the terminal and for both READMEs."""
