"""From answers to verdicts: where a port first differs, and what may be claimed of a whole run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest

from refpeft import __version__, arrays
from refpeft.oracle import budget, questions
from refpeft.oracle.budget import PROFILES
from refpeft.oracle.cases import ask_of, can_answer, stages_of
from refpeft.oracle.compare import Difference
from refpeft.oracle.judge import (
    CaseResult,
    Results,
    Selection,
    Verdict,
    compare_answer,
    judge_one,
    summarise,
)
from refpeft.oracle.port import ReferencePort
from refpeft.oracle.protocol import RunCommand
from refpeft.oracle.questions import Answer, Arithmetic, Ask, answer
from refpeft.oracle.reply import Reply
from refpeft.oracle.run import PATIENCE, judge
from refpeft.oracle.vectors import DIALECT, Vector, VectorError, all_vectors, golden_directory, read_vector
from refpeft.steps import definition, replaced
from refpeft.tensors import write_tensors

VECTORS = {vector.case.id.removeprefix(f"{DIALECT}/"): vector for vector in all_vectors()}
FLOAT32, FLOAT64 = PROFILES["float32"], PROFILES["float64"]
STAGES = VECTORS["prefix_tuning/forward/stages-projected"]
FORWARD = VECTORS["prefix_tuning/forward/left-padding"]
FIVE = [VECTORS[name] for name in ("common/mask/full", "common/random/linear", "prefix_tuning/config/minimal", "prefix_tuning/checkpoint/save", "prompt_tuning/gradients/left-padding")]  # fmt: skip


class Fake(ReferencePort):
    """refpeft with another answer: what `change` makes of its own."""

    def __init__(self, change: Callable[[Reply], Reply] = lambda reply: reply, **abilities: Any) -> None:
        super().__init__()
        self.abilities = msgspec.structs.replace(self.abilities, **abilities)
        self.change = change
        self.requests: list[RunCommand] = []

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        self.requests.append(request)
        return self.change(super().ask(ask, request))


def tensors(vector: Vector, mutant: Mapping[str, Callable[..., Any]] | None = None) -> dict[str, Any]:
    """Every stage of refpeft's answer in float32, perhaps with a wrong step."""
    with replaced(mutant or {}):
        return {k: numpy.array(v) for k, v in answer(ask_of(vector), Arithmetic("float32")).tensors.items()}


def judged(vector: Vector, given: Mapping[str, Any]) -> tuple[Verdict, list[Difference]]:
    return compare_answer(vector, ask_of(vector), FLOAT32, Reply("ANSWERED", Answer(dict(given))))


def first(differences: list[Difference]) -> Difference:
    return next(d for d in differences if not d.ok)


def asked(
    port: ReferencePort, vectors: list[Vector], work: Path, *profiles: str, **options: Any
) -> list[CaseResult]:
    selection = Selection(vectors, [PROFILES[name] for name in profiles or ("float32",)])
    return list(judge(port, selection, work, None, **options))


# ---------------------------------------------------------------- one answer


def test_every_tensor_is_compared_in_topological_order() -> None:
    verdict, differences = judged(STAGES, tensors(STAGES))
    assert verdict == "CONFORMS"
    assert [d.name for d in differences] == list(STAGES.case.tensors)
    assert all(d.ok and d.golden for d in differences)
    bits = [d.bits for d in differences if d.bits is not None]
    assert 15 < min(bits) < 30


def test_the_first_difference_is_where_the_mistake_is() -> None:
    """Everything after it differs too."""
    given = tensors(STAGES, {"attention.scores": lambda q, k, v, scale: _doubled(q, k, v, scale)})
    verdict, differences = judged(STAGES, given)
    wrong = [d.name for d in differences if not d.ok]
    assert verdict == "NONCONFORMING"
    assert wrong[0] == "decoder.layers.0.attention.scores"
    assert wrong[-2:] == ["logits", "loss"]
    assert len(wrong) > 30
    assert (first(differences).clause, first(differences).golden) == ("AT-3", True)
    for name in ("prefix.layers.2.value", "decoder.layers.0.attention.key_states"):
        assert next(d for d in differences if d.name == name).ok


def _doubled(query: Any, keys: Any, visible: Any, scale: float) -> Any:
    from refpeft.steps import definition

    return definition("attention.scores")(query, keys, visible, 2 * scale)


def test_an_answer_may_come_in_any_order() -> None:
    given = tensors(STAGES)
    given["prefix.flat"] = given["prefix.flat"] + 1
    given["logits"] = given["logits"] + 1
    _, differences = judged(STAGES, dict(reversed(given.items())))
    assert [d.name for d in differences if not d.ok] == ["prefix.flat", "logits"]


def test_stages_without_golden_value_localise_a_mistake() -> None:
    assert "decoder.layers.1.attention.context" not in FORWARD.case.tensors
    given = tensors(FORWARD, {"attention.scores": _doubled})
    verdict, differences = judged(FORWARD, given)
    found = first(differences)
    assert verdict == "NONCONFORMING"
    assert (found.name, found.golden, found.clause) == ("decoder.layers.0.attention.scores", False, "AT-3")
    assert [d.name for d in differences] == list(given), "everything, in the order of computation"
    assert {d.name: d.golden for d in differences if d.golden} == {"logits": True, "loss": True}
    assert "max(floor" in found.derivation


def test_stages_without_golden_value_never_make_a_verdict() -> None:
    given = tensors(FORWARD)
    given["decoder.layers.0.attention.scores"] = given["decoder.layers.0.attention.scores"] + 1
    verdict, differences = judged(FORWARD, given)
    assert verdict == "CONFORMS"
    assert [d.name for d in differences] == ["logits", "loss"]


def test_names_that_mean_nothing_are_ignored() -> None:
    given = {**tensors(FORWARD), "my.debug": numpy.zeros(3), "parameters.x": numpy.ones(1)}
    assert judged(FORWARD, given)[0] == "CONFORMS"
    given["logits"] = given["logits"] + 1
    verdict, differences = judged(
        FORWARD, {name: given[name] for name in ("my.debug", "parameters.x", "logits", "loss")}
    )
    assert (verdict, [d.name for d in differences]) == ("NONCONFORMING", ["logits", "loss"])


def test_a_required_tensor_is_missing() -> None:
    given = tensors(FORWARD)
    verdict, differences = judged(FORWARD, {"loss": given["loss"]})
    assert verdict == "NONCONFORMING"
    assert first(differences) == Difference(
        "logits", ok=False, reason="is missing from the answer, which has loss", clause="PP-4"
    )
    assert judged(STAGES, {name: tensors(STAGES)[name] for name in ("logits", "loss")})[0] == "CONFORMS"


@pytest.mark.parametrize("status", ["SKIPPED", "ERRORED", "CRASHED", "TIMEOUT"])
def test_no_answer_is_its_own_verdict(status: Any) -> None:
    assert compare_answer(FORWARD, ask_of(FORWARD), FLOAT32, Reply(status)) == (status, [])


def test_documents_and_adapters(tmp_path: Path) -> None:
    config, save = VECTORS["prefix_tuning/config/minimal"], VECTORS["prefix_tuning/checkpoint/save"]

    def verdict(vector: Vector, reply: Answer) -> tuple[Verdict, list[str]]:
        said, differences = compare_answer(vector, ask_of(vector), FLOAT32, Reply("ANSWERED", reply))
        return said, [d.name for d in differences if not d.ok]

    assert verdict(config, Answer(document=config.case.document)) == ("CONFORMS", [])
    assert verdict(config, Answer(document={"config": {}})) == ("NONCONFORMING", ["document"])
    ask = ask_of(save)
    written = answer(Ask(ask.question, ask.method, ask.config, {}, ask.inputs, output=tmp_path))
    assert verdict(save, written) == ("CONFORMS", [])
    assert verdict(save, Answer(adapter=tmp_path)) == (
        "NONCONFORMING",
        ["adapter", "document", "prompt_embeddings"],
    )
    assert verdict(save, Answer()) == ("NONCONFORMING", ["adapter", "document", "prompt_embeddings"])


# ---------------------------------------------------------------- one question


def test_a_question_is_asked_as_the_protocol_says(tmp_path: Path) -> None:
    port = Fake()
    load = VECTORS["prefix_tuning/checkpoint/load"]
    result = judge_one(port, load, FLOAT64, tmp_path / "a/7", 7, None)
    golden = golden_directory()
    assert port.requests == [
        RunCommand(
            seq=7,
            case=load.case.id,
            question="checkpoint.load",
            method="prefix_tuning",
            dtype="float64",
            model=str(golden / "models" / str(load.case.model)),
            config=load.case.config,
            arguments={},
            inputs=str(load.directory.resolve() / "inputs.safetensors"),
            adapter=str(load.directory.resolve() / "adapter"),
            stages=stages_of(load),
            output=str((tmp_path / "a/7").resolve()),
        )
    ]
    assert (tmp_path / "a/7").is_dir()
    assert (result.case, result.title, result.question) == (load.case.id, load.case.title, "checkpoint.load")
    assert (result.level, result.method, result.profile) == ("checkpoint", "prefix_tuning", "float64")
    assert (result.verdict, result.first, result.reproduce) == ("CONFORMS", None, None)
    assert 0 < result.seconds < 60


def test_what_a_port_says_is_kept(tmp_path: Path) -> None:
    port = Fake(lambda _: Reply("CRASHED", message="the port exited with status 3", detail="boom"))
    (result,) = asked(port, [FORWARD], tmp_path)
    assert (result.verdict, result.message, result.detail) == (
        "CRASHED",
        "the port exited with status 3",
        "boom",
    )
    assert (result.first, result.differences, result.reproduce) == (None, [], None)


def test_profiles_are_asked_in_their_own_dtype(tmp_path: Path) -> None:
    port = Fake(profiles=list(PROFILES))
    results = asked(port, [FORWARD], tmp_path, *PROFILES)
    assert [r.dtype for r in port.requests] == [
        "float32",
        "float64",
        "float64",
        "float32",
        "float16",
        "bfloat16",
    ]
    assert [r.profile for r in results] == list(PROFILES)
    assert {r.verdict for r in results} == {"CONFORMS"}

    def rounded(reply: Reply) -> Reply:
        logits, loss = (
            numpy.asarray(reply.answer.tensors[name]).astype("float32") for name in ("logits", "loss")
        )
        return Reply("ANSWERED", Answer({"logits": logits, "loss": loss}))

    single = Fake(rounded, profiles=list(PROFILES))
    verdicts = [r.verdict for r in asked(single, [FORWARD], tmp_path / "single", *PROFILES)]
    assert verdicts == ["CONFORMS", "NONCONFORMING", *["CONFORMS"] * 4], "float32 is not float64"


# ---------------------------------------------------------------- a whole run


def test_what_a_port_does_not_declare_is_not_asked(tmp_path: Path) -> None:
    port = Fake(questions=["mask", "checkpoint.save"], methods=["prompt_tuning"])
    results = asked(port, FIVE, tmp_path)
    assert [r.case for r in results] == [FIVE[0].case.id], "common to both methods"
    assert [can_answer(port.abilities, v) for v in FIVE] == [True, False, False, False, False]
    document = summarise(port, Selection(FIVE, [FLOAT32]), results)
    assert document.not_asked == [v.case.id for v in FIVE[1:]]
    assert (document.summary.not_asked, document.summary.asked) == (4, 1)


def test_questions_are_numbered_and_have_directories_of_their_own(tmp_path: Path) -> None:
    port = Fake(questions=[q for q in questions.QUESTIONS if q != "random"])
    asked(port, FIVE, tmp_path, "float32", "float64")
    assert [r.seq for r in port.requests] == list(range(1, 9))
    assert [r.output for r in port.requests] == [str(tmp_path.resolve() / str(seq)) for seq in range(1, 9)]
    assert [r.dtype for r in port.requests] == ["float32", "float64"] * 4


def answers(*replies: Reply | None) -> Callable[[Reply], Reply]:
    """These replies one after the other; None for refpeft's own."""
    left: Iterator[Reply | None] = iter(replies)
    return lambda own: next(left) or own


SKIP, CRASH = Reply("SKIPPED", message="not yet"), Reply("CRASHED", message="gone")


def test_fail_fast_stops_at_the_first_failure(tmp_path: Path) -> None:
    results = asked(Fake(answers(None, SKIP, None, CRASH, None)), FIVE, tmp_path, fail_fast=True)
    assert [r.verdict for r in results] == ["CONFORMS", "SKIPPED", "CONFORMS", "CRASHED"]
    everything = asked(Fake(answers(None, SKIP, None, CRASH, None)), FIVE, tmp_path / "again")
    assert [r.verdict for r in everything] == ["CONFORMS", "SKIPPED", "CONFORMS", "CRASHED", "CONFORMS"]


SILENT = Reply("TIMEOUT", message="no answer")


def test_a_port_that_always_hangs_is_not_asked_for_ever(tmp_path: Path) -> None:
    port = Fake(answers(SILENT, SILENT, None, SILENT, SILENT, SKIP, SILENT, SILENT, SILENT, None))
    results = asked(port, FIVE, tmp_path, "float32", "float64")
    assert [r.verdict for r in results] == [
        *["TIMEOUT"] * 2, "CONFORMS", *["TIMEOUT"] * 2, "SKIPPED", *["TIMEOUT"] * 3,
    ]  # fmt: skip
    assert PATIENCE == 3
    found = summarise(port, Selection(FIVE, [FLOAT32, FLOAT64]), results).summary
    assert (found.partial, found.asked) == (True, 9)


def test_a_run_that_was_cut_short_is_partial(tmp_path: Path) -> None:
    port = Fake(questions=["mask", "random"])
    results = asked(port, FIVE, tmp_path)
    assert not summarise(port, Selection(FIVE, [FLOAT32]), results).summary.partial
    assert summarise(port, Selection(FIVE, [FLOAT32]), results[:1]).summary.partial
    assert summarise(port, Selection(FIVE, [FLOAT32, FLOAT64]), results).summary.partial
    assert summarise(port, Selection(FIVE, [FLOAT32], True), results).summary.partial


def test_a_model_of_another_family_is_not_asked_about(tmp_path: Path) -> None:
    port = Fake(families=["llama"])
    results = asked(port, FIVE, tmp_path)
    assert [r.question for r in results] == ["mask", "random", "config.resolve", "checkpoint.save"]
    assert summarise(port, Selection(FIVE, [FLOAT32]), results).not_asked == [FIVE[4].case.id]


def test_a_nested_document_does_not_end_the_run(tmp_path: Path) -> None:
    document: Any = 1
    for _ in range(100_000):
        document = {"a": document}
    given = Reply(
        "ANSWERED", Answer(document={"config": {**FIVE[2].case.document["config"], "token_dim": document}})
    )  # type: ignore[index]
    result = judge_one(Fake(lambda _: given), FIVE[2], FLOAT32, tmp_path / "work", 1, tmp_path / "failures")
    assert (result.verdict, result.reproduce) == ("NONCONFORMING", None)
    assert result.detail.startswith(f"Can't write what reproduces a failure to '{tmp_path / 'failures'}': ")
    assert list((tmp_path / "failures").iterdir()) == []


def summary(*cases: tuple[Verdict, str], partial: bool = False) -> Any:
    results = [
        CaseResult("id", "", "forward", "model", "common", profile, verdict, 0.0)
        for verdict, profile in cases
    ]
    return summarise(ReferencePort(), Selection([], [FLOAT32], partial), results).summary


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["CONFORMS"], "CONFORMS"),
        (["CONFORMS", "SKIPPED"], "CONFORMS"),
        (["CONFORMS", "NONCONFORMING"], "NONCONFORMING"),
        (["CONFORMS", "ERRORED"], "NONCONFORMING"),
        (["CRASHED", "CONFORMS"], "NONCONFORMING"),
        (["CONFORMS", "TIMEOUT"], "NONCONFORMING"),
        (["SKIPPED", "CRASHED"], "NONCONFORMING"),
        (["SKIPPED", "SKIPPED"], "INCONCLUSIVE"),
        ([], "INCONCLUSIVE"),
    ],
)
def test_the_verdict_of_a_run(verdicts: list[Verdict], expected: str) -> None:
    found = summary(*((verdict, "float32") for verdict in verdicts))
    assert found.verdict == expected
    assert found.counts == {verdict: verdicts.count(verdict) for verdict in verdicts}
    assert found.asked == len(verdicts)


def test_float64_exact_is_a_claim_of_its_own() -> None:
    assert summary(("CONFORMS", "float64")).float64_exact
    assert summary(("CONFORMS", "float64"), ("SKIPPED", "float64")).float64_exact
    assert not summary(("CONFORMS", "float32")).float64_exact
    assert not summary(("CONFORMS", "float64-islands")).float64_exact
    assert not summary(("CONFORMS", "float64"), ("NONCONFORMING", "float64")).float64_exact
    assert not summary(("SKIPPED", "float64")).float64_exact
    mixed = summary(("CONFORMS", "float64"), ("NONCONFORMING", "float32"))
    assert (mixed.float64_exact, mixed.verdict) == (False, "NONCONFORMING")


def test_float64_exact_is_no_claim_of_a_run_that_was_cut_short() -> None:
    conforms = [CaseResult("id", "", "mask", "components", "common", "float64", "CONFORMS", 0.0)]
    whole = summarise(ReferencePort(), Selection(FIVE[:1], [FLOAT64]), conforms)
    assert (whole.summary.float64_exact, whole.summary.partial) == (True, False)
    cut = summarise(ReferencePort(), Selection(FIVE[:2], [FLOAT64]), conforms, interrupted=True)
    assert (cut.summary.verdict, cut.summary.float64_exact) == ("CONFORMS", False)
    chosen = summarise(ReferencePort(), Selection(FIVE[:1], [FLOAT64], True), conforms)
    assert (chosen.summary.float64_exact, chosen.summary.partial) == (True, True)


def test_partial_is_said() -> None:
    assert (summary(partial=True).partial, summary(partial=True).partial_because) == (
        True,
        "only a selection was asked",
    )
    assert (summary().partial, summary().partial_because) == (False, "")


@pytest.mark.parametrize(
    ("selected", "unanswered", "ended", "because"),
    [
        (False, 0, {"fail_fast": True}, "stopped at the first failure"),
        (False, 0, {"interrupted": True}, "interrupted"),
        (False, 0, {"interrupted": True, "fail_fast": True}, "interrupted"),
        (False, 0, {}, "given up after three time-outs in a row"),
        (True, 0, {"fail_fast": True}, "only a selection was asked, stopped at the first failure"),
        (False, 1, {"interrupted": True}, "1 question not answered, interrupted"),
        (True, 5, {"interrupted": True}, "only a selection was asked, 5 questions not answered, interrupted"),
    ],
)
def test_why_a_run_is_partial(selected: bool, unanswered: int, ended: dict[str, bool], because: str) -> None:
    """What was not reached is not counted as beyond what the port can do."""
    selection = Selection(FIVE, [FLOAT32], selected, unanswered)
    found = summarise(ReferencePort(), selection, [], **ended)
    assert (found.summary.partial, found.summary.partial_because) == (True, because)
    assert (found.summary.not_asked, found.not_asked) == (0, [])


def test_a_whole_run_is_not_partial_however_it_was_asked(tmp_path: Path) -> None:
    port = Fake(questions=["mask", "random"])
    results = asked(port, FIVE, tmp_path, fail_fast=True)
    found = summarise(port, Selection(FIVE, [FLOAT32]), results, fail_fast=True).summary
    assert (found.partial, found.partial_because, found.not_asked) == (False, "", 3)


def test_a_projection_is_known_by_the_configuration(tmp_path: Path) -> None:
    names = ("odd-layers", "projected", "folded-projection")
    results = asked(Fake(), [VECTORS[f"prefix_tuning/prefix_encode/{name}"] for name in names], tmp_path)
    assert [result.projection for result in results] == [False, True, False]
    assert asked(Fake(), FIVE[:1], tmp_path / "mask")[0].projection is False


def test_the_document_of_a_run_passes_through_json(tmp_path: Path) -> None:
    """NaN and infinities as strings."""

    def spoilt(reply: Reply) -> Reply:
        logits = numpy.asarray(reply.answer.tensors["logits"]).astype("float64") * 1e300
        return Reply("ANSWERED", Answer({**reply.answer.tensors, "logits": logits}))

    port = Fake(spoilt)
    results = summarise(port, Selection([FORWARD], [FLOAT32], True), asked(port, [FORWARD], tmp_path))
    encoded = msgspec.json.encode(results)
    assert msgspec.json.decode(encoded, type=Results) == results
    plain = msgspec.json.decode(encoded)
    assert (plain["refpeft"], plain["dialect"], plain["profiles"]) == (__version__, DIALECT, ["float32"])
    assert plain["implementation"] == {"name": "refpeft", "language": "python", "version": __version__}
    assert plain["summary"] == {
        "verdict": "NONCONFORMING",
        "float64_exact": False,
        "asked": 1,
        "counts": {"NONCONFORMING": 1},
        "not_asked": 0,
        "partial": True,
        "partial_because": "only a selection was asked",
    }
    (case,) = plain["cases"]
    assert case["first"]["name"] == "logits"
    assert case["first"]["error"] == "inf"
    assert case["first"]["ok"] is False


def test_refpeft_conforms_to_its_own_vectors(tmp_path: Path) -> None:
    """One case of each question and method, in both profiles that it declares."""
    some = {(v.case.question, v.case.method): v for v in VECTORS.values()}
    port = ReferencePort()
    results = asked(port, list(some.values()), tmp_path, "float32", "float64")
    found = summarise(port, Selection(list(some.values()), []), results).summary
    assert found.counts == {"CONFORMS": 2 * len(some)}
    assert found.float64_exact


def test_a_case_that_contradicts_itself(tmp_path: Path) -> None:
    """It ends the run with an error about the case, not with a traceback."""
    vector = next(v for v in all_vectors() if v.case.question == "mask")
    case = msgspec.structs.replace(vector.case, arguments={})
    selection = Selection([replace(vector, case=case)], [PROFILES["float64"]])
    with pytest.raises(VectorError) as caught:
        list(judge(ReferencePort(), selection, tmp_path, None))
    assert str(caught.value) == (
        f"'{vector.directory}' cannot be asked and judged (KeyError: 'batch_size'). Is the case damaged? If it came with "
        "refpeft, please report this."
    )


# ---------------------------------------------------------------- profiles that decide little

BFLOAT16, WITH_ISLANDS = PROFILES["bfloat16"], PROFILES["float64-islands"]


def rounding(vector: Vector, steps: Mapping[str, Callable[..., Any]]) -> Reply:
    """What a port answers that computes in bfloat16, perhaps with a wrong step."""
    with replaced(steps), budget.in_profile(BFLOAT16):
        given = answer(ask_of(vector), budget.replays(BFLOAT16)[0]).tensors
    return Reply("ANSWERED", Answer({name: numpy.asarray(value) for name, value in given.items()}))


@pytest.mark.parametrize(
    ("step", "wrong", "first_wrong"),
    [
        (None, None, None),
        ("attention.scores", lambda *a: 0.5 * definition("attention.scores")(*a), "decoder.layers.0.attention.scores"),
        ("prefix.projection_activation", lambda x: arrays.where(x > 0, x, 0.0), "prefix.projection_activation"),
    ],
    ids=["right", "scale", "relu"],
)  # fmt: skip
def test_bfloat16_sees_mistakes_of_structure(step: str | None, wrong: Any, first_wrong: str | None) -> None:
    reply = rounding(STAGES, {step: wrong} if step else {})
    verdict, differences = compare_answer(STAGES, ask_of(STAGES), BFLOAT16, reply)
    assert verdict == ("NONCONFORMING" if step else "CONFORMS")
    assert next((d.name for d in differences if not d.ok), None) == first_wrong
    logits = next(d for d in differences if d.name == "logits")
    assert logits.ok == (step is None), "nor is it lost on the way"


def test_where_nothing_that_is_wanted_is_decided_a_case_is_skipped(tmp_path: Path) -> None:
    """HF in float64 with a softmax in float32 has NaN where a window leaves a padding nothing to see."""
    span = VECTORS["prefix_tuning/forward/mistral-odd-span-prefix"]
    place = span.directory.relative_to(golden_directory())
    for name in ("models/mistral-odd", place):
        shutil.copytree(golden_directory() / name, tmp_path / name)
    shutil.copy(golden_directory() / "manifest.json", tmp_path)
    mask = span.inputs["attention_mask"].copy()
    mask[3, 4:] = 0  # as many as the window is wide
    write_tensors(tmp_path / place / "inputs.safetensors", {**span.inputs, "attention_mask": mask})
    vector = read_vector(tmp_path / place)
    given = {name: numpy.full(tensor.shape, numpy.nan) for name, tensor in vector.expected.items()}
    lost = Reply("ANSWERED", Answer(given))
    verdict, differences = compare_answer(vector, ask_of(vector), WITH_ISLANDS, lost)
    assert verdict == "SKIPPED"
    assert {d.measure for d in differences if d.name in ("start_logits", "end_logits")} == {"undecided"}
    assert compare_answer(vector, ask_of(vector), FLOAT64, lost)[0] == "NONCONFORMING"
