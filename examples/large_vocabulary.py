"""A text classifier with 131,072 embeddings: SGDPlus beside SGD and Adam of Keras.

You will see one line per optimizer: the share of test examples that it gets right, the
seconds of training, the peak memory of its process, and the number of updates. Lines
below the table say how to read them.

The lesson: momentum moves all rows of an embedding table at every update, also those
that no word of the batch has looked up. Keras does that for SGD with momentum and for
Adam, so each batch of 32 costs a pass over the whole table. SGDPlus moves the rows that
an example looks up, and brings all others up to date once per batch of 4,096. Its
result is the same as if every update had moved every row. That saves time, at any
number of rows. It says nothing about accuracy: Adam gives rare words larger steps, and
is the more accurate one here, in many times the time.

The task: given 24 words of a file of Python's standard library, say which package they
are from. The model hashes words and pairs of words to rows of one table, averages their
embeddings, and has one Dense layer (Joulin et al., 2017,
https://arxiv.org/abs/1607.01759).

Run it with `python examples/large_vocabulary.py`; it takes about two minutes, most of
them Adam's. Each training runs in a process of its own, so that its peak memory can be
read. Each optimizer tries two learning rates and keeps the one that is better on the
validation files.
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
OURS, SGD, ADAM = "SGDPlus, per example", "Keras SGD, batch 32", "Keras Adam, batch 32"
RATES = {OURS: (0.02, 0.05), SGD: (1, 4), ADAM: (0.001, 0.003)}
BATCH_SIZES = {OURS: 4096, SGD: 32, ADAM: 32}
HOW_TO_READ = """\
right    Share of the windows of the test files. The most frequent package alone would
         give {most_frequent:.1%}. Files of one package are alike, so a few points
         between rows are chance. Adam gives rare words larger steps than SGD does.
seconds  Of `fit`, compilation included. Keras moves all {rows:,} rows at each
         update of 32 examples. SGDPlus moves the rows that its example looks up,
         {words} at most, and brings the others up to date once per batch of {batch:,}.
         Adam takes {times:.0f} times as long as SGDPlus.
peak     Memory of the process. The table takes 8 MiB, its velocities as much, and
         Adam's averages twice as much. All else is TensorFlow, the data, and the
         compilation of SGDPlus's loop.
updates  {epochs} epochs of one update per example, or of one per 32 examples.
rate     The better of two on the validation files. Rates of different rows do not
         compare: a step of one example is noisier than a step of 32, and Adam divides
         its step by the size of recent gradients.
"""


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


def make_optimizer(arm, rate):
    """The optimizer of an arm; both kinds of SGD have momentum 0.9."""
    import keras

    from keras_sgd_plus import SGDPlus

    if arm == ADAM:
        return keras.optimizers.Adam(rate)
    return (SGDPlus if arm == OURS else keras.optimizers.SGD)(rate, momentum=0.9)


def train(arm, rate):
    """Trains with one optimizer and one rate, and prints the findings as JSON."""
    import keras

    train, validation, test = load()
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((2 * WORDS - 1,), dtype="int32"),
        keras.layers.Embedding(ROWS, WIDTH),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(len(PACKAGES)),
    ]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # The fastest setting for batches of 32: Keras makes 32 updates in one call.
    steps = 1 if arm == OURS else 32
    settings = {"metrics": ["accuracy"], "steps_per_execution": steps}
    model.compile(make_optimizer(arm, rate), loss, **settings)
    start, cpu_start = time.perf_counter(), time.process_time()
    model.fit(*train, batch_size=BATCH_SIZES[arm], epochs=EPOCHS, verbose=0)
    seconds = time.perf_counter() - start
    cpu_seconds = time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {
        "rate": rate,
        "examples": len(train[1]),
        "most frequent": float(np.mean(test[1] == np.bincount(train[1]).argmax())),
        "updates": int(model.optimizer.iterations),
        "seconds": seconds,
        "CPU seconds": cpu_seconds,
        "peak MiB": peak,
        "validation": model.evaluate(*validation, verbose=0)[1],
        "test": model.evaluate(*test, verbose=0)[1],
    }
    print(json.dumps(found))


def how_to_read(best):
    """The meaning of each column, with the numbers of this run."""
    ours, adam = best[OURS], best[ADAM]
    return HOW_TO_READ.format(
        most_frequent=ours["most frequent"],
        rows=ROWS,
        words=2 * WORDS - 1,
        batch=BATCH_SIZES[OURS],
        times=adam["seconds"] / ours["seconds"],
        epochs=EPOCHS,
    )


def main():
    best = {}
    for arm, rates in RATES.items():
        runs = []
        for rate in rates:
            command = [sys.executable, __file__, arm, str(rate)]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(ran.stdout.splitlines()[-1]))
        best[arm] = max(runs, key=lambda run: run["validation"])
    examples = best[OURS]["examples"]
    print(f"{examples:,} examples, {EPOCHS} epochs, a table of {ROWS:,} x {WIDTH}")
    print(f"  {'':20}   right  seconds  peak MiB  updates   rate")
    for arm, run in best.items():
        print(
            f"  {arm:20}  {run['test']:6.1%} {run['seconds']:8.1f} "
            f"{run['peak MiB']:9.0f} {run['updates']:8,} {run['rate']:6g}"
        )
    print(how_to_read(best), end="")
    ours, sgd, adam = (best[arm] for arm in (OURS, SGD, ADAM))
    assert ours["updates"] == EPOCHS * examples
    assert ours["test"] > 0.6, "far above the most frequent package"
    assert ours["test"] > sgd["test"] - 0.05, "about as good as SGD on minibatches"
    assert adam["test"] > ours["test"], "Adam is the more accurate one"
    # Other programs on the machine slow these less than the seconds of the table.
    cpu = {arm: run["CPU seconds"] for arm, run in best.items()}
    assert cpu[OURS] < cpu[SGD] / 2, "in less than half the CPU time"
    assert cpu[OURS] < cpu[ADAM] / 2, "in less than half of Adam's CPU time"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(sys.argv[1], float(sys.argv[2]))
    else:
        main()
