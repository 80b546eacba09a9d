"""Forward and backward pass on one group of examples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from keras_sgd_plus._loop.example_update import ExampleUpdate
from keras_sgd_plus._loop.scope import Scope
from keras_sgd_plus._lowering import one_kernel
from keras_sgd_plus._private import keras_model
from keras_sgd_plus._private.types import Structure, Tensor, Variable
from keras_sgd_plus._rule import Gradient, as_gradient


class BackwardResult(NamedTuple):
    """The results of forward and backward pass.

    Attributes:
        y_pred: the outputs of the model.
        loss: () float, that the gradients are of, before loss scaling.
        gradients: per trainable variable; None where the loss does not depend on it.
        readers: the products that read weights in the backward pass; None where forms
            that suit XLA are not used.
    """

    y_pred: Structure
    loss: Tensor
    gradients: list[Gradient | None]
    readers: one_kernel.BackwardReaders | None

    def by_index(self, update: ExampleUpdate) -> dict[int, Gradient]:
        """The gradients that there are, by their index among the rule's weights."""
        if not self.gradients:
            return {}
        pairs = zip(update.indices, self.gradients, strict=True)
        return {i: g for i, g in pairs if g is not None}


def backward(
    update: ExampleUpdate,
    scope: Scope,
    data: Structure,
    num_examples: Tensor,
    lowered: bool,
) -> BackwardResult:
    """The loss of a group and its gradients; the loss tracker gets the loss.

    Args:
        update: the update.
        scope: open, with the weights to use.
        data: `(x, y, sample_weight)` of the group.
        num_examples: in the group.
        lowered: whether forms that suit XLA are used.
    """
    model, (x, y, sample_weight) = update.model, data
    with scope.record() as tape:
        y_pred = keras_model.forward(model, x)
        loss = keras_model.compute_loss(model, x, y, y_pred, sample_weight)
        tracker = keras_model.loss_tracker(model)
        if tracker is not None:
            tracker.update_state(loss, sample_weight=num_examples)
        scaled = update.outer.scale_loss(loss)
    if not update.carry.trainable:
        return BackwardResult(y_pred, loss, [], None)
    readers = one_kernel.BackwardReaders() if lowered else None
    tensors = scope.gradients(tape, scaled)
    gradients = [as_gradient(t, factored_norms=lowered) for t in tensors]
    return BackwardResult(y_pred, loss, gradients, readers)


def check_gradients(
    gradients: Sequence[Gradient | None], trainable: Sequence[Variable]
) -> None:
    """Raises ValueError where no variable has a gradient; warns of those without."""
    pairs = zip(gradients, trainable, strict=True)
    missing = [v.path for g, v in pairs if g is None]
    if len(missing) == len(gradients):
        raise ValueError(
            "The loss must depend on at least one trainable variable. Received: no "
            f"gradient for any of {missing}. Check `loss` in compile() and "
            "`compute_loss`."
        )
    if missing:
        warnings.warn(
            f"Gradients do not exist for variables {missing} when minimizing the loss; "
            "they are left as they are. If that is not meant, check `loss` in "
            "compile()."
        )
