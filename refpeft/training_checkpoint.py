"""The checkpoints of `refpeft.train`: what they belong to, how they are written, and what of them is believed.

A checkpoint is a directory `checkpoint-STEP` of two files: every tensor that the next step depends on, and a JSON object
that says what they belong to. It is written under another name, and renamed when it is whole; only then is the one before
it removed. A run that is cut anywhere and called again goes on to the same bits (clause TR-7).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from refpeft.arrays import place, to_host
from refpeft.errors import CheckpointError, ConfigError
from refpeft.files import read_json_object
from refpeft.peft_model import PeftModel
from refpeft.tensors import read_tensors, write_tensors
from refpeft.training import StepRecord, TrainingArguments, TrainingState

TENSORS, DESCRIPTION = "training_state.safetensors", "training_state.json"
FORMAT = 2
_NAME = re.compile(r"checkpoint-([0-9]+)")
_STATE = ("parameters", "exp_avg", "exp_avg_sq")
_SERIES = ("loss", "learning_rate", "gradient_norm")
_LENGTHEN = (
    " A training cannot be lengthened, because its learning rates follow from max_steps. To train on what it reached, call "
    "train with max_steps={} in this directory, which leaves the model there, and then again in another."
)


def hash_of(arrays: Iterable[Mapping[str, Any]]) -> str:
    """A hash of names, shapes, formats and values of arrays, one mapping after the other."""
    digest = hashlib.sha256()
    for number, mapping in enumerate(arrays):
        for name, value in sorted(mapping.items()):
            digest.update(f"{number} {name} {value.dtype} {value.shape};".encode())
            digest.update(numpy.ascontiguousarray(to_host(value)).tobytes())
    return digest.hexdigest()


def identity_of(
    model: PeftModel, arguments: TrainingArguments, batches: Iterable[Mapping[str, Any]], count: int
) -> dict[str, dict[str, Any]]:
    """What a checkpoint belongs to: arguments, the model without what is trained, and the values of its `count` batches.

    `batches` are those that the model would compute on, in one format each, so that lists and arrays are the same.
    """
    shapes = {name: list(value.shape) for name, value in model.trainable_parameters().items()}
    described = {
        "base": hash_of([model.base.parameters]),
        "base_config": {
            name: value
            for name, value in asdict(model.base.config).items()
            if name not in ("hf", "name_or_path")
        },
        "dtype": str(numpy.dtype(model.base.dtype)),
        "peft_type": model.config.peft_type,
        "parameters": shapes,
    }
    data = {"batches": count, "sha256": hash_of(batches)}
    return {"arguments": asdict(arguments), "model": described, "data": data}


def series_of(history: Sequence[StepRecord]) -> dict[str, NDArray[Any]]:
    """What was seen at each step, one array for each of its fields."""
    return {name: numpy.array([getattr(record, name) for record in history]) for name in _SERIES}


class Store:
    """The checkpoints of one training in a directory.

    `parameters` are those that the model has when the training is called: either its initial ones, or those of the
    checkpoint itself, where the same model goes on.
    """

    def __init__(
        self, directory: Path, identity: dict[str, dict[str, Any]], parameters: Mapping[str, Any]
    ) -> None:
        self.directory, self.identity = directory, identity
        self.initial = self._given = hash_of([parameters])
        self._parameters = parameters

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.directory / f"checkpoint-{step}"

    def _whole(self) -> list[tuple[int, Path]]:
        """Step and path of every checkpoint, the newest last."""
        if not self.directory.is_dir():
            return []
        found = [(_NAME.fullmatch(path.name), path) for path in self.directory.iterdir()]
        return sorted((int(match[1]), path) for match, path in found if match)

    def save(self, state: TrainingState, history: Sequence[StepRecord]) -> None:
        """Keep a state: under another name until it is whole; then the older ones go.

        Raises:
            CheckpointError: the directory cannot be written.
        """
        tensors = {
            f"{part}.{name}": to_host(value)
            for part in _STATE
            for name, value in getattr(state, part).items()
        }
        tensors |= {f"history.{name}": values for name, values in series_of(history[: state.step]).items()}
        target = self.path(state.step)
        temporary = self.directory / f".{target.name}.{secrets.token_hex(8)}.tmp"
        try:
            temporary.mkdir(parents=True)
            write_tensors(temporary / TENSORS, tensors)
            sha256 = hashlib.sha256((temporary / TENSORS).read_bytes()).hexdigest()
            document = {"format": FORMAT, "step": state.step, "sha256": sha256, "initial": self.initial}
            with (temporary / DESCRIPTION).open("x", encoding="utf-8") as file:
                json.dump(document | self.identity, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(target)
        except OSError as error:
            raise CheckpointError(
                f"Can't write a checkpoint to '{self.directory}': {error.strerror or error}."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for step, path in self._whole():
            if step < state.step:
                shutil.rmtree(path, ignore_errors=True)

    def load(self) -> tuple[TrainingState, list[StepRecord]] | None:
        """The newest state and what was seen up to it; None if there is none.

        Raises:
            CheckpointError: it is damaged, or of another training, or began from other parameters.
        """
        for abandoned in self.directory.glob(".checkpoint-*.tmp"):
            shutil.rmtree(abandoned, ignore_errors=True)
        if not self._whole():
            return None
        step, path = self._whole()[-1]
        try:
            document = read_json_object(path / DESCRIPTION, "the description of a checkpoint")
        except ConfigError as error:
            raise CheckpointError(f"{error} {_advice(path)}") from error
        if document.get("format") != FORMAT or document.get("step") != step:
            raise CheckpointError(
                f"'{path / DESCRIPTION}' is of format {document.get('format')} and step {document.get('step')}; it must be "
                f"of format {FORMAT} and step {step}. {_advice(path)}"
            )
        self._require_same(document, path)
        try:
            tensors = read_tensors(path / TENSORS, "the state of training")
        except CheckpointError as error:
            raise CheckpointError(f"{error} {_advice(path)}") from error
        if hashlib.sha256((path / TENSORS).read_bytes()).hexdigest() != document.get("sha256"):
            raise CheckpointError(f"'{path / TENSORS}' is damaged: its hash is another. {_advice(path)}")
        state, history = self._state(step, tensors)
        if self._given not in (document.get("initial"), hash_of([state.parameters])):
            raise CheckpointError(
                f"'{path}' is a checkpoint of a training that began from other parameters than the model has now. Give a "
                "model with the same ones (the same configuration and seed) or with those of the checkpoint, or another "
                "directory."
            )
        self.initial = str(document.get("initial"))
        return state, history

    def _state(
        self, step: int, tensors: Mapping[str, NDArray[Any]]
    ) -> tuple[TrainingState, list[StepRecord]]:
        names = self.identity["model"]["parameters"]
        expected = {f"{part}.{name}" for part in _STATE for name in names} | {
            f"history.{name}" for name in _SERIES
        }
        if set(tensors) != expected:
            raise CheckpointError(
                f"A checkpoint of this training holds {', '.join(sorted(expected))}; that of step {step} holds "
                f"{', '.join(sorted(tensors)) or 'nothing'}. {_advice(self.path(step))}"
            )
        parts = [
            {name: place(tensors[f"{part}.{name}"], like) for name, like in self._parameters.items()}
            for part in _STATE
        ]
        series = [tensors[f"history.{name}"] for name in _SERIES]
        history = [StepRecord(loss, float(rate), norm) for loss, rate, norm in zip(*series, strict=True)]
        return TrainingState(step, *parts), history

    def _require_same(self, document: Mapping[str, Any], path: Path) -> None:
        for part, expected in self.identity.items():
            found = document.get(part)
            found = found if isinstance(found, Mapping) else {}
            for name in sorted(expected.keys() | found.keys()):
                before, now = found.get(name), expected.get(name)
                if before != now:
                    shown = "" if name.startswith("base") else f": {name} was {before}, and is {now} now"
                    shown = ": the batches hold other values" if name == "sha256" else shown
                    what = {"arguments": "other arguments", "model": "another model", "data": "other data"}
                    raise CheckpointError(
                        f"'{path}' is a checkpoint of a training with {what[part]}{shown}. Train with the same again, or "
                        f"give another directory.{_LENGTHEN.format(before) if name == 'max_steps' else ''}"
                    )


def _advice(path: Path) -> str:
    return f"Remove '{path}' to go on from the checkpoint before it, or from the beginning."
