"""Questions about XLA that TensorFlow does not answer in public.

Whether it is going to compile a graph, whether it can, and what it said where it could
not: the text of its refusal is kept per model. And the flags that are set: the size of
small loops, and a folder for what it compiled.

Read in the sources of TensorFlow 2.17 to 2.21.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.compiler.tf2xla.python import xla as tf2xla
from tensorflow.compiler.xla.service import hlo_pb2
from tensorflow.python.eager import context
from tensorflow.python.ops import control_flow_util

from keras_sgd_plus._private.types import Graph, Model, Operation, Tensor

# Operations that XLA:CPU has kernels for, on every type below.
_OPERATIONS = frozenset(
    """
    Abs AddN AddV2 All BatchMatMulV2 BiasAdd BiasAddGrad BroadcastGradientArgs
    BroadcastTo Cast ConcatOffset ConcatV2 Const DivNoNan Einsum Elu EluGrad Equal Exp
    ExpandDims Fill FloorDiv FloorMod GatherV2 Greater GreaterEqual Identity IdentityN
    InvertPermutation IsFinite L2Loss LeakyRelu LeakyReluGrad Less LessEqual Log Log1p
    LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul MatrixBandPart Max Maximum Mean
    Min Minimum Mul Neg NotEqual OneHot OnesLike Pack Pad Placeholder Prod Range RealDiv
    Reciprocal ReciprocalGrad Relu Relu6 Relu6Grad ReluGrad Reshape ReverseV2 Rsqrt
    RsqrtGrad Select SelectV2 Selu SeluGrad Shape Sigmoid SigmoidGrad Sign Slice Softmax
    SoftmaxCrossEntropyWithLogits Softplus SoftplusGrad Softsign SoftsignGrad
    SparseSoftmaxCrossEntropyWithLogits Split SplitV Sqrt SqrtGrad Square
    SquaredDifference Squeeze StopGradient StridedSlice StridedSliceGrad Sub Sum Tanh
    TanhGrad TensorScatterAdd TensorScatterSub TensorScatterUpdate Tile Transpose Unpack
    UnsortedSegmentSum XlaDynamicSlice XlaDynamicUpdateSlice ZerosLike
    """.split()
)
# Those that it has kernels for on floating-point numbers.
_FLOAT_OPERATIONS = frozenset(
    """
    AvgPool AvgPoolGrad Conv2D Conv2DBackpropFilter Conv2DBackpropInput
    DepthwiseConv2dNative DepthwiseConv2dNativeBackpropFilter
    DepthwiseConv2dNativeBackpropInput Erf Erfc MaxPool MaxPoolGrad Pow
    """.split()
)
# Positions of the inputs that XLA has to know.
_CONSTANT_INPUTS = {
    **dict.fromkeys(("BroadcastTo", "ExpandDims", "OneHot", "Pad"), (1,)),
    **dict.fromkeys(("All", "Max", "Mean", "Min", "Prod", "Reshape", "Sum"), (1,)),
    **dict.fromkeys(("ReverseV2", "Tile", "Transpose"), (1,)),
    **dict.fromkeys(("AvgPoolGrad", "Fill", "Split"), (0,)),
    **dict.fromkeys(
        ("Conv2DBackpropInput", "DepthwiseConv2dNativeBackpropInput"), (0,)
    ),
    "Conv2DBackpropFilter": (1,),
    "DepthwiseConv2dNativeBackpropFilter": (1,),
    **dict.fromkeys(("GatherV2", "UnsortedSegmentSum", "Slice"), (2,)),
    "ConcatV2": (-1,),
    "Range": (0, 1, 2),
    "SplitV": (1, 2),
    "StridedSlice": (1, 2, 3),
    "StridedSliceGrad": (0, 1, 2, 3),
}
# In the names of operations, loops and conditionals that XLA is known to take.
TAKEN = "keras_sgd_plus_taken"
_FLOATS = (tf.float32, tf.float64, tf.bfloat16, tf.float16)
_TYPES = (*_FLOATS, tf.bool, tf.int32, tf.int64)
_TAKEN_TYPES = (*_TYPES, tf.uint32, tf.uint64)  # of operations with `TAKEN`


def is_tracing() -> bool:
    """Whether XLA will compile the graph that is being traced.

    Goes when TensorFlow says so of a `tf.function(jit_compile=True)` in public.
    """
    if tf.executing_eagerly():
        return False
    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


def dynamic_slice(
    x: Tensor, start: Sequence[Tensor | int], sizes: Sequence[int]
) -> Tensor:
    """The part of x of these sizes that begins at `start`, () int32 each.

    `tf.slice` would do, but its start counts as known while XLA compiles, so that every
    call would compile anew. Goes when TensorFlow has such a slice in public.
    """
    return tf2xla.dynamic_slice(x, tf.stack(start), list(sizes))


def surely_takes(graph: Graph) -> bool:
    """Whether XLA:CPU is known to take a graph; False says nothing.

    XLA takes it if tracing knows every shape, and if each input that XLA has to know
    while compiling comes from constants and shapes. An operation with `TAKEN` in its
    name is taken.
    """
    return all(
        bool(_types(op))
        and all(t.dtype in _types(op) for t in op.outputs)
        and (_is_static(op) or _is_taken_from(op) or _is_of_shapes(op))
        and all(_is_known(op.inputs[i]) for i in _CONSTANT_INPUTS.get(op.type, ()))
        for op in graph.get_operations()
    )


class Traced(NamedTuple):
    """A function that XLA will compile when it first runs, and what it takes."""

    function: Any  # a traced tf.function
    arguments: list[tf.TensorSpec]


class _Tracing(threading.local):
    def __init__(self) -> None:
        self.seen: list[Traced] | None = None


_tracing = _Tracing()
_without: weakref.WeakSet[Any] = weakref.WeakSet()  # models
# Model -> the text of XLA's refusal. Weak, so that nothing keeps a model alive.
_refused: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_PROBE_SIZES = (8, 64)  # stand in for an unknown batch axis, and unknown other axes
# The classes of TensorFlow's errors that XLA raises while it compiles. It raises others
# of these classes, too, as does a program that runs.
MAYBE_OF_XLA = (
    tf.errors.InternalError,
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.UnknownError,
)


@contextlib.contextmanager
def functions_traced() -> Iterator[list[Traced]]:
    """The functions for XLA that this thread traces while it is open."""
    before, _tracing.seen = _tracing.seen, []
    try:
        yield _tracing.seen
    finally:
        _tracing.seen = before


def note(function: Any, arguments: Sequence[Tensor]) -> None:
    """Notes a function for `functions_traced`."""
    if _tracing.seen is not None:
        specs = [tf.TensorSpec(a.shape, a.dtype) for a in arguments]
        _tracing.seen.append(Traced(function, specs))


def error_of(traced: Traced, stage: str) -> str | None:
    """The text with which XLA refuses a function, or None; executes nothing.

    Args:
        traced: the function.
        stage: "hlo", how far XLA checks what it is given, which is soon done; or
            "optimized_hlo", up to the end of what it does before it makes code.
    """
    arguments: list[Any] = traced.arguments
    with tf.init_scope():
        if not all(a.shape.is_fully_defined() for a in arguments):
            arguments = [tf.zeros(_probe_shape(a), a.dtype) for a in arguments]
        compiler = traced.function.experimental_get_compiler_ir(*arguments)
        try:
            # Runs no Python code of anybody, so an error is XLA's. On a CPU it is a
            # bare ValueError, "Failed getting HLO text".
            compiler(stage=stage)
        except (ValueError, tf.errors.OpError) as error:
            return str(error)
    return None


def error_of_any(seen: Sequence[Traced]) -> str | None:
    """The text with which XLA refuses to compile one of some functions, or None."""
    texts = (error_of(each, "optimized_hlo") for each in seen)
    return next((text for text in texts if text is not None), None)


def _probe_shape(spec: tf.TensorSpec) -> list[int]:
    return [
        _PROBE_SIZES[min(axis, 1)] if d is None else d
        for axis, d in enumerate(spec.shape)
    ]


def unless_refused(
    model: Model, may_choose: bool, call: Callable[[], Any], again: Callable[[], Any]
) -> Any:
    """The result of `call`, or of `again` where XLA refuses what `call` compiles.

    XLA may refuse the loop only when it compiles it, in the first call.

    Args:
        model: keeps the text of the refusal.
        may_choose: whether the loop may do without XLA.
        call: traces a function, and runs it.
        again: does the same without XLA.
    """
    with functions_traced() as seen:
        try:
            return call()
        except MAYBE_OF_XLA:
            text = error_of_any(seen) if may_choose else None
            if text is None:
                raise
    _refused[model] = text
    return again()


def go_without(model: Model) -> None:
    """Notes that the loop of a model is walked without XLA, which refuses it."""
    _without.add(model)


def goes_without(model: Model) -> bool:
    """Whether XLA has refused the loop of a model."""
    return model in _without


def refusal_of(model: Model) -> str | None:
    """The text of XLA's refusal of the loop of a model, if compiling has shown one."""
    return _refused.get(model)


# XLA:CPU compiles a while loop whose body touches fewer bytes than this into one
# kernel, and interprets it op by op above. XLA's default is 1024.
SMALL_LOOP_OPTION = "xla_cpu_small_while_loop_byte_threshold"
SMALL_LOOP_BYTES = 10_000_000
_EXTRA_OPTIONS = "--xla_backend_extra_options="


def raise_small_loop_threshold() -> None:
    """Sets the threshold in `XLA_FLAGS`, unless the user has set it.

    XLA reads the variable when it first compiles something in a process, so this works
    after `import tensorflow`, and does nothing once something was compiled.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if SMALL_LOOP_OPTION in flags:
        return
    option = f"{SMALL_LOOP_OPTION}={SMALL_LOOP_BYTES}"
    words = flags.split()
    for i, word in enumerate(words):
        if word.startswith(_EXTRA_OPTIONS):  # a second such flag would replace it
            words[i] = f"{word},{option}"
            break
    else:
        words.append(_EXTRA_OPTIONS + option)
    os.environ["XLA_FLAGS"] = " ".join(words)


# Versions of TensorFlow whose kept compilations were tested.
_KEEPING = ("2.21.0",)
_programs: Any = hlo_pb2  # the type checker does not see what is made at import
_FOLDER = "--tf_xla_persistent_cache_directory="
_DEVICES = "--tf_xla_persistent_cache_device_types="


def was_tested_for_keeping() -> bool:
    """Whether kept compilations were tested with this version of TensorFlow.

    Goes, as do the functions below, when TensorFlow keeps compilations in public.
    """
    return tf.__version__ in _KEEPING


def is_told_where_to_keep() -> bool:
    """Whether the user has named a folder for compilations."""
    return _FOLDER in os.environ.get("TF_XLA_FLAGS", "")


def flags_in_a_file() -> str | None:
    """The variable that names a file of flags, or None."""
    for name in ("TF_XLA_FLAGS", "XLA_FLAGS"):
        if os.environ.get(name, "").strip()[:1] not in ("", "-"):
            return name
    return None


def keep_compilations_in(folder: os.PathLike[str]) -> None:
    """Lets TensorFlow write what XLA compiles for a CPU to a folder, and read it there.

    TensorFlow reads the variable when it first looks for devices. So it is told to, and
    the variable is put back: processes that this one starts would use the folder.
    """
    before = os.environ.get("TF_XLA_FLAGS")
    ours = f'{_FOLDER}"{os.fspath(folder)}" {_DEVICES}CPU'
    os.environ["TF_XLA_FLAGS"] = f"{before or ''} {ours}".strip()
    try:
        tf.config.list_physical_devices("CPU")
    finally:
        if before is None:
            del os.environ["TF_XLA_FLAGS"]
        else:
            os.environ["TF_XLA_FLAGS"] = before


def has_started() -> bool:
    """Whether TensorFlow has listed devices or executed an operation."""
    found: Any = context.context_safe()
    if found is None:
        return False
    return found._physical_devices is not None or found._context_handle is not None


def num_threads() -> int | None:
    """The threads of an operation that the user has set, or None."""
    found: Any = context.context()
    return found._intra_op_parallelism_threads


def is_whole_compilation(data: bytes) -> bool:
    """Whether the bytes are an `XlaSerializedCacheEntry` of TensorFlow, to the end.

    It has a key (1), a program in HLO (2) and what it was compiled to (3), each with
    its length before it (https://protobuf.dev/programming-guides/encoding).
    """
    fields: dict[int, bytes] = {}
    start = 0
    while start < len(data):
        tag, start = _varint(data, start)
        size, start = _varint(data, start)
        if tag & 7 != 2 or start + size > len(data):
            return False
        fields[tag >> 3] = data[start : start + size]
        start += size
    if start != len(data) or sorted(fields) != [1, 2, 3] or not fields[3]:
        return False
    try:
        _programs.HloModuleProto.FromString(fields[2])
    except DecodeError:
        return False
    return True


def _varint(data: bytes, start: int) -> tuple[int, int]:
    # A number, seven bits per byte, and the place after it.
    value = 0
    for i, byte in enumerate(data[start : start + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, start + i + 1
    return 0, len(data) + 1  # cut short


def is_end_of_data(error: tf.errors.OutOfRangeError) -> bool:
    """Whether an iterator has raised an OUT_OF_RANGE, and not a compiled function."""
    found = "End of sequence" in error.message
    return found or re.search(r"node \S*Iterator", error.message) is not None


def reason_of(error: tf.errors.OpError) -> str:
    """What has happened, without the places in Python where the graph was made."""
    before, _, _ = error.message.partition("\n\t [[")
    return before.splitlines()[-1]


def _types(op: Operation) -> tuple[tf.DType, ...]:
    # The types on which XLA has a kernel for an operation.
    if TAKEN in op.name:
        return _TAKEN_TYPES
    if op.type in _OPERATIONS:
        return _TYPES
    return _FLOATS if op.type in _FLOAT_OPERATIONS else ()


def _is_static(op: Operation) -> bool:
    return all(t.shape.is_fully_defined() for t in op.outputs)


def _is_taken_from(op: Operation) -> bool:
    # A batch of unknown length, of which one example is taken.
    consumers = op.outputs[0].consumers()
    takers = {"GatherV2", "While", "StatelessWhile"}  # of which loops are looked at
    return op.type == "Placeholder" and {c.type for c in consumers} <= takers


def _is_of_shapes(op: Operation) -> bool:
    # Which axes were broadcast, between two shapes.
    known = all(t.shape.is_fully_defined() for t in op.inputs)
    return op.type == "BroadcastGradientArgs" and known


def _is_known(tensor: Tensor) -> bool:
    seen, frontier = set(), [tensor.op]
    while frontier:
        op = frontier.pop()
        if op.type == "Placeholder":
            return False
        if op.type not in ("Const", "Shape") and id(op) not in seen:
            seen.add(id(op))
            frontier += [t.op for t in op.inputs]
    return True
