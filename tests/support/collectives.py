"""Whether replicas can still meet in this process."""

from __future__ import annotations

import pytest
import tensorflow as tf


def need() -> None:
    """Skips a test where an earlier error has ended all collectives of the process.

    TensorFlow aborts them for good when a step under a strategy fails, as rows do that
    test errors: "Restart your program to reset".
    """
    cpus = [device.name for device in tf.config.list_logical_devices("CPU")][:2]
    strategy = tf.distribute.MirroredStrategy(cpus)

    def total() -> object:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.ones(()))

    try:
        tf.function(lambda: strategy.run(total))()
    except tf.errors.OpError as error:
        pytest.skip(f"collectives were aborted in this process: {str(error)[:100]}")
