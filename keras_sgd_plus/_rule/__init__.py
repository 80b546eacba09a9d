"""The mathematics of an update: pure functions of tensors.

A `Rule` (`rule`) is a chain of `Part`s (`part`, `parts`); a gradient is dense, rows of
a table, or an outer product (`gradient`). `ours` tells which optimizers are ours.
"""
