"""Examples whose loss or gradients are not finite: found, skipped, remembered.

`find` looks at each group of examples in the loop, `guard` keeps a bad group from
changing anything, `ledger` remembers bad groups from batch to batch, `ledgers` puts
them into words, `places` finds their rows in the data.
"""

from keras_sgd_plus._nonfinite import ledgers, places
from keras_sgd_plus._nonfinite.find import Skips, first_cause, no_skips, with_group
from keras_sgd_plus._nonfinite.guard import Guard
from keras_sgd_plus._nonfinite.ledger import Ledger, Skipped
from keras_sgd_plus._nonfinite.places import KnownRows

__all__ = [
    "Guard",
    "KnownRows",
    "Ledger",
    "Skipped",
    "Skips",
    "first_cause",
    "ledgers",
    "no_skips",
    "places",
    "with_group",
]
