"""Stochastic gradient descent as in a textbook, by hand and then in one line.

You will see the cost of each epoch of a small network that a Python loop trains in the
six steps of the textbook. Then SGDPlus trains the same network on the same examples in
the same order. The last lines compare the seconds of both, and their weights, which are
equal up to rounding.

The lesson: SGDPlus is the algorithm of the textbook, compiled.

Run it with `python examples/textbook_sgd.py`; it takes less than a minute.
`--update-figure` also draws the path of two weights on a loss surface into
`examples/figures`, for updates of all examples, of sixteen, and of one. The learning
rate of each path is in proportion to its examples per update, up to the best rate for
all of them.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from keras_sgd_plus import SGDPlus

FIGURE = Path(__file__).parent / "figures" / "textbook_sgd.svg"
LEARNING_RATE, MOMENTUM, MAX_EPOCHS = 0.01, 0.5, 8
TOLERANCE = 0.05  # the cost has stopped falling if an epoch lowers it by less, nats

loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def by_hand(model, x, y, rng):
    """The textbook; returns the orders in which it visited the examples."""
    velocities = [tf.Variable(tf.zeros_like(w)) for w in model.trainable_weights]
    orders, cost = [], np.inf
    while len(orders) < MAX_EPOCHS:
        # 1. Shuffle the examples.
        orders.append(rng.permutation(len(x)))
        costs = []
        # 2. Take the next example, until each was visited once.
        for i in orders[-1]:
            # 3. Forward, and backpropagate its error.
            with tf.GradientTape() as tape:
                loss = loss_fn(y[i : i + 1], model(x[i : i + 1], training=True))
            gradients = tape.gradient(loss, model.trainable_weights)
            # 4. Update the weights of every layer.
            triples = zip(model.trainable_weights, velocities, gradients, strict=True)
            for weight, velocity, gradient in triples:
                velocity.assign(MOMENTUM * velocity - LEARNING_RATE * gradient)
                weight.assign_add(velocity)
            # 5. Go on with the next one.
            costs.append(float(loss))
        # 6. Stop when the cost stops falling.
        before, cost = cost, np.mean(costs)
        print(f"  epoch {len(orders)}: cost {cost:.3f}")
        if before - cost < TOLERANCE:
            break
    return orders


def make_model():
    """64 pixels, 16 hidden units, 10 classes; the same weights at every call."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((64,)),
        keras.layers.Dense(16, activation="tanh"),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers)


def compare():
    """Trains by hand and with SGDPlus, and compares the weights."""
    digits = load_digits()
    x, y = (digits.data[:300] / 16).astype("float32"), digits.target[:300]

    print(f"By hand, {len(x)} examples per epoch:")
    textbook = make_model()
    start = time.perf_counter()
    orders = by_hand(textbook, x, y, np.random.default_rng(0))
    slow = time.perf_counter() - start

    # The same in one line. To compare weights, it is handed the textbook's orders; by
    # itself it shuffles (`order="reshuffle"`), and one call of fit does it all.
    model = make_model()
    model.compile(SGDPlus(LEARNING_RATE, momentum=MOMENTUM, order="given"), loss_fn)
    start = time.perf_counter()
    for order in orders:
        model.fit(x[order], y[order], batch_size=len(x), shuffle=False, verbose=0)
    fast = time.perf_counter() - start

    pairs = zip(model.get_weights(), textbook.get_weights(), strict=True)
    difference = max(np.abs(a - b).max() for a, b in pairs)
    print(f"  {slow:.1f} s by hand, {fast:.1f} s with SGDPlus, compilation included")
    print(f"  largest difference of a weight {difference:.1e}")
    assert difference < 1e-5
    assert len(orders) > 1


def path(x, y, examples_per_update, updates, learning_rate):
    """The two weights of a linear model before and after each update."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[-1.5], [2.5]])])
    model.compile(
        SGDPlus(learning_rate, examples_per_update=examples_per_update), "mse"
    )
    rng, points = np.random.default_rng(1), [model.get_weights()[0][:, 0]]
    rows = np.concatenate([rng.permutation(len(x)) for _ in range(updates)])
    for i in range(updates):
        batch = rows[i * examples_per_update : (i + 1) * examples_per_update]
        model.train_on_batch(x[batch], y[batch])
        points.append(model.get_weights()[0][:, 0])
    return np.array(points)


def draw():
    """The paths of full-batch, minibatch and per-example gradient descent."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "keras_sgd_plus"
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 2)).astype("float32")
    x[:, 1] = 0.6 * x[:, 0] + 0.5 * x[:, 1]
    y = x @ np.array([[1.0], [-0.5]], "float32") + 0.5 * rng.normal(size=(64, 1))
    first, second = np.meshgrid(np.linspace(-2.2, 2.2, 50), np.linspace(-2, 3.2, 50))
    predictions = x[:, 0, None, None] * first + x[:, 1, None, None] * second
    surface = ((predictions - y[:, :, None]) ** 2).mean(0)
    lowest = np.linalg.lstsq(x, y, rcond=None)[0][:, 0]
    # No constant rate is better for full batches; one of 2 / curvature.max() diverges.
    curvature = np.linalg.eigvalsh(2 * x.T @ x / len(x))
    best = float(2 / (curvature.min() + curvature.max()))
    levels = surface.min() + np.geomspace(0.02, surface.max(), 10)

    figure, panels = plt.subplots(1, 3, figsize=(11, 3.8), sharey=True)
    names = {64: "all 64 examples per update", 16: "16 per update", 1: "1 per update"}
    for axes, (size, name) in zip(panels, names.items(), strict=True):
        updates = 2 * len(x) // size  # two passes through the examples
        rate = min(best, 0.05 * size)  # in proportion, as far as that goes
        points = path(x, y.astype("float32"), size, updates, rate)
        axes.contour(
            first, second, surface, levels=levels, colors="0.8", linewidths=0.8
        )
        axes.plot(points[:, 0], points[:, 1], "k-o", markersize=2.5, linewidth=0.8)
        axes.plot(*points[-1], "ks", markersize=7)
        axes.plot(*lowest, "k+", markersize=12)
        text = f"{name}:\n{updates} updates, learning rate {rate:.2g}"
        axes.set(title=text, xlabel="weight 1")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("weight 2")
    figure.suptitle(
        "Two passes through the examples. Lines of equal mean squared error; "
        "square: the end; cross: the lowest error"
    )
    figure.tight_layout()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})
    print(f"Written to {FIGURE.relative_to(FIGURE.parents[2])}.")
    return figure


if __name__ == "__main__":
    compare()
    if "--update-figure" in sys.argv[1:]:
        draw()
