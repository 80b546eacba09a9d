"""A generative adversarial network: two networks, and an SGDPlus for each of them.

    python examples/gan.py

A GAN has two optimizers and one `train_step`. Keras's examples write a tape and
`apply_gradients` for each network, which makes one update per batch. Here each
optimizer gets a whole model and a batch, and makes one update per example:

- the judge learns from true points (label 1) and made-up ones (label 0);
- the forger's model is the generator with the judge behind it. Its examples are noise,
  its label is always 1, and the judge is frozen while it learns.

The points lie on a circle. The forger has to learn the circle from the judge alone.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from keras_sgd_plus import SGDPlus

NOISE = 4  # numbers that the forger starts from
BATCH = 500


def network(inputs, outputs, activation=None):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            layers.Dense(32, "leaky_relu"),
            layers.Dense(32, "leaky_relu"),
            layers.Dense(outputs, activation),
        ]
    )


class Gan(keras.Model):
    """A forger and a judge, each compiled with an SGDPlus of its own."""

    def __init__(self):
        super().__init__()
        self.generator = network(NOISE, 2)
        self.judge = network(2, 1, "sigmoid")
        self.forger = keras.Sequential([self.generator, self.judge])
        self.noise = keras.random.SeedGenerator(0)

    def compile(self, judge_optimizer, forger_optimizer):
        super().compile()
        self.judge.compile(judge_optimizer, "binary_crossentropy")
        self.forger.compile(forger_optimizer, "binary_crossentropy")

    def train_step(self, data):
        ops = keras.ops
        size = ops.shape(data)[0]
        noise = keras.random.normal((size, NOISE), seed=self.noise)
        ones, zeros = ops.ones((size, 1)), ops.zeros((size, 1))
        # 1. The judge: an update per true point, and one per made-up point.
        points = ops.concatenate([data, self.generator(noise)])
        labels = ops.concatenate([ones, zeros])
        judge = self.judge.optimizer.train_step(self.judge, (points, labels))
        # 2. The forger: an update per vector of noise, through the frozen judge. This
        #    function is traced once, and the trace keeps what is frozen at this line.
        self.judge.trainable = False
        forger = self.forger.optimizer.train_step(self.forger, (noise, ones))
        self.judge.trainable = True
        return {"judge": judge["loss"], "forger": forger["loss"]}


def main():
    keras.utils.set_random_seed(0)
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 5000)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1).astype("float32")
    noise = np.random.default_rng(1).normal(size=(1000, NOISE)).astype("float32")
    gan = Gan()
    gan.compile(SGDPlus(0.02, seed=0), SGDPlus(0.02, seed=1))
    before = distance(gan.generator.predict(noise, verbose=0))
    gan.fit(circle, batch_size=BATCH, epochs=20, verbose=2)
    points = gan.generator.predict(noise, verbose=0)
    after = distance(points)
    counts = [int(m.optimizer.iterations) for m in (gan.judge, gan.forger)]
    print(f"{counts[0]:,} updates of the judge, {counts[1]:,} of the forger")
    print(f"mean distance from the circle: {before:.2f} before, {after:.2f} after")
    quarters = np.unique(np.sign(points), axis=0)
    assert counts == [2 * 20 * 5000, 20 * 5000]
    assert after < before / 2
    assert len(quarters) == 4  # not all of them in one place


def distance(points):
    return float(np.abs(np.linalg.norm(points, axis=1) - 1).mean())


if __name__ == "__main__":
    main()
