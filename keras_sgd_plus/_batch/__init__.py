"""One batch: check it, build the model, choose XLA or not, walk it, commit.

`step` is the order of these, `walk_batch` walks one batch, `compiled` makes the choice
about XLA.
"""
