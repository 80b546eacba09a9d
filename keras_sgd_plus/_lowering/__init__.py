"""Keras operations in forms that XLA:CPU compiles well, equal up to rounding.

They are used only while a loop is traced in this thread (`scope`). `keras_functions`
maps the functions of Keras's backend to their forms, and `installation` puts them
there; `layout` carries kernels transposed and `one_kernel` decides how XLA runs the
loop. `KERAS_SGD_PLUS_LOWERING=0` in the environment switches all of them off; `python
-m benchmarks ablation` prints what each one wins.
"""

from keras_sgd_plus._lowering import layout, lookup, one_kernel
from keras_sgd_plus._lowering.installation import install, is_installed, uninstall
from keras_sgd_plus._lowering.scope import (
    active,
    after,
    is_active,
    is_on,
    is_switched_off,
    one,
)

__all__ = [
    "active",
    "after",
    "install",
    "is_active",
    "is_installed",
    "is_on",
    "is_switched_off",
    "layout",
    "lookup",
    "one",
    "one_kernel",
    "uninstall",
]
