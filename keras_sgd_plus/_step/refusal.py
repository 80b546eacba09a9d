"""Why XLA does not compile the loop of a model, in words, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus._loop import examples
from keras_sgd_plus._private import keras_model, xla
from keras_sgd_plus._private.types import Layer, Model, Tensor
from keras_sgd_plus._step import warn


class Refusal(NamedTuple):
    """A reason why XLA does not compile a loop.

    Attributes:
        reason: a part of a sentence.
        fix: a sentence.
    """

    reason: str
    fix: str


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


def of_inputs(leaves: Sequence[Tensor]) -> Refusal | None:
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
    reason = f"{', '.join(map(_shown, inner))} has supports_jit=False"
    return Refusal(reason, _LAYER_FIX)


_LAYER_FIX = (
    "Apply a layer without weights in the data pipeline instead: dataset.map(lambda "
    "x, y: (layer(x), y)). Set supports_jit=True on a layer of your own that XLA takes."
)


def found(model: Model, function: Any, arguments: Sequence[Tensor]) -> Refusal | None:
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
    place = _place(model, error)
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


def _place(model: Model, error: str) -> str:
    # " of layer ..." if XLA names a node, whose path has the names of layers.
    node = re.search(r"(?:node `|\{\{node )([^`}]+)", error)
    parts = node[1].split("/") if node else []
    layers = [x for x in keras_model.layers(model) if x is not model]
    for part in reversed(parts):
        # A scope that is entered again has a number at its end.
        names = (part, re.sub(r"_\d+$", "", part))
        for name in names:
            for layer in layers:
                if layer.name == name:
                    return f" of {_shown(layer)}"
    return ""


def _shown(layer: Layer) -> str:
    return f"layer {layer.name!r} ({type(layer).__name__})"


def warn_once(model: Model, refusal: Refusal) -> None:
    """Warns that a model trains without XLA, and why."""
    xla.go_without(model)
    text = (
        f"XLA cannot compile the per-example loop of model {model.name!r}: "
        f"{refusal.reason}. Training goes on without XLA, many times slower, with the "
        f"same result up to rounding and random draws. {refusal.fix} Or say that this "
        "is meant with SGDPlus(..., jit_compile=False)."
    )
    warn.once(model, "xla", text)
