"""A step that looks at the loss of its own update (`max_loss_fraction`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from keras_sgd_plus._private.types import Optimizer
from keras_sgd_plus._rule.inner import inner
from keras_sgd_plus._rule.numbers import Number
from keras_sgd_plus._rule.part import Part, Update


@dataclass(frozen=True)
class CapStep(Part):
    """Lets an update remove, to first order, at most a fraction of its own loss.

    cap = max_loss_fraction * (1 - momentum) * max(f, 0) / <g, g'>
    learning_rate = cap where cap < learning_rate

    f is the loss of the update, g its gradient, g' that after clipping. One kick of
    size s moves the weights by s / (1 - momentum) in the end, hence that factor.

    Asi and Duchi, 2019 (https://arxiv.org/abs/1903.08619); Loizou et al., 2021
    (https://arxiv.org/abs/2002.10542); with momentum, Oikonomou and Loizou, 2024
    (https://arxiv.org/abs/2406.04142).
    """

    settings = ("gradient_accumulation_steps",)
    numbers = (Number("max_loss_fraction", "max_loss_fraction"),)

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Any]) -> CapStep | None:
        del weights
        if optimizer.max_loss_fraction is None:
            return None
        refuse(optimizer)  # settings of Keras are not checked when they are assigned
        return cls()

    def __call__(self, update: Update) -> Update:
        after = update.gradients
        before = after if update.unclipped is None else update.unclipped
        products = [inner(before[i], g) for i, g in after.items()]
        is_wide = any(p.dtype == tf.float64 for p in products)
        dtype = tf.float64 if is_wide else tf.float32
        product = tf.add_n([tf.cast(p, dtype) for p in products])
        numbers: Any = update.numbers
        share = numbers["max_loss_fraction"] * (1 - numbers["momentum"])
        # Where the product overflows, an infinite loss must not give NaN.
        loss = tf.clip_by_value(tf.cast(update.loss, dtype), 0, dtype.max)
        cap = tf.cast(share, dtype) * loss / product
        rates = list(update.learning_rates)
        for i in after:
            # NaN (no loss and no gradient, say) is not below the rate. Each weight
            # keeps its own rate, which may wait for the products that read the weight.
            rate = tf.cast(rates[i], dtype)
            rates[i] = tf.where(cap < rate, cap, rate)
        first = tf.cast(update.learning_rates[next(iter(after))], dtype)
        return replace(update, learning_rates=rates, capped=cap < first)

    @property
    def varies_rate(self) -> bool:
        return True

    def needs_all_of(self, index: int) -> str | None:
        del index
        return None  # the product is that of the gradient's rows


def refuse(optimizer: Optimizer) -> None:
    """Raises NotImplementedError where updates do not have a loss of their own.

    Args:
        optimizer: an SGDPlus with a `max_loss_fraction`.
    """
    received = None
    if optimizer.gradient_accumulation_steps:
        steps = optimizer.gradient_accumulation_steps
        received = f"gradient_accumulation_steps={steps}"
        fix = "Use examples_per_update=k to average k of them."
    elif optimizer.examples_per_update is None:
        received = "examples_per_update=None"
        fix = "Use 1 or more, whose loop sees each loss."
    if received is not None:
        raise NotImplementedError(
            "With `max_loss_fraction` each update must be made from the loss and the "
            f"gradient of the same examples. Received: {received}, with "
            f"max_loss_fraction={optimizer.max_loss_fraction!r}. {fix}"
        )
