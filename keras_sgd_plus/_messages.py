"""The messages of the other modules: expected, received, fix, in that order."""

from __future__ import annotations

import re
from typing import Any

import keras

# Arguments of SGDPlus: what each must be, and what to give instead.
_CLIP = "a number below infinity, or None"
_OFF = "Use None to switch it off."
_FLAG = "True or False", "Use True or False."
_ARGUMENTS = {
    "examples_per_update": (
        "an int from 1 to 2**24, or None",
        "Use 1 for one update per example, k for one per k examples, None for one per "
        "batch as keras.optimizers.SGD.",
    ),
    "order": (
        '"reshuffle" or "given"',
        'Use "reshuffle" for a fresh random order of each batch, "given" to visit '
        "examples as they are handed over.",
    ),
    "seed": (
        "None or an int from 0 to 2**63 - 1",
        "Use seed=None to derive one from `keras.utils.set_random_seed`.",
    ),
    "jit_compile": (
        '"auto", True or False',
        'Use "auto" for XLA wherever the model can.',
    ),
    "learning_rate": (
        "a finite float, a LearningRateSchedule, or a callable without arguments",
        "Use 0.01, say, or an object of `keras.optimizers.schedules` for a function of "
        "the number of updates.",
    ),
    "momentum": ("a float from 0 to 1", "Use 0.9, say."),
    "nesterov": _FLAG,
    "weight_decay": ("a finite number, or None", "Use 1e-4, say."),
    "clipnorm": (_CLIP, "Use 1.0, say."),
    "clipvalue": ("a number, or None", "Use 0.5, say."),
    "global_clipnorm": (_CLIP, "Use 1.0, say."),
    "use_ema": _FLAG,
    "ema_momentum": ("a number from 0 to 1", "Use 0.99, say."),
    "ema_overwrite_frequency": ("an int from 1 to 2**63 - 1, or None", _OFF),
    "loss_scale_factor": (
        "a finite number other than 0, or None",
        "Use 1024.0, say.",
    ),
    "gradient_accumulation_steps": ("an int from 2 to 2**63 - 1, or None", _OFF),
}
_MAX_SHOWN = 200  # characters of a value


def argument(**named: Any) -> str:
    """`_checks`: an argument of the constructor, given by its name."""
    ((name, value),) = named.items()
    expected, fix = _ARGUMENTS[name]
    try:
        shown = repr(value)
    except Exception:  # an int of 5,000 digits raises, too
        shown = f"<{type(value).__name__}>"
    if len(shown) > _MAX_SHOWN:
        shown = f"{shown[:_MAX_SHOWN]}..."
    return f"`{name}` must be {expected}. Received: {name}={shown}. {fix}"


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


def several_replicas(replicas: int) -> str:
    """`_checks`: the loop runs on one device."""
    return (
        "SGDPlus steps per example on one device. Received: a tf.distribute "
        f"strategy with {replicas} replicas. Use examples_per_update=None for one "
        "synchronous update per batch, or train outside the strategy's scope."
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


def unknown_train_step(parameters: list[str]) -> str:
    """`_hook.install`: Keras changed what is wrapped."""
    return (
        "SGDPlus wraps the train_step(self, data) of Keras's trainer. Received: "
        f"train_step({', '.join(parameters)}) in Keras {keras.__version__}. Install a "
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


def no_gradients(paths: list[str]) -> str:
    """`_loop`: the loss depends on no trainable variable."""
    return (
        "The loss must depend on at least one trainable variable. Received: no "
        f"gradient for any of {paths}. Check `loss` in compile() and `compute_loss`."
    )


def missing_gradients(paths: list[str]) -> str:
    """`_loop`: as Keras, which also goes on."""
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
