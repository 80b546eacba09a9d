"""Handwritten digits, one weight update per image: Keras's result in less time.

You will see two comparisons. First, the test accuracy of a small classifier after
1, 2, 5 and 10 epochs with `SGDPlus`, and its number of updates, one per image. Then
SGDPlus and `keras.optimizers.SGD` at `batch_size=1` train on the same images in the
same order. Both end at the same weights, up to rounding, and the last lines say how
much longer Keras takes.

The lesson: SGDPlus changes the time that per-example SGD takes, not its result.

Run it with `python examples/quickstart.py`; it takes well under a minute.
`--update-figure` draws the comparison into `examples/figures`.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import sys
import time
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_sgd_plus import SGDPlus

EPOCHS = 10
FIGURE = Path(__file__).parent / "figures" / "quickstart.svg"


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
    model.fit(x, y, callbacks=[times], verbose=0, **fit)
    return model, times


def draw(accuracies: list[float], milliseconds: dict[str, float]) -> None:
    """Accuracy by epoch on the left, the time of an epoch on the right."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "keras_sgd_plus"
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
    left.plot(range(1, len(accuracies) + 1), accuracies, marker="o", color="#1b6ca8")
    left.set(xlabel="epochs", ylabel="test accuracy", ylim=(min(accuracies) - 0.02, 1))
    left.set_title("SGDPlus, one update per image", fontsize=10)
    bars = right.barh(
        list(milliseconds), list(milliseconds.values()), color=("#1b6ca8", "#9a9a9a")
    )
    right.bar_label(bars, [f" {ms:,.0f} ms" for ms in milliseconds.values()])
    right.set(xscale="log", xlim=(1, 10 * max(milliseconds.values())))
    right.set_xlabel("milliseconds per epoch, compilation left out")
    right.set_title("The same updates, the same weights", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, bbox_inches="tight", metadata={"Date": None})
    print(f"Drawn: {FIGURE.relative_to(FIGURE.parents[2])}")


def main() -> None:
    """Trains, compares, prints, and asserts what it prints."""
    x_train, x_test, y_train, y_test = load_data()
    images = len(x_train)

    print(f"SGDPlus: {images:,} images, each visited once per epoch, in fresh order")
    settings = {"learning_rate": 0.001, "momentum": 0.9}
    optimizer = SGDPlus(**settings, seed=0)
    model, times = train(
        optimizer,
        x_train,
        y_train,
        batch_size=256,
        epochs=EPOCHS,
        validation_data=(x_test, y_test),
    )
    accuracies = model.history.history["val_accuracy"]
    updates = int(optimizer.iterations)
    for epoch in (1, 2, 5, EPOCHS):
        print(f"  test accuracy after epoch {epoch:2d}    {accuracies[epoch - 1]:.3f}")
    print(f"  weight updates              {updates:,} ({EPOCHS} x {images:,})")
    first, later = times.seconds[0], np.median(times.seconds[1:])
    print(f"  first epoch                 {first:.1f} s, most of it compilation")
    print(f"  an epoch after that         {later * 1e3:.0f} ms")
    assert updates == EPOCHS * images
    assert accuracies[-1] > 0.9

    print("Keras at batch_size=1: the same images in the same order, 3 epochs each")
    given = {"epochs": 3, "shuffle": False}
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
    print(f"  SGDPlus, batch_size=256     {fast * 1e3:,.0f} ms per epoch")
    print(f"  Keras SGD, batch_size=1     {slow * 1e3:,.0f} ms per epoch")
    print(f"  SGDPlus is faster by        {slow / fast:.0f} times")
    print(
        f"  weights differ by           {difference:.0e}, the largest is {largest:.2f}"
    )
    assert difference < 1e-4 * largest
    if "--update-figure" in sys.argv[1:]:
        draw(
            accuracies,
            {"SGDPlus": fast * 1e3, "Keras SGD,\nbatch_size=1": slow * 1e3},
        )


if __name__ == "__main__":
    main()
