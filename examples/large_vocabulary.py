"""A text classifier with 131,072 embeddings, trained per example with momentum.

    python examples/large_vocabulary.py

Given 24 words of a file of Python's standard library, say which package they are from.
Words and pairs of words are hashed to rows of one table, their embeddings are averaged,
and one Dense layer follows (Joulin et al., 2017, https://arxiv.org/abs/1607.01759).

Each arm is trained in a process of its own, for its peak memory. Per arm, the learning
rate is the one of two with the best accuracy on the validation files.
"""

import json
import re
import resource
import subprocess
import sys
import sysconfig
import time
import zlib
from pathlib import Path

import numpy as np

ROWS, WIDTH, WORDS, EPOCHS = 2**17, 16, 24, 2
PACKAGES = (
    "asyncio ctypes distutils email encodings http idlelib importlib json lib2to3 "
    "logging multiprocessing tkinter unittest urllib xml"
).split()
RATES = {"SGDPlus, per example": (0.02, 0.05), "Keras SGD, batch 32": (1, 4)}


def windows(text):
    """Lists of hashed words and pairs of words, one list per 24 words."""
    words = re.findall(r"[A-Za-z_]+", text)
    for start in range(0, len(words) - WORDS, WORDS):
        part = words[start : start + WORDS]
        pairs = [f"{a} {b}" for a, b in zip(part, part[1:], strict=False)]
        yield [zlib.crc32(each.encode()) % ROWS for each in part + pairs]


def load():
    """(ids, labels) for training, validation and test, split by file."""
    parts = [([], []) for _ in range(3)]
    library = Path(sysconfig.get_path("stdlib"))
    for label, package in enumerate(PACKAGES):
        for path in sorted((library / package).rglob("*.py")):
            name = path.relative_to(library).as_posix()
            tenth = zlib.crc32(name.encode()) % 10
            ids, labels = parts[{0: 1, 1: 2}.get(tenth, 0)]
            found = list(windows(path.read_text(errors="replace")))
            ids += found
            labels += [label] * len(found)
    return [(np.array(i, "int32"), np.array(y, "int32")) for i, y in parts]


def train(arm, rate):
    """Trains and prints what came out, as JSON."""
    import keras

    from keras_sgd_plus import SGDPlus

    train, validation, test = load()
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((2 * WORDS - 1,), dtype="int32"),
        keras.layers.Embedding(ROWS, WIDTH),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(len(PACKAGES)),
    ]
    model = keras.Sequential(layers)
    ours = arm.startswith("SGDPlus")
    optimizer = (SGDPlus if ours else keras.optimizers.SGD)(rate, momentum=0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    start = time.perf_counter()
    model.fit(*train, batch_size=4096 if ours else 32, epochs=EPOCHS, verbose=0)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {
        "rate": rate,
        "examples": len(train[1]),
        "seconds": seconds,
        "peak MiB": peak,
        "validation": model.evaluate(*validation, verbose=0)[1],
        "test": model.evaluate(*test, verbose=0)[1],
    }
    print(json.dumps(found))


def main():
    best = {}
    for arm, rates in RATES.items():
        runs = []
        for rate in rates:
            command = [sys.executable, __file__, arm, str(rate)]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(ran.stdout.splitlines()[-1]))
        best[arm] = max(runs, key=lambda run: run["validation"])
    examples = next(iter(best.values()))["examples"]
    print(f"{examples:,} examples, {EPOCHS} epochs, a table of {ROWS:,} x {WIDTH}")
    for arm, run in best.items():
        print(
            f"{arm}: {run['test']:.1%} of the test examples right, "
            f"{run['seconds']:.1f} s with compilation, peak {run['peak MiB']:.0f} MiB "
            f"(learning rate {run['rate']:g})"
        )
    ours, theirs = best.values()
    assert ours["test"] > 0.6, "far above chance"
    # Files of one package are alike, so a few points between arms are chance.
    assert ours["test"] > theirs["test"] - 0.05, "about as good as minibatches"
    assert ours["seconds"] < theirs["seconds"] / 2, "in less than half the time"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(sys.argv[1], float(sys.argv[2]))
    else:
        main()
