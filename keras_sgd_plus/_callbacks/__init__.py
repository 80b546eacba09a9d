"""Companions of the optimizer in `fit`: callbacks, and data whose order is known."""
