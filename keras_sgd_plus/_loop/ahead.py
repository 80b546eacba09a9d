"""The front of a model that XLA refuses: it runs ahead of the loop, outside XLA.

A layer like RandomZoom or StringLookup at the front of a model would turn XLA off for
the whole loop. But no weight that is trained reaches it. So its calls are made before
the loop, one group of examples after the other, in the order of the visits, and the
loop is given what they returned, one row per example. The draws of such layers use up
seeds, so the loop is also given the seeds as each call left them.

`calls_ahead` finds the calls and makes them: it traces the model forward once, and
follows what its calls return back to what they depend on. While the loop is traced,
`Answers` put their rows in place of the calls, and make sure that nothing else needs
what the loop does not have.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import keras
import tensorflow as tf

from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.scope import Carry, Scope, TraceAgain, shown
from keras_sgd_plus._private import keras_model
from keras_sgd_plus._private.types import Layer, Model, Parts, Structure, Tensor


class CannotRunAhead(BaseException):
    """Why the front of a model cannot run ahead of the loop; a part of a sentence.

    Keras would add to the text of an `Exception` that passes through a layer.
    """


@dataclass(frozen=True)
class Output:
    """One tensor that a call returns.

    Attributes:
        spec: of the tensor, on one group of examples.
        row: its number among the rows that the loop is given; None for a tensor that
            XLA does not take, which only other calls that run ahead may use.
    """

    spec: Any
    row: int | None


class Call(NamedTuple):
    """A call of a layer that runs ahead.

    Attributes:
        layer: that is called.
        outputs: structure of `Output`s.
        seeds: positions in the carry of seeds that it changes -> numbers of their rows.
    """

    layer: Layer
    outputs: Any
    seeds: Mapping[int, int]


@dataclass(frozen=True)
class Ahead:
    """The calls of a model that run ahead of its loop.

    Attributes:
        model: the model in training.
        carry: its variables.
        calls: in their order.
        refused: ids of layers that XLA was found to refuse.
        reads: positions in the carry of variables that the calls depend on.
        missing: per tensor of a batch, None where the loop is given it; else its spec
            on one group.
    """

    model: Model
    carry: Carry
    calls: tuple[Call, ...]
    refused: frozenset[int]
    reads: frozenset[int]
    missing: tuple[Any, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Positions in the carry of the seeds that the calls change."""
        return tuple(dict.fromkeys(i for call in self.calls for i in call.seeds))

    def row_specs(self, group_size: int) -> list[tf.TensorSpec]:
        """Specs of the rows of one group, `(group_size, ...)`, in their order."""
        found = {}
        for call in self.calls:
            outputs = keras.tree.flatten(call.outputs)
            described = [o for o in outputs if isinstance(o, Output)]
            found.update({o.row: o.spec for o in described if o.row is not None})
            for position, row in call.seeds.items():
                variable = self.carry.variables[position]
                shape = [group_size, *variable.shape]
                found[row] = tf.TensorSpec(shape, variable.dtype)
        return [found[row] for row in sorted(found)]

    def kept(self, leaves: Sequence[Any]) -> list[Any]:
        """The tensors of a batch that the loop is given."""
        pairs = zip(leaves, self.missing, strict=True)
        return [leaf for leaf, spec in pairs if spec is None]


class Answers:
    """What the calls returned for one group, in place of the calls.

    Args:
        ahead: the calls, or None where none runs ahead.
        batch: `(x, y, sample_weight)`; only its structure is used.
        scope: of the update.
        group: the tensors that the loop is given, then the rows.

    Attributes:
        data: `(x, y, sample_weight)` of the group. Tensors that the loop does not have
            are empty: only calls that run ahead may use them, and these are not made.
    """

    def __init__(
        self, ahead: Ahead | None, batch: Parts, scope: Scope, group: Sequence[Tensor]
    ) -> None:
        # Without calls the loop is given all tensors, and no rows behind them.
        missing = [None] * len(group) if ahead is None else ahead.missing
        split = sum(spec is None for spec in missing)
        self._ahead, self._scope = ahead, scope
        self._rows = group[split:]
        self._number = 0
        self._assigned: dict[int, Any] = {}
        self._empty: list[tuple[Any, str]] = []  # tensors, and why none may need them
        given = iter(group[:split])
        text = "a layer that does not run ahead is given tensors that XLA does not take"
        leaves = [
            next(given) if spec is None else self._made_empty(spec, text)
            for spec in missing
        ]
        self.data: Any = examples.pack(batch, leaves)

    def _made_empty(self, spec: Any, text: str) -> Any:
        made = _empty(spec)
        parts = tf.nest.flatten(made, expand_composites=True)
        if isinstance(made, tf.SparseTensor):  # whose shape is known
            parts = [made.indices, made.values]
        self._empty += [(part, text) for part in parts]
        return made

    def open(self) -> contextlib.AbstractContextManager[None]:
        """While it is open, calls of this thread that run ahead are answered."""
        if self._ahead is None:
            return contextlib.nullcontext()
        through = functools.partial(self._through, self._ahead)
        return keras_model.calls_through(candidates(self._ahead.model), through)

    def _through(
        self,
        ahead: Ahead,
        layer: Layer,
        call: Callable[..., Any],
        args: Any,
        kwargs: Any,
    ) -> Any:
        if not runs_ahead(layer, (args, kwargs), ahead.refused):
            return call(*args, **kwargs)
        known = ahead.calls[self._number : self._number + 1]
        if not known or known[0].layer is not layer or not self._scope.is_here():
            refuse(ahead, f"{shown(layer)} is called again outside the model's call")
        self._number += 1
        for position, row in known[0].seeds.items():
            variable = ahead.carry.variables[position]
            self._scope.add_update((variable, tf.gather(self._rows[row], 0)))
            self._assigned[position] = self._scope.get_current_value(variable)

        def answer(output: Any) -> Any:
            if not isinstance(output, Output):
                return output
            if output.row is not None:
                return self._rows[output.row]
            return self._made_empty(
                output.spec,
                f"a layer behind {shown(layer)} needs what it returns, which XLA does "
                "not take (some layers have sparse=False or ragged=False)",
            )

        return keras.tree.map_structure(answer, known[0].outputs)

    def check(self, results: Sequence[Any], changed: Collection[int]) -> None:
        """Raises TraceAgain if the loop would give another result than Keras.

        Args:
            results: tensors that the update gives.
            changed: positions in the carry of values that it changes.
        """
        ahead = self._ahead
        if ahead is None:
            return
        variables = ahead.carry.variables
        for position, value in self._assigned.items():
            if self._scope.get_current_value(variables[position]) is not value:
                refuse(ahead, "it shares a seed generator with layers behind it")
        if self._number < len(ahead.calls):
            refuse(ahead, CHANGES)
        if ahead.reads & (set(changed) - set(ahead.seeds)):
            refuse(ahead, "training changes a variable that it depends on")
        found = {id(t) for t in ancestors(results)} if self._empty else ()
        for tensor, text in self._empty:
            if id(tensor) in found:
                refuse(ahead, text)


CHANGES = "its calls, or their draws, change from trace to trace"


def refuse(ahead: Ahead, reason: str) -> NoReturn:
    """Raises TraceAgain: nothing of the model runs ahead.

    Args:
        ahead: the calls.
        reason: a part of a sentence.
    """
    raise TraceAgain(not_ahead={id(ahead.model): reason})


def _empty(spec: Any) -> Any:
    # A constant. XLA has no kernels for strings; constants of them it leaves out.
    if isinstance(spec, tf.RaggedTensorSpec):
        return _empty_ragged(spec)
    shape = [d or 1 for d in spec.shape]
    if isinstance(spec, tf.SparseTensorSpec):
        places = tf.zeros((0, len(shape)), tf.int64)
        return tf.SparseTensor(_own(places), _own(tf.zeros((0,), spec.dtype)), shape)
    return tf.constant("", tf.string, shape)


def _empty_ragged(spec: Any) -> Any:
    ragged: Any = tf.RaggedTensor  # its methods are added at import
    rows = [d or 0 for d in spec.shape[1:]]
    made: Any = tf.zeros((0, *rows[spec.ragged_rank :]), spec.dtype)
    for depth in reversed(range(spec.ragged_rank)):
        length = (spec.shape[0] or 1) if depth == 0 else 0
        splits = tf.zeros((length + 1,), spec.row_splits_dtype)
        made = ragged.from_row_splits(made, splits, validate=False)
    return tf.nest.map_structure(_own, made, expand_composites=True)


def _own(part: Tensor) -> Tensor:
    # Equal integer constants of the loop are one, and these must be told apart. XLA has
    # no identity of strings, and their constants are not shared.
    return part if part.dtype == tf.string else tf.identity(part)


def runs_ahead(layer: Layer, arguments: Structure, refused: Collection[int]) -> bool:
    """Whether a call is one that XLA refuses, and that no weight of its own reaches.

    Args:
        layer: that is called.
        arguments: of the call.
        refused: ids of layers that XLA was found to refuse.
    """
    if getattr(layer, "trainable_variables", ()):
        return False
    if not getattr(layer, "supports_jit", True) or id(layer) in refused:
        return True
    return any(not examples.is_dense(leaf) for leaf in tensors_of(arguments))


def tensors_of(structure: Structure) -> list[Any]:
    """The tensors in a structure, dense or not."""
    kinds = (tf.Tensor, tf.SparseTensor, tf.RaggedTensor)
    return [x for x in keras.tree.flatten(structure) if isinstance(x, kinds)]


def candidates(model: Model) -> list[Layer]:
    """Layers and operations that are no models; those run their inner ones."""
    found = keras_model.operations(model)
    return [x for x in found if not isinstance(x, keras.Model)]


def ancestors(tensors: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors of the graph in the making that some are computed from."""
    frontier = tf.nest.flatten(list(tensors), expand_composites=True)
    seen: set[int] = set()
    while frontier:
        tensor = frontier.pop()
        if id(tensor) in seen or not tf.is_symbolic_tensor(tensor):
            continue
        seen.add(id(tensor))
        yield tensor
        frontier += tensor.op.inputs
