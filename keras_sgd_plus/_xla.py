"""Every name of TensorFlow that is not public, in one place."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.ops import control_flow_util  # type: ignore[import]


def is_tracing() -> bool:
    """Whether what is traced now will be compiled by XLA as a whole.

    Goes when TensorFlow says so of a `tf.function(jit_compile=True)` in public.
    """
    if tf.executing_eagerly():
        return False
    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)
