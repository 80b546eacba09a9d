"""Callbacks: `ExactResume` with its data, and those of Keras."""
