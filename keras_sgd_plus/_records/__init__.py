"""What each example did: its loss, the norm of its gradient, the model's outputs.

`tables` holds the records of one batch in the loop, `recorder` hands them to Python
after each call, `recorders` knows which optimizers are recorded. None of these is
traced while no `ExampleLog` asks for records. `progress` is always: a few sums.
"""

from keras_sgd_plus._records import progress, recorders
from keras_sgd_plus._records.batch_record import BatchRecord
from keras_sgd_plus._records.recorder import Part, Recorder, Step
from keras_sgd_plus._records.tables import (
    Record,
    Tables,
    Wanted,
    gradient_norm,
    no_records,
    record,
    with_record,
)

__all__ = [
    "BatchRecord",
    "Part",
    "Record",
    "Recorder",
    "Step",
    "Tables",
    "Wanted",
    "gradient_norm",
    "no_records",
    "progress",
    "record",
    "recorders",
    "with_record",
]
