"""A generative adversarial network: two networks, each with an SGDPlus of its own.

You will see the losses of both networks by epoch. Then the script prints the mean and
the standard deviation of the true numbers and of the numbers that the generator makes
up: they are close.

The lesson: a model with two optimizers needs no tape. Keras's examples write a tape and
`apply_gradients` for each network, which makes one update per batch. Here each
optimizer gets a compiled model and a batch, and makes one update per example:

- The judge learns from true numbers (label 1) and from made-up ones (label 0).
- The forger is the generator with the judge behind it. Its examples are noise, their
  label is always 1, and the judge is frozen while the forger learns.

The true numbers are normal, with mean 3 and standard deviation 0.5. The forger learns
both from the judge alone. After `batch_size` examples of one network, the other takes
its turn.

Run it with `python examples/gan.py`; it takes less than a minute.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from keras_sgd_plus import SGDPlus

EPOCHS, BATCH = 10, 50
NUM_EXAMPLES = 5000


class Gan(keras.Model):
    """A forger and a judge, each compiled with an SGDPlus of its own."""

    def __init__(self):
        super().__init__()
        layers = keras.layers
        self.generator = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
        self.judge = keras.Sequential(
            [
                keras.Input((1,)),
                layers.Dense(16, "tanh"),
                layers.Dense(1, "sigmoid"),
            ]
        )
        self.forger = keras.Sequential([self.generator, self.judge])
        self.noise = keras.random.SeedGenerator(0)

    def compile(self, judge_optimizer, forger_optimizer):
        super().compile()
        self.judge.compile(judge_optimizer, "binary_crossentropy")
        self.forger.compile(forger_optimizer, "binary_crossentropy")

    def train_step(self, data):
        ops = keras.ops
        size = ops.shape(data)[0]
        noise = keras.random.normal((size, 1), seed=self.noise)
        ones, zeros = ops.ones((size, 1)), ops.zeros((size, 1))
        # 1. The judge: an update for each true number, and for each made-up one.
        numbers = ops.concatenate([data, self.generator(noise)])
        labels = ops.concatenate([ones, zeros])
        judge = self.judge.optimizer.train_step(self.judge, (numbers, labels))
        # 2. The forger: an update for each number of noise, through the frozen judge.
        #    Keras traces this function once: the trace keeps what is frozen here.
        self.judge.trainable = False
        forger = self.forger.optimizer.train_step(self.forger, (noise, ones))
        self.judge.trainable = True
        return {"judge": judge["loss"], "forger": forger["loss"]}


def main():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    true = rng.normal(3, 0.5, size=(NUM_EXAMPLES, 1)).astype("float32")
    noise = rng.normal(size=(NUM_EXAMPLES, 1)).astype("float32")
    gan = Gan()
    gan.compile(SGDPlus(0.01, seed=0), SGDPlus(0.01, seed=1))
    gan.fit(true, batch_size=BATCH, epochs=EPOCHS, verbose=2)
    made = gan.generator.predict(noise, verbose=0)
    of_judge, of_forger = (int(m.optimizer.iterations) for m in (gan.judge, gan.forger))
    print(f"{of_judge:,} updates of the judge, {of_forger:,} of the forger")
    print(f"true numbers:    mean {true.mean():.2f}, deviation {true.std():.2f}")
    print(f"made-up numbers: mean {made.mean():.2f}, deviation {made.std():.2f}")
    assert of_judge == 2 * of_forger == 2 * EPOCHS * NUM_EXAMPLES
    assert abs(made.mean() - 3) < 0.3
    assert 0.25 < made.std() < 0.75


if __name__ == "__main__":
    main()
