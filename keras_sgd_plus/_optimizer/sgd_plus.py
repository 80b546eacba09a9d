"""SGDPlus: arguments, documentation, configuration, and the way into the loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_sgd_plus._advice import notices
from keras_sgd_plus._batch import checks, step
from keras_sgd_plus._fit import fits, hooks
from keras_sgd_plus._optimizer import settings
from keras_sgd_plus._optimizer.settings import Setting
from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Structure, Variable
from keras_sgd_plus._report import bad_examples
from keras_sgd_plus._report.bad_examples import Skipped
from keras_sgd_plus._rule import ours
from keras_sgd_plus._rule.rule import make_slots


class SGDPlus(keras.optimizers.SGD, ours.PerExampleOptimizer):
    """Updates the weights after every example of every batch, in random order.

    Use it where small-batch quality matters and `batch_size=1` is too slow: small data,
    streams, teaching, the study of SGD itself. Plain `keras.optimizers.SGD` is the
    better choice for models whose single step keeps the machine busy (very large
    layers, GPUs), and for layers or losses that relate the examples of a batch.

    Equivalent Python (this is what the compiled loop computes):

    ```python
    for x_i, y_i in batch:                              # in visiting order
        g = gradient(loss(model(x_i), y_i), w)          # tf.GradientTape
        velocity = momentum * velocity - learning_rate * g
        w = w + velocity
        # nesterov: w = w + momentum * velocity - learning_rate * g
    ```

    The result is that of `keras.optimizers.SGD` with `batch_size=1` over the same
    order: weights, velocities, statistics, loss and metrics, up to float rounding.
    `batch_size` no longer changes the algorithm, only how many examples one compiled
    call processes; activations take the memory of one example. Logged loss and metrics
    use each example's prediction *before* its own update (progressive validation): in
    the first epoch they are an honest estimate on data not yet seen.

    The first thirteen arguments are those of `keras.optimizers.SGD`. **Whatever counts
    updates counts examples here**: learning-rate schedules, weight decay, EMA and
    gradient accumulation advance once per example, as in Keras at `batch_size=1`.

    Args:
        learning_rate: Float, `"auto"`, `LearningRateSchedule` of the number of
            updates, or callable without arguments. Step size per update, so per example
            and not per batch; assign `optimizer.learning_rate` to change it between
            batches. With momentum 0.9, begin at `0.001`. With `"auto"` each `fit` finds
            the rate on its own data (`find_learning_rate`) and lets it fall to zero
            over its epochs (`LinearDecay`); an assigned rate ends that. Defaults to
            `0.01`.
        momentum: Float from 0 to 1, the part of the velocity that an update keeps.
            Above 0 it takes one more copy of the weights. Defaults to `0.0`.
        nesterov: Bool. Nesterov momentum. Defaults to `False`.
        weight_decay: Float or None. Decoupled: each update first does
            `w -= w * weight_decay * learning_rate`. Defaults to `None`.
        clipnorm: Float or None. Each gradient of each update is clipped to this
            Euclidean norm, so here it bounds what a single example can do. Defaults to
            `None`.
        clipvalue: Float or None. Elements of each gradient are clipped to plus or minus
            this. Defaults to `None`.
        global_clipnorm: Float or None. Clips the Euclidean norm of all gradients of an
            update together. At most one of the three may be set. Defaults to `None`.
        use_ema: Bool. Keeps an exponential moving average of the weights, one more copy
            of them, which `fit` writes to the model at its end. Defaults to `False`.
        ema_momentum: Float from 0 to 1, the part of the average that an update keeps.
            Defaults to `0.99`.
        ema_overwrite_frequency: Int >= 1 or None. Overwrites the weights with their
            average every so many updates. Defaults to `None`.
        loss_scale_factor: Float or None. The loss is multiplied by it, gradients are
            divided by it. Defaults to `None`.
        gradient_accumulation_steps: Int >= 2 or None. Averages the gradients of so many
            examples into one step of the rule. Defaults to `None`.
        name: String without "/", or None, a name made from the class. Defaults to
            `None`.
        examples_per_update: Int k from 1 to 2**24, or None. k > 1 averages k
            examples into one update inside the same loop (mini-batch SGD of size k),
            and what is left over of a batch into a shorter one: choose a `batch_size`
            that k (times the replicas) divides. `None` is stock
            `keras.optimizers.SGD`, one update per batch. Defaults to `1`.
        order: `"reshuffle"`, a fresh uniform permutation of each batch, or `"given"`,
            as handed over. With arrays and `fit(shuffle=True)` the two compose to a
            uniform permutation of the epoch. The optimizer cannot see `fit`'s
            `shuffle`: data in time order need `order="given"`. Defaults to
            `"reshuffle"`.
        seed: Int from 0 to 2**63 - 1, or None. The order of a batch is a pure function
            of the seed and of the number of updates made before it, so a resumed run
            visits what the uninterrupted one would. `None` derives a seed from
            Python's `random` without drawing from it (`keras.utils.set_random_seed`
            fixes it) and keeps it in the config. Defaults to `None`.
        nonfinite: String. How to treat an example whose loss or gradients are NaN or
            infinite.
            `"propagate"`: it ruins the weights, as in Keras. `"skip"`: it changes
            nothing but counters and seeds, neither weights, optimizer state,
            statistics, metrics nor the logged loss; the logs have a `"skipped"` count
            per epoch, `fit` warns at its end, `skipped_examples()` says which. For
            `SeededArrays` and arrays with `shuffle=False` messages name the row.
            `"raise"`: `fit` stops with an error that names it, on the weights from
            just before it. With `examples_per_update=k` the unit is the group.
            Defaults to `"propagate"`.
        jit_compile: `"auto"` (XLA wherever the model can), `True`, `False`. Decides
            for the loop, also where the model's own `jit_compile` is off; an eager
            model (`run_eagerly=True`) never uses XLA. Defaults to `"auto"`.
        max_loss_fraction: Float above 0 and up to 1, or None. Bounds the step of each
            update, so that it removes, to first order, at most this fraction of its own
            loss: the learning rate becomes
            `min(learning_rate, max_loss_fraction * (1 - momentum) * loss / norm**2)`,
            with the norm of the gradient (with clipping, its inner product with the
            clipped one); weight decay uses that rate, too. A rate that is too high then
            trains instead of diverging. It assumes that each example's loss could be 0:
            use less than 1 for noisy labels, and no negative loss. The logs of training
            have the share of updates that it bounded, `"capped"`. Defaults to `None`.

    Raises:
        ValueError: `momentum` or `ema_momentum` outside 0 to 1; `learning_rate`,
            `weight_decay`, `clipnorm` or `loss_scale_factor` with which training gives
            nothing but NaN; more than one of `clipnorm`, `clipvalue` and
            `global_clipnorm`; `ema_overwrite_frequency`, `examples_per_update`,
            `gradient_accumulation_steps` or `seed` out of range; `name` that is no
            string, or has "/" in it; another `order`, `nonfinite` or `jit_compile` than
            those above, or `nonfinite` other than "propagate" beside
            `examples_per_update=None`; `max_loss_fraction` not above 0 or above 1.
        TypeError: an argument that there is not (the message names the one that is
            meant); a string or an array where a number, int or bool belongs:
            `nesterov`, `use_ema`, `clipvalue` and others (ValueError for
            `learning_rate` and `momentum`, as in Keras); a callable `learning_rate`
            that takes arguments.
        RuntimeError: Keras runs on another backend than TensorFlow.
        NotImplementedError: a `tf.distribute` strategy that it cannot train under;
            `max_loss_fraction` beside `gradient_accumulation_steps` or
            `examples_per_update=None`.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_sgd_plus import SGDPlus

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer=SGDPlus(learning_rate=0.001, momentum=0.9), loss="mse")
    x = np.random.default_rng(0).normal(size=(1000, 4))
    model.fit(x, x.sum(axis=1), batch_size=250, epochs=2)
    print(int(model.optimizer.iterations))  # 2000: an update per example
    ```

    Notes:
        - Unchecked: losses that relate the examples of a batch (contrastive losses)
          lose their meaning on one example. Under XLA, asserts in the model are
          dropped, and a label out of range gives NaN instead of an error.
        - With a zero `sample_weight`, momentum and weight decay still move weights.
        - The first batch is compiled, which takes seconds. Batches of other sizes are
          padded to powers of two, and share compilations; under
          `compile(jit_compile=True)` Keras compiles each size anew.
        - Under `tf.distribute` each replica walks its part of a batch, then all are
          averaged (local SGD; https://arxiv.org/abs/1805.09767).
        - On a CPU some layers (convolution, pooling, dropout, batch normalization,
          Dense) are compiled in forms that suit XLA better, equal up to the order of
          additions. `KERAS_SGD_PLUS_LOWERING=0` in the environment switches them off.
        - Sets `XLA_FLAGS=--xla_backend_extra_options=
          xla_cpu_small_while_loop_byte_threshold=10000000` for the process unless that
          option is set: XLA on a CPU would interpret the loop op by op.

    References:
        - [Robbins and Monro, 1951](https://doi.org/10.1214/aoms/1177729586)
        - [Polyak, 1964](https://doi.org/10.1016/0041-5553(64)90137-5) (momentum)
        - [Bottou, 2010](https://doi.org/10.1007/978-3-7908-2604-3_16) (one example at
          a time on large data)
        - [Asi and Duchi, 2019](https://arxiv.org/abs/1903.08619),
          [Loizou et al., 2021](https://arxiv.org/abs/2002.10542),
          [Oikonomou and Loizou, 2024](https://arxiv.org/abs/2406.04142)
          (`max_loss_fraction`)
        - [Masters and Luschi, 2018](https://arxiv.org/abs/1804.07612) (small batches)
        - [Marek et al., 2025](https://arxiv.org/abs/2507.07101) (batch size one)
    """

    __module__ = "keras_sgd_plus"  # files and pickles name it, wherever it stands

    _derived_seed: int | None = None
    lr = property(fset=settings.refuse_lr)
    learning_rate = keras.optimizers.SGD.learning_rate.setter(
        settings.assign_learning_rate
    )
    # These are numbers of compiled steps: a new one compiles nothing.
    momentum = Setting()
    weight_decay = Setting()
    clipnorm = Setting()
    clipvalue = Setting()
    global_clipnorm = Setting()
    ema_momentum = Setting()
    max_loss_fraction = Setting()
    # A loop is compiled for each value of these.
    examples_per_update = Setting()
    order = Setting()
    seed = Setting()
    nonfinite = Setting()
    jit_compile = Setting()

    @settings.refuses_others
    def __init__(
        self,
        learning_rate: float
        | Literal["auto"]
        | LearningRateSchedule
        | Callable[[], Any] = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
        *,
        examples_per_update: int | None = 1,
        order: Literal["reshuffle", "given"] = "reshuffle",
        seed: int | None = None,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        jit_compile: bool | Literal["auto"] = "auto",
        max_loss_fraction: float | None = None,
    ) -> None:
        given = locals()  # all arguments, by name
        settings.backend("SGDPlus")
        is_auto = isinstance(learning_rate, str) and learning_rate == settings.AUTO
        if is_auto:
            given = {**given, "learning_rate": 0.01}
        super().__init__(**settings.of_sgd(given), name=name)
        self.is_auto = self.waits_for_rate = is_auto
        for argument in settings.OWN:
            setattr(self, argument, given[argument])
        self._derived_seed = self.seed if seed is None else None
        hooks.install()
        if examples_per_update is not None and jit_compile is not False:
            xla.raise_small_loop_threshold()

    def __repr__(self) -> str:
        return settings.as_call(self, self._derived_seed)

    if not TYPE_CHECKING:  # else any attribute would do

        def __getattr__(self, name: str) -> Any:
            raise settings.no_attribute(type(self).__name__, name)

    def build(self, variables: list[Variable]) -> None:
        """Makes the optimizer's state, once: first that of `keras.optimizers.SGD`.

        Args:
            variables: the trainable variables.
        """
        if self.built:
            return
        super().build(variables)
        make_slots(self, variables)

    def train_step(self, model: keras.Model, data: Structure) -> Any:
        """Trains `model` on one batch with one update per example.

        For models with a `train_step` of their own; `fit` calls it for all others. In
        place of the tape and `apply_gradients`:

        ```python
        class Mine(keras.Model):
            def train_step(self, data):
                return self.optimizer.train_step(self, data)
        ```

        Variables are written once, when the whole batch is done.

        Args:
            model: A `keras.Model`. Trained with `model.optimizer` if that is, or
                wraps, this optimizer, else with this optimizer.
            data: `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`, with a batch axis.

        Returns:
            The logs, as from `compute_metrics`.

        Raises:
            ValueError: a batch without examples or batch axis, or of unequal lengths;
                no y for a loss; a model that takes no other batch size than one that
                differs from `examples_per_update`.
            TypeError: strings where the model or the loss needs numbers.
            NotImplementedError: what several replicas cannot do.
            FloatingPointError: not finite, under `nonfinite="raise"`.
        """
        if self.examples_per_update is None:
            return hooks.stock_train_step(model, data)
        owner = getattr(model, "optimizer", None)
        outer: Any = owner if ours.unwrap(owner) is self else self
        ours.refuse_overrides(outer)
        ours.refuse_waiting(self)
        notices.note_engaged(self)
        try:
            return step.run(self, outer, model, data)
        except (TypeError, ValueError) as error:
            error.add_note(checks.batch_in_words(data, self.examples_per_update or 1))
            raise

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        """Applies gradients computed elsewhere: one plain SGD update, as in Keras.

        So `apply_gradients` does, too. For one update per example call `train_step`.
        `fit` warns of a model whose own `train_step` comes here; a loop by hand does
        not, for nothing tells whether it means something else.

        Args:
            grads: a list of gradients, one per variable.
            trainable_variables: the variables, if the optimizer is not built.
        """
        ours.refuse_waiting(self)
        notices.note_applied(self, fits.models())
        return super().apply(grads, trainable_variables)

    def finalize_variable_values(self, var_list: Sequence[Variable]) -> None:
        """Writes final values (averages under `use_ema`); Keras's `fit` calls it."""
        run = fits.with_optimizer(self)
        if run is None or not run.is_nested:
            if skipped := bad_examples.report_skips(self, run):
                warnings.warn(skipped, stacklevel=2)
        super().finalize_variable_values(var_list)

    def skipped_examples(self) -> list[Skipped]:
        """The groups that `nonfinite="skip"` left out in the last `fit`, in order.

        Returns:
            Named tuples: `epoch` of `fit`, None for a batch of a callback; `batch`, its
            number in the epoch; `iterations`, the raw number
            of updates before that batch; `positions` of the group's examples in the
            batch as handed over; `cause`, "loss" or the path of the variable whose
            gradient was not finite. The first 1,000 of them; the logs have the count.
        """
        return bad_examples.skipped_examples(self)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; a derived seed is among them."""
        own = {name: getattr(self, name) for name in settings.OWN}
        rate = {"learning_rate": settings.AUTO} if self.is_auto else {}
        return {**super().get_config(), **rate, **own}


def _register() -> None:
    """Registers the class with Keras."""
    keras.saving.register_keras_serializable(package="keras_sgd_plus")(SGDPlus)


hooks.install_loading(_register)
