"""What each example did: its loss, the norm of its gradient, the model's outputs.

`tables` holds the records of one batch in the loop, `recorder` hands them to Python
after each call, `recorders` knows which optimizers are recorded. Nothing here is traced
while no `ExampleLog` asks for records.
"""

from keras_sgd_plus._records import recorders
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
    "record",
    "recorders",
    "with_record",
]
