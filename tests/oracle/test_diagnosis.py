"""It names the mistake: one, two at once, none that is known, or narrow arithmetic (clause JG-13)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest

from refpeft import activations
from refpeft.oracle import budget
from refpeft.oracle.budget import PROFILES
from refpeft.oracle.cases import ask_of
from refpeft.oracle.claims import Finding
from refpeft.oracle.diagnosis import diagnose, with_diagnosis
from refpeft.oracle.evidence import Evidence
from refpeft.oracle.judge import Results, Selection, summarise
from refpeft.oracle.mutants import MUTANTS
from refpeft.oracle.port import ReferencePort
from refpeft.oracle.protocol import RunCommand
from refpeft.oracle.questions import Answer, Ask, answer
from refpeft.oracle.reply import Reply
from refpeft.oracle.run import judge
from refpeft.oracle.vectors import Vector, all_vectors
from refpeft.steps import definition, replaced

VECTORS = {vector.case.id.removeprefix("peft-0.21.2/"): vector for vector in all_vectors()}
FORWARD = [
    VECTORS[f"prefix_tuning/forward/{name}"]
    for name in ("stages-right-padding", "stages-projected", "projected-square", "left-padding")
]
PROMPTED = [VECTORS[f"prompt_tuning/forward/{name}"] for name in ("left-padding", "aligned")]
Steps = Mapping[str, Callable[..., Any]]
ENDS = ("logits", "loss")
RELU: Steps = {"prefix.projection_activation": activations.relu}
FROM_ZERO: Steps = {
    "inputs.position_ids": lambda b, q, past, given, like: definition("inputs.position_ids")(
        b, q, 0, given, like
    )
}


class Mistaken(ReferencePort):
    """The specification with other steps; perhaps the end values alone, perhaps in narrow arithmetic."""

    def __init__(self, steps: Steps, *, ends: bool = False, narrow: str = "", only: str = "") -> None:
        super().__init__()
        self.steps, self.ends, self.narrow, self.only = steps, ends, narrow, only

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        steps = self.steps if self.only in ask.question else {}
        with replaced(steps), numpy.errstate(all="ignore"):
            if self.narrow:
                kind = PROFILES[self.narrow].simulated
                assert kind is not None
                given = answer(ask, budget.simulation(kind))
                given = Answer({n: numpy.asarray(x) for n, x in given.tensors.items()})
            else:
                reply = super().ask(ask, request)
                given = reply.answer
        if self.ends:
            given = Answer({n: x for n, x in given.tensors.items() if n in ENDS})
        return Reply("ANSWERED", given)


def looked_at(
    port: ReferencePort, vectors: list[Vector], work: Path, *profiles: str, seconds: float = 60.0
) -> list[Finding]:
    evidence = Evidence()
    list(
        judge(
            port,
            Selection(vectors, [PROFILES[p] for p in profiles or ("float32",)]),
            work,
            None,
            evidence=evidence,
        )
    )
    return diagnose(evidence, seconds=seconds)


def short(finding: Finding) -> tuple[str, list[str], str, int]:
    return finding.kind, finding.mutants, finding.first, len(finding.cases)


def test_nothing_is_said_of_a_port_that_conforms(tmp_path: Path) -> None:
    assert looked_at(ReferencePort(), FORWARD, tmp_path / "work") == []


def test_a_mistake_is_named(tmp_path: Path) -> None:
    (found,) = looked_at(Mistaken(RELU), FORWARD, tmp_path / "work")
    assert found.bits is not None
    assert 20 < found.bits < 30
    assert replace_bits(found) == Finding(
        "mutant", "M16 relu instead of tanh in the projection",
        ["peft-0.21.2/prefix_tuning/forward/stages-projected (float32)", "peft-0.21.2/prefix_tuning/forward/projected-square (float32)"], 2,
        first="prefix.projection_activation", mutants=["M16"], clauses=["PX-2"], seen="peft-rs (prefix_tuning.rs)",
    )  # fmt: skip


def replace_bits(finding: Finding) -> Finding:
    import msgspec

    return msgspec.structs.replace(finding, bits=None)


@pytest.mark.parametrize("profile", ["float32", "float64"])
def test_from_end_values_alone_too(tmp_path: Path, profile: str) -> None:
    (found,) = looked_at(Mistaken(RELU, ends=True), FORWARD, tmp_path / "work", profile)
    assert short(found) == ("mutant", ["M16"], "logits", 2)


def test_each_of_several_mistakes_in_different_cases(tmp_path: Path) -> None:
    found = looked_at(Mistaken({**RELU, "inputs.labels": lambda labels, n: numpy.pad(labels, ((0, 0), (n, 0)))}), [*FORWARD, *PROMPTED], tmp_path / "work")  # fmt: skip
    assert [short(f) for f in found] == [
        ("mutant", ["M16"], "prefix.projection_activation", 2),
        ("mutant", ["M54"], "inputs.labels", 2),
    ]


@pytest.mark.parametrize("ends", [False, True])
def test_two_mistakes_at_once(tmp_path: Path, ends: bool) -> None:
    (found, *others) = looked_at(Mistaken({**RELU, **FROM_ZERO}), FORWARD[1:2], tmp_path / "work")
    assert others == []
    assert short(found) == ("two mutants", ["M16", "M34"], "prefix.projection_activation", 1)
    assert found.clauses == ["PX-2", "PO-1"]
    assert found.title == (
        "M16 relu instead of tanh in the projection and M34 the text counted from 0 beside a prefix"
    )


class Saver(ReferencePort):
    """Writes adapters with a mistake."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        with replaced(MUTANTS[self.mistake].make()):
            written = answer(dataclasses.replace(ask, output=Path(request.output)))
        return Reply("ANSWERED", written)


SAVED = [
    VECTORS["prefix_tuning/checkpoint/save-folded-projection"],
    VECTORS["prompt_tuning/checkpoint/full-float32-parameters"],
    VECTORS["prefix_tuning/checkpoint/save"],
]


@pytest.mark.parametrize(("mistake", "cases"), [("M16", 1), ("M175", 2)])
def test_a_mistake_in_the_file_that_a_port_writes_is_named(tmp_path: Path, mistake: str, cases: int) -> None:
    (found,) = looked_at(Saver(mistake), SAVED, tmp_path / "work")
    assert short(found) == ("mutant", [mistake], "prompt_embeddings", cases)


def test_a_configuration_that_is_wrong_is_no_mistake_in_a_tensor(tmp_path: Path) -> None:
    """Every mistake leaves some tensors right; none of them says why adapter_config.json has another number of layers."""

    class Renumbering(ReferencePort):
        def ask(self, ask: Ask, request: RunCommand) -> Reply:
            written = answer(dataclasses.replace(ask, output=Path(request.output)))
            assert written.adapter is not None
            path = written.adapter / "adapter_config.json"
            path.write_text(path.read_text().replace('"num_layers": ', '"num_layers": 1'))
            return Reply("ANSWERED", written)

    (found,) = looked_at(Renumbering(), SAVED, tmp_path / "work")
    assert short(found) == ("none", [], "document", 3)


def test_a_file_with_a_mistake_that_nobody_knows_gets_no_name(tmp_path: Path) -> None:
    class Doubled(ReferencePort):
        def ask(self, ask: Ask, request: RunCommand) -> Reply:
            steps = {"checkpoint.table": lambda *given: 1.5 * definition("checkpoint.table")(*given)}
            with replaced(steps):
                return Reply("ANSWERED", answer(dataclasses.replace(ask, output=Path(request.output))))

    (found,) = looked_at(Doubled(), SAVED, tmp_path / "work")
    assert short(found) == ("none", [], "prompt_embeddings", 3)


def test_a_mistake_that_nobody_knows_gets_no_name(tmp_path: Path) -> None:
    def output(context: Any, weight: Any, bias: Any) -> Any:
        return definition("attention.output")(context, weight, bias) * 1.001

    (found,) = looked_at(Mistaken({"attention.output": output}), [*FORWARD, *PROMPTED], tmp_path / "work")
    assert short(found) == ("none", [], "decoder.layers.0.attention.output", 6)
    (found,) = looked_at(Mistaken({"attention.output": output}, ends=True), FORWARD, tmp_path / "work")
    assert found.mutants == [], (
        "by logits and loss alone it could be narrow arithmetic, but no mistake that is known"
    )


def test_arithmetic_is_not_blamed_for_what_begins_behind_exact_products(tmp_path: Path) -> None:
    """Rounding in one place is a mistake of that place: queries, keys and scores before it have all their bits."""

    def output(context: Any, weight: Any, bias: Any) -> Any:
        right = definition("attention.output")(context, weight, bias)
        return right.astype("float16").astype(right.dtype)

    (found,) = looked_at(Mistaken({"attention.output": output}), FORWARD[:2], tmp_path / "work")
    assert short(found) == ("none", [], "decoder.layers.0.attention.output", 2)


@pytest.mark.parametrize(
    ("narrow", "bits", "switch"),
    [("tf32", 13, "jax_default_matmul_precision"), ("float16", 12, ".half()"), ("bfloat16", 9, "autocast")],
)
@pytest.mark.parametrize("ends", [False, True])
def test_narrow_arithmetic_is_no_mistake(
    tmp_path: Path, narrow: str, bits: int, switch: str, ends: bool
) -> None:
    (found,) = looked_at(Mistaken({}, ends=ends, narrow=narrow), [*FORWARD, *PROMPTED], tmp_path / "work")
    assert found.kind == "arithmetic"
    assert found.mutants == []
    assert len(found.cases) == 6
    assert found.bits == pytest.approx(bits, abs=1.5), (
        "in TF32 the weights, which lie on a coarser grid, are exact"
    )
    assert switch in found.switch or found.title.startswith("the arithmetic of TF32")
    assert found.title.removeprefix("the arithmetic of ").lower().startswith((narrow, "tf32"))


def test_single_precision_in_a_port_that_says_double(tmp_path: Path) -> None:
    class Single(ReferencePort):
        def ask(self, ask: Ask, request: RunCommand) -> Reply:
            import msgspec

            return super().ask(ask, msgspec.structs.replace(request, dtype="float32"))

    (found,) = looked_at(Single(), FORWARD, tmp_path / "work", "float64")
    assert (found.kind, found.title, len(found.cases)) == ("arithmetic", "the arithmetic of float32", 4)
    assert found.bits == pytest.approx(24, abs=2)
    assert "jax_enable_x64" in found.switch


def test_conforming_cases_speak_against_a_mistake(tmp_path: Path) -> None:
    """It is made in forward alone: what would show it in another question conforms there."""
    encode = [v for n, v in VECTORS.items() if n.startswith("prefix_tuning/prefix_encode/")]
    (found,) = looked_at(Mistaken(RELU, only="forward"), [*encode, *FORWARD], tmp_path / "work")
    assert short(found) == ("mutant", ["M16"], "prefix.projection_activation", 2)
    assert found.against >= 2


def test_mutants_that_explain_equally_well_are_all_named(tmp_path: Path) -> None:
    """One virtual token: positions 0 instead of n, and positions by the mask, cannot be told apart by every case."""
    vector = VECTORS["prefix_tuning/forward/one-virtual-token"]
    steps: Steps = {
        "inputs.position_ids": lambda b, q, past, given, like: numpy.zeros((b, q), int) + numpy.arange(q)
    }
    (found,) = looked_at(Mistaken(steps), [vector], tmp_path / "work")
    assert found.kind == "mutant"
    assert "M34" in found.mutants
    assert found.title == ", or ".join(f"{m} {_title(m)}" for m in found.mutants)


def _title(name: str) -> str:
    from refpeft.oracle.mutants import MUTANTS

    return MUTANTS[name].title


def test_when_time_is_up_what_was_found_is_told(tmp_path: Path) -> None:
    (found,) = looked_at(Mistaken(RELU), FORWARD, tmp_path / "work", seconds=0.0)
    assert short(found) == ("mutant", ["M16"], "prefix.projection_activation", 1)
    assert found.looked_at == 1, "that the other was not looked at is no sign that it is another mistake"


def test_answers_that_are_missing_or_of_another_shape_are_no_evidence(tmp_path: Path) -> None:
    class Short(ReferencePort):
        def ask(self, ask: Ask, request: RunCommand) -> Reply:
            tensors = super().ask(ask, request).answer.tensors
            return Reply("ANSWERED", Answer({"logits": tensors["logits"][:, 1:]}))

    assert looked_at(Short(), FORWARD, tmp_path / "work") == []


# ---------------------------------------------------------------- with the port at hand


def results_of(port: ReferencePort, vectors: list[Vector], work: Path, profile: str = "float32") -> Results:
    evidence, selection = Evidence(), Selection(vectors, [PROFILES[profile]])
    cases = list(judge(port, selection, work, None, evidence=evidence))
    return with_diagnosis(summarise(port, selection, cases), evidence, port)


def test_a_stage_is_asked_for_with_the_references_inputs(tmp_path: Path) -> None:
    """Positions are wrong before attention; attention itself is right."""

    def twisted(hidden: Any, weight: Any, bias: Any, epsilon: float, **kind: str) -> Any:
        return definition("block.input_norm")(hidden, weight, bias, epsilon, **kind) + 0.5

    class Silent(Mistaken):
        """Says nothing of what comes before the scores."""

        def ask(self, ask: Ask, request: RunCommand) -> Reply:
            tensors = super().ask(ask, request).answer.tensors
            shown = {n: x for n, x in tensors.items() if n in ENDS or n.endswith("attention.output")}
            return Reply("ANSWERED", Answer(shown))

    (found,) = results_of(Silent({"block.input_norm": twisted}), FORWARD[:1], tmp_path / "work").diagnosis
    assert found.first == "decoder.layers.0.attention.output"
    assert found.forced == (
        "asked for one attention layer with a prefix with refpeft's own inputs, it is right: the cause lies before "
        "decoder.layers.0.attention.output"
    )

    def output(context: Any, weight: Any, bias: Any) -> Any:
        return definition("attention.output")(context, weight, bias) * 1.001

    (found,) = results_of(Silent({"attention.output": output}), FORWARD[:1], tmp_path / "work").diagnosis
    assert found.forced == (
        "asked for one attention layer with a prefix with refpeft's own inputs, decoder.layers.0.attention.output is wrong as "
        "well: the cause is there"
    )


def test_a_prefix_is_asked_for_alone(tmp_path: Path) -> None:
    wrong = Mistaken(
        {
            "prefix.key_row": lambda layer, layers: 2 * layer + 1,
            "prefix.value_row": lambda layer, layers: 2 * layer,
        }
    )
    (found,) = results_of(wrong, FORWARD[:1], tmp_path / "work").diagnosis
    assert found.mutants == ["M02"]
    assert found.forced == (
        "asked for virtual tokens to each layer's keys and values with refpeft's own inputs, prefix.layers.0.key is wrong as "
        "well: the cause is there"
    )


def test_a_port_without_the_component_question_is_not_asked(tmp_path: Path) -> None:
    port = Mistaken(RELU)
    port.abilities = type(port.abilities)(**{**_fields(port.abilities), "questions": ["forward"]})
    (found,) = results_of(port, FORWARD[1:2], tmp_path / "work").diagnosis
    assert (found.mutants, found.forced) == (["M16"], "")


def _fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def test_blind_spots_of_a_format(tmp_path: Path) -> None:
    narrow = results_of(Mistaken({}, narrow="bfloat16"), FORWARD, tmp_path / "work", "bfloat16")
    assert {"M102", "M101"} <= set(narrow.blind_spots)
    wide = results_of(ReferencePort(), FORWARD, tmp_path / "work")
    assert "M102" not in wide.blind_spots
    assert set(wide.blind_spots) < set(narrow.blind_spots)
    assert narrow.summary.verdict == wide.summary.verdict == "CONFORMS"
    assert ask_of(FORWARD[0]).question == "forward"
    assert dataclasses.replace(Selection([], []), partial=True).partial
