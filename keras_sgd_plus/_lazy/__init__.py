"""Weights whose updates wait: the loop makes them later, with the same result.

`tables` are embedding tables, of which an example touches a few rows: all other rows
wait for the end of the batch. `blocks` are kernels of Dense layers, which wait for the
end of a block of examples.
"""
