"""Whether XLA compiles a walk, and how a compiled one reads and writes variables."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus._distribute import strategy
from keras_sgd_plus._loop import Carry, WalkResult
from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Model, Structure, Tensor
from keras_sgd_plus._step import refusal, warn

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


def wants_xla(jit_compile: bool | str, model: Model, leaves: Sequence[Tensor]) -> bool:
    """Whether to compile: not in eager runs, nor models that XLA is known to refuse."""
    if jit_compile is False or model.run_eagerly or tf.config.functions_run_eagerly():
        return False
    if tf.executing_eagerly():
        text = (
            "Under several replicas SGDPlus should be called inside a tf.function. "
            "Received: strategy.run called eagerly, which walks op by op, slowly. Call "
            "strategy.run in a function decorated with @tf.function."
        )
        warn.once(model, "eager replicas", text)
        return False
    known = refusal.of_inputs(leaves)
    if known is None and jit_compile is not True:
        known = refusal.of_layers(model) or refusal.of_compiling(model)
    if known is not None:
        refusal.warn_once(model, known)
    return known is None


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
        in_place = is_last and not strategy.is_open()
        return cls(use_xla, jit_compile == "auto", in_place)


class RunResult(NamedTuple):
    """The result of a walk, and how the next one is to be run.

    Attributes:
        changed: values by position in the carry, to be committed. None in place.
        logs: of the walk.
        skips: of the walk.
        records: of the walk.
        how: as this walk was run in the end, with nothing left to be probed.
    """

    changed: dict[int, Tensor]
    logs: Structure
    skips: Tensor
    records: Any
    how: How


# (values of the carry, whether XLA compiles it, *arguments) -> result
Walk = Callable[..., WalkResult]


def run(
    walk: Walk,
    carry: Carry,
    earlier: dict[int, Tensor],
    arguments: Sequence[Tensor],
    how: How,
    model: Model,
) -> RunResult:
    """Runs a walk: compiled, as a function of its own, or as it is.

    Args:
        walk: a pure function of the carry.
        carry: the variables.
        earlier: values by position in the carry, not yet committed.
        arguments: tensors.
        how: to run it.
        model: for warnings.
    """
    if how.use_xla:
        compiled = _compile(walk, carry, earlier, arguments, how.in_place)
        found = None
        if how.probe and not compiled.surely_compiles:
            found = refusal.found(model, compiled.function, compiled.arguments)
        if found is None:
            xla.note(compiled.function, compiled.arguments)
        how = how._replace(probe=False)
        if found is None:
            results = compiled.function(*compiled.arguments)
            changed, logs, skips, records, _ = results
            return RunResult(changed, logs, skips, records, how)
        how = how._replace(use_xla=False)
        refusal.warn_once(model, found)
    values = carry.read()
    for position, value in earlier.items():
        values[position] = value
    result = walk(values, False, *arguments)
    return RunResult(_changed(result), *_results(result), how)


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
    found: list[WalkResult] = []  # one: the function is traced once

    def walk_and_commit(*arguments: Tensor) -> Any:
        result = walk(carry.read(), True, *arguments)
        found.append(result)
        carry.commit(_changed(result))
        return {}, *_results(result), result.fence

    def walk_and_return(*flat: Tensor) -> Any:
        split = len(carry.variables)
        result = walk(list(flat[:split]), True, *flat[split:])
        found.append(result)
        return _changed(result), *_results(result), result.fence

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
    return _Compiled(function, flat, found[-1].surely_compiles)


def _changed(result: WalkResult) -> dict[int, Any]:
    return {i: result.values[i] for i in sorted(result.changed)}


def _results(result: WalkResult) -> tuple[Any, Any, Any]:
    return result.logs, result.skips, result.records
