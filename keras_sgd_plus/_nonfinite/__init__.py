"""Examples whose loss or gradients are not finite: found, skipped, remembered.

`find` looks at each group of examples in the loop, `guard` keeps a bad group from
changing anything, `ledger` remembers bad groups from batch to batch, `ledgers` puts
them into words.
"""

from keras_sgd_plus._nonfinite import ledgers
from keras_sgd_plus._nonfinite.find import Skips, first_cause, no_skips, with_group
from keras_sgd_plus._nonfinite.guard import Guard
from keras_sgd_plus._nonfinite.ledger import Ledger, Skipped

__all__ = [
    "Guard",
    "Ledger",
    "Skipped",
    "Skips",
    "first_cause",
    "ledgers",
    "no_skips",
    "with_group",
]
