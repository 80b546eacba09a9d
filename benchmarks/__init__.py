"""Measurements of keras_sgd_plus; see README.md in this folder."""
