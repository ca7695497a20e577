"""What people see of a run, letter for letter."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console

from refpeft.oracle.claims import Known
from refpeft.oracle.clauses import clause_title
from refpeft.oracle.compare import Difference
from refpeft.oracle.judge import CaseResult, Results, Summary
from refpeft.oracle.protocol import Implementation
from refpeft.oracle.questions import LEVELS
from refpeft.oracle.report.terminal import progress_bar, render

OVER = Difference(
    "decoder.layers.2.attention.key_states", ok=False, error=0.0123456, budget=1e-6, measure="normwise",
    derivation="1e-06 = 8 · max(floor 1.2e-07, u 6e-08); the floor decides", bits=6.3, where="row 1, key: virtual token 0",
    clause="AT-2", source="transformers cache_utils.py DynamicLayer.update",
)  # fmt: skip
HEADER = "my-port 0.3.1 (rust) against HF peft: peft-0.21.2, refpeft 1.2.3\n\n"
NOTHING = "not asked: config, components, model, gradients, training, generation, checkpoint\n"


def case(verdict: Any, name: str = "prefix_tuning/forward/left-padding", **more: Any) -> CaseResult:
    options = {
        "level": "model",
        "method": "prefix_tuning",
        "profile": "float32",
        "question": "forward",
        **more,
    }
    return CaseResult(case=f"peft-0.21.2/{name}", title="", verdict=verdict, seconds=0.0, **options)


def shown(*cases: CaseResult, verdict: Any = "NONCONFORMING", **more: Any) -> str:
    counts: dict[str, int] = {}
    for result in cases:
        counts[result.verdict] = counts.get(result.verdict, 0) + 1
    options = {"float64_exact": False, "not_asked": 0, "partial": False, **more}
    profiles = options.pop("profiles", ["float32"])
    results = Results(
        refpeft="1.2.3",
        dialect="peft-0.21.2",
        implementation=Implementation("my-port", "rust", "0.3.1"),
        profiles=profiles,
        summary=Summary(verdict=verdict, asked=len(cases), counts=counts, **options),
        cases=list(cases),
        not_asked=[],
    )
    console = Console(file=io.StringIO(), width=100, highlight=False, soft_wrap=True)
    console.print(render(results))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.startswith(HEADER)
    return str(text.removeprefix(HEADER))


def body(text: str) -> str:
    """What stands behind the table of levels."""
    lines = text.splitlines()
    (table,) = [number for number, line in enumerate(lines) if line.startswith("not asked: ")]
    return "\n".join(lines[table + 1 :])


def test_everything_conforms() -> None:
    cases = [
        case("CONFORMS"),
        case("CONFORMS", profile="float64"),
        case("CONFORMS", level="gradients"),
        case("SKIPPED", level="gradients", profile="float64", message="no backward pass yet"),
    ]
    said = shown(*cases, verdict="CONFORMS", float64_exact=True, profiles=["float32", "float64"])
    assert [line.rstrip() for line in said.splitlines()] == [
        "level      float32  float64",
        "model          1/1      1/1",
        "gradients      1/1        -",
        "not asked: config, components, training, generation, checkpoint",
        "skipped 1: no backward pass yet",
        "",
        "CONFORMS  every answer agrees with HF peft: 3 of 4 questions conform (1 case in 2 profiles); float64-exact; 1 SKIPPED",
    ]


def test_every_level_was_asked() -> None:
    said = shown(*(case("CONFORMS", f"c/{level}", level=level) for level in LEVELS), verdict="CONFORMS")
    assert [line.rstrip() for line in said.splitlines()] == [
        "level       float32",
        *(f"{level:12}    1/1" for level in LEVELS),
        "",
        "CONFORMS  every answer agrees with HF peft: 7 of 7 cases conform",
    ]


def test_many_reasons_to_skip() -> None:
    cases = [case("SKIPPED", message=f"no {word}") for word in "abcdef"]
    assert "for other reasons" not in shown(*cases)
    more = [case("SKIPPED", message=f"no {word}") for word in "ghg"]
    assert body(shown(*cases, *more)).splitlines()[-4:-1] == [
        "skipped 1: no f",
        "skipped 3 for other reasons; --format json has them all",
        "",
    ]


def test_nothing_was_decided() -> None:
    why = "only a selection was asked"
    assert shown(verdict="INCONCLUSIVE", not_asked=120, partial=True, partial_because=why) == (
        NOTHING
        + "\nINCONCLUSIVE  no question was decided: 0 of 0 cases conform; 120 cases not asked (beyond what the port says it "
        "can do); partial: only a selection was asked\n"
    )


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["CRASHED"], "the port could not be run: 0 of 1 case conforms; 1 CRASHED"),
        (["CRASHED", "TIMEOUT"], "the port could not be run: 0 of 2 cases conform; 1 CRASHED; 1 TIMEOUT"),
        (["ERRORED", "CRASHED"], "no question was answered: 0 of 2 cases conform; 1 ERRORED; 1 CRASHED"),
        (["SKIPPED", "TIMEOUT"], "no question was answered: 0 of 2 cases conform; 1 SKIPPED; 1 TIMEOUT"),
        (
            ["CONFORMS", "CRASHED"],
            "some questions were not answered rightly: 1 of 2 cases conform; 1 CRASHED",
        ),
        (
            ["NONDETERMINISTIC"],
            "some questions were not answered rightly: 0 of 1 case conforms; 1 NONDETERMINISTIC",
        ),
        (
            ["NONCONFORMING", "ERRORED"],
            "some answers differ from HF peft: 0 of 2 cases conform; 1 NONCONFORMING; 1 ERRORED",
        ),
    ],
)
def test_the_verdict_says_what_happened(verdicts: list[str], said: str) -> None:
    cases = [case(verdict, f"c/{number}", message="m") for number, verdict in enumerate(verdicts)]
    assert shown(*cases).splitlines()[-1] == f"NONCONFORMING  {said}"


def test_one_case_is_one_case() -> None:
    because = "stopped at the first failure"
    two = [case("CONFORMS"), case("CONFORMS", profile="float64")]
    said = shown(*two, verdict="CONFORMS", not_asked=1, partial=True, partial_because=because, profiles=["float32", "float64"])  # fmt: skip
    assert said.splitlines()[-1] == (
        "CONFORMS  every answer agrees with HF peft: 2 of 2 questions conform (1 case in 2 profiles); 1 case not asked "
        "(beyond what the port says it can do); partial: stopped at the first failure"
    )


def test_a_failure_in_full() -> None:
    before = [Difference("prefix.flat", ok=True, bits=23.5), Difference("inputs.position_ids", ok=True), Difference("x", ok=True, bits=22.0)]  # fmt: skip
    failed = case("NONCONFORMING", first=OVER, differences=[*before, OVER], reproduce=".refpeft/failures/x")
    said = shown(failed, case("CONFORMS"))
    assert said.startswith("level  float32  \nmodel      1/2  \nnot asked: config, components, gradients, training, generation, checkpoint\n")  # fmt: skip
    assert (
        body(said)
        == """\

✗ prefix_tuning/forward/left-padding  float32  NONCONFORMING
  first difference  decoder.layers.2.attention.key_states  (CLAUSE)
    error 0.0123 normwise, budget 1e-06 = 8 · max(floor 1.2e-07, u 6e-08); the floor decides
    worst at row 1, key: virtual token 0
    before it, 3 tensors agree to 22 bits or better
    in HF: transformers cache_utils.py DynamicLayer.update
  → refpeft explain AT-2
  → .refpeft/failures/x


NONCONFORMING  some answers differ from HF peft: 1 of 2 cases conform; 1 NONCONFORMING""".replace(
            "CLAUSE", clause_title("AT-2")
        )
    )


def test_a_difference_that_is_no_size() -> None:
    shape = Difference("logits", ok=False, reason="has shape (2); it must be (3) (vocab)", clause="PP-4")
    exact = Difference("inputs.labels", ok=False, error=1.0, measure="exact", reason="1 of 2 entries differ; they must be equal", where="row 0, token 1", golden=False)  # fmt: skip
    early = Difference("inputs.position_ids", ok=True)
    assert (
        body(
            shown(
                case("NONCONFORMING", first=shape, differences=[shape]),
                case("NONCONFORMING", "a/b", first=exact, differences=[early, exact]),
            )
        )
        == """\

✗ prefix_tuning/forward/left-padding  float32  NONCONFORMING
  first difference  logits  (PP-4 The questions)
    has shape (2); it must be (3) (vocab)
  → refpeft explain PP-4


✗ a/b  float32  NONCONFORMING
  first difference  inputs.labels
    1 of 2 entries differ; they must be equal
    worst at row 0, token 1
    before it, 1 tensor agrees exactly
    this tensor has no golden value; it is compared with refpeft's own, to localise
  → refpeft explain peft-0.21.2/a/b


NONCONFORMING  some answers differ from HF peft: 0 of 2 cases conform; 2 NONCONFORMING"""
    )


def test_infinite_errors() -> None:
    endless = Difference("logits", ok=False, error="inf", measure="largest", derivation="BUDGET")
    said = body(shown(case("NONCONFORMING", first=endless, differences=[endless])))
    assert "    error inf largest, budget BUDGET\n" in said


def test_a_crash_shows_what_the_port_printed() -> None:
    crash = case("CRASHED", message="the port exited with status 3", detail="Traceback\n  boom")
    plain = case("TIMEOUT", "a/b", message="no answer within 3 s")
    assert (
        body(shown(crash, plain))
        == """\

✗ prefix_tuning/forward/left-padding  float32  CRASHED
  the port exited with status 3
    Traceback
      boom
  → refpeft explain PP-6


✗ a/b  float32  TIMEOUT
  no answer within 3 s
  → refpeft explain PP-1


NONCONFORMING  the port could not be run: 0 of 2 cases conform; 1 CRASHED; 1 TIMEOUT"""
    )


def test_a_message_of_several_lines_stays_indented() -> None:
    said = body(shown(case("ERRORED", message="first\nsecond")))
    assert "\n  first\n  second\n  → refpeft explain PP-3\n" in said


def begins(name: str, number: int, **more: Any) -> CaseResult:
    difference = Difference(name, ok=False, reason="is wrong", clause="AT-2")
    return case("NONCONFORMING", f"c/{number}", first=difference, differences=[difference], **more)


def test_failures_that_begin_alike_stand_together() -> None:
    """A layer's number aside; another method or verdict begins another group."""
    same = [begins(f"decoder.layers.{i}.output", i) for i in range(6)]
    said = body(
        shown(*same, begins("decoder.layers.0.output", 7, method="prompt_tuning"), begins("logits", 8))
    )
    assert said.count("✗") == 3
    assert "  and 5 more that begin so: c/1 (float32), c/2 (float32), c/3 (float32) …\n" in said
    four = body(shown(*same[:4]))
    assert "  and 3 more that begin so: c/1 (float32), c/2 (float32), c/3 (float32)\n" in four


def test_unlike_failures_of_one_tensor_stand_apart() -> None:
    """Over budget, unequal, missing, of another shape, no number: each is a mistake of its own."""
    failures: list[dict[str, Any]] = [
        {"measure": "normwise", "derivation": "B"},
        {"measure": "exact", "reason": "1 of 2 entries differ; they must be equal"},
        {"reason": "is missing from the answer, which has no tensors", "clause": "PP-4"},
        {"reason": "has shape (2); it must be (3)", "clause": "PP-4"},
        {"reason": "is nan where HF has 1"},
    ]
    cases = []
    for number, failure in enumerate([*failures, *failures]):
        difference = Difference("logits", ok=False, **failure)
        cases.append(case("NONCONFORMING", f"c/{number}", first=difference, differences=[difference]))
    said = body(shown(*cases))
    assert said.count("✗") == 5
    assert "  and 1 more that begin so: c/8 (float32)\n" in said


def encoded(verdict: Any, name: str, projection: bool, *before: str, **more: Any) -> CaseResult:
    """A case of `prefix.encode`, its first key wrong if anything is."""
    wrong = [] if verdict == "CONFORMS" else [Difference("prefix.layers.0.key", ok=False, measure="normwise", derivation="B", clause="PX-4")]  # fmt: skip
    compared = [*(Difference(there, ok=True) for there in before), *wrong]
    options = {"question": "prefix.encode", "level": "components", "projection": projection, **more}
    return case(verdict, name, first=wrong[0] if wrong else None, differences=compared, **options)


def test_a_wrong_projection_is_not_blamed_on_which_block_is_which() -> None:
    plain, projected = encoded("CONFORMS", "c/plain", False), encoded("NONCONFORMING", "c/projected", True)
    assert body(shown(plain, projected)) == (
        """\

✗ c/projected  float32  NONCONFORMING
  first difference  prefix.layers.0.key  (PX-2 The flat row)
    error 0 normwise, budget B
    only cases with a projection differ, so it is the likely mistake (PX-2): answer prefix.flat, prefix.projection_activation to see where it begins
  → refpeft explain PX-2


NONCONFORMING  some answers differ from HF peft: 1 of 2 cases conform; 1 NONCONFORMING"""
    )


def test_where_it_is_not_known_that_the_projection_is_wrong() -> None:
    plain, projected = encoded("CONFORMS", "c/plain", False), encoded("NONCONFORMING", "c/projected", True)
    both = body(shown(encoded("NONCONFORMING", "c/plain", False), projected))
    assert (
        "✗ c/plain  float32  NONCONFORMING\n  first difference  prefix.layers.0.key  (PX-4 Which block is which)\n"
        in both
    )
    assert "a projection" not in both
    alone = body(shown(projected))
    assert (
        "(PX-4 Which block is which)\n    error 0 normwise, budget B\n"
        "    answer prefix.flat, prefix.projection_activation to see where it begins\n  → refpeft explain PX-4\n"
    ) in alone
    flat = body(shown(plain, encoded("NONCONFORMING", "c/projected", True, "prefix.flat")))
    assert "  (PX-4 Which block is which)\n" in flat
    assert "answer prefix" not in flat


def trained(first: Difference, *others: str) -> str:
    """What is said of a case of `training` that differs so, beside others that agree."""
    compared = [*(Difference(name, ok=True) for name in others), first]
    said = body(shown(case("NONCONFORMING", "c/t", first=first, differences=compared, question="training")))
    return said[: said.index("\n  → ")]


LATER = Difference("training.losses", ok=False, measure="normwise", derivation="B", clause="TR-1", where="step 1 (counted from 0)", values="2, HF 3")  # fmt: skip


def test_losses_that_differ_after_an_update() -> None:
    assert trained(LATER) == (
        """\

✗ c/t  float32  NONCONFORMING
  first difference  training.losses  (TR-1 AdamW)
    error 0 normwise, budget B
    over budget first at step 1 (counted from 0): 2, HF 3
    the first loss agrees: look at AdamW, the schedule and clipping (TR-1 to TR-3); answer training.learning_rates, training.gradient_norms, training.steps.{i}.parameters.NAME to see where it begins"""
    )


def test_only_what_was_not_answered_is_asked_for() -> None:
    look = "    the first loss agrees: look at AdamW, the schedule and clipping (TR-1 to TR-3)"
    rates, norms = "training.learning_rates", "training.gradient_norms"
    step = "training.steps.0.parameters.prompt_encoder.embedding.weight"
    assert trained(LATER, rates).endswith(f"before it, 1 tensor agrees exactly\n{look}; answer {norms}, training.steps.{{i}}.parameters.NAME to see where it begins")  # fmt: skip
    assert trained(LATER, rates, norms, step).endswith(f"before it, 3 tensors agree exactly\n{look}")
    last = Difference("trained.prompt_encoder.embedding.weight", ok=False, measure="normwise", clause="TR-1")
    assert trained(last, "training.losses", rates, norms).endswith(f"{look}; answer training.steps.{{i}}.parameters.NAME to see where it begins")  # fmt: skip
    early = Difference("training.learning_rates", ok=False, measure="normwise", clause="TR-2")
    assert "look at AdamW" not in trained(early)


def test_a_first_loss_that_differs() -> None:
    first = msgspec.structs.replace(LATER, clause="TR-5", where="step 0 (the first)")
    assert trained(first).endswith(
        "    over budget first at step 0 (the first): 2, HF 3\n"
        "    the first loss comes before any update: are `forward` and `gradients` right?"
    )
    again = msgspec.structs.replace(first, clause="JG-10")
    unsteady = body(shown(case("NONDETERMINISTIC", first=again, differences=[again], question="training")))
    assert "any update" not in unsteady


@pytest.mark.parametrize(
    ("clause", "others", "advised"),
    [("GN-4", [], True), ("GN-3", [], True), ("GN-3", ["generation.logits"], False), ("GN-6", [], False), ("GN-5", [], False)],
)  # fmt: skip
def test_a_wrong_token(clause: str, others: list[str], advised: bool) -> None:
    """Greedy, the logits of each step tell the model's mistakes from those of choosing."""
    first = Difference(
        "sequences", ok=False, reason="has token 1 where HF has 3; no tie (JG-9)", clause=clause
    )
    compared = [*(Difference(name, ok=True) for name in others), first]
    said = body(shown(case("NONCONFORMING", first=first, differences=compared, question="generate")))
    assert f"  first difference  sequences  ({clause_title(clause)})\n    has token 1" in said
    advice = "    answer generation.logits to see whether the model or the choice differs\n"
    assert (advice in said) == advised
    assert f"  → refpeft explain {clause}\n" in said


def test_the_first_failure_with_a_golden_value_stands_for_its_group() -> None:
    """Else the first: it is the simplest question."""

    def one(number: int, golden: bool) -> CaseResult:
        difference = Difference("decoder.output", ok=False, reason="is wrong", clause="AT-2", golden=golden)
        return case("NONCONFORMING", f"c/{number}", first=difference, differences=[difference])

    said = body(shown(one(0, False), one(1, True), one(2, True)))
    assert "✗ c/1  float32  NONCONFORMING\n" in said
    assert "  and 2 more that begin so: c/0 (float32), c/2 (float32)\n" in said
    assert "✗ c/0  float32  NONCONFORMING\n" in body(shown(one(0, False), one(1, False)))


def test_messages_that_differ_in_numbers_and_temporary_paths_stand_together() -> None:
    def one(number: int, message: str) -> CaseResult:
        return case("ERRORED", f"c/{number}", message=message)

    said = body(
        shown(
            one(0, "Can't find 'a' at '/tmp/refpeft-x1/1', which"),
            one(1, "Can't find 'a' at '/tmp/refpeft-x1/27', which"),
            one(2, "index 3 is out of bounds"),
            one(3, "index 14 is out of bounds"),
            one(4, "no such thing"),
        )
    )
    assert said.count("✗") == 3
    assert (
        "  Can't find 'a' at '/tmp/refpeft-x1/1', which\n  and 1 more that begin so: c/1 (float32)\n" in said
    )
    assert "  index 3 is out of bounds\n  and 1 more that begin so: c/3 (float32)\n" in said
    skips = [case("SKIPPED", message=f"no {i} layers yet") for i in range(3)]
    assert "skipped 3: no 0 layers yet\n" in shown(*skips, verdict="INCONCLUSIVE")


def test_numbers_and_a_hint() -> None:
    first = msgspec.structs.replace(OVER, values="1.5, HF 2.25", hint="it agrees to 10 bits, as TF32 would")
    said = body(shown(case("NONCONFORMING", first=first, differences=[first])))
    assert (
        "    worst at row 1, key: virtual token 0: 1.5, HF 2.25\n    it agrees to 10 bits, as TF32 would\n"
        in said
    )


@pytest.mark.parametrize(
    ("question", "name", "advised"),
    [
        ("forward", "logits", True),
        ("gradients", "loss", True),
        ("checkpoint.load", "logits", True),
        ("forward", "prefix.flat", False),
        ("mask", "logits", False),
    ],
)
def test_advice_to_answer_stages(question: str, name: str, advised: bool) -> None:
    """Where logits differ first and nothing before them was answered."""
    wrong = Difference(name, ok=False, reason="is wrong")
    failed = msgspec.structs.replace(
        case("NONCONFORMING", first=wrong, differences=[wrong]), question=question
    )
    advice = "    no earlier stage was answered: answer some (refpeft explain PP-3) to see where it begins\n"
    assert (advice in body(shown(failed))) == advised
    early = Difference("prefix.flat", ok=True)
    staged = msgspec.structs.replace(failed, differences=[early, wrong])
    assert "no earlier stage" not in body(shown(staged))


def test_failures_that_could_not_be_written_are_noted_once() -> None:
    note = "Can't write what reproduces a failure to 'x': File exists. Choose another place with --failures DIRECTORY."
    failed = [case("CRASHED", f"c/{i}", message="gone", detail=f"boom\n{note}") for i in range(2)]
    assert shown(*failed).splitlines()[-3:-1] == [note, ""]
    assert "Can't write" not in shown(case("CRASHED", message="gone", detail="boom"))


def test_many_kinds_of_failure_are_counted() -> None:
    names = ["a", "b", "c", "d", "e", "f", "g", "h"]
    said = body(shown(*(begins(name, i) for i, name in enumerate(names))))
    assert said.count("✗") == 6
    assert "\n… and 2 more kinds of failure; --format json has them all\n" in said


def test_skipped_answers_are_counted_by_reason() -> None:
    said = shown(case("SKIPPED", message="a"), case("SKIPPED", message="b"), case("SKIPPED", message="a"), verdict="INCONCLUSIVE")  # fmt: skip
    assert (
        body(said)
        == "skipped 2: a\nskipped 1: b\n\nINCONCLUSIVE  no question was decided: 0 of 3 cases conform; 3 SKIPPED"
    )


def test_markup_in_a_ports_words_is_shown_as_it_is() -> None:
    assert "  [bold]tensor[/bold] [1]\n" in body(shown(case("ERRORED", message="[bold]tensor[/bold] [1]")))


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_is_shown_on_a_terminal_only(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    with progress_bar(console, 7) as progress:
        progress.advance(progress.task_ids[0])
        assert [(task.completed, task.total) for task in progress.tasks] == [(1, 7)]
        progress.refresh()
    assert ("1/7" in console.file.getvalue()) == terminal  # type: ignore[attr-defined]


def test_a_loss_shows_its_two_numbers() -> None:
    loss = msgspec.structs.replace(OVER, name="loss", where="", values="12.5693, HF 13.9135", clause="TK-3")
    text = shown(case("NONCONFORMING", first=loss, differences=[loss]))
    assert "; the floor decides\n    given 12.5693, HF 13.9135\n" in text


def test_bfloat16_alone_claims_less() -> None:
    alone = shown(case("CONFORMS", profile="bfloat16"), verdict="CONFORMS", profiles=["bfloat16"])
    assert body(alone).strip() == (
        "CONFORMS  every answer agrees with HF peft: 1 of 1 case conforms; in bfloat16 alone, which is too coarse for mild "
        "mistakes (JG-4)"
    )
    both = [case("CONFORMS"), case("CONFORMS", profile="bfloat16")]
    assert "coarse" not in shown(*both, verdict="CONFORMS", profiles=["float32", "bfloat16"])
    wrong = shown(case("NONCONFORMING", profile="bfloat16"), profiles=["bfloat16"])
    assert "coarse" not in wrong


# ---------------------------------------------------------------- expected failures


def test_expected_failures_are_told_with_their_reasons() -> None:
    known = Known("no beams yet", "https://example.org/7")
    cases = [
        case("CONFORMS"),
        *(case("NONCONFORMING", f"common/mask/{i}", first=OVER, expected=known) for i in "ab"),
    ]
    assert shown(*cases, verdict="CONFORMS", expected_failures=2).endswith(
        "\nexpected to fail, 2: no beams yet (https://example.org/7)\n\n"
        "CONFORMS  all answers but those expected to fail agree with HF peft: 1 of 3 cases conform; 2 NONCONFORMING; 2 "
        "expected failures\n"
    )
    assert "✗" not in shown(*cases, verdict="CONFORMS", expected_failures=2)


def test_what_passes_unexpectedly_fails_a_strict_run() -> None:
    passes = {"unexpected_passes": ["a (float32)"]}
    assert shown(case("CONFORMS"), verdict="CONFORMS", **passes).endswith(
        "\nexpected to fail, but conforms: a (float32); remove the entry\n\n"
        "CONFORMS  every answer agrees with HF peft: 1 of 1 case conforms; 1 unexpectedly conform\n"
    )
    assert shown(case("CONFORMS"), strict=True, **passes).endswith(
        "\nexpected to fail, but conforms, which fails this run (strict): a (float32); remove the entry\n\n"
        "NONCONFORMING  an answer expected to fail does not (strict): 1 of 1 case conforms; 1 unexpectedly conform\n"
    )
