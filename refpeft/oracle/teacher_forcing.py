"""A stage asked again with the reference's own inputs: whether it is wrong itself, or only what came before it (clause JG-13).

A model's first wrong stage may be wrong because of something that the port did not return. Where the port answers a component
question that computes this stage, it is asked that question, with what the reference had at this point.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy
from numpy.typing import NDArray

from refpeft.files import write_atomically
from refpeft.oracle import names, questions
from refpeft.oracle.budget import Profile
from refpeft.oracle.cases import can_answer
from refpeft.oracle.handed_out import HandedOut
from refpeft.oracle.judge import ask_one
from refpeft.oracle.questions import COMMON, PARAMETERS, PREFIX, Ask, answer, loaded_base
from refpeft.oracle.reply import Port
from refpeft.oracle.vectors import DIALECT, FORMAT, Tensor, Vector
from refpeft.tensors import write_tensors

_ATTENTION = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.attention\.\w+")


@dataclass(frozen=True)
class ForcedVector(Vector):
    """A question made of the reference's own numbers; its base model is where the case's is."""

    base: Path | None = None

    @property
    def truth(self) -> Literal["HF", "refpeft"]:
        """The expected values are computed here."""
        return "refpeft"

    @property
    def model_directory(self) -> Path | None:
        """The case's base model."""
        return self.base


def ask_again(port: Port, vector: Vector, ask: Ask, stage: str, profile: Profile) -> str:
    """What came of asking for one stage with the reference's inputs, in words; nothing if it cannot be asked so."""
    forced = _question(ask, stage)
    if forced is None:
        return ""
    with tempfile.TemporaryDirectory(prefix="refpeft-") as temporary:
        root = Path(temporary).resolve()
        made = _vector(forced, vector, root)
        if not can_answer(port.abilities, made):
            return ""
        asked = ask_one(port, made, profile, root / "answer", 1, HandedOut(), localise=False)
    what = questions.QUESTIONS[forced.question].title
    if asked.verdict == "CONFORMS":
        return f"asked for {what} with refpeft's own inputs, it is right: the cause lies before {stage}"
    if asked.verdict == "NONCONFORMING" and asked.first is not None:
        return f"asked for {what} with refpeft's own inputs, {asked.first.name} is wrong as well: the cause is there"
    return ""


def _question(ask: Ask, stage: str) -> Ask | None:
    """The component question that computes a stage, with the reference's inputs; None if there is none."""
    attention = _ATTENTION.fullmatch(stage)
    if (
        stage.startswith("prefix.")
        and ask.method == PREFIX
        and ask.config
        and ask.question != "prefix.encode"
    ):
        parameters = {n: x for n, x in ask.inputs.items() if n.startswith(PARAMETERS + "prompt_encoder.")}
        batch = len(ask.inputs["input_ids"]) if "input_ids" in ask.inputs else 1
        return (
            Ask("prefix.encode", PREFIX, ask.config, {"batch_size": batch}, parameters)
            if parameters
            else None
        )
    if attention is not None and ask.model is not None and ask.question != "attention":
        return _attention(ask, attention[1], int(attention[2]))
    return None


def _attention(ask: Ask, stack: str, layer: int) -> Ask | None:
    """One layer's attention on the reference's hidden states, behind the reference's prefix."""
    assert ask.model is not None  # noqa: S101  (`_question` looked)
    config = loaded_base(ask.model).config.stack(stack)  # type: ignore[arg-type]
    if config.positions in ("alibi", "relative"):
        return None  # the question has no place for what is added to the scores
    stages, here = answer(ask).tensors, f"{stack}.layers.{layer}."
    before = (
        here + "input_norm",
        f"{stack}.layers.{layer - 1}.output",
        f"{stack}.embeddings_norm",
        f"{stack}.embeddings",
    )
    inputs = {"hidden": next(stages[name] for name in before if name in stages)}
    inputs["visible"] = stages[f"{stack}.{'visible' if config.window(layer) is None else 'sliding_visible'}"]
    if ask.method == PREFIX:
        inputs |= {f"past.{half}": stages[f"prefix.layers.{layer}.{half}"] for half in ("key", "value")}
    if config.rotary and not _counted(stages["inputs.position_ids"], inputs):
        return None  # the question counts them itself
    return Ask("attention", COMMON, None, {"layer": layer, "stack": stack}, inputs, ask.model)


def _counted(positions: NDArray[Any], inputs: Mapping[str, NDArray[Any]]) -> bool:
    """Whether positions run on behind the prefix, which is how the question counts them."""
    start = inputs["past.key"].shape[2] if "past.key" in inputs else 0
    return bool((numpy.asarray(positions) == numpy.arange(positions.shape[1]) + start).all())


def _vector(ask: Ask, vector: Vector, root: Path) -> ForcedVector:
    """The question as a case of its own, on disk as the protocol wants it."""
    inputs = {name: _storable(numpy.asarray(value)) for name, value in ask.inputs.items()}
    expected = answer(replace(ask, inputs=inputs)).tensors
    tensors = {}
    for name in expected:
        step = names.step_of(name)
        assert step is not None  # noqa: S101  (components answer with stages)
        tensors[name] = Tensor(step.kind, list(step.axes))
    case = msgspec.structs.replace(
        vector.case,
        id=f"{DIALECT}/forced/{ask.question}",
        question=ask.question,
        method=ask.method,
        config=dict(ask.config) if ask.config is not None else None,
        arguments=dict(ask.arguments),
        model=vector.case.model if ask.model else None,
        tensors=tensors,
        document=None,
    )
    directory = root / "vectors" / case.id
    directory.mkdir(parents=True)
    write_atomically(
        root / "manifest.json", msgspec.json.encode({"format": FORMAT, "dialect": DIALECT, "files": {}})
    )
    write_atomically(directory / "case.json", msgspec.json.encode(case))
    write_tensors(directory / "inputs.safetensors", inputs)
    write_tensors(directory / "expected.safetensors", {n: numpy.asarray(x) for n, x in expected.items()})
    return ForcedVector(case, directory, ask.model)


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    """As inputs of cases are: real numbers in float32."""
    return array.astype(numpy.float32) if array.dtype.kind == "f" else array
