"""Every message of the package has a test, beside the behaviour it belongs to."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from typing import Any

import pytest

# Modules, not their functions: pytest would run those once more from here.
from tests.callbacks import (
    test_average_weights,
    test_damaged_saves,
    test_exact_resume_refuses,
    test_example_log_refuses,
    test_seeded_arrays,
)
from tests.distribute import test_refused, test_use, test_workers
from tests.loop import test_direct, test_uneven_groups
from tests.lowering import test_installed_forms
from tests.nonfinite import test_raise, test_reports, test_rows
from tests.optimizer import (
    test_arguments,
    test_live_settings,
    test_misspelt,
    test_registered,
)
from tests.pending import test_whole_tables
from tests.rule import test_capped_runs, test_overrides
from tests.step import (
    test_batch_checks,
    test_model_checks,
    test_refusals,
    test_traces,
    test_xla_choice,
)
from tests.support.paths import PACKAGE
from tests.support.syntax import pieces_of_f_strings
from tests.trainer import (
    test_bypass,
    test_divergence,
    test_first_call,
    test_installation,
    test_no_progress,
    test_schedules,
    test_two_optimizers,
)

MIN_LENGTH = 60  # of a text that is a message, and no name or option

BATCHES = test_batch_checks.BATCHES
ARGUMENTS = test_arguments.ARGUMENTS
MODELS = test_model_checks.ERRORS
RESUME = test_exact_resume_refuses.test_refused
LOGS = test_example_log_refuses.REFUSED
REPLICAS = test_refused.test_refused
REFUSALS = test_refusals.ROWS

# How each message begins, up to what it received -> the test, or the row of one.
MESSAGES: dict[str, Any] = {
    "`{}` must be {}.": ARGUMENTS,
    "SGDPlus must be given arguments that it has.": test_misspelt.ARGUMENTS,
    "The setting `learning_rate` must be assigned by its name.": (
        test_misspelt.test_old_name_of_a_setting
    ),
    "{} needs the TensorFlow backend.": test_arguments.ERRORS["other_backend"],
    '`nonfinite` must be "propagate" with examples_per_update=None.': (
        test_arguments.ERRORS["not_per_example"]
    ),
    "With `max_loss_fraction` each update must be made from": (
        test_capped_runs.test_refused_beside
    ),
    "With `max_loss_fraction` no loss must be below zero": (
        test_capped_runs.test_negative_loss_warns_once
    ),
    "`{}` must be set before the optimizer is built, for it needs variables.": (
        test_live_settings.ERRORS["built_without"]
    ),
    "The per-example loop computes SGD's own update rule.": (
        test_overrides.ERRORS["overridden"]
    ),
    "fit() used the optimizer {} for one update per batch: the model's own": (
        test_bypass.test_bypassed
    ),
    "fit() used the optimizer {} for one update per batch: train_step of the model": (
        test_bypass.test_bypassed_elsewhere
    ),
    "The loss should be finite at the end of fit.": (
        test_divergence.test_divergence_lists_causes_in_order
    ),
    **dict.fromkeys(
        (
            "a single bad example: SGDPlus(..., nonfinite=",
            "the rate is per example, and one for batches of {} is {} times too",
            "inputs that are not scaled: x has numbers up to {} in size; bring each",
        ),
        test_divergence.test_divergence_lists_causes_in_order,
    ),
    "A learning-rate schedule should last longer than the first epoch.": (
        test_schedules.test_short_schedule_warns
    ),
    "SGDPlus needs a batch with at least one tensor.": BATCHES["nothing"],
    "The data must come in batches; was .batch(n) forgotten?": BATCHES["no_axis_x"],
    "`{}` must have a known number of axes, shape (num_examples, ...).": (
        BATCHES["rank_unknown"]
    ),
    "x, y and sample_weight must have the same number of examples in a batch.": (
        BATCHES["y_shorter"]
    ),
    "The examples of a batch must be numbers of one shape.": BATCHES["ragged_rows"],
    "`{}` must be numbers.": BATCHES["text_x"],
    "`y` must be given where compile() was given a loss.": BATCHES["no_target"],
    "The batch that SGDPlus received: {}. It feeds the model {} example(s) at a": (
        test_batch_checks.test_errors_of_keras_get_a_note_with_the_batch
    ),
    "SGDPlus feeds the model {} example(s) at a time, so the model must accept that": (
        MODELS["fixed_batch_size"]
    ),
    "SGDPlus feeds the model one example at a time, so {} (BatchNormalization": (
        test_model_checks.test_lonely_batch_normalization_warns_once
    ),
    "Replace it with LayerNormalization or GroupNormalization, freeze it with": (
        test_model_checks.test_spatial_batch_normalization_warns_once
    ),
    'reduction="mean_with_sample_weight" divides the loss of a single example by its': (
        test_model_checks.test_vanishing_sample_weights_warn_once
    ),
    "A variable must not be assigned inside a branch or loop of the model (cond,": (
        MODELS["assigned_inside"]
    ),
    "The loss must depend on at least one trainable variable.": MODELS["no_gradients"],
    "Gradients do not exist for variables {} when minimizing the loss; they are left": (
        test_model_checks.test_missing_gradients_warn_as_keras_does
    ),
    "Every variable that the model writes must exist before training.": (
        MODELS["undeclared_state"]
    ),
    "A variable must be written either by Keras or by the model itself.": (
        test_direct.test_a_function_must_not_write_what_keras_trains
    ),
    "Under a tf.distribute strategy the layers of a model must read their weights": (
        test_direct.test_restored_functions_are_refused_under_a_strategy
    ),
    "Make the layer anew in Keras, from its config or with keras.models.load_model,": (
        test_direct.test_a_function_must_not_write_what_keras_trains
    ),
    "XLA cannot compile the per-example loop of model {}: {}. Training goes on": (
        test_xla_choice.test_refusal_of_xla_names_the_operation
    ),
    "Look the numbers up in the data pipeline:": REFUSALS["strings"],
    "Pad them in the data pipeline:": REFUSALS["ragged"],
    "SGDPlus must be called as an optimizer of Keras.": (
        test_misspelt.test_methods_of_other_optimizers
    ),
    "`batch_size` must be an int, or None.": (
        test_registered.test_a_batch_size_that_is_no_int
    ),
    "The loss should fall while a new optimizer trains.": (
        test_no_progress.test_a_model_that_is_stuck
    ),
    "targets that are not scaled: y has numbers up to": (
        test_no_progress.test_a_model_that_is_stuck
    ),
    "an output that is stuck: {} passes hardly any gradient back": (
        test_no_progress.test_a_model_that_is_stuck
    ),
    "a number below infinity in the precision of the weights,": ARGUMENTS,
    'Give the layers around it dtype="float32". Bilinear resizing, for one,': (
        test_xla_choice.test_what_xla_refuses_while_it_compiles_runs_without_it
    ),
    "Make them dense in the data pipeline:": REFUSALS["sparse"],
    "Apply a layer without weights in the data pipeline instead:": REFUSALS["layer"],
    "a loop (keras.ops.while_loop, fori_loop or scan, or tf.while_loop) has": (
        REFUSALS["open_loop"]
    ),
    "The first batch of model {} has taken {} seconds so far:": (
        test_first_call.test_explains_a_long_first_batch_once
    ),
    "Model {} was given examples of {} different shapes, and XLA compiles the": (
        test_traces.test_many_signatures_warn_once
    ),
    "Every batch of an epoch but the last should be a multiple of": (
        test_uneven_groups.test_uneven_groups_warn_once
    ),
    "With momentum or weight decay, SGDPlus moves only the rows of an embedding": (
        test_whole_tables
    ),
    "the model, a regularizer or a loss uses it in another way than by": (
        test_whole_tables
    ),
    'Every loss and gradient must be finite under nonfinite="raise".': (
        test_raise.ERRORS["not_finite"]
    ),
    "Every loss and gradient should be finite.": (
        test_reports.test_warns_once_per_fit_and_forgets_the_last
    ),
    **dict.fromkeys(
        (
            "fit(shuffle=True) had shuffled the batches: with fit(shuffle=False) this",
            "fit(shuffle=True) had shuffled the arrays, so a position is no row of x:",
            "The dataset is shuffled anew in each pass, so a position is no row of",
        ),
        test_rows.test_advice_where_the_row_is_not_known,
    ),
    "SGDPlus needs {}.": (test_installation.ERRORS["unknown_signature"]),
    "SGDPlus wraps functions of Keras's TensorFlow backend, for forms that XLA": (
        test_installed_forms.test_missing_functions_warn_once
    ),
    "A per-example SGDPlus must be a model's only optimizer.": (
        test_two_optimizers.ERRORS["inside_multi_optimizer"]
    ),
    "SGDPlus steps per example under tf.distribute.MirroredStrategy,": REPLICAS,
    "train_step must be called by each replica.": REPLICAS,
    "train_on_batch must be called with one replica: Keras hands the whole batch to": (
        REPLICAS
    ),
    "gradient_accumulation_steps must be None with several replicas, whose average": (
        REPLICAS
    ),
    "Model, compile() and metrics must be made inside strategy.scope().": REPLICAS,
    "The steps of several replicas must be neither one XLA computation nor one loop.": (
        REPLICAS
    ),
    "Under several replicas SGDPlus should be called inside a tf.function.": (
        test_use.test_by_hand
    ),
    "Every worker must take part in every batch.": (
        test_workers.test_workers_must_share_the_directory
    ),
    "`directory` must be one that all workers see.": (
        test_workers.test_workers_must_share_the_directory
    ),
    "ExampleLog must be used with an SGDPlus, whose loop sees each example.": (
        LOGS["adam"]
    ),
    "ExampleLog must know which row of the data each example is.": LOGS["shuffled"],
    "ExampleLog must get the batches whose rows the data tell.": LOGS["other_batches"],
    "On several workers ExampleLog must know who gets which part of a batch.": (
        test_workers.test_workers_whose_parts_are_not_known
    ),
    "Each row must be visited by one worker.": (
        test_workers.test_rows_are_those_of_one_worker
    ),
    "The ids of ExampleLog must be rows of the data, from 0, each at most once in an": (
        LOGS["id_twice"]
    ),
    "ExampleLog(id={}) must find its rows among the inputs.": LOGS["no_such_id"],
    "ExampleLog(id={}) must find its rows in column {} of the inputs.": (
        LOGS["no_such_column"]
    ),
    "x[{}] must be the row of each example, integers of shape (num_examples,).": (
        LOGS["float_id"]
    ),
    "With ExampleLog(path=...) the first epoch must visit the last row of the data,": (
        test_example_log_refuses.test_a_later_epoch_with_more_rows_than_the_files
    ),
    "With ExampleLog(prediction=True) the outputs of the model must have one known": (
        LOGS["lengths"]
    ),
    "Only one ExampleLog may record an optimizer at a time.": LOGS["second_log"],
    "ExampleLog keeps `{}` only if it is asked for.": LOGS["not_kept"],
    "ExampleLog.last_batch must be called after a batch.": LOGS["no_batch"],
    "ExampleLog must be used without steps_per_execution where Keras compiles the": (
        LOGS["compiled_by_keras"]
    ),
    "`id` must be a key of the inputs, the number of a column, or None.": LOGS["id"],
    "`path` must be a str or a path, or None.": LOGS["path"],
    "`{}` must be a bool.": LOGS["bool"],
    "`start_epoch` must be an int >= 0, or None.": (
        test_average_weights.REFUSED["negative"]
    ),
    "`start_epoch` must be an epoch of fit, which counts them from 0.": (
        test_average_weights.REFUSED["late"]
    ),
    "AverageWeights must be alone in putting averages into the model.": (
        test_average_weights.REFUSED["two"]
    ),
    "`seed` must be an int from 0 to 2**63 - 1.": test_seeded_arrays.REFUSED,
    "The rows of a list must have one shape.": test_seeded_arrays.REFUSED,
    **dict.fromkeys(
        (
            "`{}` must be an int >= 1.",
            "`directory` must be a str or a path.",
            "x, y and sample_weight must have the same number of examples, one or",
            "ExactResume must be used with an SGDPlus.",
            "ExactResume with steps_per_epoch must have data that never end.",
            "ExactResume must see the same batches again after a restart.",
            "A model must be built before ExactResume can restore it.",
            "ExactResume must find a save of this run in its directory.",
        ),
        RESUME,
    ),
    "ExactResume must find saves that can be read.": (
        test_damaged_saves.test_the_newest_complete_save_is_taken
    ),
    "ExactResume must find a complete save among those that it has made.": (
        test_damaged_saves.test_no_complete_save_is_left
    ),
    "ExactResume must be able to finish the first save of a run.": (
        test_damaged_saves.test_a_first_save_that_was_interrupted
    ),
    "ExactResume must be able to write to its directory.": (
        test_damaged_saves.test_a_full_disc
    ),
}


def _docstrings(tree: ast.AST) -> set[int]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = (n for n in ast.walk(tree) if isinstance(n, documented))
    return {id(n.body[0].value) for n in nodes if isinstance(n.body[0], ast.Expr)}


def _texts(tree: ast.AST) -> Iterator[str]:
    """The texts of a module, with {} for what is filled in."""
    skipped = pieces_of_f_strings(tree) | _docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [
                v.value if isinstance(v, ast.Constant) else "{}" for v in node.values
            ]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in skipped:
                yield node.value


@functools.cache
def written() -> set[str]:
    """The messages of the package, each up to what it received."""
    texts = {
        text
        for path in PACKAGE.rglob("*.py")
        for text in _texts(ast.parse(path.read_text()))
    }
    return {
        text.split(" Received: ")[0]
        for text in texts
        if " Received: " in text or _is_sentence(text)
    }


def _is_sentence(text: str) -> bool:
    # Advice that is filled into another message begins with "Use" or "Write", and the
    # end of one that is put together with a full stop; lists of names have lines.
    is_long = len(text) > MIN_LENGTH and text.count(" ") > 9
    return (
        is_long and not text.startswith(("Use ", "Write ", ". ")) and "\n" not in text
    )


def test_every_message_has_a_test() -> None:
    new = [text for text in written() if not text.startswith(tuple(MESSAGES))]
    assert new == []


PAIRS = (("(", ")"), ("[", "]"), ("<", ">"))


def flaws(text: str) -> list[str]:
    """Signs that something was left open in a message, or never filled in."""
    found = [quote for quote in '`"' if text.count(quote) % 2]
    found += [a + b for a, b in PAIRS if text.count(a) != text.count(b)]
    words = re.findall(r"%[sdr]\b|\bTODO\b|\b(?:with|and|of) [mnk]\b", text)
    return found + words


def test_no_message_is_left_open() -> None:
    texts = {
        text
        for path in PACKAGE.rglob("*.py")
        for text in _texts(ast.parse(path.read_text()))
        if " " in text and "\n" not in text and not text.startswith("No registered")
    }
    assert len(texts) > 80
    joined = {t.replace(" >= ", " ").replace("->", "") for t in texts}
    assert {t: flaws(t) for t in joined if flaws(t)} == {}


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("Use `fit(x, y).", "`"),
        ('Use order="given.', '"'),
        ("Write fit(x.", "()"),
        ("Received: x with m and y with n.", "with m"),
        ("Received: %s.", "%s"),
    ],
)
def test_an_open_message_would_be_found(text: str, sign: str) -> None:
    assert sign in flaws(text)


@pytest.mark.parametrize("start", MESSAGES)
def test_every_entry_is_a_message(start: str) -> None:
    assert any(text.startswith(start) for text in written())


def test_a_new_message_would_be_found() -> None:
    source = (
        'def f(x):\n    """No."""\n    raise ValueError(f"{x} is wrong. Received: {x}")'
    )
    assert list(_texts(ast.parse(source))) == ["{} is wrong. Received: {}"]
