"""A small transformer learns to write, one update per sequence, beside Adam.

You will see the loss on text that was not trained on, for plain SGD and for Adam,
before and after the same number of seconds, and 120 characters that each model writes.
SGDPlus makes one update per sequence of 64 characters, without momentum, warm-up or
clipping. Keras's Adam makes one update per batch of 32 sequences, in its fastest
setting for small batches. Two more rows tell
what the losses mean: the loss before training, and the loss of a model that knows how
often each letter occurs and ignores the text before it.

The lesson: the gradient of one sequence is enough to train a transformer. It does not
follow that SGD is the better choice. The last line says which optimizer ends lower, and
for large models of text Adam is the usual and the better one.

Run it with `python examples/char_lm.py`; it takes under two minutes. The text is
Python's own documentation, which ships with Python.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import time

import keras
import numpy as np
from keras import layers, ops

from keras_sgd_plus import SGDPlus

LENGTH, WIDTH, HEADS, BLOCKS = 64, 64, 4, 2
SECONDS = 35  # of training, compilation included, for each optimizer
CALL = 1_024  # sequences per compiled call of SGDPlus; it changes the time only
HELD_OUT = 30_000  # characters at the end of the text, for the test


def load_text() -> str:
    """The text, with each paragraph once: the test must not repeat the training text.

    Any other text works, too.
    """
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


def cut(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of 64 characters, and the character that follows each of the 64."""
    count = (len(codes) - 1) // LENGTH
    x = codes[: count * LENGTH].reshape(count, LENGTH)
    y = codes[1 : count * LENGTH + 1].reshape(count, LENGTH)
    return x, y


def make_model(letters: int) -> keras.Model:
    """A pre-norm transformer with logits `(sequences, 64, letters)`."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((LENGTH,), dtype="int32")
    h = layers.Embedding(letters, WIDTH)(tokens)
    h = h + layers.Embedding(LENGTH, WIDTH)(ops.arange(LENGTH))
    for _ in range(BLOCKS):
        z = layers.LayerNormalization()(h)
        h = h + layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(
            z, z, use_causal_mask=True
        )
        z = layers.LayerNormalization()(h)
        h = h + layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, "relu")(z))
    return keras.Model(tokens, layers.Dense(letters)(layers.LayerNormalization()(h)))


def write(
    model: keras.Model, start: np.ndarray, letters: list[str], temperature: float = 0.7
) -> str:
    """120 characters that the model draws, one by one, after the 64 of `start`."""
    rng = np.random.default_rng(0)
    codes = list(start)
    for _ in range(120):
        logits = model(np.array(codes[-LENGTH:])[None], training=False)[0, -1]
        chances = np.exp(np.array(logits, "float64") / temperature)
        codes.append(rng.choice(len(letters), p=chances / chances.sum()))
    return "".join(letters[c] for c in codes[LENGTH:])


class StopAfter(keras.callbacks.Callback):
    """Ends `fit` with the first batch that ends after so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if time.perf_counter() - self.start > self.seconds:
            self.model.stop_training = True


def compiled(
    letters: int, optimizer: keras.optimizers.Optimizer, steps: int = 1
) -> keras.Model:
    """A fresh model; every call gives the same initial weights.

    `steps` are the batches that Keras trains on in one call.
    """
    model = make_model(letters)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, steps_per_execution=steps)
    return model


def main() -> None:
    """Trains both, prints losses and samples, asserts that both use the context."""
    text = load_text()
    letters = sorted(set(text))
    codes = np.array([letters.index(c) for c in text], "int32")
    x, y = cut(codes[:-HELD_OUT])
    whole = len(x) // CALL * CALL  # whole batches: no other size has to be compiled
    x, y = x[:whole], y[:whole]
    x_test, y_test = cut(codes[-HELD_OUT:])
    test = {"batch_size": len(x_test), "verbose": 0}
    frequencies = np.unique(codes, return_counts=True)[1] / len(codes)
    by_frequency = -float(np.sum(frequencies * np.log(frequencies)))

    # Name: optimizer, examples per batch, examples per update.
    arms = {
        "SGDPlus, per sequence": (SGDPlus(learning_rate=0.1, seed=0), CALL, 1),
        "Adam, batches of 32": (keras.optimizers.Adam(learning_rate=0.003), 32, 32),
    }
    model = compiled(len(letters), keras.optimizers.SGD())
    print(
        f"{model.count_params():,} weights, {len(x):,} sequences of {LENGTH} "
        f"characters, {SECONDS} s of training for each optimizer"
    )
    before = float(model.evaluate(x_test, y_test, **test))
    rows = [("before training", before, "")]
    rows.append(("letter frequencies alone", by_frequency, ""))
    samples = [("before training", write(model, x_test[0], letters))]
    losses = {}
    for name, (optimizer, batch_size, examples_per_update) in arms.items():
        model = compiled(len(letters), optimizer, steps=CALL // batch_size)
        fit = {"batch_size": batch_size, "epochs": 1_000, "verbose": 0}
        model.fit(x, y, callbacks=[StopAfter(SECONDS)], **fit)
        losses[name] = float(model.evaluate(x_test, y_test, **test))
        updates = int(optimizer.iterations)
        passes = updates * examples_per_update / len(x)
        note = f"{updates:,} updates, {passes:.1f} passes over the text"
        rows.append((name, losses[name], note))
        samples.append((name, write(model, x_test[0], letters)))

    print("Loss on text that was not trained on, nats per character, lower is better:")
    for name, value, note in rows:
        print(f"  {name:26} {value:5.2f}  {note}".rstrip())
    print("Each model continues the same 64 characters:")
    for name, sample in samples:
        print(f"  {name}: {sample!r}")
    best, other = sorted(losses, key=lambda name: losses[name])
    gap = losses[other] - losses[best]
    print(f"In the same time {best!r} ends lower, by {gap:.2f} nats.")
    assert max(losses.values()) < by_frequency - 0.5, "the models use the context"


if __name__ == "__main__":
    main()
