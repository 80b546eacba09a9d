"""Weights whose updates wait: the loop makes them later, with the same result.

`protocol` says what such weights have in common. `tables` are embedding tables, of
which an example touches a few rows: all other rows wait for the end of the batch.
`blocks` are kernels of Dense layers, which wait for the end of a block of examples.
"""

from keras_sgd_plus._pending.block_plan import (
    BlockPlace,
    BlockPlan,
    plan_blocks,
    takes,
)
from keras_sgd_plus._pending.block_products import Buffers, new_buffers
from keras_sgd_plus._pending.blocks import EnteredBlock, ShownBlock
from keras_sgd_plus._pending.plan import plan_tables
from keras_sgd_plus._pending.protocol import Entered, Pending, Shown
from keras_sgd_plus._pending.tables import Tables

__all__ = [
    "BlockPlace",
    "BlockPlan",
    "Buffers",
    "Entered",
    "EnteredBlock",
    "Pending",
    "Shown",
    "ShownBlock",
    "Tables",
    "new_buffers",
    "plan_blocks",
    "plan_tables",
    "takes",
]
