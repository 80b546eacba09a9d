"""One turn of the loop: one update, and the list of bad groups."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus import _lowering
from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.example_update import ExampleUpdate, Values
from keras_sgd_plus._loop.one_update import Logs, UpdateResult, update_once
from keras_sgd_plus._lowering import one_kernel
from keras_sgd_plus._nonfinite import Skips, with_group
from keras_sgd_plus._pending import Entered, Shown
from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Tensor


class Turn(NamedTuple):
    # Facts that the trace of one turn of the loop found.
    changed: frozenset[int]
    surely_compiles: bool


@dataclass(frozen=True)
class Loop:
    # The objects that stay the same from turn to turn.
    update: ExampleUpdate
    leaves: Sequence[Tensor]
    order: Tensor
    compiled: bool
    lowered: bool
    one: Tensor  # () int32 that is 1, which XLA cannot know
    entered: Entered | None

    def turn(
        self,
        i: Any,
        values: Values,
        logs: Logs,
        skips: Any,
        fence: Tensor,
        pending: Any,
    ) -> tuple[tuple[Any, ...], Turn]:
        # The loop's carry after group number i.
        positions = self.positions(i)
        group = self.group_at(positions)
        with self.forms():
            entered = self.entered
            shown = None if entered is None else entered.show(values, pending)
            result, skips = update_and_list(
                self.update, values, group, positions, logs, skips, self.lowered, shown
            )
        surely_compiles = False
        if self.compiled:
            graph = tf.compat.v1.get_default_graph()
            surely_compiles = xla.surely_takes(graph)
            fence = one_kernel.fenced(graph, fence, i)
        carry = (i + 1, result.values, result.logs, skips, fence, result.pending)
        return carry, Turn(result.changed, surely_compiles)

    def positions(self, i: Any) -> Any:
        """(k,) int32: where the examples of group number i are in the batch."""
        size = self.update.group_size
        positions = i * size + tf.range(size, dtype=tf.int32)
        return positions if self.order is None else tf.gather(self.order, positions)

    def group_at(self, positions: Tensor) -> list[Any]:
        """The tensors of the examples at these positions."""
        return [examples.gather_examples(leaf, positions) for leaf in self.leaves]

    def forms(self) -> contextlib.AbstractContextManager[None]:
        # While it is open, Keras's functions take the forms that suit XLA, if they may.
        return _lowering.active(self.one) if self.lowered else contextlib.nullcontext()


def update_and_list(
    update: ExampleUpdate,
    values: Values,
    group: Sequence[Tensor],
    positions: Tensor,
    logs: Logs,
    skips: Any,
    lowered: bool = False,
    pending: Shown | None = None,
) -> tuple[UpdateResult, Skips | tuple[()]]:
    # One update; a bad group is listed, and the logs stay those of the group before.
    result = update_once(update, values, group, lowered, skips or None, pending)
    guard = result.guard
    if guard is not None:
        result = result._replace(logs=guard.logs(result.logs, logs))
        skips = with_group(skips, guard.cause, positions, result.has_started)
    return result, skips
