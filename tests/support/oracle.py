"""The textbook in NumPy float64: one example at a time, no TensorFlow.

It has a network with one tanh layer and a linear head (or the head alone) and squared
error. It writes out the update rule of `keras.optimizers.SGD` from Keras's
documentation, not from this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = list[np.ndarray]


@dataclass
class Oracle:
    """Weights `[kernel, bias] * layers`, trained by `visit`."""

    weights: Arrays
    learning_rate: float | Callable[[int], float] = 0.02
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clipnorm: float | None = None
    clipvalue: float | None = None
    global_clipnorm: float | None = None
    use_ema: bool = False
    ema_momentum: float = 0.99
    ema_overwrite_frequency: int | None = None
    gradient_accumulation_steps: int = 1
    max_loss_fraction: float | None = None
    capped: int = 0
    iterations: int = 0
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = [w.astype("float64") for w in self.weights]
        self.velocities = [np.zeros_like(w) for w in self.weights]
        self.averages = [np.zeros_like(w) for w in self.weights]
        self.sums = [np.zeros_like(w) for w in self.weights]

    def gradients(self, x: np.ndarray, y: np.ndarray) -> tuple[Arrays, float]:
        """Gradients of the mean squared error of the rows of x, and that error."""
        head, bias = self.weights[-2:]
        hidden = x
        if len(self.weights) == 4:
            hidden = np.tanh(x @ self.weights[0] + self.weights[1])
        error = hidden @ head + bias - y
        slope = 2 * error / error.size
        grads = [hidden.T @ slope, slope.sum(0)]
        if len(self.weights) == 4:
            inner = (slope @ head.T) * (1 - hidden**2)
            grads = [x.T @ inner, inner.sum(0), *grads]
        return grads, float(np.mean(error**2))

    def visit(self, x: np.ndarray, y: np.ndarray, order: Sequence[Any]) -> None:
        """One update per entry of `order`: a position, or a list of positions."""
        x, y = x.astype("float64"), y.astype("float64")
        for positions in order:
            rows = np.atleast_1d(positions)
            grads, loss = self.gradients(x[rows], y[rows])
            self.losses.append(loss)
            self.update(grads, loss)

    def update(self, grads: Arrays, loss: float) -> None:
        """One call of the optimizer with the gradients of a loss."""
        steps = self.gradient_accumulation_steps
        self.sums = [s + g for s, g in zip(self.sums, grads, strict=True)]
        if (self.iterations + 1) % steps == 0:
            means = [s / steps for s in self.sums]
            self.step(self.clip(means), self.cap(means, loss))
            self.sums = [np.zeros_like(s) for s in self.sums]
        if self.use_ema:
            self.average(self.iterations // steps)
        self.iterations += 1

    def clip(self, grads: Arrays) -> Arrays:
        """At most one kind of clipping."""
        if self.clipnorm:
            return [g * min(1, self.clipnorm / np.linalg.norm(g)) for g in grads]
        if self.global_clipnorm:
            norm = np.sqrt(sum((g**2).sum() for g in grads))
            return [g * min(1, self.global_clipnorm / norm) for g in grads]
        if self.clipvalue:
            return [np.clip(g, -self.clipvalue, self.clipvalue) for g in grads]
        return grads

    def cap(self, grads: Arrays, loss: float) -> float:
        """The most that the learning rate may be, from gradients before clipping."""
        if self.max_loss_fraction is None:
            return np.inf
        clipped = self.clip(grads)
        product = sum((g * c).sum() for g, c in zip(grads, clipped, strict=True))
        if not product > 0:
            return np.inf
        share = self.max_loss_fraction * (1 - self.momentum)
        return share * max(loss, 0.0) / product

    def step(self, grads: Arrays, cap: float = np.inf) -> None:
        """Decoupled decay, then momentum with the learning rate inside velocity."""
        lr = self.learning_rate
        lr = lr(self.iterations) if callable(lr) else lr
        self.capped += cap < lr
        lr = min(lr, cap)
        for i, g in enumerate(grads):
            self.weights[i] = self.weights[i] * (1 - lr * self.weight_decay)
            self.velocities[i] = self.momentum * self.velocities[i] - lr * g
            change = self.velocities[i]
            if self.nesterov:
                change = self.momentum * change - lr * g
            self.weights[i] = self.weights[i] + change

    def average(self, count: int) -> None:
        """Exponential moving average, started by the first weights it sees."""
        m = self.ema_momentum if count else 0.0
        overwrite = self.ema_overwrite_frequency
        for i, w in enumerate(self.weights):
            self.averages[i] = m * self.averages[i] + (1 - m) * w
            if overwrite and (count + 1) % overwrite == 0:
                self.weights[i] = self.averages[i]

    def finish(self) -> None:
        """Does what the end of `fit` does."""
        if self.use_ema:
            self.weights = list(self.averages)
