"""The messages of the other modules: expected, received, fix, in that order."""

from __future__ import annotations

import re
from typing import Any

import keras


def other_backend(name: str) -> str:
    """`_checks`: Keras does not run on TensorFlow."""
    return (
        "SGDPlus needs the TensorFlow backend. Received: "
        f"keras.backend.backend()={name!r}. Set KERAS_BACKEND=tensorflow before "
        "importing keras."
    )


def nothing() -> str:
    """`_checks`: a batch without a tensor."""
    return (
        "SGDPlus needs a batch with at least one tensor. Received: x=None, y=None. "
        "Pass x as arrays or tensors of shape (num_examples, ...)."
    )


def text(name: str, shape: Any) -> str:
    """`_checks`: strings that Keras would cast to floats."""
    return (
        f"`{name}` must be numbers. Received: {name} of strings, shape {shape}. Map "
        "them to numbers first, with keras.layers.StringLookup or "
        "np.unique(..., return_inverse=True), say."
    )


def no_target() -> str:
    """`_checks`: a loss, and nothing to compare with."""
    return (
        "`y` must be given where compile() was given a loss. Received: y=None. Give "
        "every example its target, or compile without a loss and use add_loss."
    )


def objects(shape: Any) -> str:
    """`_checks`: an array of Python objects."""
    return (
        "The examples of a batch must be numbers of one shape. Received: an array of "
        f'Python objects, shape {shape}. Convert numbers with .astype("float32"). Pad '
        "the examples to one length, or hand them over as a tf.RaggedTensor."
    )


def no_batch_axis(name: str, shape: Any) -> str:
    """`_checks`: a scalar, or a tensor of any rank."""
    return (
        f"`{name}` must have a batch axis, shape (num_examples, ...). Received: {name} "
        f"of shape {shape}. Give a single example a first axis with x[None], and "
        "set_shape in a tf.data pipeline that loses it. If batches before had another "
        "number of axes, compile the model anew."
    )


def lengths(one: tuple[str, Any], other: tuple[str, Any]) -> str:
    """`_checks`: parts of a batch that do not belong together."""
    return (
        "x, y and sample_weight must have the same number of examples in a batch. "
        f"Received: {one[0]} with {one[1]} and {other[0]} with {other[1]}. Give every "
        "example its target (and weight), or drop what has none."
    )


def empty(name: str, size: int) -> str:
    """`_checks`: a batch of nothing."""
    return (
        f"A batch must have at least one example. Received: {name} with {size}. Drop "
        "empty batches, with dataset.filter for example."
    )


def eager_replicas() -> str:
    """`_compile`: replicas that are called one by one, op by op."""
    return (
        "Under several replicas SGDPlus should be called inside a tf.function. "
        "Received: strategy.run called eagerly, which walks op by op, slowly. Call "
        "strategy.run in a function decorated with @tf.function."
    )


def other_batch_size(group_size: int, problems: list[str]) -> str:
    """`_checks`: a model that was built for batches of one size."""
    return (
        f"SGDPlus feeds the model {group_size} example(s) at a time, so the model "
        f"must accept that batch size. Received: {', '.join(problems)}. Build it "
        f"with batch_size={group_size} (or None), or set examples_per_update to "
        "its batch size."
    )


def batch(data: Any, group_size: int) -> str:
    """`_optimizer`: a note to errors that tell of the model's view of a batch."""

    def shown(leaf: Any) -> str:
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        return f"{getattr(leaf, 'shape', '')} {getattr(dtype, 'name', dtype)}".strip()

    parts = keras.utils.unpack_x_y_sample_weight(data)
    named = zip(("x", "y", "sample_weight"), parts, strict=True)
    received = [
        f"{name}: {keras.tree.map_structure(shown, part)}"
        for name, part in named
        if part is not None
    ]
    return (
        f"The batch that SGDPlus received: {', '.join(received)}. It feeds the model "
        f"{group_size} example(s) at a time, with a batch axis of that size."
    )


def unknown_signature(name: str, expected: list[str], received: list[str]) -> str:
    """`_hook.install`: Keras changed what is wrapped."""
    return (
        f"SGDPlus wraps {name}({', '.join(expected)}) of Keras's trainer. Received: "
        f"{name}({', '.join(received)}) in Keras {keras.__version__}. Install a "
        "version of Keras that this release names as tested, or call "
        "optimizer.train_step(model, data) from a train_step of your own."
    )


def inside_multi_optimizer(name: str) -> str:
    """`_hook`: a part of a MultiOptimizer sees only some of the gradients."""
    return (
        "A per-example SGDPlus must be a model's only optimizer. Received: "
        f"{name!r} inside a MultiOptimizer, each part of which would run its own loop. "
        "Use SGDPlus(..., examples_per_update=None) there, for one update per batch."
    )


def bypassed(name: str) -> str:
    """`SGDPlus`: fit ran, and the loop did not."""
    return (
        f"fit() used the optimizer {name!r} for one update per batch: the model's own "
        "train_step called apply_gradients, so SGDPlus never saw single examples. "
        "Return self.optimizer.train_step(self, data), or super().train_step(data), "
        "from train_step. If one update per batch is meant, say so with "
        "SGDPlus(..., examples_per_update=None)."
    )


def not_built(name: str) -> str:
    """`ExactResume`: nothing to restore into."""
    return (
        "A model must be built before ExactResume can restore it. Received: "
        f"{name!r}, which is not. Begin it with keras.Input, or call it on a batch."
    )


def other_steps(saved: int, received: Any) -> str:
    """`ExactResume`: positions that mean something else."""
    return f"epochs of {saved} batches there, of {received} here"


def other_save(path: str, reason: str) -> str:
    """`ExactResume`: the directory holds another run."""
    return (
        "ExactResume must find a save of this run in its directory. Received: "
        f"{path!r}, which does not fit: {reason}. Name another directory, or restart "
        "with the command that it was written by."
    )


_CAUSES = "NaN or infinities in it, and labels out of range"


def not_finite(entry: Any) -> str:
    """`_ledger`: a group of examples that ended training."""
    several = entry.replica is not None
    part = f"replica {entry.replica}'s part of " if several else ""
    place = f"{part}batch {entry.batch} of the epoch, which began after "
    kept = "before this batch" if several else "just before it"
    return (
        'Every loss and gradient must be finite under nonfinite="raise". Received: '
        f"{_cause(entry.cause)} at {_positions(entry.positions)} of {place}"
        f"{entry.iterations} updates (both from 0, as handed over). Look there for "
        f'{_CAUSES}, or lower the learning_rate; nonfinite="skip" leaves such examples '
        f"out. The model holds the weights from {kept}, and can be trained on."
    )


def skipped(total: int, entries: list[Any]) -> str:
    """`_ledger`: what `fit` left out."""
    shown = [f"{_positions(e.positions)} of batch {e.batch}" for e in entries[:3]]
    more = ", and others" if total > len(shown) else ""
    return (
        'Every loss and gradient should be finite. Received: nonfinite="skip" left out '
        f"{total} update(s): {_cause(entries[0].cause)} at {', '.join(shown)}{more}. "
        f"Look there for {_CAUSES}; optimizer.skipped_examples() lists them."
    )


def _cause(cause: str) -> str:
    if cause == "loss":
        return "a loss that is not finite"
    return f"a gradient of {cause!r} that is not finite"


def _positions(positions: tuple[int, ...]) -> str:
    if len(positions) == 1:
        return f"position {positions[0]}"
    return f"positions {', '.join(str(i) for i in positions)}"


def not_per_example(nonfinite: str) -> str:
    """`_optimizer`: stock SGD sees no single example."""
    return (
        '`nonfinite` must be "propagate" with examples_per_update=None. Received: '
        f"nonfinite={nonfinite!r}. Set examples_per_update to 1 or more, whose loop "
        "sees each loss and gradient."
    )


def built_without(argument: str, value: Any) -> str:
    """`_state`: an argument that was changed after its variables could be made."""
    return (
        f"`{argument}` must be set before the optimizer is built, for it needs "
        f"variables. Received: {argument}={value!r}, set later. Make a new "
        f"SGDPlus(..., {argument}={value!r}) and compile the model with it."
    )


def no_gradients(paths: list[str]) -> str:
    """`_group`: the loss depends on no trainable variable."""
    return (
        "The loss must depend on at least one trainable variable. Received: no "
        f"gradient for any of {paths}. Check `loss` in compile() and `compute_loss`."
    )


def missing_gradients(paths: list[str]) -> str:
    """`_group`: as Keras, which also goes on."""
    return (
        f"Gradients do not exist for variables {paths} when minimizing the loss; they "
        "are left as they are. If that is not meant, check `loss` in compile()."
    )


def assigned_inside(path: str) -> str:
    """`_state`: a value that the loop could not carry out of an inner graph."""
    return (
        "A variable must not be assigned inside a branch or loop of the model (cond, "
        f"while_loop, scan, an RNN over a cell). Received: {path!r} assigned there. "
        "Assign it outside, with a `where` in place of a branch, build the RNN with "
        "unroll=True, or compile the model with run_eagerly=True."
    )


def overridden(name: str) -> str:
    """`_optimizer`: a subclass whose rule the loop would not follow."""
    return (
        "The per-example loop computes SGD's own update rule. Received: a subclass "
        f"that overrides {name!r}, which the loop would ignore. Use "
        "examples_per_update=None with it, for one update per batch."
    )


def undeclared_state(paths: list[str]) -> str:
    """`_step`: variables that appear in every trace anew."""
    return (
        "Every variable that the model writes must exist before training. Received: "
        f"variables made anew at each call: {paths}. Create them in __init__ or build."
    )


def without_xla(model_name: str, reason: str) -> str:
    """`_compile`: the slow way is taken."""
    return (
        f"XLA cannot compile the per-example loop of model {model_name!r}: {reason}. "
        "Training goes on without XLA, many times slower, with the same result up "
        "to rounding and random draws. "
        "Remove that operation from the model, loss or metrics, or say that "
        "this is meant with SGDPlus(..., jit_compile=False)."
    )


def many_signatures(model_name: str, num_signatures: int) -> str:
    """`_watch`: a compilation per length."""
    return (
        f"Model {model_name!r} was given examples of {num_signatures} different "
        "shapes, and XLA compiles the per-example loop anew for each. Pad the examples "
        "to a few lengths (bucketing, `bucket_by_sequence_length` in tf.data)."
    )


def uneven_groups(group_size: int, num_examples: int) -> str:
    """`_watch`: groups that differ from Keras's batches."""
    return (
        "Every batch of an epoch but the last should be a multiple of "
        f"examples_per_update={group_size}. Received: a batch that ended after "
        f"{num_examples} examples with a group of {num_examples % group_size}, so the "
        f"updates are not those of batch_size={group_size}. Use a batch_size that "
        f"{group_size} divides."
    )


def xla_reason(error: str) -> str:
    """The operations that XLA names in an error, else the error's first line."""
    named = r"No registered '(\w+)' OpKernel|unsupported operations?[^:]*: (\w+)"
    found = {a or b for a, b in re.findall(named, error)}
    if found:
        return "unsupported operations " + ", ".join(sorted(found))
    return error.strip().splitlines()[0][:200] if error.strip() else "unknown reason"
