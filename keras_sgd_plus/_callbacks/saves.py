"""The saves in a directory: which are complete, which are damaged, whose they are.

TensorFlow writes a save under other names, renames its files, the `.index` last, and
then lists it in the file `checkpoint`. So a save that is listed was completed; if it
cannot be read now, it was damaged later. Files have checksums, which TensorFlow
compares when it reads them. Each save also says of which run it is, so that no other
run takes it up.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_sgd_plus._callbacks.seeded_arrays import SeededArrays
from keras_sgd_plus._private import keras_trainer
from keras_sgd_plus._private.types import Model, Optimizer, Variable

NAME = "ckpt"
_LIST = "checkpoint"  # TensorFlow's list of saves
_FILE = re.compile(rf"{NAME}-(\d+)[._]")
_FINISHED = re.compile(r"\.(index|data-\d+-of-\d+)$")


@dataclass(frozen=True)
class Saves:
    """What a directory holds.

    Attributes:
        directory: its path.
        complete: numbers of the saves that can be read, in ascending order.
        damaged: by number, the files of completed saves that cannot be read, and why.
        unfinished: files of saves that were never completed.
        last: the largest number of any save.
    """

    directory: str
    complete: tuple[int, ...]
    damaged: dict[int, str]
    unfinished: tuple[str, ...]
    last: int

    @classmethod
    def of(cls, directory: str) -> Saves:
        """Looks at a directory, and reads each save in it once."""
        files = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
        found: dict[int, list[str]] = {}
        for file in files:
            match = _FILE.match(file)
            if match:
                found.setdefault(int(match[1]), []).append(file)
        listed = _listed(directory)
        complete, damaged, unfinished = [], {}, []
        for number, parts in sorted(found.items()):
            finished = [part for part in parts if _FINISHED.search(part)]
            fault = _fault(directory, number, finished)
            if fault is None:
                complete.append(number)
            elif finished and (listed is None or number in listed):
                named = ", ".join(os.path.join(directory, part) for part in finished)
                damaged[number] = f"{named} ({fault})"
            else:
                unfinished += [os.path.join(directory, part) for part in parts]
        last = max(found, default=0)
        return cls(directory, tuple(complete), damaged, tuple(unfinished), last)

    @property
    def newest(self) -> str | None:
        """The path of the newest save that can be read."""
        if not self.complete:
            return None
        return os.path.join(self.directory, f"{NAME}-{self.complete[-1]}")

    def list_complete(self) -> None:
        """Makes TensorFlow's list one of the complete saves.

        Damaged ones are then neither counted nor deleted.
        """
        if self.complete and _listed(self.directory) != set(self.complete):
            # As TensorFlow writes it; its own function for that is deprecated.
            names = [f"{NAME}-{number}" for number in self.complete]
            files = [os.path.join(self.directory, f"{name}.index") for name in names]
            times = [os.path.getmtime(file) for file in files]
            lines = [f'model_checkpoint_path: "{names[-1]}"']
            lines += [f'all_model_checkpoint_paths: "{name}"' for name in names]
            lines += [f"all_model_checkpoint_timestamps: {time}" for time in times]
            lines += ["last_preserved_timestamp: 0"]
            path = os.path.join(self.directory, _LIST)
            with open(f"{path}.new", "w") as file:
                file.write("\n".join([*lines, ""]))
            os.replace(f"{path}.new", path)

    def warning(self) -> str | None:
        """What is said of a directory from which training goes on, or begins."""
        if self.damaged:
            return (
                "ExactResume must find saves that can be read. Received: "
                f"{'; '.join(self.damaged.values())}. Training goes on from "
                f"{self.newest!r}, the newest complete save. The damaged files stay "
                "where they are; delete them if you do not need them."
            )
        if self.unfinished and not self.complete:
            return (
                "ExactResume must be able to finish the first save of a run. Received: "
                f"{', '.join(self.unfinished)}, of a save that was interrupted. "
                "Training begins anew; the files may be deleted."
            )
        return None

    def refuse_if_all_are_damaged(self) -> None:
        """Raises ValueError where completed saves are damaged and none is left."""
        if self.damaged and not self.complete:
            raise ValueError(
                "ExactResume must find a complete save among those that it has made. "
                f"Received: {'; '.join(self.damaged.values())}. Put back a copy of "
                f"these files, or delete the directory {self.directory!r} to train "
                "from the beginning."
            )


def _listed(directory: str) -> set[int] | None:
    # The numbers in TensorFlow's list. None if there is a list that cannot be read.
    if not os.path.exists(os.path.join(directory, _LIST)):
        return set()
    try:
        state: Any = tf.train.get_checkpoint_state(directory)
        paths = [] if state is None else state.all_model_checkpoint_paths
        numbers = {int(path.rsplit("-", 1)[1]) for path in paths}
    except Exception:  # whatever the parser raises
        return None
    return numbers or None


def _fault(directory: str, number: int, files: list[str]) -> str | None:
    # Why a save cannot be read, or None. A file that is cut short, or in which a byte
    # has changed, does not have its checksums.
    if f"{NAME}-{number}.index" not in files:
        return "without its .index"
    try:
        reader = tf.train.load_checkpoint(os.path.join(directory, f"{NAME}-{number}"))
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except Exception as error:  # TensorFlow raises many classes
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None


Identity = Mapping[str, Any]
KEY = "run/.ATTRIBUTES/py_state"  # of a save that has one; those of 0.2.0 have none


class RunState(tf.train.experimental.PythonState):
    """A part of a `tf.train.Checkpoint`: the identity of the run."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def serialize(self) -> str:
        """Called by TensorFlow for each save."""
        return json.dumps(self._identity)

    def deserialize(self, string_value: bytes | str) -> None:
        """Called by TensorFlow; the identity has been compared before."""


def identity_of(
    model: Model, outer: Optimizer, data: keras_trainer.Data | None
) -> dict[str, object]:
    """The shapes of all that is saved, and the size of the data.

    Names do not count: a model that is made again in the same process has others.

    Args:
        model: built.
        outer: its optimizer, built.
        data: of the `fit` that runs, or None where they cannot be seen.
    """
    return {
        "model": [_shown_variable(v) for v in model.variables],
        "optimizer": [_shown_variable(v) for v in outer.variables],
        **_of_data(data),
    }


def _shown_variable(variable: Variable) -> str:
    return f"{variable.dtype}{list(variable.shape)}"


def _of_data(data: keras_trainer.Data | None) -> dict[str, object]:
    if data is None:
        return {}
    arrays = data.dataset
    if isinstance(arrays, SeededArrays):
        return {
            "examples": arrays.num_examples,
            "batch size": arrays.batch_size,
            "seed of SeededArrays": arrays.seed,
        }
    return {"examples": data.num_examples, "batch size": data.array_batch_size}


def differences(there: Identity, here: Identity) -> list[str]:
    """In words, what differs between the run of a save and this one."""
    found = []
    for name in ("model", "optimizer"):
        one, other = there[name], here[name]
        if len(one) != len(other):
            found.append(f"{name} with {len(one)} variables there, {len(other)} here")
        elif one != other:
            pairs = zip(one, other, strict=True)
            a, b = next(pair for pair in pairs if len(set(pair)) > 1)
            found.append(f"{name} with {a} there, {b} here")
    for name in [n for n in here if n not in ("model", "optimizer")]:
        if there.get(name) != here[name]:
            found.append(f"{name} {there.get(name)} there, {here[name]} here")
    return found


def saved_identity(path: str) -> Identity | None:
    """The identity in a save; None in one of version 0.2.0."""
    reader = tf.train.load_checkpoint(path)
    if not reader.has_tensor(KEY):
        return None
    return json.loads(reader.get_tensor(KEY))
