"""Questions that a search draws: a base model, an adapter and inputs from a few numbers, written as a golden case is.

A `Drawn` says everything that a question depends on. Weights and inputs follow from its seed: large enough for every mistake
to show, on the bfloat16 grid, so that no format rounds what it reads. What is expected is refpeft's own answer.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy
from numpy.typing import NDArray

from refpeft import __version__, checkpoint, peft_model
from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.fill_in import fill_in
from refpeft.oracle import drawn_inputs, names, questions
from refpeft.oracle.cases import ask_of
from refpeft.oracle.questions import COMMON, GRADIENTS, PARAMETERS, PREFIX, PROMPT
from refpeft.oracle.stage_names import kind_of
from refpeft.oracle.validity import blind_positions
from refpeft.oracle.vectors import DIALECT, DRAWN, FORMAT, Case, Tensor, Vector, golden_directory
from refpeft.tensors import write_tensors
from refpeft.transformer.columns import LAYER
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.families import family_of
from refpeft.transformer.shapes import HEADS, parameter_shapes
from refpeft.transformer.weights import HEAD, BaseModel

SPREAD = 0.4
"""The standard deviation of all weights: HF's own 0.02 makes logits nearly flat and hides mistakes."""
WITHOUT_MODEL = ("mask", "prefix.encode", "checkpoint.save")
"""The questions that are asked without the base model."""
CLAUSES = {
    "mask": ["MK-1"],
    "prefix.encode": ["PX-3", "PX-4", "PX-5"],
    "inputs": ["MK-1", "PO-1"],
    "attention": ["AT-1", "AT-3"],
    "forward": ["TK-2"],
    "gradients": ["TK-3"],
    "training": ["TR-1", "TR-5"],
    "generate": ["GN-3", "GN-4", "GN-5"],
    "checkpoint.load": ["CK-3"],
    "checkpoint.save": ["CK-1", "CK-2"],
}
"""The questions that can be drawn, and the clauses that they bear on."""


@dataclass(frozen=True)
class Drawn:
    """Everything that one question depends on, as JSON could hold it."""

    question: str
    method: str
    """Of the adapter: prompt or prefix tuning."""
    task_type: str
    model: Mapping[str, Any]
    """The contents of config.json."""
    adapter: Mapping[str, Any]
    """Arguments of the adapter's configuration, without the sizes that follow from the base model."""
    batch: int
    tokens: int
    profile: str = "float32"
    """The numbers to be asked in."""
    decoder_tokens: int = 0
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Which optional inputs there are, and of what kind; see `refpeft.oracle.drawn_inputs`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What else the question needs."""
    half: bool = False
    """Whether the base model's file is in bfloat16."""
    seed: int = 0

    @property
    def family(self) -> str:
        """The base model's architecture."""
        return str(self.model["model_type"])

    @property
    def virtual(self) -> int:
        """The number of virtual tokens."""
        return int(self.adapter["num_virtual_tokens"])

    @cached_property
    def key(self) -> str:
        """A short hash of everything."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """The case's id."""
        method = COMMON if self.question in ("mask", "attention") else self.method
        return f"{DRAWN}{method}/{self.question.replace('.', '_')}/{self.family}-{self.key}"


def write(drawn: Drawn, root: Path) -> Vector:
    """The question as a case below `root`, which becomes a directory of golden vectors; its expected values are in memory.

    Raises:
        ConfigError, InputError: refpeft refuses the model, the adapter or the inputs.
    """
    if not (root / "manifest.json").is_file():
        root.mkdir(parents=True, exist_ok=True)
        manifest = {"format": FORMAT, "dialect": DIALECT, "files": {}}
        (root / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    random = numpy.random.default_rng(drawn.seed)
    model_name = f"{drawn.family}-{drawn.key}"
    base = write_base(drawn, root / "models" / model_name, random)
    config, parameters = _adapter(drawn, base, model_name, random)
    inputs, arguments = drawn_inputs.make(drawn, base, config, random)
    if drawn.question in (
        "prefix.encode",
        "inputs",
        "forward",
        "gradients",
        "training",
        "generate",
        "checkpoint.save",
    ):
        inputs |= {PARAMETERS + name: value for name, value in parameters.items()}
    directory = root / "vectors" / drawn.name
    directory.mkdir(parents=True, exist_ok=True)
    if inputs:
        write_tensors(directory / "inputs.safetensors", inputs)
    if drawn.question == "checkpoint.load":
        checkpoint.save(directory / "adapter", config, parameters)
    case = _case(drawn, model_name, config, arguments)
    vector = Vector(case, directory)
    vector.__dict__["inputs"] = inputs
    answer = questions.answer(ask_of(vector))
    expected = {name: numpy.asarray(value) for name, value in answer.tensors.items()}
    tensors = dict(_tensors(drawn, base.config, expected))
    document = {"config": config.to_dict() | _SAVED} if drawn.question == "checkpoint.save" else None
    case = msgspec.structs.replace(case, tensors=tensors, document=document)
    (directory / "case.json").write_bytes(msgspec.json.format(msgspec.json.encode(case), indent=1) + b"\n")
    vector = Vector(case, directory)
    vector.__dict__.update(inputs=inputs, expected=expected)
    return vector


_SAVED = {"inference_mode": True}


def complete(vector: Vector) -> None:
    """Write the expected values beside the case, so that it can be judged alone."""
    if vector.case.tensors:
        known = {name: vector.expected[name] for name in vector.case.tensors}
        write_tensors(vector.directory / "expected.safetensors", known)


def discard(vector: Vector) -> None:
    """Remove the case, and its base model, which is there even where the question is asked without it."""
    shutil.rmtree(golden_directory(vector.directory) / "models" / vector.directory.name, ignore_errors=True)
    shutil.rmtree(vector.directory, ignore_errors=True)


def is_blind(vector: Vector) -> bool:
    """Whether a position that is compared sees no key at all: what HF computes there is an artefact of its masks."""
    return any(True for _ in blind_positions(ask_of(vector), vector.expected))


# ---------------------------------------------------------------- the base model


def on_grid(array: NDArray[Any]) -> NDArray[Any]:
    """Rounded to bfloat16, stored as float32."""
    return array.astype(ml_dtypes.bfloat16).astype(numpy.float32)


def write_base(drawn: Drawn, directory: Path, random: numpy.random.Generator) -> BaseModel:
    """An HF directory with the head of the task, and the base model that refpeft reads there."""
    directory.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = dict(drawn.model)
    if drawn.task_type == "FEATURE_EXTRACTION":
        document["architectures"] = ["AutoModel"]
    (directory / "config.json").write_text(json.dumps(document), encoding="utf-8")
    tensors = base_tensors(ModelConfig.from_dict(document), drawn.task_type, random)
    if drawn.half:
        tensors = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    write_tensors(directory / "model.safetensors", tensors, {"format": "pt"})
    return questions.loaded_base(directory)


def base_tensors(
    config: ModelConfig, task_type: str, random: numpy.random.Generator
) -> dict[str, NDArray[Any]]:
    """Random tensors under the names and in the layouts in which HF's class of the task saves them."""
    family, tensors = family_of(config.family), dict[str, NDArray[Any]]()
    sources, wanted = family.weights(config), family.heads.get(task_type)
    stored = config.stored_key_value_heads or config.num_key_value_heads
    for canonical, shape in parameter_shapes(config).items():
        if canonical.startswith(HEADS):
            name = canonical.removeprefix(HEADS)
            if not name.startswith("pooler.") and not (wanted and name.startswith(f"{wanted.module}.")):
                continue
            hf_name = (
                _in_class(name, family.prefix, config, task_type) if name.startswith("pooler.") else name
            )
        else:
            template, layer = _template(canonical)
            source = sources[template]
            language = canonical == HEAD or canonical.startswith("head.")
            if language and (
                task_type not in ("CAUSAL_LM", "SEQ_2_SEQ_LM")
                or (canonical == HEAD and config.tie_word_embeddings)
            ):
                continue
            if source.fused and source.part != "query":
                continue
            if source.fused:
                shape = ((config.num_attention_heads + 2 * stored) * config.head_dim, *shape[1:])
            shape = shape[::-1] if source.transposed else shape
            hf_name = source.name.format(layer=layer)
            hf_name = hf_name if language else _in_class(hf_name, family.prefix, config, task_type)
        tensors[_OLD_NAMES.get((config.family, hf_name), hf_name)] = on_grid(
            random.normal(0.0, SPREAD, shape)
        )
    return tensors


_OLD_NAMES = {("gpt_neox", "lm_head.weight"): "embed_out.weight"}
"""What HF calls a tensor in files, where that is not what it calls it in models."""


def _template(canonical: str) -> tuple[str, int]:
    """A parameter's name with `{layer}`, and the layer."""
    before, layers, after = canonical.partition("layers.")
    number, dot, rest = after.partition(".")
    return (f"{before}{LAYER}{rest}", int(number)) if layers and dot else (canonical, 0)


def _in_class(name: str, prefix: str, config: ModelConfig, task_type: str) -> str:
    """A backbone's tensor as the class of the task calls it."""
    if task_type == "FEATURE_EXTRACTION" or config.family == "t5":
        return name
    if task_type == "QUESTION_ANS" and config.family in _GENERIC_SPANS:
        return f"transformer.{name}"
    return prefix + name


_GENERIC_SPANS = ("llama", "qwen2", "qwen3")
"""Whose question answering HF keeps under another name."""


# ---------------------------------------------------------------- the adapter


def _adapter(
    drawn: Drawn, base: BaseModel, model_name: str, random: numpy.random.Generator
) -> tuple[PromptLearningConfig, dict[str, NDArray[Any]]]:
    """The complete configuration, and random values of the trainable parameters."""
    kind: type[PromptLearningConfig] = PrefixTuningConfig if drawn.method == PREFIX else PromptTuningConfig
    config = kind(task_type=drawn.task_type, **drawn.adapter)
    config = replace(config, **_sizes_that_hf_misses(config, base))
    model = peft_model.get_peft_model(base, config, seed=0)
    shapes = {name: numpy.shape(value) for name, value in model.parameters().items()}
    parameters = {name: on_grid(random.normal(0.0, SPREAD, shape)) for name, shape in shapes.items()}
    return replace(model.config, base_model_name_or_path=model_name), parameters


def _sizes_that_hf_misses(config: PromptLearningConfig, base: BaseModel) -> dict[str, Any]:
    """What has to be given where HF would fill in sizes that the base model's own tensors do not have (CF-3)."""
    filled, own = fill_in(config, base.config.hf), base.config.stack("decoder")
    if not isinstance(config, PrefixTuningConfig):
        width = base.config.embedding_width
        return {} if filled.token_dim == width else {"token_dim": width}
    heads = own.num_key_value_heads
    wanted = {"token_dim": heads * own.head_dim, "num_attention_heads": heads}
    given = {name: value for name, value in wanted.items() if getattr(filled, name) != value}
    return {**given, **({"num_layers": own.num_layers} if (filled.num_layers or 0) < own.num_layers else {})}


# ---------------------------------------------------------------- the case


def _case(drawn: Drawn, model_name: str, config: PromptLearningConfig, arguments: dict[str, Any]) -> Case:
    """What is asked, without the answer."""
    own = drawn.question not in ("mask", "attention", "checkpoint.load")
    return Case(
        format=FORMAT,
        id=drawn.name,
        title=f"drawn: {questions.QUESTIONS[drawn.question].title}",
        question=drawn.question,
        method=COMMON if drawn.question in ("mask", "attention") else drawn.method,
        clauses=CLAUSES[drawn.question],
        model=None if drawn.question in WITHOUT_MODEL else model_name,
        config=config.to_dict() if own else None,
        arguments=arguments,
        dims={},
        equal_axes="",
        seed=drawn.seed,
        versions={"refpeft": __version__},
        tensors={},
        document=None,
    )


def _tensors(
    drawn: Drawn, config: ModelConfig, expected: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[str, Tensor]]:
    """What is known of each tensor of the answer: those that are stages, and gradients and trained parameters.

    Of a generation, what is about all of its steps: ports need not run an encoder once for each beam, or once for all.
    """
    for name, value in expected.items():
        step = names.step_of(name)
        if drawn.question == "generate" and not name.startswith(("sequences", "generation.")):
            continue
        if step is not None:
            yield name, Tensor(kind_of(name, step.kind, config), list(step.axes))
        elif name.startswith((GRADIENTS, "trained.", "training.")):
            series = name.startswith("training.") and not name.startswith("training.steps.")
            yield name, Tensor("composite", ["steps"] if series else [f"axis_{i}" for i in range(value.ndim)])
        elif name == checkpoint.TENSOR:
            yield name, Tensor("exact" if drawn.method == PROMPT else "composite", ["virtual", "width"])
        elif name.startswith(checkpoint.HEAD):
            yield name, Tensor("exact", [f"axis_{i}" for i in range(value.ndim)])
