"""Weights whose updates wait: the loop makes them later, with the same result.

`protocol` says what such weights have in common. `tables` are embedding tables, of
which an example touches a few rows: all other rows wait for the end of the batch.
"""

from keras_sgd_plus._pending.plan import plan_tables
from keras_sgd_plus._pending.protocol import Entered, Pending, Shown
from keras_sgd_plus._pending.tables import Tables

__all__ = ["Entered", "Pending", "Shown", "Tables", "plan_tables"]
