"""The learning rate: a search for it, a decay to zero, and both within each `fit`."""
