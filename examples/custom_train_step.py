"""A model with its own `train_step`, which adds noise and logs the norm of the weights.

You will see two trainings on handwritten digits, without and with noise on the pixels.
Keras prints the log of each epoch. A table at the end says how many test images each
model gets right, as they are and with noise on them. The lines below it explain its
numbers.

The lesson: Keras's guide to custom training puts a tape and `apply_gradients` into
`train_step`, which makes one update per batch. A model that trains per example calls
`self.optimizer.train_step(self, data)` instead, and does anything else before and after
that call. Here it adds noise before the call, and computes a norm after it.

Run it with `python examples/custom_train_step.py`; it takes less than a minute.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_sgd_plus import SGDPlus

EPOCHS, TRAIN = 20, 1500  # examples of the training part
NOISE = 0.3  # standard deviation; pixels go from 0 to 1
EXPLANATION = """\
updates    One per example: {epochs} epochs of {examples:,} examples. `batch_size=100`
           only sets how often Keras calls `train_step`: {calls} times.
loss       Mean over the last epoch. Each example counts before its own update.
           With noise it is higher: an example looks different in each epoch.
norm       Square root of the sum of all squared weights, after the last batch of an
           epoch. It grows while the model learns. A norm that doubles from batch to
           batch is an early sign of a learning rate that is too high.
as it is   Share of the {test} test images that the model gets right.
noisy      The same with noise on the test images: 10 draws of noise for each image.
           Noise in training raises this share.
"""


class Noisy(keras.Model):
    """A classifier of digits that adds new noise to each batch of its training."""

    def __init__(self, noise):
        super().__init__()
        self.hidden = keras.layers.Dense(32, activation="relu")
        self.out = keras.layers.Dense(10)
        self.noise = noise
        self.seed = keras.random.SeedGenerator(0)

    def call(self, x):
        return self.out(self.hidden(x))

    def train_step(self, data):
        x, y = data
        x += self.noise * keras.random.normal(keras.ops.shape(x), seed=self.seed)
        # In place of the tape and apply_gradients: one update per example of (x, y).
        logs = self.optimizer.train_step(self, (x, y))
        # The weights have their values from after the batch here.
        squares = [keras.ops.sum(w**2) for w in self.trainable_weights]
        return {**logs, "weight_norm": keras.ops.sqrt(sum(squares))}


def trained(noise, x, y):
    """A model after twenty epochs, and its logs: a list of values for each name."""
    keras.utils.set_random_seed(0)
    model = Noisy(noise)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SGDPlus(0.01, momentum=0.5), loss, metrics=["accuracy"])
    history = model.fit(x, y, batch_size=100, epochs=EPOCHS, verbose=2).history
    return model, history


def main():
    digits = load_digits()
    x, y = (digits.data / 16).astype("float32"), digits.target
    x_test, y_test = x[TRAIN:], y[TRAIN:]
    rng = np.random.default_rng(0)
    copies = np.repeat(x_test, 10, axis=0)
    with_noise = copies + NOISE * rng.normal(size=copies.shape).astype("float32")

    test = {"batch_size": len(x_test), "verbose": 0}
    rows = {}
    for noise in (0.0, NOISE):
        print(f"Noise of standard deviation {noise} in training:")
        model, logs = trained(noise, x[:TRAIN], y[:TRAIN])
        _, clean = model.evaluate(x_test, y_test, **test)
        _, noisy = model.evaluate(with_noise, np.repeat(y_test, 10), **test)
        updates = int(model.optimizer.iterations)
        norms = logs["weight_norm"]
        rows[noise] = (updates, logs["loss"][-1], norms[-1], clean, noisy)
        # The log has the weights of the end of the batch.
        norm = np.sqrt(sum((w**2).sum() for w in model.get_weights()))
        assert np.isclose(norms[-1], norm, rtol=1e-5)
        assert norms[0] < norms[-1]

    print("noise  updates   loss   norm  as it is   noisy")
    for noise, (updates, loss, norm, *right) in rows.items():
        clean, noisy = (f"{share:.1%}" for share in right)
        numbers = f"{updates:8,} {loss:6.3f} {norm:6.2f}"
        print(f"{noise:5.1f} {numbers} {clean:>9} {noisy:>7}")
    counts = {"epochs": EPOCHS, "examples": TRAIN, "test": len(x_test)}
    print(EXPLANATION.format(calls=EPOCHS * TRAIN // 100, **counts), end="")
    without, with_it = rows.values()
    assert without[0] == with_it[0] == EPOCHS * TRAIN
    assert without[1] < with_it[1], "noise makes the examples harder"
    assert min(without[3], with_it[3]) > 0.8
    assert without[4] < with_it[4], "noise in training helps on noisy images"


if __name__ == "__main__":
    main()
