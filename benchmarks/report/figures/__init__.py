"""Stored results as pictures: `figures/*.svg`."""
