"""The optimizer that a user makes: its arguments, its documentation, its configuration.

`sgd_plus` is the class, `arguments` what each argument must be, `setting` the
attributes that may be assigned on a live optimizer.
"""

from keras_sgd_plus._optimizer import arguments
from keras_sgd_plus._optimizer.sgd_plus import SGDPlus

__all__ = ["SGDPlus", "arguments"]
