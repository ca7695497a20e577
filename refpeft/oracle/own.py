"""The user's own model: questions about a base model and an adapter that no golden vector knows (clause JG-11).

The same questions as golden cases ask, about an unmodified HF checkpoint and an adapter that HF peft or a port saved, on
texts that are drawn here or given. What is expected is refpeft's own answer, and every report says so.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from refpeft import __version__, peft_model, task_inputs
from refpeft.config import CONFIG_NAME, PrefixTuningConfig, PromptLearningConfig
from refpeft.errors import InputError
from refpeft.files import read_json_object
from refpeft.oracle import names, questions
from refpeft.oracle.questions import GRADIENTS, PARAMETERS, PREFIX, PROMPT, Arithmetic, Ask
from refpeft.oracle.stage_names import kind_of, stage_names
from refpeft.oracle.vectors import DIALECT, FORMAT, OWN, Case, Tensor, Vector
from refpeft.prompt_embedding import EMBEDDING
from refpeft.stored import Stored
from refpeft.tensors import read_tensors, write_tensors
from refpeft.transformer.weights import BaseModel

ROWS, TOKENS, PADDING = 2, 7, 3
"""The size of a drawn text, and how much of its second row is padding."""
DECODER_TOKENS = 5
"""How many tokens are drawn for a decoder behind an encoder."""
SEED = 3
AFFORDABLE = 2**27
"""Numbers in a base model up to which gradients are asked for; `--level gradients` asks for them beyond."""
TEXT = questions.INPUTS
SPAN = ("start_positions", "end_positions")
SUITES = {"config.resolve": "config", "prefix.encode": "prefix_encode", "checkpoint.load": "checkpoint"}
CLAUSES = {
    "config.resolve": ["CF-3"],
    "prefix.encode": ["PX-3", "PX-4", "PX-5"],
    "inputs": ["MK-1", "PO-1"],
    "forward": ["TK-2"],
    "gradients": ["TK-3"],
    "checkpoint.load": ["CK-3"],
}
TITLES = {"checkpoint.load": "read your adapter"}
"""Where the question's own title speaks of golden adapters."""
NOT_ASKED = tuple(
    level for level in questions.LEVELS if level not in {questions.QUESTIONS[name].level for name in CLAUSES}
)
"""The levels of which nothing is asked about a user's own model."""

Text = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class OwnModel:
    """A base model, its matrices left in their file, and an adapter that fits it."""

    base_directory: Path
    adapter_directory: Path
    base: BaseModel
    config: PromptLearningConfig
    """Filled in, in inference mode, as an adapter is loaded."""
    parameters: Mapping[str, NDArray[Any]]
    """The adapter's table: one tensor, in float32 where that holds it exactly."""
    notes: tuple[str, ...] = ()
    """What loading the adapter warned of."""

    @property
    def method(self) -> str:
        """Prompt or prefix tuning."""
        return PREFIX if isinstance(self.config, PrefixTuningConfig) else PROMPT

    @property
    def wide(self) -> bool:
        """Whether something is stored in float64, so that reading it in float32 already rounds."""
        frozen: list[Any] = list(self.base.parameters.values())
        matrices = [p.view for p in frozen if isinstance(p, Stored)]
        return any(x.dtype == numpy.float64 for x in (*matrices, *self.parameters.values()))


@dataclass(frozen=True)
class OwnVector(Vector):
    """A question about the user's own model: judged as a golden vector, its expected values computed when needed."""

    model: OwnModel
    command: str = ""
    """What asks the questions again, as far as the port: for people."""

    @property
    def model_directory(self) -> Path | None:
        """The user's base model, where it lies."""
        return self.model.base_directory if self.case.model else None

    @property
    def adapter_directory(self) -> Path | None:
        """The user's adapter, for the question that reads it."""
        return self.model.adapter_directory if self.case.question == "checkpoint.load" else None


def open_own_model(base: Path, adapter: Path) -> OwnModel:
    """Read a base model and an adapter, and check that they fit.

    Raises:
        ConfigError, CheckpointError: one of them is missing, damaged, or not for the other.
    """
    base, adapter = base.resolve(), adapter.resolve()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = questions.loaded_base(base, True)
        model = peft_model.PeftModel.from_pretrained(loaded, adapter)
    parameters = {}
    for name, value in model.parameters().items():
        narrow = numpy.asarray(value, numpy.float32)
        parameters[name] = narrow if (narrow == value).all() else numpy.asarray(value)
    notes = tuple(dict.fromkeys(str(w.message) for w in caught))
    return OwnModel(base, adapter, loaded, model.config, parameters, notes)


def read_text(path: Path, model: OwnModel) -> dict[str, NDArray[Any]]:
    """The inputs that a file gives: safetensors, or JSON with lists, whatever it is called; checked as `PeftModel` does.

    Raises:
        CheckpointError, ConfigError: the file is missing or broken.
        InputError: it has no input_ids, something else, or inputs that the model cannot take.
    """
    if path.suffix == ".json" or _begins_as_json(path):
        given: Mapping[str, Any] = read_json_object(path, "the inputs")
    else:
        given = read_tensors(path, "the inputs")
    strange = sorted(set(given) - set(TEXT))
    if strange or "input_ids" not in given:
        reason = f"also holds {', '.join(strange[:5])}" if strange else "has no input_ids"
        raise InputError(f"'{path}' {reason}; give input_ids, and if you like {', '.join(TEXT[1:])}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what HF ignores is an input all the same
            checked = task_inputs.checked(model.base.config, model.config, dict(given))
    except InputError as error:
        raise InputError(f"'{path}': {error}") from error
    ignored = {name: given[name] for name in given if name not in checked}
    every = {name: value for name, value in {**checked, **ignored}.items() if value is not None}
    found = {name: numpy.asarray(value) for name, value in every.items()}
    return {name: found[name].astype(_stored(found[name])) for name in TEXT if name in found}


def _stored(array: NDArray[Any]) -> Any:
    """Real labels as float32, everything else as whole numbers."""
    return numpy.float32 if array.dtype.kind == "f" and not numpy.isin(array, (0, 1)).all() else numpy.int64


def _begins_as_json(path: Path) -> bool:
    """Whether a file begins with a brace, and not with the size of a safetensors header: its eighth byte is always 0."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            begin = file.read(8)
    except OSError:
        return False
    return begin.lstrip().startswith(b"{") and begin[7:] != b"\0"


def draw_texts(model: OwnModel) -> dict[str, dict[str, NDArray[Any]]]:
    """A few small texts by name: no mask, right and left padding, labels. The same for the same model.

    Raises:
        InputError: the base model has no position left for a token.
    """
    config, random = model.base.config, numpy.random.default_rng(SEED)
    limit = config.position_limit
    tokens = TOKENS if limit is None else min(TOKENS, limit - model.config.num_virtual_tokens)
    if tokens < 1:
        raise InputError(
            f"The adapter's {model.config.num_virtual_tokens} virtual tokens leave no position for a text: the base model "
            f"has {limit}."
        )
    padding, pad = min(PADDING, tokens - 1), _padding_id(model)
    texts: dict[str, dict[str, NDArray[Any]]] = {}
    for name in ("no-mask", "right-padding", "left-padding", "labels"):
        ids = random.integers(0, config.vocab_size, (ROWS, tokens))
        text = {"input_ids": ids}
        if name.endswith("padding"):
            mask = numpy.ones_like(ids)
            where = slice(0, padding) if name == "left-padding" else slice(tokens - padding, tokens)
            mask[1, where], ids[1, where] = 0, pad
            text["attention_mask"] = mask
        if name == "labels":
            text |= _labels(model, ids, padding, random)
        elif config.kind == "encoder_decoder":
            start = config.decoder_start_token_id or 0
            text["decoder_input_ids"] = random.integers(
                0, config.vocab_size, (ROWS, min(tokens, DECODER_TOKENS))
            )
            text["decoder_input_ids"][:, 0] = start
        texts[name] = text
    return texts


def _labels(
    model: OwnModel, ids: NDArray[Any], padding: int, random: numpy.random.Generator
) -> dict[str, NDArray[Any]]:
    """What the loss of the adapter's task is taken of; nothing for features."""
    config, task, shape = model.base.config, model.config.task_type, ids.shape
    if task == "FEATURE_EXTRACTION":
        return {}
    if task == "QUESTION_ANS":
        return {name: random.integers(0, shape[1], (shape[0],)) for name in SPAN}
    if task == "SEQ_CLS":
        kind = config.problem_type or (
            "regression" if config.num_labels == 1 else "single_label_classification"
        )
        if kind == "single_label_classification":
            return {"labels": random.integers(0, config.num_labels, (shape[0],))}
        real = random.random((shape[0], config.num_labels)).astype(numpy.float32)
        return {"labels": real.round() if kind == "multi_label_classification" else real}
    labels = ids.copy()
    if task == "SEQ_2_SEQ_LM":
        labels = random.integers(0, config.vocab_size, (shape[0], min(shape[1], DECODER_TOKENS)))
    elif task == "TOKEN_CLS":
        virtual = model.config.num_virtual_tokens if model.method == PROMPT else 0
        labels = random.integers(0, config.num_labels, (shape[0], virtual + shape[1]))
    labels[1, : min(padding, labels.shape[1] - 1)] = -100
    return {"labels": labels}


def own_vectors(
    model: OwnModel,
    texts: Mapping[str, Text],
    work: Path,
    *,
    gradients: bool = False,
    command: str = "",
) -> list[OwnVector]:
    """Every question about the model and the texts, its inputs written below `work`.

    Args:
        model: See `open_own_model`.
        texts: See `draw_texts` and `read_text`.
        work: A directory that lives as long as the questions.
        gradients: Ask for gradients even of a base model of more than `AFFORDABLE` numbers.
        command: What asks them again.
    """
    vectors = []
    for name, question, text in _questions(model, texts, gradients):
        case = _case(model, name, question, text)
        directory = work / case.id
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        needs_parameters = question in ("prefix.encode", "inputs", "forward", "gradients")
        tensors = {**text, **{PARAMETERS + k: v for k, v in model.parameters.items() if needs_parameters}}
        if tensors:
            write_tensors(directory / "inputs.safetensors", tensors)
        vectors.append(OwnVector(case, directory, model, command))
    return vectors


def write_answer(path: Path, model: OwnModel, text: Text, dtype: str, *, gradients: bool) -> list[str]:
    """Every stage of a forward pass, the text, and perhaps the gradients, as one safetensors file, whole or not at all.

    Returns:
        The names of the stages and gradients, in the order of computation, which the metadata have too.

    Raises:
        InputError: gradients are wanted, but there are no labels.
        OSError: the file cannot be written.
    """
    if gradients and not _has_loss(text):
        raise InputError(
            "Gradients need labels: without them there is no loss. Give labels among the inputs."
        )
    config = _trained(model.config) if gradients else model.config
    ask = Ask(
        "gradients" if gradients else "forward",
        model.method,
        config.to_dict(),
        inputs={**text, **{PARAMETERS + name: value for name, value in model.parameters.items()}},
        model=model.base_directory,
    )
    tensors = questions.answer(ask, Arithmetic(dtype, lazy=True)).tensors
    order = list(tensors)
    metadata = {
        "refpeft": __version__,
        "dialect": DIALECT,
        "dtype": dtype,
        "method": model.method,
        "base": str(model.base_directory),
        "adapter": str(model.adapter_directory),
        "order": json.dumps(order),
    }
    write_tensors(path, {**text, **tensors}, metadata)
    return order


def _has_loss(text: Text) -> bool:
    return "labels" in text or all(name in text for name in SPAN)


def _questions(
    model: OwnModel, texts: Mapping[str, Text], gradients: bool
) -> Iterator[tuple[str, str, Text]]:
    """Name, question and text of each case. An adapter file is read once, with the hardest text there is."""
    yield "adapter-config", "config.resolve", {}
    if model.method == PREFIX:
        yield "adapter", "prefix.encode", {}
    for name, text in texts.items():
        yield name, "inputs", text
        yield name, "forward", text
        if _has_loss(text) and (gradients or _size(model) <= AFFORDABLE):
            yield name, "gradients", text
    name = "left-padding" if "left-padding" in texts else next(iter(texts))
    reads = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    yield name, "checkpoint.load", {k: v for k, v in texts[name].items() if k in reads}


def _case(model: OwnModel, name: str, question: str, text: Text) -> Case:
    config: dict[str, Any] | None = None
    arguments: dict[str, Any] = {}
    document = None
    if question == "config.resolve":
        arguments = {
            "config": read_json_object(model.adapter_directory / CONFIG_NAME, "the adapter's configuration"),
            "base_config": read_json_object(model.base_directory / "config.json", "the base's configuration"),
        }
        document = questions.answer(Ask(question, model.method, arguments=arguments)).document
    elif question == "prefix.encode":
        config, arguments = model.config.to_dict(), {"batch_size": ROWS}
        if model.base.config.cuts_prefix and model.base.config.sliding_windows:
            arguments["sliding_windows"] = list(model.base.config.sliding_windows)
    elif question == "gradients":
        config = _trained(model.config).to_dict()
    elif question != "checkpoint.load":
        config = model.config.to_dict()
    return Case(
        format=FORMAT,
        id=f"{OWN}{model.method}/{SUITES.get(question, question)}/{name}",
        title=f"your model: {TITLES.get(question, questions.QUESTIONS[question].title)} ({name})",
        question=question,
        method=model.method,
        clauses=CLAUSES[question],
        model=None if question in ("config.resolve", "prefix.encode") else str(model.base_directory),
        config=config,
        arguments=arguments,
        dims={},
        equal_axes="",
        seed=None,
        versions={"refpeft": __version__},
        tensors={} if question == "config.resolve" else _tensors(model, question, text),
        document=document,
    )


def _trained(config: PromptLearningConfig) -> PromptLearningConfig:
    """The configuration in which the loaded table is trained: what is left of a projection is a prefix without one."""
    if isinstance(config, PrefixTuningConfig):
        config = replace(config, prefix_projection=False)
    return replace(config, inference_mode=False)


def _tensors(model: OwnModel, question: str, text: Text) -> dict[str, Tensor]:
    """Every tensor of an answer in the order of computation, as the specification names them for a model of this depth."""
    found, config = {}, replace(model.base.config, hf={}, eos_token_id=None)
    given = frozenset(text) - {"input_ids"}
    if config.kind == "encoder_decoder" and not given & {"labels", "decoder_input_ids"}:
        given |= {"decoder_input_ids"}  # `prefix.encode` is given no text, and needs none
    stages = stage_names(config, given, prefix=model.method == PREFIX, task_type=str(model.config.task_type))
    for name, is_real in stages.items():
        step = names.step_of(name)
        if step is None or (question == "inputs" and not questions.is_input_stage(name)):
            continue
        if question == "prefix.encode" and not name.startswith("prefix."):
            continue
        kind = "composite" if model.wide and is_real else kind_of(name, step.kind, config)
        found[name] = Tensor(kind, list(step.axes))
    if question == "gradients":
        table = ["virtual", "prefix_width" if model.method == PREFIX else "embedding"]
        heads = {1: ["labels"], 2: ["labels", "hidden"]}
        found |= {
            GRADIENTS + name: Tensor("composite", table if name == EMBEDDING else heads[value.ndim])
            for name, value in model.parameters.items()
        }
    return found


def _padding_id(model: OwnModel) -> int:
    """What stands where the mask is 0: the model's padding token, or its end of text, or 0."""
    config = model.base.config
    wanted = (config.pad_token_id, config.eos_token_id)
    return next((i for i in wanted if isinstance(i, int) and 0 <= i < config.vocab_size), 0)


def _size(model: OwnModel) -> int:
    """The numbers in the base model, tied ones once."""
    return sum({id(p): p.size for p in model.base.parameters.values()}.values())
