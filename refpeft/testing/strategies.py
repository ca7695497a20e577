"""Hypothesis strategies: base models, adapters, inputs, and whole questions within what a port says it can do.

    from hypothesis import given
    from refpeft.testing import cases

    @given(cases(port.abilities))
    def test_my_port(drawn): ...

A question is a `refpeft.oracle.drawn.Drawn`: a few numbers and words, from which `refpeft.oracle.drawn.write` makes the files of
a case. Everything shrinks towards GPT-2 with one layer, one head, one virtual token and one token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from refpeft import fitting
from refpeft.config import TASK_TYPES
from refpeft.generation import KEEPS_CACHE
from refpeft.oracle.drawn import CLAUSES, Drawn
from refpeft.oracle.drawn_inputs import DECODER_READS, PROBLEMS
from refpeft.oracle.protocol import StartAnswer
from refpeft.oracle.questions import METHODS, PREFIX, QUESTIONS
from refpeft.testing.families import ENCODERS, FAMILIES, Draw, draw_config, sometimes
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.families import FAMILIES as ROWS

LANGUAGE = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
WITH_LABELS = ("gradients", "training")
"""The questions that need labels."""
TASKS_OF: dict[str, tuple[str, ...]] = {"generate": LANGUAGE, "training": ("CAUSAL_LM",)}
"""The task types that a question is asked in, where not in all."""
OFTEN = {"forward": 3, "gradients": 2, "generate": 3, "CAUSAL_LM": 3}
"""Questions and task types that are drawn so many times as often as others."""
PADDING = (None, "full", "left", "right")
BIASED = ("alibi", "relative")
"""Positions that are biases of scores: such families are not asked about one attention layer."""


def tasks_of(family: str) -> list[str]:
    """The task types for which HF has a class of the family, and HF peft a use."""
    row = ROWS[family]
    headless = (*LANGUAGE, "FEATURE_EXTRACTION")
    found = [task for task in fitting.TASKS[row.kind] if task in headless or task in row.heads]
    return [task for task in found if not (task == "CAUSAL_LM" and row.kind == "encoder")]


class Combination(NamedTuple):
    """What has to fit together."""

    method: str
    family: str
    task_type: str
    question: str


@st.composite
def models(draw: Draw, family: str, positions: int = 16, task_type: str = "") -> dict[str, Any]:
    """The contents of a config.json: HF's options of the family left out or drawn, all sizes tiny.

    Args:
        draw: Hypothesis's.
        family: HF's `model_type`.
        positions: How many there have to be.
        task_type: Whose head the model has; without it the family's first.
    """
    return draw_config(draw, family, positions, task_type or tasks_of(family)[0])


@st.composite
def adapters(draw: Draw, method: str, largest: int = 4) -> dict[str, Any]:
    """Arguments of an adapter's configuration: virtual tokens, perhaps a projection; sizes follow from the base model.

    Args:
        draw: Hypothesis's.
        method: `prompt_tuning` or `prefix_tuning`.
        largest: Of the number of virtual tokens.
    """
    adapter: dict[str, Any] = {"num_virtual_tokens": draw(st.integers(1, largest))}
    if method == PREFIX and draw(st.booleans()):
        adapter |= {"prefix_projection": True, **sometimes(draw, encoder_hidden_size=st.integers(1, 7))}
    return adapter


@st.composite
def inputs(draw: Draw, family: str, task_type: str, method: str, question: str = "forward") -> dict[str, Any]:
    """Which optional inputs there are, and of what kind; `refpeft.oracle.drawn_inputs` makes them.

    Args:
        draw: Hypothesis's.
        family: HF's `model_type`.
        task_type: HF's name.
        method: `prompt_tuning` or `prefix_tuning`.
        question: What is asked.
    """
    if question in ("prefix.encode", "checkpoint.save"):
        return {}
    sides = PADDING[:3] if question == "generate" else PADDING
    mask = draw(st.sampled_from(sides))
    found: dict[str, Any] = {} if mask is None else {"mask": mask}
    if question == "mask":
        return found
    if mask is not None:
        found |= sometimes(draw, padded_with_pads=st.just(True))
    if question in ("generate", "checkpoint.load"):
        return found | ({"decoder": "decoder_input_ids"} if task_type == "SEQ_2_SEQ_LM" else {})
    if question == "attention":
        return found | sometimes(draw, past=st.just(True))
    if task_type == "SEQ_2_SEQ_LM":
        ways = DECODER_READS[::2] if question in WITH_LABELS else DECODER_READS
        side = draw(st.sampled_from(PADDING))
        return found | {
            "decoder": draw(st.sampled_from(ways)),
            **({} if side is None else {"decoder_mask": side}),
        }
    if task_type != "FEATURE_EXTRACTION" and (question in WITH_LABELS or draw(st.booleans())):
        found["labels"] = True
    found |= sometimes(draw, positions=st.just(True))
    if question != "training" and (family in ENCODERS or task_type not in ("SEQ_CLS", "TOKEN_CLS")):
        found |= sometimes(draw, token_types=st.just(True))
    return found


def cases(
    abilities: StartAnswer | None = None,
    *,
    families: Sequence[str] = (),
    methods: Sequence[str] = (),
    questions: Sequence[str] = (),
    profiles: Sequence[str] = (),
) -> st.SearchStrategy[Drawn]:
    """A whole question within a port's abilities; without them, within refpeft's own.

    Args:
        abilities: What the port answered to `start`.
        families: Choose among these.
        methods: Likewise.
        questions: Likewise.
        profiles: Likewise.

    Raises:
        LookupError: nothing that can be drawn is left.
    """
    known = abilities.profiles if abilities else ("float32", "float64")
    wanted = [name for name in known if not profiles or name in profiles]
    return _cases(combinations(abilities, families, methods, questions), wanted)


@st.composite
def _cases(draw: Draw, found: list[Combination], profiles: list[str]) -> Drawn:
    method, family, task, question = _combination(draw, found)
    profile = draw(st.sampled_from(profiles))
    adapter = draw(adapters(method))
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    decoder_tokens = draw(st.integers(1, 5)) if task == "SEQ_2_SEQ_LM" else 0
    arguments = draw(_arguments(question, family, adapter["num_virtual_tokens"]))
    needed = (
        adapter["num_virtual_tokens"] + max(tokens, decoder_tokens) + int(arguments.get("max_new_tokens", 0))
    )
    config = draw(models(family, needed, task))
    given = draw(inputs(family, task, method, question))
    if task == "SEQ_CLS":
        config, given, batch = _classified(draw, config, given, batch, question)
    if question == "attention":
        arguments = _layer(draw, config)
    if question == "generate" and task == "SEQ_2_SEQ_LM" and "decoder_start_token_id" not in config:
        arguments["decoder_start_token_id"] = (
            2  # HF has BART's default in a file of its own, and none without it
        )
    if question in ("forward", "inputs", "prefix.encode") and draw(st.sampled_from([False] * 7 + [True])):
        adapter["inference_mode"] = True
    return Drawn(
        question=question,
        method=method,
        task_type=task,
        model=config,
        adapter=adapter,
        batch=batch,
        tokens=tokens,
        profile=profile,
        decoder_tokens=decoder_tokens,
        inputs=given,
        arguments=arguments,
        half=family != "gpt2" and draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


def _combination(draw: Draw, found: list[Combination]) -> Combination:
    """One part after the other, the question last: so a search finds a simpler question about the same model."""
    for part, _ in enumerate(Combination._fields):
        values = dict.fromkeys(combination[part] for combination in found)
        several = [value for value in values for _ in range(OFTEN.get(value, 1))]
        chosen = draw(st.sampled_from(several))
        found = [combination for combination in found if combination[part] == chosen]
    return found[0]


def combinations(
    abilities: StartAnswer | None,
    families: Sequence[str] = (),
    methods: Sequence[str] = (),
    questions: Sequence[str] = (),
) -> list[Combination]:
    """Every combination that can be drawn and answered, the simplest first.

    Raises:
        LookupError: there is none.
    """

    def among(wanted: Sequence[str], declared: Sequence[str] | None, every: Sequence[str]) -> list[str]:
        return [
            name
            for name in every
            if (not wanted or name in wanted) and (declared is None or name in declared)
        ]

    asked = among(
        questions, abilities.questions if abilities else None, [q for q in QUESTIONS if q in CLAUSES]
    )
    by = among(methods, abilities.methods if abilities else None, METHODS)
    of = among(families, abilities.families if abilities else None, list(FAMILIES))
    tasks = among((), abilities.tasks if abilities else None, TASK_TYPES)
    found = [
        Combination(method, family, task, question)
        for method in by
        for family in of
        for task in tasks_of(family)
        for question in asked
        if task in tasks and _makes_sense(question, method, family, task)
    ]
    if not found:
        raise LookupError(
            f"Nothing can be drawn: no question among {', '.join(questions or CLAUSES)} about {', '.join(families or ['a family'])} "
            "that the port says it can answer."
        )
    return found


def _makes_sense(question: str, method: str, family: str, task: str) -> bool:
    if question not in ("mask", "attention") and method not in QUESTIONS[question].methods:
        return False
    if question == "attention" and family in ("bloom", "falcon", "t5"):
        return False
    if question in WITH_LABELS and task == "FEATURE_EXTRACTION":
        return False
    return task in TASKS_OF.get(question, (task,))


@st.composite
def _arguments(draw: Draw, question: str, family: str, virtual: int) -> dict[str, Any]:
    """What else a question needs."""
    if question == "generate":
        beams = draw(st.integers(1, 3))
        arguments: dict[str, Any] = {
            "max_new_tokens": draw(st.integers(1, 4)),
            "eos_token_id": draw(st.none() | st.integers(0, 10)),
            "pad_token_id": draw(st.none() | st.integers(0, 10)),
        }
        if beams > 1:
            arguments |= {
                "num_beams": beams,
                **sometimes(
                    draw, length_penalty=st.sampled_from([0.5, 2.0, -1.0]), early_stopping=st.just(True)
                ),
            }
        if family not in KEEPS_CACHE:
            arguments |= sometimes(draw, use_cache=st.just(False))
        return arguments
    if question == "training":
        return {
            "micro_batches": draw(st.integers(1, 3)),
            "max_steps": draw(st.integers(1, 4)),
            "learning_rate": draw(st.sampled_from([0.01, 0.03])),
            "lr_scheduler_type": draw(
                st.sampled_from(["constant", "linear", "cosine", "constant_with_warmup"])
            ),
            "warmup_steps": draw(st.integers(0, 2)),
            "weight_decay": draw(st.sampled_from([0.0, 0.1])),
            "adam_beta1": 0.9,
            "adam_beta2": 0.999,
            "adam_epsilon": 1e-8,
            "max_grad_norm": draw(st.sampled_from([None, 1.0])),
            "gradient_accumulation_steps": draw(st.integers(1, 2)),
        }
    return {}


def _classified(
    draw: Draw, config: dict[str, Any], given: dict[str, Any], batch: int, question: str
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """SEQ_CLS: which loss; and one row only where a decoder has no padding token, by which HF finds the last one."""
    base = ModelConfig.from_dict(config)
    if "labels" in given:
        problem = draw(st.sampled_from(PROBLEMS))
        if base.num_labels == 1 and problem == PROBLEMS[0]:  # HF refuses a single class
            problem = PROBLEMS[1]
        given = {**given, "problem": problem}
        if (problem == PROBLEMS[1]) != (base.num_labels == 1) or draw(st.booleans()):
            config = {**config, "problem_type": problem}
    return config, given, batch if base.kind != "decoder" or base.pad_token_id is not None else 1


def _layer(draw: Draw, config: Mapping[str, Any]) -> dict[str, Any]:
    """Which layer is asked about, of which stack."""
    base = ModelConfig.from_dict(dict(config))
    name: Any = draw(st.sampled_from(["decoder", "encoder"])) if base.kind == "encoder_decoder" else None
    layer = draw(st.integers(0, base.stack(name or "encoder").num_layers - 1))
    return {"layer": layer, **({"stack": name} if name else {})}
