"""Warnings: each is given once, says what was seen, and what to do."""
