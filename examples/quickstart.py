"""Handwritten digits, one weight update per image, in one line.

Trains a small classifier with `SGDPlus`, then lets `keras.optimizers.SGD` walk the same
images in the same order with `batch_size=1`, and compares speed and weights. Run with
`python examples/quickstart.py`; it takes well under a minute.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import time

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_sgd_plus import SGDPlus

EPOCHS = 10


def load_data() -> list:
    """1,797 images of 8 x 8 pixels that ship with scikit-learn, split 80 to 20.

    With a network, `keras.datasets.mnist.load_data()` gives 60,000 larger ones: divide
    them by 255 and change `keras.Input` below to their shape.
    """
    digits = load_digits()
    images = (digits.images / 16).astype("float32")
    return train_test_split(
        images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )


def make_model() -> keras.Model:
    """64 pixels, 64 hidden units, 10 classes; the same weights at every call."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


class EpochTimes(keras.callbacks.Callback):
    """Seconds per epoch; the first has the compilation in it."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def train(
    optimizer: keras.optimizers.Optimizer, x: np.ndarray, y: np.ndarray, **fit
) -> tuple[keras.Model, EpochTimes]:
    """Compiles and fits a fresh model."""
    model = make_model()
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    times = EpochTimes()
    model.fit(x, y, callbacks=[times], **fit)
    return model, times


def main() -> None:
    """Trains, compares, prints, and asserts what it prints."""
    x_train, x_test, y_train, y_test = load_data()

    print(f"SGDPlus, {EPOCHS} epochs, each image visited once per epoch, shuffled:")
    optimizer = SGDPlus(learning_rate=0.01, momentum=0.9, seed=0)
    model, times = train(optimizer, x_train, y_train, batch_size=256, epochs=EPOCHS)
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    updates = int(optimizer.iterations)
    print(f"  test accuracy     {accuracy:.3f}")
    print(f"  weight updates    {updates:,} ({EPOCHS} x {len(x_train):,} images)")
    print(f"  time per epoch    {np.median(times.seconds[1:]) * 1e3:.0f} ms")
    assert updates == EPOCHS * len(x_train)
    assert accuracy > 0.9

    print("The same images in the same order, 3 epochs each:")
    given = {"epochs": 3, "shuffle": False, "verbose": 0}
    # A small step: at 0.01 training is so lively that float32 rounding grows.
    settings = {"learning_rate": 0.001, "momentum": 0.9}
    ours, our_times = train(
        SGDPlus(**settings, order="given"), x_train, y_train, batch_size=256, **given
    )
    theirs, their_times = train(
        keras.optimizers.SGD(**settings), x_train, y_train, batch_size=1, **given
    )
    pairs = zip(ours.get_weights(), theirs.get_weights(), strict=True)
    difference = max(np.abs(a - b).max() for a, b in pairs)
    largest = max(np.abs(w).max() for w in theirs.get_weights())
    fast, slow = min(our_times.seconds[1:]), min(their_times.seconds[1:])
    print(f"  SGDPlus, batch_size=256               {fast * 1e3:6.0f} ms per epoch")
    print(f"  keras.optimizers.SGD, batch_size=1    {slow * 1e3:6.0f} ms per epoch")
    print(f"  SGDPlus is faster by                  {slow / fast:6.0f} times")
    print(f"  largest difference of a weight        {difference:.1e}")
    print(f"  largest weight                        {largest:.1e}")
    assert difference < 1e-4 * largest
    assert slow > fast


if __name__ == "__main__":
    main()
