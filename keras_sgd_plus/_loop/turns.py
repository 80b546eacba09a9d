"""One turn of the loop: the examples that are visited next, one update, its record."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus._forms import one_kernel, tracing
from keras_sgd_plus._lazy.blocks import EnteredBlock
from keras_sgd_plus._lazy.tables import EnteredTables
from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.context import Context, Values
from keras_sgd_plus._loop.update import Logs, Shown, UpdateResult, update_once
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Tensor
from keras_sgd_plus._report.guard import Skips, with_group
from keras_sgd_plus._report.records import with_record


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
        context: given its numbers.
        leaves: tensors of the batch, (num_examples or more, ...).
        order: positions to visit, (num_examples or more,) int32, or None.
        compiled: whether XLA compiles the loop.
        lowered: whether forms that suit XLA are used.
        one: () int32 that is 1, which XLA cannot know.
        entered: weights whose updates wait, or None.
    """

    context: Context
    leaves: Sequence[Tensor]
    order: Tensor | None
    compiled: bool
    lowered: bool
    one: Tensor
    entered: EnteredTables | EnteredBlock | None

    def body(self, turns: list[Turn]) -> Callable[..., tuple[Any, ...]]:
        """The body of `tf.while_loop`; `turns` gets the facts of each trace."""

        def body_fn(*carry: Any) -> tuple[Any, ...]:
            with private_tensorflow.shared_constants():
                carry, turn = self._turn(*carry)
            turns.append(turn)
            return carry

        return body_fn

    def _turn(
        self,
        i: Tensor,
        values: Values,
        logs: Logs,
        skips: Any,
        records: Any,
        fence: Tensor,
        lazy: Any,
    ) -> tuple[tuple[Any, ...], Turn]:
        # The loop's carry after group number i.
        size = self.context.group_size
        positions = examples.group_positions(i, size, self.order)
        group = self.group_at(positions)
        with self.forms():
            entered = self.entered
            shown = None if entered is None else entered.show(values, lazy)
            result, skips = update_and_list(
                self.context, values, group, positions, logs, skips, self.lowered, shown
            )
        records = with_record(records, i, result.record)
        surely_compiles = False
        if self.compiled:
            graph = tf.compat.v1.get_default_graph()
            surely_compiles = xla.surely_takes(graph)
            fence = one_kernel.fenced(graph, fence)
        done = (result.values, result.logs, skips, records, fence, result.lazy)
        carry = (i + 1, *done)
        return carry, Turn(result.changed, surely_compiles)

    def group_at(self, positions: Tensor) -> list[Tensor]:
        """The tensors of the examples at these positions."""
        return [examples.gather_examples(leaf, positions) for leaf in self.leaves]

    def forms(self) -> contextlib.AbstractContextManager[None]:
        """While it is open, Keras's functions take the forms that suit XLA, if any."""
        return tracing.active(self.one) if self.lowered else contextlib.nullcontext()


def update_and_list(
    context: Context,
    values: Values,
    group: Sequence[Tensor],
    positions: Tensor,
    logs: Logs,
    skips: Any,
    lowered: bool = False,
    shown: Shown | None = None,
) -> tuple[UpdateResult, Skips | tuple[()]]:
    """One update; a bad group is listed, and the logs stay those of the group before.

    Arguments are those of `update_once`, and `positions`, (k or fewer,) int32, of the
    examples in the batch.
    """
    result = update_once(context, values, group, lowered, skips or None, shown)
    guard = result.guard
    if guard is not None:
        result = result._replace(logs=guard.logs(result.logs, logs))
        skips = with_group(skips, guard.cause, positions)
    return result, skips
