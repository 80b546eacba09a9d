"""A model with a `train_step` of its own: it hands the batch to the optimizer.

    python examples/custom_train_step.py

Keras's guide to custom training writes the tape and `apply_gradients` into
`train_step`, which makes one update per batch. A model that trains per example calls
`self.optimizer.train_step(self, data)` in their place, and does what it likes before
and after: here, noise is added to the examples of a batch, and the norm of all weights
is logged.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_sgd_plus import SGDPlus


class Noisy(keras.Model):
    """A classifier of digits that sees other noise in every batch."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(32, activation="relu")
        self.out = keras.layers.Dense(10)
        self.noise = keras.random.SeedGenerator(0)

    def call(self, x):
        return self.out(self.hidden(x))

    def train_step(self, data):
        x, y = data
        x += 0.1 * keras.random.normal(keras.ops.shape(x), seed=self.noise)
        # In place of the tape and apply_gradients: one update per example of (x, y).
        logs = self.optimizer.train_step(self, (x, y))
        squares = [keras.ops.sum(w**2) for w in self.trainable_weights]
        return {**logs, "weight_norm": keras.ops.sqrt(sum(squares))}


def main():
    keras.utils.set_random_seed(0)
    digits = load_digits()
    x, y = (digits.data / 16).astype("float32"), digits.target
    model = Noisy()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SGDPlus(0.01, momentum=0.5), loss, metrics=["accuracy"])
    history = model.fit(x[:1500], y[:1500], batch_size=100, epochs=5, verbose=2)
    updates = int(model.optimizer.iterations)
    _, accuracy = model.evaluate(x[1500:], y[1500:], verbose=0)
    print(f"{updates:,} updates, {accuracy:.1%} of the test images right")
    norms = history.history["weight_norm"]
    assert updates == 5 * 1500
    assert accuracy > 0.85
    norm_now = np.sqrt(sum((w**2).sum() for w in model.get_weights()))
    assert np.isclose(norms[-1], norm_now, rtol=1e-5)  # of the weights after the batch


if __name__ == "__main__":
    main()
