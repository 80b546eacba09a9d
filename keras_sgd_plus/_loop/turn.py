"""One turn of the loop: one update, and the list of bad groups."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
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
from keras_sgd_plus._records import with_record


class Turn(NamedTuple):
    """Facts that the trace of one turn of the loop has found.

    Attributes:
        changed: positions in the carry of values that may be new.
        surely_compiles: whether XLA is known to take the body.
    """

    changed: frozenset[int]
    surely_compiles: bool


@dataclass(frozen=True)
class Loop:
    """The objects that stay the same from turn to turn.

    Attributes:
        update: given its numbers.
        leaves: tensors of the batch, (num_examples or more, ...).
        order: positions to visit, (num_examples or more,) int32, or None.
        compiled: whether XLA compiles the loop.
        lowered: whether forms that suit XLA are used.
        one: () int32 that is 1, which XLA cannot know.
        entered: weights whose updates wait, or None.
    """

    update: ExampleUpdate
    leaves: Sequence[Tensor]
    order: Tensor
    compiled: bool
    lowered: bool
    one: Tensor
    entered: Entered | None

    def body(self, turns: list[Turn]) -> Callable[..., tuple[Any, ...]]:
        """The body of `tf.while_loop`; `turns` gets the facts of each trace."""

        def body_fn(*carry: Any) -> tuple[Any, ...]:
            carry, turn = self._turn(*carry)
            turns.append(turn)
            return carry

        return body_fn

    def _turn(
        self,
        i: Any,
        values: Values,
        logs: Logs,
        skips: Any,
        records: Any,
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
        records = with_record(records, i, result.record)
        surely_compiles = False
        if self.compiled:
            graph = tf.compat.v1.get_default_graph()
            surely_compiles = xla.surely_takes(graph)
            fence = one_kernel.fenced(graph, fence)
        done = (result.values, result.logs, skips, records, fence, result.pending)
        carry = (i + 1, *done)
        return carry, Turn(result.changed, surely_compiles)

    def positions(self, i: Any) -> Any:
        """(k,) int32: where the examples of group number i are in the batch."""
        size = self.update.group_size
        if size == 1:  # fewer operations, which are traced and compiled
            positions = tf.reshape(i, (1,))
        else:
            positions = i * size + tf.range(size, dtype=tf.int32)
        return positions if self.order is None else tf.gather(self.order, positions)

    def group_at(self, positions: Tensor) -> list[Any]:
        """The tensors of the examples at these positions."""
        return [examples.gather_examples(leaf, positions) for leaf in self.leaves]

    def forms(self) -> contextlib.AbstractContextManager[None]:
        """While it is open, Keras's functions take the forms that suit XLA, if any."""
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
    """One update; a bad group is listed, and the logs stay those of the group before.

    Arguments are those of `update_once`, and `positions`, (k or fewer,) int32, of the
    examples in the batch.
    """
    result = update_once(update, values, group, lowered, skips or None, pending)
    guard = result.guard
    if guard is not None:
        result = result._replace(logs=guard.logs(result.logs, logs))
        skips = with_group(skips, guard.cause, positions, result.has_started)
    return result, skips
