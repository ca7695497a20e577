"""The report on a terminal: a table of levels, one block for each kind of failure, and the verdict."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from refpeft.oracle.clauses import clause_title
from refpeft.oracle.compare import LOSSES, UPDATE, Difference
from refpeft.oracle.judge import CaseResult, Results, Summary
from refpeft.oracle.questions import LEVELS
from refpeft.oracle.report.looks import blind_spots, counted, expectations, finding_text
from refpeft.oracle.rounded import FORMATS
from refpeft.oracle.trajectory import TRAINED
from refpeft.oracle.vectors import DRAWN

BLOCKS = 6
"""How many kinds of failure are shown in full; the rest are counted."""
PROTOCOL = {"TIMEOUT": "PP-1", "ERRORED": "PP-3", "CRASHED": "PP-6", "NONDETERMINISTIC": "JG-10"}
"""Where to read on when there was no answer."""
ENDS = ("logits", "loss")
"""What every port answers: when it differs first, that says little about where."""
STAGED = ("forward", "gradients", "checkpoint.load", "inputs")
"""Questions whose stages lead to those."""
SERIES = ("training.learning_rates", "training.gradient_norms")
EACH_STEP = "training.steps.{i}.parameters.NAME"
"""What shows where training begins to differ, besides the losses."""
PROJECTION = ("prefix.flat", "prefix.projection_activation")
"""What shows whether a projection is wrong."""
UNWRITTEN = "Can't write what reproduces a failure"
_STYLE = {
    "CONFORMS": "bold green",
    "NONCONFORMING": "bold red",
    "INCONCLUSIVE": "bold yellow",
    "SKIPPED": "yellow",
}


@contextmanager
def progress_bar(console: Console, total: int) -> Iterator[Progress]:
    """A bar over the questions to ask, shown only on a terminal; its one task is number 0."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task("asking", total=total)
        yield progress


def render(results: Results) -> RenderableType:
    """Everything about a run, for people."""
    failed = [case for case in results.cases if case.verdict not in ("CONFORMS", "SKIPPED")]
    groups = grouped([case for case in failed if case.expected is None])
    projected = projected_alone(results.cases)
    blocks = [block(group, results.expected_from, projected) for group in groups[:BLOCKS]]
    if len(groups) > BLOCKS:
        blocks.append(
            Text(f"… and {len(groups) - BLOCKS} more kinds of failure; --format json has them all\n")
        )
    levels, skipped = _levels(results), _skipped(results.cases)
    looks = [finding_text(finding, len(failed)) for finding in results.diagnosis]
    return Group(
        _header(results),
        *levels,
        *blocks,
        *looks,
        *(Text(line, "yellow") for line in expectations(results)),
        *skipped,
        *blind_spots(results),
        verdict_line(results),
    )


def _header(results: Results) -> Text:
    port = results.implementation
    by = f"HF peft: {results.dialect}, refpeft {results.refpeft}"
    if results.expected_from == "refpeft":
        drawn = bool(results.cases) and all(case.case.startswith(DRAWN) for case in results.cases)
        on = "drawn models" if drawn else "your model"
        by = f"refpeft {results.refpeft} on {on} (expected values are refpeft's own, after {results.dialect})"
    return Text.assemble(
        (f"{port.name} {port.version}".rstrip(), "bold"), f" ({port.language}) against {by}\n"
    )


def _levels(results: Results) -> list[RenderableType]:
    """How many of each level conform, and which levels were not asked."""
    asked = [level for level in LEVELS if any(case.level == level for case in results.cases)]
    rest = [level for level in LEVELS if level not in asked]
    unasked = [Text(f"not asked: {', '.join(rest)}", "dim")] if rest else []
    return [_table(results, asked), *unasked] if asked else [*unasked]


def _table(results: Results, levels: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("level")
    for profile in results.profiles:
        table.add_column(profile, justify="right")
    for level in levels:
        cells = []
        for profile in results.profiles:
            cases = [
                c
                for c in results.cases
                if (c.level, c.profile) == (level, profile) and c.verdict != "SKIPPED"
            ]
            good = sum(c.verdict == "CONFORMS" for c in cases)
            style = "dim" if not cases else "green" if good == len(cases) else "red"
            cells.append(Text(f"{good}/{len(cases)}" if cases else "-", style))
        table.add_row(level, *cells)
    return table


def grouped(failed: Sequence[CaseResult]) -> list[list[CaseResult]]:
    """Failures that begin alike, together: by verdict, first difference, a layer's number aside, and kind of failure."""
    groups: dict[tuple[str, ...], list[CaseResult]] = {}
    for case in failed:
        first = _alike(case.first.name if case.first else case.message)
        kind = (case.first.failure, case.first.clause) if case.first else ()
        groups.setdefault((case.verdict, first, case.method, *kind), []).append(case)
    return list(groups.values())


def short(case: CaseResult) -> str:
    """A case's id without the dialect."""
    return case.case.partition("/")[2] or case.case


def _alike(text: str) -> str:
    """What messages have in common that differ only in numbers and temporary paths."""
    return re.sub(r"\d+", "#", re.sub(r"\S*refpeft-\S*", "…", text))


def projected_alone(cases: Sequence[CaseResult]) -> bool:
    """Whether prefixes differ where there is a projection, and only there."""
    encoded = [case for case in cases if case.question == "prefix.encode" and case.verdict != "SKIPPED"]
    wrong = [case for case in encoded if case.verdict != "CONFORMS"]
    alike = any(not case.projection and case.verdict == "CONFORMS" for case in encoded)
    return alike and bool(wrong) and all(case.projection for case in wrong)


def block(group: Sequence[CaseResult], expected_from: str, projected: bool) -> Text:
    """Failures that begin alike: the simplest of them in full, the others counted."""
    case = min(
        group, key=lambda c: c.first is not None and not c.first.golden
    )  # the first is the simplest question
    lines = Text("\n")
    lines.append(f"✗ {short(case)}", "bold red")
    lines.append(f"  {case.profile}  {case.verdict}\n")
    clause = PROTOCOL.get(case.verdict)
    if case.first is None:
        lines.append(f"  {case.message}\n".replace("\n", "\n  ").removesuffix("  "))
        if case.detail:
            lines.append("    " + case.detail.replace("\n", "\n    ") + "\n", "dim")
    else:
        clause, advice = where_to_look(case, case.first, projected)
        _append_difference(lines, case, clause, advice, expected_from)
    if len(group) > 1:
        rest = [c for c in group if c is not case]
        others = ", ".join(f"{short(c)} ({c.profile})" for c in rest[:3])
        lines.append(f"  and {len(group) - 1} more that begin so: {others}{' …' if len(group) > 4 else ''}\n")
    lines.append(f"  → refpeft explain {clause or case.case}\n", "cyan")
    if case.reproduce:
        lines.append(f"  → {case.reproduce}\n", "cyan")
    return lines


def _append_difference(
    lines: Text, case: CaseResult, clause: str, advice: Sequence[str], expected_from: str
) -> None:
    """The first difference: what it is, how large, where, and how to find out more."""
    first = case.first
    assert first is not None  # noqa: S101
    lines.append("  first difference  ")
    lines.append(first.name, "bold")
    lines.append(f"  ({clause_title(clause)})\n" if clause else "\n")
    if first.reason:
        lines.append(f"    {first.reason}\n")
    if first.measure not in ("", "exact"):
        lines.append(f"    error {_short(first.error)} {first.measure}, budget {first.derivation}\n")
    if first.worst:
        lines.append(f"    {first.worst}\n")
    if first.hint:
        lines.append(f"    {first.hint}\n", "bold")
    for line in (before(case), *advice):
        lines.append(f"    {line}\n" if line else "")
    if not first.golden and expected_from == "refpeft":
        lines.append("    compared with refpeft's own value, on your model\n", "dim")
    elif not first.golden:
        lines.append(
            "    this tensor has no golden value; it is compared with refpeft's own, to localise\n", "dim"
        )
    if first.source:
        lines.append(f"    in HF: {first.source}\n", "dim")


def where_to_look(case: CaseResult, first: Difference, projected: bool) -> tuple[str, list[str]]:
    """The clause to read, and what to answer besides to see where the difference begins."""
    answered = {difference.name for difference in case.differences}
    if case.verdict != "NONCONFORMING" or first.failure in ("missing", "shape"):
        return first.clause, []
    if case.question == "training":
        return first.clause, _advice_on_training(first, answered)
    if case.question == "generate" and first.name == "sequences" and first.clause in ("GN-3", "GN-4"):
        wanted = "generation.logits"
        advice = f"answer {wanted} to see whether the model or the choice differs"
        return first.clause, [] if wanted in answered else [advice]
    if case.question == "prefix.encode" and case.projection and first.name.startswith("prefix.layers."):
        lacking = [name for name in PROJECTION if name not in answered]
        if "prefix.flat" not in lacking:
            return first.clause, []
        advice = f"answer {', '.join(lacking)} to see where it begins"
        if not projected:
            return first.clause, [advice]
        return "PX-2", [f"only cases with a projection differ, so it is the likely mistake (PX-2): {advice}"]
    if case.question in STAGED and first.name in ENDS and not _agreeing(case):
        return first.clause, [
            "no earlier stage was answered: answer some (refpeft explain PP-3) to see where it begins"
        ]
    return first.clause, []


def _advice_on_training(first: Difference, answered: set[str]) -> list[str]:
    if first.name == LOSSES and first.clause != UPDATE:
        return ["the first loss comes before any update: are `forward` and `gradients` right?"]
    if first.name != LOSSES and not first.name.startswith(TRAINED):
        return []
    lacking = [name for name in SERIES if name not in answered]
    lacking += [] if any(name.startswith("training.steps.") for name in answered) else [EACH_STEP]
    to_answer = f"; answer {', '.join(lacking)} to see where it begins" if lacking else ""
    return [
        f"the first loss agrees: look at AdamW, the schedule and clipping (TR-1 to TR-3){to_answer}",
    ]


def _agreeing(case: CaseResult) -> list[Difference]:
    """What was compared before the first difference."""
    names = [difference.name for difference in case.differences]
    return case.differences[: names.index(case.first.name)] if case.first and case.first.name in names else []


def before(case: CaseResult) -> str:
    """How well everything before the first difference agrees."""
    earlier = _agreeing(case)
    if not earlier:
        return ""
    bits = [d.bits for d in earlier if d.bits is not None]
    agreement = f"to {min(bits):g} bits or better" if bits else "exactly"
    tensors = f"{len(earlier)} tensors agree" if len(earlier) > 1 else "1 tensor agrees"
    return f"before it, {tensors} {agreement}"


def _skipped(cases: Sequence[CaseResult]) -> list[RenderableType]:
    reasons: dict[str, list[str]] = {}
    for case in cases:
        if case.verdict == "SKIPPED":
            reasons.setdefault(_alike(case.message), []).append(case.message)
    lines: list[RenderableType] = [
        Text(f"skipped {len(messages)}: {messages[0]}", "yellow")
        for messages in list(reasons.values())[:BLOCKS]
    ]
    if len(reasons) > BLOCKS:
        rest = sum(len(messages) for messages in list(reasons.values())[BLOCKS:])
        lines.append(Text(f"skipped {rest} for other reasons; --format json has them all", "yellow"))
    unwritten = next((c.detail.splitlines()[-1] for c in cases if UNWRITTEN in c.detail), None)
    return [*lines, Text(unwritten, "yellow")] if unwritten else lines


def verdict_line(results: Results) -> Text:
    """What the run amounts to, in one line."""
    summary = results.summary
    good = summary.counts.get("CONFORMS", 0)
    text = Text("\n")
    text.append(summary.verdict, _STYLE[summary.verdict])
    text.append(f"  {said_of(summary, results.expected_from)}: {good} of {_asked(results)}")
    if summary.float64_exact:
        text.append("; ")
        text.append("float64-exact", "green")
    if summary.verdict == "CONFORMS" and set(results.profiles) <= FORMATS.keys():
        formats = " and ".join(results.profiles)
        text.append(f"; in {formats} alone, which is too coarse for mild mistakes (JG-4)", "yellow")
    for what, count in summary.counts.items():
        if what != "CONFORMS":
            text.append(f"; {count} {what}")
    if summary.expected_failures:
        text.append(f"; {counted(summary.expected_failures, 'expected failure')}", "yellow")
    if summary.unexpected_passes:
        text.append(f"; {len(summary.unexpected_passes)} unexpectedly conform", "yellow")
    if summary.rounding:
        text.append(f"; of {summary.asked_twice} asked twice, {summary.rounding} differ in rounding alone")
    if summary.not_asked:
        text.append(f"; {counted(summary.not_asked, 'case')} not asked (beyond what the port says it can do)")
    if summary.partial:
        text.append(f"; partial: {summary.partial_because}", "yellow")
    return text


def said_of(summary: Summary, expected_from: str) -> str:
    """The verdict in words; of a failure no more than what happened."""
    if summary.verdict == "CONFORMS" and summary.expected_failures:
        return f"all answers but those expected to fail agree with {expected_from}"
    if summary.verdict == "CONFORMS":
        return f"every answer agrees with {expected_from}"
    if summary.verdict == "INCONCLUSIVE":
        return "no question was decided"
    if summary.strict and summary.unexpected_passes and _failing(summary) == summary.expected_failures:
        return "an answer expected to fail does not (strict)"
    ended = set(summary.counts)
    if ended <= {"CRASHED", "TIMEOUT"}:
        return "the port could not be run"
    if ended <= {"CRASHED", "TIMEOUT", "ERRORED", "SKIPPED"}:
        return "no question was answered"
    if "NONCONFORMING" in ended:
        return f"some answers differ from {expected_from}"
    return "some questions were not answered rightly"


def _failing(summary: Summary) -> int:
    return sum(count for what, count in summary.counts.items() if what not in ("CONFORMS", "SKIPPED"))


def _asked(results: Results) -> str:
    """What was asked: cases, or, in several profiles, questions."""
    if len(results.profiles) == 1:
        asked = results.summary.asked
        return f"{counted(asked, 'case')} conform{'s' if asked == 1 else ''}"
    cases = counted(len({case.case for case in results.cases}), "case")
    return (
        f"{counted(results.summary.asked, 'question')} conform ({cases} in {len(results.profiles)} profiles)"
    )


def _short(error: float | str) -> str:
    return error if isinstance(error, str) else f"{error:.3g}"
