"""A small causal transformer learns to write, by vanilla SGD, a sequence at a time.

No momentum, no Adam, no warm-up, no mini-batch: one update per sequence of 64
characters. The text is Python's own documentation, which ships with Python; the model
prints what it writes before and after. Run with `python examples/char_lm.py`; it takes
under two minutes.
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
EPOCHS = 5


def load_text() -> str:
    """Each paragraph once, since what is trained on must not be tested on.

    Any other text will do.
    """
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


def cut(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of 64 characters, and of the characters that follow each of them."""
    count = (len(codes) - 1) // LENGTH
    x = codes[: count * LENGTH].reshape(count, LENGTH)
    y = codes[1 : count * LENGTH + 1].reshape(count, LENGTH)
    return x, y


def make_model(letters: int) -> keras.Model:
    """A pre-norm transformer; it gives logits, (sequences, 64, letters)."""
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
    """What the model goes on with after 64 characters: 120 more, drawn one by one."""
    rng = np.random.default_rng(0)
    codes = list(start)
    for _ in range(120):
        logits = model(np.array(codes[-LENGTH:])[None], training=False)[0, -1]
        chances = np.exp(np.array(logits, "float64") / temperature)
        codes.append(rng.choice(len(letters), p=chances / chances.sum()))
    return "".join(letters[c] for c in codes[LENGTH:])


def main() -> None:
    """Trains, prints samples and losses, asserts that it has learnt."""
    text = load_text()
    letters = sorted(set(text))
    codes = np.array([letters.index(c) for c in text], "int32")
    held_out = 30_000
    x, y = cut(codes[:-held_out])
    x_test, y_test = cut(codes[-held_out:])
    model = make_model(len(letters))
    model.compile(
        optimizer=SGDPlus(learning_rate=0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    before = model.evaluate(x_test, y_test, verbose=0)
    print(f"{model.count_params():,} weights, {len(x):,} sequences, {EPOCHS} epochs.")
    print(f"Before, {before:.2f} nats per character on text that is not trained on:")
    print(f"  {write(model, x_test[0], letters)!r}")

    start = time.perf_counter()
    model.fit(x, y, batch_size=1_024, epochs=EPOCHS, verbose=2)
    seconds = time.perf_counter() - start

    after = model.evaluate(x_test, y_test, verbose=0)
    updates = int(model.optimizer.iterations)
    print(f"After {updates:,} updates in {seconds:.0f} s, {after:.2f} nats:")
    print(f"  {write(model, x_test[0], letters)!r}")
    frequencies = np.unique(codes, return_counts=True)[1] / len(codes)
    entropy = -np.sum(frequencies * np.log(frequencies))
    print(f"Single characters, without what came before, have {entropy:.2f} nats.")
    assert updates == EPOCHS * len(x)
    assert after < entropy - 1


if __name__ == "__main__":
    main()
