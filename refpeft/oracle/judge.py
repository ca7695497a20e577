"""Answers and budgets -> verdicts: whether the port conforms, and if not, where it first differs.

Clauses JG-6 and JG-7; specs/judging.md.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from numpy.typing import NDArray

from refpeft import __version__
from refpeft.checkpoint import TENSOR
from refpeft.errors import CheckpointError
from refpeft.oracle import questions
from refpeft.oracle.answer_files import fresh_directory
from refpeft.oracle.budget import Floor, Profile
from refpeft.oracle.cases import ask_of, can_answer, damage_is_told, stages_of
from refpeft.oracle.claims import Finding, Known, cut_short, is_projected, why_partial
from refpeft.oracle.compare import UNDECIDED, Difference, compare, first_difference, missing
from refpeft.oracle.documents import compare_document, read_adapter
from refpeft.oracle.excerpts import Excerpt
from refpeft.oracle.expected import derivation_of_floors, each_expected
from refpeft.oracle.floors import floors
from refpeft.oracle.handed_out import HandedOut
from refpeft.oracle.localise import localised
from refpeft.oracle.protocol import Implementation, RunCommand
from refpeft.oracle.questions import QUESTIONS, TOKENS, Answer, Ask
from refpeft.oracle.repeat import Again
from refpeft.oracle.reply import Port, Reply
from refpeft.oracle.tokens import NEW_TOKENS, Decisions, compare_tokens
from refpeft.oracle.validity import Validity
from refpeft.oracle.vectors import DIALECT, Vector

Verdict = Literal["CONFORMS", "NONCONFORMING", "SKIPPED", "NONDETERMINISTIC", "ERRORED", "CRASHED", "TIMEOUT"]
RESTORE = "A port may write in `output` alone (PP-3): restore the file (golden vectors: reinstall refpeft, or `git checkout golden`)."


class CaseResult(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The verdict on one question in one profile."""

    case: str
    title: str
    question: str
    level: str
    method: str
    profile: str
    verdict: Verdict
    seconds: float
    first: Difference | None = None
    """The first tensor in topological order that differs."""
    differences: list[Difference] = []
    """Every tensor compared, in topological order."""
    message: str = ""
    detail: str = ""
    reproduce: str | None = None
    """A directory that reproduces the failure alone."""
    again: Again = ""
    """What came of asking a second time (JG-10)."""
    projection: bool = False
    """The prefix comes out of an MLP (PX-2)."""
    excerpts: list[Excerpt] = []
    """Numbers of the first difference, and of the attention weights, for pictures; of a run's first failures."""
    expected: Known | None = None
    """Somebody said beforehand that this would fail."""


class Summary(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Counts of a run, and what may be claimed from it (clause JG-7)."""

    verdict: Literal["CONFORMS", "NONCONFORMING", "INCONCLUSIVE"]
    float64_exact: bool
    asked: int
    counts: dict[str, int]
    not_asked: int
    partial: bool
    """Less was asked than the port can answer."""
    asked_twice: int = 0
    rounding: int = 0
    """Of those asked twice, how many got two answers that differ by less than the budget."""
    partial_because: str = ""
    """Why a run is partial, in words."""
    expected_failures: int = 0
    """Failures that were said beforehand; they are among the counts, and the verdict is about the others."""
    unexpected_passes: list[str] = []
    """What conforms though it was said to fail, as `case (profile)`."""
    strict: bool = False
    """Such passes fail the run."""


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about a run: what `refpeft check --format json` prints (specs/results.schema.json)."""

    refpeft: str
    dialect: str
    implementation: Implementation
    profiles: list[str]
    summary: Summary
    cases: list[CaseResult]
    not_asked: list[str]
    expected_from: Literal["HF peft", "refpeft"] = "HF peft"
    """Whose values the answers were compared with: refpeft's own for the user's own model (clause JG-11)."""
    diagnosis: list[Finding] = []
    """What the failures look like (clause JG-13)."""
    blind_spots: list[str] = []
    """Mutants that no case asked could have decided, in the profiles asked (clause JG-12)."""
    command: list[str] = []
    """What was typed, as far as it decides what is asked."""
    format: int = 1
    """Of this document: `refpeft.oracle.results.FORMAT`."""


@dataclass(frozen=True)
class Selection:
    """What is to be asked."""

    vectors: Sequence[Vector]
    profiles: Sequence[Profile]
    partial: bool = False
    """Somebody chose: there is more that could be asked."""
    unanswered: int = 0
    """Questions that are among them though it is known that there is no answer (files)."""


def judge_one(
    port: Port, vector: Vector, profile: Profile, output: Path, seq: int, failures: Path | None
) -> CaseResult:
    """Ask one question once and judge the answer."""
    return finish(ask_one(port, vector, profile, output, seq, HandedOut()), failures)


ONE_AT_A_TIME = threading.Lock()
"""Answers are judged one at a time: autograd cannot differentiate in two threads."""


@dataclass(frozen=True)
class Asked:
    """One question asked, once or twice, and compared."""

    vector: Vector
    profile: Profile
    ask: Ask
    request: RunCommand
    reply: Reply
    verdict: Verdict
    differences: list[Difference]
    seconds: float
    first: Difference | None
    again: Again = ""
    silent: bool = False
    """The port did not answer in time, the first time or the second."""

    @property
    def doubtful(self) -> bool:
        """Whether asking again may say something new; waiting in vain once more would not."""
        return self.verdict not in ("CONFORMS", "SKIPPED", "TIMEOUT") and not self.reply.breach


def ask_one(
    port: Port,
    vector: Vector,
    profile: Profile,
    output: Path,
    seq: int,
    handed_out: HandedOut,
    *,
    localise: bool = True,
) -> Asked:
    """Ask one question and compare the answer; a port that changes what it was given to read is ERRORED."""
    started = time.perf_counter()
    fresh_directory(output)  # before its name is resolved: a port may have planted a link there
    with ONE_AT_A_TIME, damage_is_told(vector):
        ask = ask_of(vector)
        request = request_for(vector, ask, profile, output, seq)
        changed = handed_out.changed(request)
    if changed is None:
        with damage_is_told(vector):
            reply = port.ask(ask, request)
        changed = handed_out.changed(request)
        how = "changed while this question was asked"
    else:
        how = "changed earlier in this run, so that this question was not asked"
    if changed is not None:
        reply = Reply("ERRORED", message=f"'{changed}' was {how}. {RESTORE}", breach=True)
    with ONE_AT_A_TIME, damage_is_told(vector):
        verdict, differences = compare_answer(vector, ask, profile, reply, localise=localise)
    seconds = round(time.perf_counter() - started, 6)
    worst = first_difference(differences)
    silent = reply.status == "TIMEOUT"
    return Asked(vector, profile, ask, request, reply, verdict, differences, seconds, worst, silent=silent)


def finish(asked: Asked, failures: Path | None, export: Path | None = None) -> CaseResult:
    """The result of a question, its failure written down; `export` is where the answer was read, if not asked for."""
    case, reply = asked.vector.case, asked.reply
    result = CaseResult(
        case=case.id,
        title=case.title,
        question=case.question,
        level=QUESTIONS[case.question].level,
        method=case.method,
        profile=asked.profile.name,
        verdict=asked.verdict,
        seconds=asked.seconds,
        first=asked.first,
        differences=asked.differences,
        message=reply.message or ("; ".join(d.reason for d in asked.differences if d.ok and d.reason)),
        detail=reply.detail,
        again=asked.again,
        projection=is_projected(case.config),
    )
    if failures is not None and asked.verdict not in ("CONFORMS", "SKIPPED"):
        from refpeft.oracle.reproduce import write_failure

        try:
            directory = write_failure(failures, asked.vector, asked.request, reply, result, export)
            result = msgspec.structs.replace(result, reproduce=str(directory))
        except CheckpointError as error:
            result = msgspec.structs.replace(result, detail=f"{result.detail}\n{error}".strip())
    return result


def request_for(vector: Vector, ask: Ask, profile: Profile, output: Path, seq: int) -> RunCommand:
    """The protocol's message for a case; clause PP-3."""
    inputs = vector.directory / "inputs.safetensors"
    return RunCommand(
        seq=seq,
        case=vector.case.id,
        question=ask.question,
        method=ask.method,
        dtype=profile.dtype,
        model=str(ask.model.resolve()) if ask.model else None,
        config=dict(ask.config) if ask.config is not None else None,
        arguments=dict(ask.arguments),
        inputs=str(inputs.resolve()) if inputs.is_file() else None,
        adapter=str(ask.adapter.resolve()) if ask.adapter else None,
        stages=stages_of(vector),
        output=str(output.resolve()),
    )


# ---------------------------------------------------------------- comparing an answer


def compare_answer(
    vector: Vector, ask: Ask, profile: Profile, reply: Reply, *, localise: bool = True
) -> tuple[Verdict, list[Difference]]:
    """The verdict on a reply, and the comparison of each tensor in topological order."""
    if reply.status != "ANSWERED":
        return reply.status, []
    case = vector.case
    answer = reply.answer
    differences: list[Difference] = []
    if case.question == "checkpoint.save":
        answer, problems = read_adapter(answer, vector.case.tensors.keys() - {TENSOR})
        differences += problems
    if case.document is not None:
        named = {"HF": "HF peft"}.get(vector.truth, vector.truth)
        differences.append(compare_document(case.document, answer.document, named))
    decisions = None
    if case.question == "generate":
        decisions = Decisions.of(ask, floors(vector, profile)[TOKENS], profile)
    valid = decisions.narrowed(Validity.of(ask)) if decisions else Validity.of(ask)
    compared = _compared(vector, ask, profile, answer, valid, decisions)
    for name in case.tensors:
        if name in compared:
            differences.append(compared[name])
        elif questions.is_required(case.question, name):
            differences.append(missing(name, answer))
    if all(d.ok for d in differences):
        nothing = decisions.nothing if decisions else _decide_nothing(case.question, differences)
        return ("SKIPPED" if nothing else "CONFORMS"), differences
    if not localise:
        return "NONCONFORMING", differences
    return "NONCONFORMING", localised(vector, ask, profile, answer, differences, valid)


def _decide_nothing(question: str, differences: list[Difference]) -> bool:
    """Whether there are required tensors, and none of them was compared (clause JG-3)."""
    required = [d.measure == UNDECIDED for d in differences if questions.is_required(question, d.name)]
    return bool(required) and all(required)


def _compared(
    vector: Vector, ask: Ask, profile: Profile, answer: Answer, valid: Validity, decisions: Decisions | None
) -> dict[str, Difference]:
    """The comparison of each tensor that the answer has and the case knows, as its expected value comes."""
    known, found = vector.case.tensors, {}
    own = derivation_of_floors(vector, profile)

    def take(name: str, expected: NDArray[Any], floor: Floor) -> None:
        try:
            given = answer.tensors[name]
        except CheckpointError as error:  # a large answer stays in its file until here
            found[name] = Difference(name, ok=False, reason=f"cannot be read: {error}")
            return
        if decisions and known[name].kind == "tokens":
            found[name] = compare_tokens(given, expected, decisions)
            return
        if decisions and NEW_TOKENS in known[name].axes:
            given = decisions.fitted(given, expected, known[name].axes)
        said = compare(name, known[name], given, expected, floor, profile, valid, vector.truth)
        if own:
            more = own if said.measure in ("normwise", "largest") else ""
            said = msgspec.structs.replace(said, golden=False, derivation=said.derivation + more)
        found[name] = said

    each_expected(vector, ask, profile, [name for name in known if name in answer.tensors], take)
    return found


# ---------------------------------------------------------------- the whole run


def summarise(
    port: Port,
    selection: Selection,
    cases: Sequence[CaseResult],
    *,
    interrupted: bool = False,
    fail_fast: bool = False,
) -> Results:
    """What a run amounts to (clause JG-7); `interrupted` and `fail_fast` say why it may have ended early."""
    counts = dict(Counter[str](case.verdict for case in cases))
    not_asked = [v.case.id for v in selection.vectors if not can_answer(port.abilities, v)]
    failed = any(c.verdict not in ("CONFORMS", "SKIPPED") for c in cases)
    planned = sum(can_answer(port.abilities, v) for v in selection.vectors) * len(selection.profiles)
    cut = cut_short(len(cases), planned, interrupted=interrupted, fail_fast=fail_fast)
    because = why_partial(selection.partial, selection.unanswered, cut)
    exact = any(c.profile == "float64" and c.verdict == "CONFORMS" for c in cases)
    return Results(
        refpeft=__version__,
        dialect=DIALECT,
        implementation=port.abilities.implementation,
        profiles=[profile.name for profile in selection.profiles],
        summary=Summary(
            verdict="NONCONFORMING" if failed else "CONFORMS" if "CONFORMS" in counts else "INCONCLUSIVE",
            float64_exact=exact and not failed and not cut,
            asked=len(cases),
            counts=counts,
            not_asked=len(not_asked),
            partial=bool(because),
            partial_because=because,
            asked_twice=sum(bool(c.again) for c in cases),
            rounding=sum(c.again == "rounding" for c in cases),
        ),
        cases=list(cases),
        not_asked=not_asked,
        expected_from="refpeft" if any(v.truth == "refpeft" for v in selection.vectors) else "HF peft",
    )
