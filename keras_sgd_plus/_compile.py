"""Whether XLA compiles the loop, and the XLA setting that the loop profits from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_sgd_plus import _examples, _group, _keras, _messages, _strategy, _watch

# XLA:CPU compiles a while loop whose body touches fewer bytes than this into one
# kernel, and interprets it op by op above. XLA's default is 1024.
SMALL_LOOP_OPTION = "xla_cpu_small_while_loop_byte_threshold"
SMALL_LOOP_BYTES = 10_000_000
_EXTRA_OPTIONS = "--xla_backend_extra_options="
_PROBE_SIZES = (8, 64)  # stand in for an unknown batch axis, and unknown other axes


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


def wants_xla(jit_compile: bool | str, model: Any, leaves: Sequence[Any]) -> bool:
    """Whether to compile: not for eager runs, nor for what XLA is known not to take."""
    if jit_compile is False or model.run_eagerly or tf.config.functions_run_eagerly():
        return False
    if tf.executing_eagerly():
        _watch.warn_once(model, "eager replicas", _messages.eager_replicas())
        return False
    if not all(_examples.is_dense(leaf) for leaf in leaves):
        return False
    return jit_compile is True or all(
        getattr(layer, "supports_jit", True) for layer in _keras.layers(model)
    )


def refused(function: Any, arguments: Sequence[Any]) -> str | None:
    """Why XLA cannot take a traced function, or None if it can; executes nothing.

    Layers and losses of users say `supports_jit=True` and may yet print, call Python
    or handle strings. XLA would find out when the first batch runs, too late to choose
    another way in the graph that is being built.
    """
    try:
        with tf.init_scope():
            if all(a.shape.is_fully_defined() for a in arguments):
                specs = [tf.TensorSpec(a.shape, a.dtype) for a in arguments]
                function.experimental_get_compiler_ir(*specs)(stage="hlo")
            else:
                zeros = [tf.zeros(_probe_shape(a), a.dtype) for a in arguments]
                function.experimental_get_compiler_ir(*zeros)(stage="hlo")
    except Exception as error:  # XLA raises many classes, also bare ones
        return _messages.xla_reason(str(error))
    return None


class Runner:
    """Runs a pure function of the carry; as a compiled function of its own, or as is.

    Args:
        update: the update that the function makes; it knows the carry, and after a
            trace which of its variables change.
        use_xla: whether to compile.
        jit_compile: "auto" makes sure first that XLA can, and goes on without if not.
        in_place: whether a compiled function may write the variables. Not where a
            second one follows, whose trace may fail or start all over, nor under a
            strategy, whose variables cannot be written inside.
    """

    def __init__(
        self,
        update: _group.Update,
        use_xla: bool,
        jit_compile: bool | str,
        in_place: bool,
    ) -> None:
        self.update, self.use_xla, self.probes = update, use_xla, jit_compile == "auto"
        self.in_place = in_place and not _strategy.is_open()

    def __call__(
        self,
        function: Callable[..., Any],
        earlier: dict[int, Any],
        arguments: Sequence[Any],
    ) -> tuple[dict[int, Any], Any]:
        """What `function(values, *arguments)` changes, and its second result.

        Args:
            function: takes and gives the carry's values first.
            earlier: values by position in the carry, not yet committed.
            arguments: tensors.

        Returns:
            Values by position, to be committed. None in place: there the compiled
            function reads the variables at its beginning and writes them at its end,
            and XLA changes their buffers. Handing values in and out copies every
            weight twice.
        """
        carry = self.update.carry

        def changed(values: list[Any], arguments: Any) -> tuple[dict[int, Any], Any]:
            new, result, *rest = function(values, *arguments)
            return {i: new[i] for i in sorted(self.update.changed)}, (result, rest)

        def walk_and_commit(*arguments: Any) -> Any:
            found, results = changed(carry.read(), arguments)
            carry.commit(found)
            return results

        def walk_and_return(*flat: Any) -> Any:
            split = len(carry.variables)
            return changed(list(flat[:split]), flat[split:])

        values = [] if self.use_xla and self.in_place else carry.read()
        for position, value in earlier.items():
            values[position] = value
        if self.use_xla:
            walk = walk_and_commit if self.in_place else walk_and_return
            flat = [*values, *arguments]
            compiled = tf.function(walk, jit_compile=True, autograph=False)
            compiled.get_concrete_function(*flat)
            if self._is_taken(compiled, flat):
                results = compiled(*flat)
                return (
                    ({}, results[0]) if self.in_place else (results[0], results[1][0])
                )
            values = values or carry.read()
        found, results = changed(values, arguments)
        return found, results[0]

    def _is_taken(self, compiled: Any, arguments: Sequence[Any]) -> bool:
        if not self.probes or self.update.compiles:
            return True
        self.probes = False
        reason = refused(compiled, arguments)
        if reason is None:
            return True
        self.use_xla = False
        model = self.update.model
        _watch.warn_once(model, "xla", _messages.without_xla(model.name, reason))
        return False


def _probe_shape(tensor: Any) -> list[int]:
    return [
        _PROBE_SIZES[min(axis, 1)] if d is None else d
        for axis, d in enumerate(tensor.shape)
    ]
