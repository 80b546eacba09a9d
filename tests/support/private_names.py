"""Every private name that the package uses, changed alone, and what is trained then.

`train_on_other` trains; this table imports neither Keras nor TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.other_keras import (
    Change,
    function_longer,
    function_renamed,
    longer,
    renamed,
)

RIGHT, SLOWER, ERROR = "right", "slower", "error"
BACKEND = "keras.src.backend.tensorflow"
TRAINERS = r"keras\.src\.(trainers|backend\.tensorflow\.trainer|utils)\b"
OPTIMIZERS = r"keras\.src\.(optimizers|backend\.tensorflow\.optimizer)"
SEEDS = r"keras\.src\.(random|backend\.tensorflow\.random|utils)\b"
TF = r"tensorflow\.(python|dtensor)\."


@dataclass(frozen=True)
class Row:
    """A change, and what has to happen.

    Attributes:
        change: of a name in the sources, or (old, new) places of a module.
        program: of `train_on_other`.
        outcome: training is right; right, with a warning that it is slower; or one
            RuntimeError that names it.
    """

    change: Change | tuple[str, str]
    program: str
    outcome: str

    @property
    def name(self) -> str:
        """The name that is changed."""
        if isinstance(self.change, Change):
            return self.change.name
        return self.change[0]


def _rows(*rows: Row) -> dict[str, Row]:
    return {row.name: row for row in rows}


_FUNCTIONS = {
    "conv": "images",
    "depthwise_conv": "images",
    "separable_conv": "images",
    "max_pool": "images",
    "batch_normalization": "images",
    "moments": "images",
    "sparse_categorical_crossentropy": "images",
    "add": "images",
    "matmul": "images",
    "dropout": "images",
    "take": "table",
}
_GONE = "tensorflow.gone"  # nobody looks there

MOVED = _rows(
    Row((f"{BACKEND}.nn", f"{BACKEND}.ops.nn"), "images", RIGHT),
    Row((f"{BACKEND}.numpy", f"{BACKEND}.ops.numpy"), "table", RIGHT),
    Row((f"{BACKEND}.random", f"{BACKEND}.gone.random"), "images", SLOWER),
    Row(("keras.src.random.seed_generator", "keras.gone.seeds"), "images", SLOWER),
    Row(("keras.src.backend.common.global_state", "keras.gone.state"), "seeds", RIGHT),
    Row((f"{BACKEND}.core", f"{BACKEND}.ops.core"), "plain", RIGHT),
    Row(
        ("tensorflow.python.ops.resource_variable_ops", f"{_GONE}.resource"),
        "skip",
        ERROR,
    ),
    Row(
        ("tensorflow.python.ops.control_flow_util", f"{_GONE}.flow"),
        "one_example",
        ERROR,
    ),
    Row(("tensorflow.compiler.tf2xla.python.xla", f"{_GONE}.xla"), "images", ERROR),
    Row(
        (
            "tensorflow.python.framework.auto_control_deps_utils",
            f"{_GONE}.dependencies",
        ),
        "direct",
        ERROR,
    ),
    Row(
        ("tensorflow.python.distribute.distribute_lib", f"{_GONE}.distribute"),
        "replicas",
        ERROR,
    ),
)

RENAMED = _rows(
    *(Row(function_renamed(n), p, SLOWER) for n, p in _FUNCTIONS.items()),
    Row(renamed("draw_seed"), "images", SLOWER),
    Row(renamed("_cast_seed", SEEDS), "images", SLOWER),
    Row(renamed("GLOBAL_SEED_GENERATOR"), "seeds", RIGHT),
    Row(renamed("get_global_attribute"), "resume", ERROR),
    Row(renamed("seed_generator_state"), "resume", RIGHT),
    # The trainer
    Row(renamed("train_step", TRAINERS), "plain", ERROR),
    Row(renamed("make_train_function", TRAINERS), "plain", ERROR),
    Row(renamed("reset_metrics", TRAINERS), "skip", ERROR),
    Row(renamed("_make_function", TRAINERS), "workers", ERROR),
    Row(renamed("_maybe_symbolic_build", TRAINERS), "replicas", ERROR),
    Row(
        renamed("epoch_iterator", TRAINERS, r"(?<![\w.])epoch_iterator\b(?! import)"),
        "resume",
        ERROR,
    ),
    Row(
        renamed("data_adapter", TRAINERS, r"(self|iterator)\.data_adapter\b"),
        "resume",
        ERROR,
    ),
    Row(renamed("num_batches", TRAINERS), "resume", ERROR),
    Row(
        renamed(
            "steps_per_epoch",
            TRAINERS,
            r"(self|iterator)\.steps_per_epoch\b",
        ),
        "resume",
        ERROR,
    ),
    Row(renamed("_initial_epoch"), "resume", ERROR),
    Row(renamed("ArrayDataAdapter", TRAINERS), "shuffled_arrays", ERROR),
    Row(renamed("GeneratorDataAdapter", TRAINERS), "generator", ERROR),
    Row(renamed("GrainDatasetAdapter", TRAINERS), "resume", RIGHT),
    Row(renamed("PyDatasetAdapter", TRAINERS), "shuffled_batches", ERROR),
    Row(renamed("TFDatasetAdapter", TRAINERS), "resume", ERROR),
    Row(renamed("TorchDataLoaderAdapter", TRAINERS), "resume", RIGHT),
    Row(renamed("_shuffle", TRAINERS), "shuffled_arrays", ERROR),
    Row(renamed("_batch_size", TRAINERS), "plain", RIGHT),
    Row(renamed("_num_samples", TRAINERS), "resume", RIGHT),
    Row(renamed("_dataset", TRAINERS, r"self\._dataset\b"), "resume", ERROR),
    Row(renamed("py_dataset", TRAINERS, r"self\.py_dataset\b"), "batches", ERROR),
    Row(renamed("shuffle", TRAINERS, r"self\.shuffle\b"), "shuffled_batches", ERROR),
    # The model
    Row(renamed("_symbolic_build"), "replicas", ERROR),
    Row(
        renamed(  # the function; layers have a public method of that name
            "compute_output_spec",
            pattern=r"(backend\.|import |def )compute_output_spec\b(?!\(\s*self)",
        ),
        "plain",
        ERROR,
    ),
    Row(renamed("_flatten_layers"), "plain", ERROR),
    Row(renamed("_call_has_training_arg"), "plain", ERROR),
    Row(renamed("_compute_loss"), "plain", RIGHT),
    Row(renamed("_loss_tracker"), "plain", ERROR),
    Row(renamed("_compile_loss"), "plain", RIGHT),
    Row(renamed("_compile_metrics"), "plain", RIGHT),
    Row(renamed("_flat_losses"), "plain", RIGHT),
    Row(renamed("_deferred_initialize"), "variables_in_call", RIGHT),
    Row(renamed("fn", r"keras\.src\.losses"), "plain", RIGHT),
    Row(renamed("_fn_kwargs", r"keras\.src\.losses"), "plain", RIGHT),
    Row(renamed("_functional"), "fixed_size", RIGHT),
    Row(renamed("_run_through_graph"), "fixed_size", RIGHT),
    Row(renamed("_standardize_inputs"), "fixed_size", RIGHT),
    # The optimizer
    Row(renamed("momentums"), "plain", ERROR),
    Row(renamed("_model_variables_moving_average"), "plain", ERROR),
    Row(renamed("_accumulated_gradients"), "plain", ERROR),
    Row(renamed("_iterations", OPTIMIZERS), "plain", ERROR),
    Row(renamed("_trainable_variables"), "plain", ERROR),
    Row(renamed("_learning_rate", OPTIMIZERS), "plain", ERROR),
    Row(renamed("_use_weight_decay"), "plain", ERROR),
    Row(renamed("_check_variables_are_known"), "plain", ERROR),
    Row(renamed("_get_variable_index"), "plain", ERROR),
    Row(renamed("_clip_gradients", OPTIMIZERS), "plain", RIGHT),
    # TensorFlow
    Row(renamed("get_read_write_resource_inputs", TF), "direct", ERROR),
    Row(renamed("ResourceVariable", TF), "skip", ERROR),
    Row(renamed("GraphOrParentsInXlaContext", TF), "one_example", ERROR),
    Row(renamed("dynamic_slice", r"tensorflow\.compiler\.tf2xla"), "images", ERROR),
    Row(renamed("_run_functions_eagerly", TF), "plain", ERROR),
    Row(renamed("_in_multi_worker_mode", TF), "worker", ERROR),
    Row(renamed("_push_per_thread_mode", TF), "replicas", ERROR),
    Row(renamed("_pop_per_thread_mode", TF), "replicas", ERROR),
    Row(renamed("_get_default_replica_mode", TF), "replicas", ERROR),
    Row(
        renamed("_reshuffle_each_iteration", rf"{TF}data\.ops\."),
        "shuffled_dataset",
        ERROR,
    ),
    Row(renamed("_seed", rf"{TF}data\.ops\.shuffle_op"), "shuffled_dataset", ERROR),
    Row(renamed("_seed2", rf"{TF}data\.ops\.shuffle_op"), "shuffled_dataset", ERROR),
    Row(renamed("_inputs", rf"{TF}data\."), "resume", ERROR),
)

RESIGNED = _rows(
    *(Row(function_longer(n), p, SLOWER) for n, p in _FUNCTIONS.items()),
    Row(longer("draw_seed", is_method=False), "images", SLOWER),
    Row(longer("_cast_seed", SEEDS, is_method=False), "images", SLOWER),
    Row(longer("get_global_attribute", is_method=False), "seeds", RIGHT),
    Row(longer("train_step", TRAINERS), "plain", ERROR),
    Row(longer("make_train_function", TRAINERS), "plain", ERROR),
    Row(longer("reset_metrics", TRAINERS), "skip", ERROR),
    Row(longer("_make_function", TRAINERS), "workers", ERROR),
    Row(longer("_maybe_symbolic_build", TRAINERS), "replicas", ERROR),
    Row(longer("_symbolic_build"), "replicas", ERROR),
    Row(longer("_flatten_layers"), "plain", ERROR),
    Row(longer("_compute_loss"), "plain", ERROR),
    Row(longer("_use_weight_decay", OPTIMIZERS), "plain", ERROR),
    Row(longer("_check_variables_are_known", OPTIMIZERS), "plain", ERROR),
    Row(longer("_get_variable_index", OPTIMIZERS), "plain", ERROR),
    Row(longer("_in_multi_worker_mode", TF), "worker", ERROR),
    Row(longer("get_read_write_resource_inputs", TF, is_method=False), "direct", ERROR),
    Row(
        longer("GraphOrParentsInXlaContext", TF, is_method=False), "one_example", ERROR
    ),
    Row(longer("_inputs", rf"{TF}data\."), "resume", ERROR),
)

TABLES = {"moved": MOVED, "renamed": RENAMED, "resigned": RESIGNED}
