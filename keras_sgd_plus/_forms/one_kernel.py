"""One kernel or many: how XLA:CPU runs the loop, decided per model.

XLA compiles a while loop whose body touches few bytes into one kernel
(`SMALL_LOOP_OPTION` in `_private/xla.py`). That spares an update its dozens of
dispatches, but in such a kernel a product of two matrices becomes three plain nested
loops, where a kernel of its own would call an optimised routine. So a loop that
multiplies matrices is kept out of it, by an operation that XLA cannot put into one
kernel: a scatter of two entries into a vector of two.
"""

from __future__ import annotations

import math

import tensorflow as tf

from keras_sgd_plus._forms import tracing
from keras_sgd_plus._private.types import Graph, Operation, Tensor

MAX_PRODUCTS = 50_000  # multiplications in matrix products that one kernel may have
MIN_COPY = 4_096  # entries of a weight whose copy costs more than a dependency
_SAME_ENTRIES = ("Reshape", "Transpose", "Cast", "Identity", "ExpandDims", "Squeeze")
_PRODUCTS = ("MatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum")
_CONVOLUTIONS = ("Conv2D", "Conv3D", "Conv2DBackpropInput", "DepthwiseConv2dNative")


def new_fence() -> Tensor:
    """The state of a fence, zeros, (2,) int32, carried by the loop.

    Made outside the compiled function: there it would be one kernel more to compile,
    and XLA would know that it is zero.
    """
    return tf.zeros((2,), tf.int32)


def fenced(graph: Graph, fence: Tensor) -> Tensor:
    """The next state; keeps the loop out of one kernel if its body is better off.

    Called at the end of the body's trace, whose products it counts. The state is the
    places and the values of the scatter, too: constants would be kernels of their own.
    """
    if products(graph) <= MAX_PRODUCTS:
        return fence
    return tf.tensor_scatter_nd_add(fence, fence[:, None], fence)


class BackwardReaders:
    """Makes the update of a weight wait for the products that read it.

    Else XLA copies the weight. It knows that order only from a dependency, so the
    learning rate is made to depend on those products. They are found when the backward
    pass has been traced; the ops that exist when this object is made are not theirs.
    """

    def __init__(self) -> None:
        graph = tf.compat.v1.get_default_graph()
        self._known = {id(op) for op in graph.get_operations()}

    def rate_after(self, weight: Tensor, learning_rate: Tensor) -> Tensor:
        """The learning rate, once the products with `weight` are there."""
        if math.prod(weight.shape) < MIN_COPY:
            return learning_rate
        found = [
            tf.cast(tf.reshape(output, (-1,))[0], learning_rate.dtype)
            for output in self._products(weight)
        ]
        if not found:
            return learning_rate
        return tracing.after(tf.add_n(found), learning_rate)

    def _products(self, tensor: Tensor) -> list[Tensor]:
        outputs = []
        for op in tensor.consumers():
            if op.type in _SAME_ENTRIES:
                outputs += self._products(op.outputs[0])
            elif op.type in _PRODUCTS and id(op) not in self._known:
                outputs.append(op.outputs[0])
        return outputs


def products(graph: Graph) -> int:
    """Multiplications in a graph's products of two matrices and in convolutions.

    Products with a vector do not count: they are fast in either form.
    """
    return sum(map(products_of, graph.get_operations()))


def products_of(op: Operation) -> int:
    """Multiplications in one operation, as `products` counts them."""
    if op.type in ("MatMul", "BatchMatMulV2", "BatchMatMulV3"):
        return _matmul(op)
    if op.type == "Einsum":
        return _einsum(op)
    return MAX_PRODUCTS + 1 if op.type in _CONVOLUTIONS else 0


def _matmul(op: Operation) -> int:
    a, out = op.inputs[0].shape, op.outputs[0].shape
    if not (a.is_fully_defined() and out.is_fully_defined()):
        return 0
    flipped = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
    inner = a[-2] if flipped else a[-1]
    if min(out[-1], out[-2], inner) <= 1:
        return 0
    if op.inputs[0].dtype != op.outputs[0].dtype:
        # In one kernel, XLA (TensorFlow 2.21) adds products of int8 to a sum of int32
        # without a cast, and refuses its own code. Goes when it compiles that.
        return MAX_PRODUCTS + 1
    return math.prod(out) * inner


def _einsum(op: Operation) -> int:
    if len(op.inputs) != 2 or not all(i.shape.is_fully_defined() for i in op.inputs):
        return 0
    sides, out = op.get_attr("equation").decode().split("->")
    labels = sides.split(",")
    if "." in sides:
        return 0
    sizes: dict[str, int] = {}
    for names, tensor in zip(labels, op.inputs, strict=True):
        sizes.update(zip(names, tensor.shape, strict=True))
    first, second = (set(names) for names in labels)
    kinds = (
        (first - second) & set(out),
        (second - first) & set(out),
        (first & second) - set(out),
    )
    if min(math.prod(sizes[n] for n in kind) for kind in kinds) <= 1:
        return 0
    return math.prod(sizes.values())
