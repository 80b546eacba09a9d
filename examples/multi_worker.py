"""Several processes train one model, each on its own part of every batch.

You will see two workers start on this machine, Keras's log of one of them, and a line
per worker and epoch with the sum of its weights. The sums are equal: at the end of
each batch SGDPlus averages the weights of all workers. At the end each worker prints
its test accuracy.

The lesson: several workers need a strategy's scope, and nothing else changes. With a
directory, `ExactResume` saves the run. Kill it, start it again with the same command,
and it goes on where it was.

Run it with `python examples/multi_worker.py`; it takes less than a minute. Four
workers, and a directory:

    python examples/multi_worker.py --workers 4 --directory /tmp/run

On several machines, start this script once on each, with `TF_CONFIG` set as
https://www.tensorflow.org/guide/distributed_training#TF_CONFIG says.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def launch(num_workers: int, arguments: list[str]) -> int:
    """Starts the workers on this machine, and ends them all if one of them fails."""
    sockets = [socket.socket() for _ in range(num_workers)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    workers = []
    for index in range(num_workers):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        environment = {**os.environ, "TF_CONFIG": config}
        command = [sys.executable, os.path.abspath(__file__), *arguments]
        workers.append(subprocess.Popen(command, env=environment, cwd=ROOT))
    print("started", *(worker.pid for worker in workers), flush=True)
    failed = 0.0
    while any(worker.poll() is None for worker in workers):
        codes = [worker.poll() for worker in workers]
        if any(codes) and not failed:
            failed = time.monotonic() + 30  # the others print their errors
        if failed and time.monotonic() > failed:
            for worker in workers:
                worker.terminate()
        time.sleep(0.2)
    return max(worker.returncode for worker in workers)


def train(directory: str | None, epochs: int) -> None:
    """Trains as one of the workers, and prints sums of the weights and the accuracy."""
    import tensorflow as tf

    # The first thing to do: it connects the workers.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    import keras
    import numpy as np
    from sklearn.datasets import load_digits

    from keras_sgd_plus import ExactResume, SGDPlus

    pixels, labels = load_digits(return_X_y=True)
    x, y = (pixels / 16).astype("float32"), labels.astype("int32")
    train_set = (x[:1500], y[:1500])
    # One shuffle that is the same on all workers; SGDPlus shuffles each batch anew.
    data = tf.data.Dataset.from_tensor_slices(train_set)
    data = data.shuffle(1500, seed=1, reshuffle_each_iteration=False).batch(250)

    keras.utils.set_random_seed(1)
    with strategy.scope():  # several workers need this line
        model = keras.Sequential(
            [
                keras.Input((64,)),
                keras.layers.Dense(32, activation="relu"),
                keras.layers.Dropout(0.1),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile(
            optimizer=SGDPlus(learning_rate=0.02, momentum=0.5, seed=1),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )

    class Digest(keras.callbacks.Callback):
        """Prints a digest of the weights, which is the same on all workers."""

        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            flat = np.concatenate([w.ravel() for w in self.model.get_weights()])
            line = f"epoch {epoch + 1} worker {index} weights {flat.sum():.9f}\n"
            print(line, end="", flush=True)  # at once: workers share the screen

    index = strategy.cluster_resolver.task_id
    callbacks: list[keras.callbacks.Callback] = [Digest()]
    if directory is not None:
        callbacks.append(ExactResume(directory, save_freq=2))
    fit = {"epochs": epochs, "shuffle": False, "verbose": 2 if index == 0 else 0}
    model.fit(data, callbacks=callbacks, **fit)
    loss, accuracy = model.evaluate(x[1500:], y[1500:], batch_size=297, verbose=0)
    print(f"worker {index}: test loss {loss:.3f}, accuracy {accuracy:.3f}")
    assert accuracy > 0.85
    assert int(model.optimizer.iterations.numpy()) == 1500 * epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--directory", help="saves the run there, to go on later")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    if "TF_CONFIG" in os.environ:
        train(options.directory, options.epochs)
    else:
        sys.exit(launch(options.workers, sys.argv[1:]))


if __name__ == "__main__":
    main()
