"""Finds the calls of a model that can run ahead of its loop, and makes them.

The module `ahead` says what for. What stands in front of the last of these calls is
computed twice: ahead, and in the loop, where XLA leaves out what nobody needs. XLA has
random numbers of its own, so a layer that draws, and that one of the calls depends on,
runs ahead, too.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.ahead import (
    CHANGES,
    Ahead,
    Call,
    CannotRunAhead,
    Output,
    ancestors,
    candidates,
    refuse,
    runs_ahead,
    tensors_of,
)
from keras_sgd_plus._loop.scope import Carry, Scope, TraceAgain, shown
from keras_sgd_plus._private import keras_model, keras_optimizer
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import (
    Layer,
    Model,
    Operation,
    Parts,
    Structure,
    Tensor,
)


class _Done(BaseException):
    # The last call that runs ahead is made; Keras and models catch `Exception`.
    pass


class _Made(NamedTuple):
    # A call that was made.
    layer: Layer
    outputs: Structure
    seeds: dict[int, Tensor]  # by position, those that it changed
    promised: Any  # the shape that the layer promises, or None


class _Span(NamedTuple):
    # The operations that a call has made, by their numbers in the graph.
    layer: Layer
    first: int
    end: int
    is_ahead: bool


class _Calls:
    """Makes calls, and notes those that run ahead.

    Args:
        carry: the variables.
        scope: open.
        values: of the variables, before the calls.
        refused: ids of layers that XLA was found to refuse.
        changing: positions of values that training changes, where the calls are looked
            for; None where they are known.
        most: after so many the trace is left; None: never.

    Attributes:
        made: the calls that run ahead.
        spans: of all calls, where they are looked for.
        reads: positions of values that those in `made` depend on.
    """

    def __init__(
        self,
        carry: Carry,
        scope: Scope,
        values: Sequence[Tensor],
        refused: Collection[int],
        changing: Collection[int] | None,
        most: int | None,
    ) -> None:
        self.made: list[_Made] = []
        self.spans: list[_Span] = []
        self.reads: set[int] = set()
        self._carry, self._scope, self._values = carry, scope, values
        self._refused, self._changing = refused, changing
        self._most, self._is_inside = most, False

    def through(
        self, layer: Layer, call: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Makes a call, and notes it if it runs ahead."""
        if self._is_inside:
            return call(*args, **kwargs)
        is_ahead = runs_ahead(layer, (args, kwargs), self._refused)
        first = self._num_operations()
        if is_ahead:
            outputs = self._ahead(layer, call, args, kwargs)
        else:
            outputs = call(*args, **kwargs)
        self.spans.append(_Span(layer, first, self._num_operations(), is_ahead))
        if len(self.made) == self._most:
            raise _Done
        return outputs

    def _ahead(
        self, layer: Layer, call: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        if not self._scope.is_here():
            raise CannotRunAhead(f"{shown(layer)} is called inside a loop or branch")
        before = self._scope.values(self._carry.variables)
        self._is_inside, num_losses = True, len(self._scope.losses)
        try:
            outputs = call(*args, **kwargs)
        finally:
            self._is_inside = False
        if len(self._scope.losses) > num_losses:
            raise CannotRunAhead(f"{shown(layer)} adds a loss")
        after = self._scope.values(self._carry.variables)
        pairs = enumerate(zip(before, after, strict=True))
        seeds = {i: new for i, (old, new) in pairs if old is not new}
        made = _Made(layer, outputs, seeds, None)
        if self._changing is not None:
            made = made._replace(promised=_promised_shape(layer, args))
            self.reads |= _reads(made, self._carry, self._values, self._changing)
        self.made.append(made)
        return outputs

    def _num_operations(self) -> int:
        # Of the graph so far, where somebody asks for it.
        if self._changing is None:
            return 0
        return len(tf.compat.v1.get_default_graph().get_operations())


def _made_calls(
    model: Model,
    carry: Carry,
    values: Sequence[Tensor],
    data: Parts,
    refused: Collection[int],
    changing: Collection[int] | None = None,
    most: int | None = None,
) -> tuple[_Calls, Scope]:
    # Calls the model on one group, up to the last of the calls that run ahead.
    scope = Scope(carry, values)
    calls = _Calls(carry, scope, values, refused, changing, most)
    with (
        replicas.current().alone(),
        private_tensorflow.inlined_functions(),
        scope,
        keras_model.calls_through(candidates(model), calls.through),
        contextlib.suppress(_Done),
    ):
        keras_model.forward(model, data[0])
    if scope.undeclared:
        raise TraceAgain(variables=scope.undeclared)
    return calls, scope


def find_calls(
    model: Model,
    carry: Carry,
    batch: Parts,
    leaves: Sequence[Any],
    group_size: int,
    changing: Collection[int],
    refused: Collection[int],
) -> Ahead:
    """Finds the calls of a model that can run ahead, by a trace that runs nothing.

    Args:
        model: the model in training, built.
        carry: its variables.
        batch: `(x, y, sample_weight)`.
        leaves: the tensors of the batch.
        group_size: examples per update.
        changing: positions in the carry of values that training changes.
        refused: ids of layers that XLA was found to refuse.

    Raises:
        CannotRunAhead: there are none, or one of them cannot.
        TraceAgain: the model writes variables that the carry does not hold.
    """
    found: list[Ahead | set[int]] = []

    def trace(values: list[Tensor], leaves: list[Any]) -> None:
        positions = tf.zeros((group_size,), tf.int32)
        group = [examples.gather_examples(leaf, positions) for leaf in leaves]
        data = examples.pack(batch, group)
        calls, _ = _made_calls(model, carry, values, data, refused, changing)
        if not calls.made:
            raise CannotRunAhead("no layer in front of the trained ones can run ahead")
        drawing = _drawing(calls)
        if drawing:
            found.append(drawing)
            return
        specs = examples.flat(examples.specs(batch, group_size))
        pairs = zip(leaves, specs, strict=True)
        missing = tuple(None if examples.is_dense(x) else spec for x, spec in pairs)
        missing = _as_declared(model, batch, missing)
        described = tuple(_described(calls.made, group_size))
        reads, names = frozenset(calls.reads), frozenset(refused)
        found.append(Ahead(model, carry, described, names, reads, missing))

    traced: Any = tf.function(trace, autograph=False)
    # A layer may use them while it is traced, as AugMix does.
    states = random.getstate(), np.random.get_state()
    try:
        traced.get_concrete_function(carry.specs(), list(leaves))
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    last = found[-1]
    if isinstance(last, Ahead):
        return last
    every = {*refused, *last}
    return find_calls(model, carry, batch, leaves, group_size, changing, every)


def _drawing(calls: _Calls) -> set[int]:
    # Ids of layers that draw, that the calls depend on, and that do not run ahead yet.
    graph = tf.compat.v1.get_default_graph()
    numbers = {id(op): i for i, op in enumerate(graph.get_operations())}
    outputs = [tensors_of(call.outputs) for call in calls.made]
    found = set()
    for op in {id(t.op): t.op for t in ancestors(outputs)}.values():
        if not _draws(op):
            continue
        number = numbers[id(op)]
        spans = [s for s in calls.spans if s.first <= number < s.end]
        if any(span.is_ahead for span in spans):
            continue
        inner = min(spans, key=lambda s: s.end - s.first, default=None)
        if inner is None or getattr(inner.layer, "trainable_variables", ()):
            raise CannotRunAhead(
                f"{shown(calls.made[-1].layer)} depends on {op.name!r} ({op.type}), "
                "and XLA may draw other random numbers there"
            )
        found.add(id(inner.layer))
    return found


_READS = ("ReadVariableOp", "ResourceGather", "LookupTable", "Placeholder")


def _draws(op: Operation) -> bool:
    # Whether an operation may give other numbers outside XLA than inside.
    if op.type.startswith(_READS):
        return False
    kinds = ("Random", "While", "If", "Case", "Call")
    is_stateful = op.op_def is not None and op.op_def.is_stateful
    return is_stateful or any(kind in op.type for kind in kinds)


def _spec(tensor: Any, of_what: str) -> Any:
    spec: Any = tf.type_spec_from_value(tensor)
    if spec.shape.rank is None:
        raise CannotRunAhead(f"{of_what} has tensors of unknown rank")
    return spec


def _as_declared(model: Model, batch: Parts, missing: tuple[Any, ...]) -> Any:
    # A functional model gives its inputs one axis more where they lack it. XLA has no
    # operation that does that to strings, so strings without it come with it.
    graph = keras_model.graph_of(model)
    declared = [] if graph is None else list(keras.tree.flatten(graph.inputs))
    if isinstance(batch[0], dict):  # whose values go by name
        named = {symbol.name: symbol for symbol in declared}
        declared = [named[name] for name in sorted(batch[0]) if name in named]
    given = len(examples.flat(batch[0]))
    if len(declared) != given:
        return missing
    found = list(missing)
    for i, (spec, symbol) in enumerate(zip(missing, declared, strict=False)):
        is_text = isinstance(spec, tf.TensorSpec)
        if is_text and len(symbol.shape) == spec.shape.rank + 1:
            found[i] = tf.TensorSpec([*spec.shape, 1], spec.dtype)
    return tuple(found)


def _described(made: Sequence[_Made], group_size: int) -> Iterator[Call]:
    number = 0
    for layer, outputs, new_seeds, promised in made:

        def output(tensor: Any, layer: Layer = layer, promised: Any = promised) -> Any:
            nonlocal number
            if not tensors_of(tensor):
                return tensor  # None, say
            if keras_model.has_mask(tensor):
                raise CannotRunAhead(f"{shown(layer)} returns a mask")
            if not examples.is_dense(tensor):
                return Output(_spec(tensor, shown(layer)), None)
            number += 1
            shape = _shape_of_group(layer, tensor.shape, promised, group_size)
            return Output(tf.TensorSpec(shape, tensor.dtype), number - 1)

        described = keras.tree.map_structure(output, outputs)
        seeds = {}
        for position in new_seeds:
            seeds[position] = number
            number += 1
        yield Call(layer, described, seeds)


def _shape_of_group(
    layer: Layer, shape: Any, promised: Any, group_size: int
) -> list[int]:
    # Of an output, with what the layer promises where the trace knows no size.
    first: int | None = None
    if shape.rank is None and promised is not None:
        shape = tf.TensorShape([None] * len(promised))
    elif shape.rank:
        first = shape[0]
    if not shape.rank or first not in (None, group_size):
        raise CannotRunAhead(f"{shown(layer)} does not return one row per example")
    sizes: list[Any] = [group_size, *shape[1:]]
    if promised is not None and len(promised) == len(sizes):
        sizes = [
            a if a is not None else b for a, b in zip(sizes, promised, strict=True)
        ]
    if None in sizes:
        raise CannotRunAhead(
            f"{shown(layer)} returns tensors of shape {tuple(sizes)}, whose size "
            "depends on the data (TextVectorization has output_sequence_length for "
            "that, a layer of your own can call tf.ensure_shape)"
        )
    return sizes


def _promised_shape(layer: Layer, args: Any) -> Any:
    # Of the one output that a layer promises to return, or None.
    def symbol(x: Any) -> Any:
        if not isinstance(x, tf.Tensor):
            return x
        shape: Any = x.shape
        return keras.KerasTensor(shape.as_list(), x.dtype.name)

    if type(layer).__module__.partition(".")[0] != "keras":
        return None  # a promise of somebody else may be wrong
    symbols: Any = keras.tree.map_structure(symbol, args)
    try:
        spec: Any = layer.compute_output_spec(*symbols)
    except Exception:  # of any class: the layer may be a user's
        return None
    return spec.shape if isinstance(spec, keras.KerasTensor) else None


def _reads(
    call: _Made, carry: Carry, values: Sequence[Tensor], changing: Collection[int]
) -> set[int]:
    # Positions of the values that a call depends on; raises if training changes one.
    variables = carry.variables
    for position in call.seeds:
        if not keras_optimizer.is_seed(variables[position]):
            path = variables[position].path
            raise CannotRunAhead(f"{shown(call.layer)} changes variable {path!r}")
    places = {id(value): i for i, value in enumerate(values)}
    tensors = [*tensors_of(call.outputs), *call.seeds.values()]
    read = {places[i] for i in _sources(tensors) if i in places}
    read |= private_tensorflow.uses(carry.handles).keys()  # by functions of the model
    for position in sorted(read & set(changing)):
        if not keras_optimizer.is_seed(variables[position]):
            raise CannotRunAhead(
                f"{shown(call.layer)} depends on {variables[position].path!r}, "
                "which training changes"
            )
    return read


def _sources(tensors: Sequence[Any]) -> set[int]:
    # Ids of the placeholders of the graph that tensors are computed from.
    return {id(t) for t in ancestors(tensors) if t.op.type == "Placeholder"}


def run(
    ahead: Ahead,
    batch: Parts,
    leaves: Sequence[Any],
    order: Tensor | None,
    num_examples: int | Tensor,
    groups: tuple[Tensor, Tensor],
    group_size: int,
    start: Mapping[int, Tensor],
) -> list[Tensor]:
    """Makes the calls for a batch, one group after the other, in the order of visits.

    Args:
        ahead: the calls.
        batch: `(x, y, sample_weight)`; only its structure is used.
        leaves: its tensors.
        order: (num_examples,) int32, positions to visit; None: as handed over.
        num_examples: an int or () int32.
        groups: () int32 each, the number of the first full group that is visited, and
            of the one behind the last.
        group_size: k.
        start: values by position in the carry, where they are not those of variables.

    Returns:
        Per row of `Ahead.row_specs`, (num_examples, ...), at the examples' positions.
    """
    values = ahead.carry.read()
    for position, value in start.items():
        values[position] = value
    num_groups = num_examples // group_size
    arrays = [
        tf.TensorArray(spec.dtype, num_groups, element_shape=spec.shape)
        for spec in ahead.row_specs(group_size)
    ]

    def rows_of(positions: Tensor, seeds: Sequence[Tensor]) -> tuple[list[Any], Any]:
        now = list(values)
        for position, seed in zip(ahead.seeds, seeds, strict=True):
            now[position] = seed
        group = [examples.gather_examples(leaf, positions) for leaf in leaves]
        data = examples.pack(batch, group)
        calls, scope = _made_calls(
            ahead.model, ahead.carry, now, data, ahead.refused, most=len(ahead.calls)
        )
        variables = [ahead.carry.variables[i] for i in ahead.seeds]
        return _rows(ahead, calls.made, positions), scope.values(variables)

    def body(i: Tensor, seeds: list[Tensor], arrays: list[Any]) -> Any:
        positions = examples.group_positions(i, group_size, order)
        rows, seeds = rows_of(positions, seeds)
        pairs = zip(arrays, rows, strict=True)
        return i + 1, seeds, [array.write(i, row) for array, row in pairs]

    first, end = groups
    _, seeds, arrays = tf.while_loop(
        lambda i, *_: i < end,
        body,
        (first, [values[i] for i in ahead.seeds], arrays),
        parallel_iterations=1,
    )
    found = [_flat_rows(array.stack(), group_size) for array in arrays]
    if group_size > 1:
        found = _with_rest(found, rows_of, seeds, order, num_examples, group_size)
    if order is None:
        return found
    places = tf.math.invert_permutation(order)
    return [tf.gather(rows, places) for rows in found]


def _flat_rows(groups: Tensor, group_size: int) -> Tensor:
    # (groups, k, ...) -> (groups * k, ...)
    return tf.reshape(groups, [tf.shape(groups)[0] * group_size, *groups.shape[2:]])


def _rows(ahead: Ahead, made: Sequence[_Made], positions: Tensor) -> list[Any]:
    # The rows of a group, in the order of `Ahead.row_specs`.
    size, count = positions.shape[0], tf.shape(positions)[0]
    found = {}
    is_same = [call.layer for call in ahead.calls] == [call.layer for call in made]
    if not is_same or any(
        call.seeds.keys() != now.seeds.keys()
        for call, now in zip(ahead.calls, made, strict=True)
    ):
        refuse(ahead, CHANGES)
    for call, (_, outputs, seeds, _) in zip(ahead.calls, made, strict=True):
        known = keras.tree.flatten(call.outputs)
        for output, tensor in zip(known, keras.tree.flatten(outputs), strict=True):
            if isinstance(output, Output) and output.row is not None:
                found[output.row] = tf.ensure_shape(
                    tensor, [size, *output.spec.shape[1:]]
                )
        for position, row in call.seeds.items():
            seed = seeds[position]
            found[row] = tf.broadcast_to(seed, tf.concat([[count], tf.shape(seed)], 0))
    return [found[row] for row in sorted(found)]


def _with_rest(
    found: Sequence[Tensor],
    rows_of: Callable[..., tuple[list[Any], Any]],
    seeds: Sequence[Tensor],
    order: Tensor | None,
    num_examples: Any,
    group_size: int,
) -> list[Tensor]:
    # With the rows of the examples that are left over, a shorter group.
    rest = num_examples % group_size
    if isinstance(rest, int) and not rest:
        return list(found)
    positions = tf.range(num_examples - rest, num_examples)
    if order is not None:
        positions = tf.gather(order, positions)

    def of_rest() -> list[Tensor]:
        return rows_of(positions, seeds)[0]

    def none() -> list[Tensor]:
        return [rows[:0] for rows in found]

    rows = of_rest() if isinstance(rest, int) else tf.cond(rest > 0, of_rest, none)
    return [tf.concat(pair, 0) for pair in zip(found, rows, strict=True)]
