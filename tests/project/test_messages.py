"""Every message of the package has a test, beside the behaviour it belongs to."""

from __future__ import annotations

import types

# Modules, not their functions: pytest would run those once more from here.
from tests.callbacks import test_exact_resume_refuses
from tests.distribute import test_refused, test_use, test_workers
from tests.loop import test_uneven_groups
from tests.nonfinite import test_raise, test_reports
from tests.optimizer import test_arguments, test_live_settings
from tests.rule import test_rule
from tests.step import (
    test_batch_checks,
    test_model_checks,
    test_traces,
    test_xla_choice,
)
from tests.support.internals import _arguments, _checks, _messages
from tests.trainer import test_bypass, test_installation, test_two_optimizers

BATCHES = test_batch_checks.BATCHES
# The tables of errors; each row names the function that writes its message.
ERRORS = {
    **test_arguments.ERRORS,
    **test_live_settings.ERRORS,
    **test_model_checks.ERRORS,
    **test_raise.ERRORS,
    **test_rule.ERRORS,
    **test_installation.ERRORS,
    **test_two_optimizers.ERRORS,
}
# Messages that are tested by functions instead of rows.
ELSEWHERE = {
    "replicas": test_refused.test_refused,
    "same_saves": test_workers.test_workers_must_share_the_directory,
    "eager_replicas": test_use.test_by_hand,
    "doubts": test_model_checks.test_lonely_batch_normalization_warns_once,
    "missing_gradients": test_model_checks.test_missing_gradients_warn_as_keras_does,
    "bypassed": test_bypass.test_bypassed,
    "without_xla": test_xla_choice.test_refusal_of_xla_names_the_operation,
    "xla_reason": test_xla_choice.test_refusal_of_xla_names_the_operation,
    "many_signatures": test_traces.test_many_signatures_warn_once,
    "uneven_groups": test_uneven_groups.test_uneven_groups_warn_once,
    "skipped": test_reports.test_warns_once_per_fit_and_forgets_the_last,
    **dict.fromkeys(
        (
            "can_resume",
            "directory",
            "not_built",
            "other_save",
            "other_steps",
            "positive_int",
            "replayable",
            "same_length",
        ),
        test_exact_resume_refuses.test_refused,
    ),
    "batch": test_batch_checks.test_errors_of_keras_get_a_note_with_the_batch,
}
# Texts of `_messages` that a row above reads through a function of `_checks`.
ROW_OF = {
    "other_backend": ERRORS["other_backend"],
    "other_batch_size": ERRORS["fixed_batch_size"],
    "nothing": BATCHES["nothing"],
    "no_batch_axis": BATCHES["no_axis_x"],
    "lengths": BATCHES["y_shorter"],
    "empty": BATCHES["empty"],
    "objects": BATCHES["ragged_rows"],
    "text": BATCHES["text_x"],
    "no_target": BATCHES["no_target"],
}


def test_every_message_has_a_row() -> None:
    written = {
        name
        for module in (_arguments, _checks, _messages)
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    tested = {check for check, *_ in test_arguments.ARGUMENTS}
    tested |= {check for check, *_ in BATCHES.values()}
    tested |= {row[0] for _, row in ERRORS.values()}
    assert tested | set(ELSEWHERE) | set(ROW_OF) == written
