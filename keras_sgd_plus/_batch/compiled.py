"""Whether XLA compiles a walk, and how a compiled one reads and writes variables.

Where XLA does not compile the loop of a model, a `Refusal` says why in words, and what
to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._advice import notices
from keras_sgd_plus._loop import ahead, examples
from keras_sgd_plus._loop.context import Context
from keras_sgd_plus._loop.scope import Carry, TraceAgain, shown
from keras_sgd_plus._loop.walk import Walked, WalkTrace
from keras_sgd_plus._private import keras_model, xla
from keras_sgd_plus._private.types import Layer, Model, Tensor


class Refusal(NamedTuple):
    """A reason why XLA does not compile a loop.

    Attributes:
        reason: a part of a sentence.
        fix: a sentence.
        layer: the one that is refused, if that is known.
    """

    reason: str
    fix: str
    layer: Layer | None = None


_INPUTS = {
    "strings": Refusal(
        "it is given strings",
        "Look the numbers up in the data pipeline: dataset.map(lambda x, y: "
        "(lookup(x), y)), where `lookup` is the StringLookup or TextVectorization "
        "layer, and let the model begin with the numbers.",
    ),
    "ragged tensors": Refusal(
        "it is given ragged tensors",
        "Pad them in the data pipeline: dataset.map(lambda x, y: (x.to_tensor(), y)), "
        "and mask the padding in the model.",
    ),
    "sparse tensors": Refusal(
        "it is given sparse tensors",
        "Make them dense in the data pipeline: dataset.map(lambda x, y: "
        "(tf.sparse.to_dense(x), y)).",
    ),
}


def of_inputs(leaves: Sequence[Any]) -> Refusal | None:
    """The refusal of the first tensor of a batch that XLA does not take, or None."""
    for leaf in leaves:
        if not examples.is_dense(leaf):
            return _INPUTS[_kind(leaf)]
    return None


def _kind(leaf: Tensor) -> str:
    if leaf.dtype == tf.string:
        return "strings"
    sparse = isinstance(leaf, tf.SparseTensor)
    return "sparse tensors" if sparse else "ragged tensors"


def of_layers(model: Model) -> Refusal | None:
    """The refusal of layers that say that XLA does not take them, or None."""
    layers = keras_model.layers(model)
    found = [x for x in layers if not getattr(x, "supports_jit", True)]
    inner = [x for x in found if x is not model] or found
    if not inner:
        return None
    reason = f"{', '.join(map(shown, inner))} has supports_jit=False"
    return Refusal(reason, _LAYER_FIX)


_LAYER_FIX = (
    "Apply a layer without weights in the data pipeline instead: dataset.map(lambda "
    "x, y: (layer(x), y)). Set supports_jit=True on a layer of your own that XLA takes."
)


def found_by_xla(
    model: Model, function: Any, arguments: Sequence[Tensor]
) -> Refusal | None:
    """Why XLA cannot take a traced function, or None if it can; executes nothing.

    Layers and losses of users say `supports_jit=True` and may yet print, call Python
    or handle strings. XLA would find out when the first batch runs, too late to choose
    another way in the graph that is being built.
    """
    specs = [tf.TensorSpec(a.shape, a.dtype) for a in arguments]
    text = xla.error_of(xla.Traced(function, specs), "hlo")
    return None if text is None else of_error(model, text)


def of_compiling(model: Model) -> Refusal | None:
    """The refusal that only compiling has shown, or None."""
    text = xla.refusal_of(model)
    return None if text is None else of_error(model, text)


def of_error(model: Model, error: str) -> Refusal:
    """The refusal that XLA's text means; XLA gives no other sign."""
    layer = _layer_of(model, error)
    return _reason_of(error, layer)._replace(layer=layer)


def _reason_of(error: str, layer: Layer | None) -> Refusal:
    place = "" if layer is None else f" of {shown(layer)}"
    if "fixed tensor list size" in error:
        return Refusal(_OPEN_LOOP, _OPEN_LOOP_FIX)
    if "different precisions" in error or "mixed precision is disallowed" in error:
        kinds = dict.fromkeys(re.findall(r"%([A-Z]\w*)|op_type=\"(\w+)\"", error))
        named = ", ".join(a or b for a, b in kinds)
        return Refusal(f"it mixes floating-point types in {named}", _ONE_TYPE)
    constant = re.search(r"with op (\w+) must be a compile-time constant", error)
    if constant:
        reason = f"operation {constant[1]}{place} has a size that depends on the data"
        return Refusal(reason, _SIZE_FIX)
    named = r"No registered '(\w+)' OpKernel|unsupported operations?[^:]*: (\w+)"
    operations = {a or b for a, b in re.findall(named, error)}
    if operations:
        names = ", ".join(sorted(operations))
        return Refusal(f"unsupported operations {names}{place}", _REMOVE)
    lines = error.replace("Failed getting HLO text: '", "").strip().splitlines()
    return Refusal((lines[0][:200].rstrip(".") if lines else "?") + place, _REMOVE)


_REMOVE = "Remove that operation from the model, loss or metrics."
_ONE_TYPE = (
    'Give the layers around it dtype="float32". Bilinear resizing, for one, '
    'computes in float32, whatever it is given. interpolation="nearest" does not.'
)
_OPEN_LOOP = (
    "a loop (keras.ops.while_loop, fori_loop or scan, or tf.while_loop) has no largest "
    "number of turns, which XLA needs for its gradient"
)
_OPEN_LOOP_FIX = (
    "Write keras.ops.while_loop(..., maximum_iterations=n) instead, or a Python `for` "
    "over a few turns."
)
_SIZE_FIX = (
    "Use an operation whose output has a fixed shape: "
    'output_mode="int" or "one_hot" in Discretization, CategoryEncoding and lookups, '
    "tf.where in place of a mask. Or apply it in the data pipeline: dataset.map(lambda "
    "x, y: (layer(x), y))."
)


def _layer_of(model: Model, error: str) -> Layer | None:
    # If XLA names a node, whose path has the names of layers.
    node = re.search(r"(?:node `|\{\{node )([^`}]+)", error)
    parts = node[1].split("/") if node else []
    layers = [x for x in keras_model.layers(model) if x is not model]
    for part in reversed(parts):
        # A scope that is entered again has a number at its end.
        names = (part, re.sub(r"_\d+$", "", part))
        for name in names:
            for layer in layers:
                if layer.name == name:
                    return layer
    return None


def warn_of_refusal(model: Model, refusal: Refusal, why: str | None = None) -> None:
    """Warns that a model trains without XLA, and why.

    Args:
        model: the model.
        refusal: XLA's.
        why: that part of the model cannot run ahead of the loop, if that was tried.
    """
    xla.go_without(model)
    tried = "" if why is None else f", and cannot run ahead of the loop: {why}"
    text = (
        f"XLA cannot compile the per-example loop of model {model.name!r}: "
        f"{refusal.reason}{tried}. Training goes on without XLA, many times slower, "
        f"with the same result up to rounding and random draws. {refusal.fix} Or say "
        "that this is meant with SGDPlus(..., jit_compile=False)."
    )
    notices.once(model, "xla", text)


def wants_xla(jit_compile: bool | str, model: Model) -> bool:
    """Whether to compile, if XLA takes the model: not in eager runs."""
    if jit_compile is False or model.run_eagerly or tf.config.functions_run_eagerly():
        return False
    if tf.executing_eagerly():
        text = (
            "Under several replicas SGDPlus should be called inside a tf.function. "
            "Received: strategy.run called eagerly, which walks op by op, slowly. Call "
            "strategy.run in a function decorated with @tf.function."
        )
        notices.once(model, "eager replicas", text)
        return False
    return True


def run_ahead_if_refused(
    context: Context, leaves: Sequence[Any]
) -> tuple[Context, bool]:
    """Looks for calls of the model that have to run ahead, where XLA refuses a part.

    Args:
        context: the update.
        leaves: the tensors of the batch.

    Returns:
        The update, which knows those calls; and whether XLA may compile its loop. If
        not, the user was warned.
    """
    model, facts = context.model, context.facts
    must = context.optimizer.jit_compile is True
    known = of_inputs(leaves) or of_layers(model)
    late = None if must else of_compiling(model)
    if known is None and late is not None:  # said of the loop as a whole
        warn_of_refusal(model, late)
        return context, False
    if known is None and not facts.refused:
        return context, True
    if id(model) not in facts.not_ahead:
        try:
            if xla.is_tracing():
                raise ahead.CannotRunAhead("Keras compiles the whole train step")
            return replace(context, ahead=context.calls_ahead(leaves)), True
        except ahead.CannotRunAhead as error:
            facts.not_ahead[id(model)] = str(error)
    if known is None or (must and of_inputs(leaves) is None):
        return context, True  # XLA says what it refuses
    warn_of_refusal(model, known, facts.not_ahead[id(model)])
    return context, False


class How(NamedTuple):
    """How a walk is run.

    Attributes:
        use_xla: whether XLA compiles it.
        probe: whether to make sure first that XLA can, and to go on without if not.
        in_place: whether a compiled walk may write the variables. Not where a second
            one follows, whose trace may fail or start all over, nor under a strategy,
            whose variables cannot be written inside.
    """

    use_xla: bool
    probe: bool
    in_place: bool

    @classmethod
    def of(cls, use_xla: bool, jit_compile: bool | str, is_last: bool) -> How:
        """How to run the first walk of a batch.

        Args:
            use_xla: whether XLA is wanted.
            jit_compile: the setting.
            is_last: whether no second walk follows.
        """
        in_place = is_last and not replicas.is_open()
        return cls(use_xla, jit_compile == "auto", in_place)


# (values of the carry, whether XLA compiles it, *arguments) -> result
Walk = Callable[..., WalkTrace]


def run(
    walk: Walk,
    context: Context,
    earlier: dict[int, Tensor],
    arguments: Sequence[Tensor],
    how: How,
) -> tuple[Walked, How]:
    """Runs a walk: compiled, as a function of its own, or as it is.

    Args:
        walk: a pure function of the carry.
        context: the update.
        earlier: values by position in the carry, not yet committed.
        arguments: tensors.
        how: to run it.

    Returns:
        The result, whose `changed` has what is to be committed (nothing in place); and
        how it was run in the end, with nothing left to be probed.

    Raises:
        TraceAgain: XLA refuses a layer that may be able to run ahead.
    """
    model, carry = context.model, context.carry
    if how.use_xla:
        compiled = _compile(walk, carry, earlier, arguments, how.in_place)
        found = None
        if how.probe and not compiled.surely_compiles:
            found = found_by_xla(model, compiled.function, compiled.arguments)
        if found is None:
            xla.note(compiled.function, compiled.arguments)
        how = how._replace(probe=False)
        if found is None:
            walked, _ = compiled.function(*compiled.arguments)
            return walked, how
        how = how._replace(use_xla=False)
        why = context.facts.not_ahead.get(id(model))
        new = {} if why else _like(model, found.layer)
        if new.keys() - context.facts.refused.keys():
            raise TraceAgain(refused=new)
        warn_of_refusal(model, found, why)
    values = carry.read()
    for position, value in earlier.items():
        values[position] = value
    return walk(values, False, *arguments).walked, how


def _like(model: Model, layer: Layer | None) -> dict[int, Layer]:
    # The layers of its class that could run ahead: XLA is going to refuse them, too,
    # and names of nodes do not tell two of them apart.
    return {
        id(x): x
        for x in keras_model.layers(model)
        if type(x) is type(layer) and not x.trainable_variables
    }


class _Compiled(NamedTuple):
    function: Any  # a traced tf.function
    arguments: list[Tensor]
    surely_compiles: bool


def _compile(
    walk: Walk,
    carry: Carry,
    earlier: dict[int, Tensor],
    arguments: Sequence[Tensor],
    in_place: bool,
) -> _Compiled:
    # Traces the compiled function. In place it reads the variables at its beginning and
    # writes them at its end, and XLA changes their buffers: handing values in and out
    # copies every weight twice.
    found: list[bool] = []  # one: the function is traced once

    def walk_and_commit(*arguments: Tensor) -> Any:
        walked, fence, surely_compiles = walk(carry.read(), True, *arguments)
        found.append(surely_compiles)
        carry.commit(walked.changed)
        return walked._replace(changed={}), fence

    def walk_and_return(*flat: Tensor) -> Any:
        split = len(carry.variables)
        trace = walk(list(flat[:split]), True, *flat[split:])
        found.append(trace.surely_compiles)
        return trace.walked, trace.fence

    flat = list(arguments)
    if not in_place:
        values = carry.read()
        for position, value in earlier.items():
            values[position] = value
        flat = [*values, *arguments]
    function = tf.function(
        walk_and_commit if in_place else walk_and_return,
        jit_compile=True,
        autograph=False,
    )
    function.get_concrete_function(*flat)
    return _Compiled(function, flat, found[-1])
