"""What the commands share: exit statuses, choosing cases, reaching ports, printing results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from refpeft.oracle.judge import Results, Selection
    from refpeft.oracle.reply import Port
    from refpeft.oracle.vectors import Vector

CONFORMS, DIFFERS, USAGE, UNREACHABLE, UNDECIDED = 0, 1, 2, 3, 4
"""The exit statuses."""
INTERRUPTED = 130
"""And that of a run ended from the keyboard, which prints what it has."""
CANNOT_WRITE = 74
"""And that of a report or a working file that cannot be written: sysexits' EX_IOERR, which is no verdict of JG-8."""
STATE = Path(".refpeft")
"""Below the working directory: what reproduces failures, and which cases failed last."""


def select(
    golden: Path | None,
    patterns: Sequence[str],
    levels: Sequence[str],
    methods: Sequence[str],
    failed: Sequence[str] | None = None,
) -> list[Vector]:
    """The golden cases that the options choose, in the order of asking; a usage error if there are none."""
    from refpeft.errors import RefpeftError
    from refpeft.oracle.cases import in_order
    from refpeft.oracle.vectors import all_vectors

    try:
        vectors = in_order(all_vectors(golden))
    except RefpeftError as error:
        raise click.UsageError(str(error)) from None
    if not vectors:
        raise click.UsageError(f"'{golden}' has no golden vectors: no case.json anywhere below vectors/.")
    return choose(vectors, patterns, levels, methods, failed, "`refpeft list` shows all {count}.")


def choose(
    vectors: Sequence[Vector],
    patterns: Sequence[str],
    levels: Sequence[str],
    methods: Sequence[str],
    failed: Sequence[str] | None,
    hint: str,
) -> list[Vector]:
    """Those that the options choose; a usage error if there are none."""
    from refpeft.oracle.questions import QUESTIONS
    from refpeft.oracle.vectors import matches

    chosen = [
        vector
        for vector in vectors
        if (not patterns or any(matches(name, p) for name in _names(vector) for p in patterns))
        and (not levels or QUESTIONS[vector.case.question].level in levels)
        and (not methods or vector.case.method in methods)
        and (failed is None or vector.case.id in failed)
    ]
    if not chosen:
        raise click.UsageError(
            f"No case matches; {_near(vectors, patterns)}{hint.format(count=len(vectors))}"
        )
    return chosen


def _names(vector: Vector) -> tuple[str, str]:
    """What `-k` looks at: the case's id, and its question's name, in which there may be a dot (prefix.encode)."""
    return vector.case.id, vector.case.question


def _near(vectors: Sequence[Vector], patterns: Sequence[str]) -> str:
    """The names that look most like the patterns that no case has, for people."""
    import difflib

    from refpeft.oracle.vectors import matches

    known = {name for vector in vectors for name in _names(vector)}
    unknown = [pattern for pattern in patterns if not any(matches(name, pattern) for name in known)]
    whole = sorted(known | {part for name in known for part in _endings(name)})
    near = list(dict.fromkeys(n for p in unknown for n in difflib.get_close_matches(p, whole, 3, 0.6)))
    return f"nearest {'are' if len(near) > 1 else 'is'} {', '.join(near)}; " if near else ""


def _endings(case_id: str) -> list[str]:
    """An id without its first parts: `method/suite/case`, `suite/case`, …, and each of its parts."""
    parts = case_id.split("/")
    return ["/".join(parts[start:]) for start in range(1, len(parts))] + parts[1:]


def end_on_signals() -> None:
    """Let a signal to end run what ends the port too: it has a session of its own and would live on."""
    import signal

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            number = getattr(signal, name)
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
                signal.signal(number, lambda received, _: sys.exit(128 + received))


def reach(
    command: Sequence[str], timeout: float | None, validate: bool, scheduler: str | None = None
) -> Port:
    """The port that the command line names, here or on a cluster; ends with UNREACHABLE if it cannot be reached."""
    from refpeft.oracle.port import open_port
    from refpeft.oracle.reply import PortError

    try:
        if scheduler is not None:
            from refpeft.oracle.cluster import ClusterPort

            return ClusterPort(command, scheduler, timeout, validate=validate)
        return open_port(command, timeout, validate=validate)
    except PortError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(UNREACHABLE)


def several(port: Port, jobs: int) -> tuple[Port, int]:
    """The port as several processes, and how many; one for what is no program."""
    from refpeft.oracle.process import ProcessPort
    from refpeft.oracle.side_by_side import Fleet

    workers: int = getattr(port, "workers", 0)
    if workers:  # of a cluster: one question for each
        return port, workers
    if jobs == 1:
        return port, 1
    if isinstance(port, ProcessPort):
        return Fleet(port, jobs), jobs
    click.echo(
        "Note: --jobs is for ports that are programs; this one is asked one question at a time.", err=True
    )
    return port, 1


def tell_strays(port: Port) -> None:
    """Say which processes the port had left behind."""
    strays = getattr(port, "strays", [])
    if strays:
        click.echo(
            f"Note: the port left {len(strays)} process{'es' * (len(strays) > 1)} behind that had left its process group; "
            f"ended ({', '.join(map(str, strays[:5]))}{', …' if len(strays) > 5 else ''}).",
            err=True,
        )


def plan(port: Port, vectors: list[Vector], profiles: Sequence[str], partial: bool) -> Selection:
    """What is to be asked: the cases in the profiles that are wanted and declared."""
    from refpeft.oracle.budget import PROFILES as ALL
    from refpeft.oracle.judge import Selection
    from refpeft.oracle.vectors import OWN

    declared = port.abilities.profiles
    narrow = [name for name in profiles or declared if ALL[name].simulated]
    if any(vector.case.id.startswith(OWN) for vector in vectors) and narrow:
        wide = [name for name in declared if not ALL[name].simulated]
        if profiles or not wide:
            raise click.UsageError(
                f"Your own model is not asked about in {narrow[0]} (JG-11). Ask in float32 or float64: the mistakes are the same."
            )
        declared = wide
    beyond = sorted(set(profiles) - set(declared))
    if beyond:
        raise click.UsageError(
            f"The port declares the profiles {', '.join(declared)}, not {', '.join(beyond)}."
        )
    return Selection(
        vectors,
        [ALL[name] for name in declared if not profiles or name in profiles],
        partial or bool(profiles),
    )


def progress(form: str, port: Port, selection: Selection) -> Any:
    """A context that gives a function to call after each case."""
    from contextlib import contextmanager, nullcontext

    if form == "json" or not sys.stdout.isatty():
        return nullcontext(lambda: None)

    @contextmanager
    def shown() -> Any:
        from rich.console import Console

        from refpeft.oracle.cases import can_answer
        from refpeft.oracle.report.terminal import progress_bar

        asked = sum(can_answer(port.abilities, vector) for vector in selection.vectors)
        with progress_bar(Console(), asked * len(selection.profiles)) as progress:
            yield lambda: progress.advance(progress.task_ids[0])

    return shown()


def as_json(form: str) -> bool:
    """Whether `--format` asks for JSON, here and now."""
    return form == "json" or (form == "auto" and not sys.stdout.isatty())


def print_results(results: Results, form: str) -> None:
    """Print a run for people or as JSON."""
    if as_json(form):
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(results), indent=1))
        return
    from rich.console import Console

    from refpeft.oracle.report.terminal import render

    Console(highlight=False, soft_wrap=True).print(render(results))


def failed_before() -> list[str]:
    """The cases that failed in the last run here; a usage error if none is remembered."""
    from refpeft.oracle.history import failed_before

    try:
        return failed_before(STATE)
    except LookupError as error:
        raise click.UsageError(str(error.args[0])) from None


def exit_status(results: Results) -> int:
    """The exit status of clause JG-8."""
    if results.summary.verdict == "INCONCLUSIVE":
        return UNDECIDED
    if results.summary.verdict == "CONFORMS":
        return CONFORMS
    broken = [case for case in results.cases if case.verdict not in ("CONFORMS", "SKIPPED")]
    unreached = (
        all(case.verdict in ("CRASHED", "TIMEOUT") for case in broken)
        and "CONFORMS" not in results.summary.counts
    )
    return UNREACHABLE if unreached else DIFFERS


def ask_everything(
    port: Port, selection: Selection, form: str, failures: Path | None, golden: Path | None, **options: Any
) -> tuple[Results, bool]:
    """Ask what was selected, and look at what failed; the results, and whether the run was ended from the keyboard.

    `options` are those of `refpeft.oracle.run.judge`. Who ends a run wants its end: nothing more is asked or looked for then.
    """
    import contextlib
    import tempfile

    from refpeft.oracle.diagnosis import with_diagnosis
    from refpeft.oracle.evidence import Evidence
    from refpeft.oracle.judge import CaseResult, summarise
    from refpeft.oracle.run import judge

    cases: list[CaseResult] = []
    evidence, interrupted = Evidence(), True
    with (
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="refpeft-") as work,
        progress(form, port, selection) as advance,
    ):
        where = failures or STATE / "failures"
        for case in judge(port, selection, Path(work), where, evidence=evidence, **options):
            cases.append(case)
            advance()
        interrupted = False
    fail_fast = options.get("fail_fast", False)
    results = summarise(port, selection, cases, interrupted=interrupted, fail_fast=fail_fast)
    return (results if interrupted else with_diagnosis(results, evidence, port, golden)), interrupted
