"""The versions of Keras and TensorFlow that work, and the error on any others.

The other modules here use private names as these versions have them. Where a method
that every training goes through is not as it was, users read this error.
"""

from __future__ import annotations

import keras
import tensorflow as tf

# The bounds of `pyproject.toml`.
INSTALL = 'pip install "keras>=3.13.2,<3.16" "tensorflow>=2.17,<2.22"'


def unusable(needed: str, received: str) -> RuntimeError:
    """The error for a private name that is not as it was.

    Args:
        needed: the name, and where it is looked for.
        received: what is there instead, after "which".
    """
    return RuntimeError(
        f"SGDPlus needs {needed}. Received: Keras {keras.__version__} and TensorFlow "
        f"{tf.__version__}, which {received}. Install versions that have it: {INSTALL}."
    )
