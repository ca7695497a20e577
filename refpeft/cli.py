"""The command line: parses, calls the oracle, prints. Heavy modules are imported by the commands that need them.

Exit status (clause JG-8): 0 conforms; 1 does not; 2 wrong usage; 3 the port could not be run; 4 nothing was decided.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from refpeft.oracle.judge import CaseResult, Results, Selection
    from refpeft.oracle.reply import Port
    from refpeft.oracle.vectors import Vector

CONFORMS, DIFFERS, USAGE, UNREACHABLE, UNDECIDED = 0, 1, 2, 3, 4
"""The exit statuses."""
INTERRUPTED = 130
"""And that of a run ended from the keyboard, which prints what it has."""
STATE = Path(".refpeft")
"""Below the working directory: what reproduces failures, and which cases failed last."""
METHODS = ("prompt_tuning", "prefix_tuning", "common")
LEVELS = ("config", "components", "model", "gradients", "checkpoint")
PROFILES = ("float32", "float64", "float64-islands")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def selecting(command: _Command) -> _Command:
    """The options that choose cases."""
    for option in reversed(
        (
            click.option("-k", "--case", "patterns", multiple=True, metavar="PATTERN", help="Cases whose id contains PATTERN or matches it as a glob. Repeatable."),
            click.option("--level", "levels", multiple=True, type=click.Choice(LEVELS), help="Questions of this level. Repeatable."),
            click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="Cases of this method. Repeatable."),
            click.option("--golden", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Vectors other than the shipped ones, such as a failure's directory."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


_timeout = click.option(
    "--timeout",
    default=None,
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="For each answer [default: 60, and 120 to start].",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="refpeft", prog_name="refpeft")
def main() -> None:
    """Does a port of Prompt Tuning or Prefix Tuning compute what HF peft computes?

    \b
      refpeft check                  judge refpeft itself against HF peft's golden vectors
      refpeft check -- ./my_port     judge a program that speaks the protocol (specs/protocol.md)
      refpeft check module:object    judge a Python object
      refpeft smoke -- ./my_port     does it speak the protocol at all? values are not judged
    """  # noqa: D301  (\b is click's mark for text that keeps its lines)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that lacks a sign must not end the run


@main.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@selecting
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=click.Choice(PROFILES),
    help="Numbers to compute in; default: all that the port declares.",
)
@click.option("--last-failed", is_flag=True, help="Only the cases that failed in the last run here.")
@click.option("-x", "--fail-fast", is_flag=True, help="Stop at the first failure.")
@_timeout
@click.option(
    "--validate", is_flag=True, help="Check each of the port's messages strictly against the schema."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("auto", "pretty", "json")),
    default="auto",
    help="auto: pretty on a terminal, JSON when piped.",
)
@click.option(
    "--failures",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Where to write what reproduces each failure [default: .refpeft/failures].",
)
@click.argument("port", nargs=-1, type=click.UNPROCESSED)
def check(
    patterns: tuple[str, ...],
    levels: tuple[str, ...],
    methods: tuple[str, ...],
    golden: Path | None,
    profiles: tuple[str, ...],
    last_failed: bool,
    fail_fast: bool,
    timeout: float | None,
    validate: bool,
    form: str,
    failures: Path | None,
    port: tuple[str, ...],
) -> None:
    """Ask PORT what it computes and judge its answers; without PORT, judge refpeft itself.

    PORT is a command that speaks the protocol, or module:object.

    \b
    Exit status: 0 conforms, 1 does not, 2 wrong usage, 3 the port could not be run, 4 nothing was decided,
    130 ended from the keyboard.
    """  # noqa: D301
    import shutil
    import tempfile

    from refpeft.errors import RefpeftError
    from refpeft.oracle.history import remember
    from refpeft.oracle.judge import judge, summarise

    vectors = _select(golden, patterns, levels, methods, _failed_before() if last_failed else None)
    _end_on_signals()
    reached = _reach(port, timeout, validate)
    partial = bool(golden or patterns or levels or methods or last_failed or fail_fast)
    try:
        selection = _selection(reached, vectors, profiles, partial)
        if failures is None and not selection.partial:
            shutil.rmtree(STATE / "failures", ignore_errors=True)
        cases: list[CaseResult] = []
        interrupted = True
        with (
            contextlib.suppress(KeyboardInterrupt),
            tempfile.TemporaryDirectory(prefix="refpeft-") as work,
            _progress(form, reached, selection) as advance,
        ):
            where = failures or STATE / "failures"
            for case in judge(reached, selection, Path(work), where, fail_fast=fail_fast):
                cases.append(case)
                advance()
            interrupted = False
        results = summarise(reached, selection, cases)
    except RefpeftError as error:  # of the vectors: whatever a port does is a verdict
        raise click.UsageError(str(error)) from None
    finally:
        reached.close()
    if golden is None:
        note = remember(STATE, results)
        click.echo(note, nl=bool(note), err=True)
    _print(results, form)
    sys.exit(INTERRUPTED if interrupted else _status(results))


@main.command(name="list")
@selecting
def list_(
    patterns: tuple[str, ...], levels: tuple[str, ...], methods: tuple[str, ...], golden: Path | None
) -> None:
    """List the golden cases: id and title."""
    for vector in _select(golden, patterns, levels, methods):
        click.echo(f"{vector.case.id}  {click.style(vector.case.title, dim=True)}")


@main.command()
@click.argument("topic")
def explain(topic: str) -> None:
    """Explain TOPIC: a clause (PX-2), a case, a stage or step (prefix.layers.0.key), or a question (forward)."""
    from refpeft.oracle.explain import explain as explanation

    try:
        click.echo(explanation(topic))
    except LookupError as error:
        raise click.UsageError(str(error.args[0])) from None


@main.command(context_settings={"allow_interspersed_args": False})
@_timeout
@click.argument("port", nargs=-1, type=click.UNPROCESSED)
def smoke(timeout: float | None, port: tuple[str, ...]) -> None:
    """Does PORT speak the protocol? It is asked one question of each kind; names and shapes count, values do not.

    A failure here means that the harness is wrong, not the mathematics.
    """
    import tempfile

    from refpeft.errors import RefpeftError
    from refpeft.oracle.smoke import smoke as try_port

    _end_on_signals()
    reached = _reach(port, timeout, True)
    try:
        with tempfile.TemporaryDirectory(prefix="refpeft-") as work:
            good = True
            for line in try_port(reached, Path(work)):
                good = good and line.ok
                mark = click.style("✓", fg="green") if line.ok else click.style("✗", fg="red")
                click.echo(f"{mark} {line.text}")
    except RefpeftError as error:  # of the vectors, as in check
        raise click.UsageError(str(error)) from None
    finally:
        reached.close()
    sys.exit(CONFORMS if good else UNREACHABLE)


# ---------------------------------------------------------------- what the commands share


def _select(
    golden: Path | None,
    patterns: Sequence[str],
    levels: Sequence[str],
    methods: Sequence[str],
    failed: Sequence[str] | None = None,
) -> list[Vector]:
    from refpeft.errors import RefpeftError
    from refpeft.oracle.cases import in_order
    from refpeft.oracle.questions import QUESTIONS
    from refpeft.oracle.vectors import all_vectors, matches

    try:
        vectors = in_order(all_vectors(golden))
    except RefpeftError as error:
        raise click.UsageError(str(error)) from None
    chosen = [
        vector
        for vector in vectors
        if (not patterns or any(matches(vector.case.id, pattern) for pattern in patterns))
        and (not levels or QUESTIONS[vector.case.question].level in levels)
        and (not methods or vector.case.method in methods)
        and (failed is None or vector.case.id in failed)
    ]
    if not vectors:
        raise click.UsageError(f"'{golden}' has no golden vectors: no case.json anywhere below vectors/.")
    if not chosen:
        raise click.UsageError(f"No case matches; `refpeft list` shows all {len(vectors)}.")
    return chosen


def _end_on_signals() -> None:
    """Let a signal to end run what ends the port too: it has a session of its own and would live on."""
    import signal

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            number = getattr(signal, name)
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
                signal.signal(number, lambda received, _: sys.exit(128 + received))


def _reach(command: Sequence[str], timeout: float | None, validate: bool) -> Port:
    from refpeft.oracle.port import open_port
    from refpeft.oracle.reply import PortError

    try:
        return open_port(command, timeout, validate=validate)
    except PortError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(UNREACHABLE)


def _selection(port: Port, vectors: list[Vector], profiles: Sequence[str], partial: bool) -> Selection:
    from refpeft.oracle.budget import PROFILES as ALL
    from refpeft.oracle.judge import Selection

    declared = port.abilities.profiles
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


def _progress(form: str, port: Port, selection: Selection) -> Any:
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


def _print(results: Results, form: str) -> None:
    if form == "json" or (form == "auto" and not sys.stdout.isatty()):
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(results), indent=1))
        return
    from rich.console import Console

    from refpeft.oracle.report.terminal import render

    Console(highlight=False, soft_wrap=True).print(render(results))


def _failed_before() -> list[str]:
    from refpeft.oracle.history import failed_before

    try:
        return failed_before(STATE)
    except LookupError as error:
        raise click.UsageError(str(error.args[0])) from None


def _status(results: Results) -> int:
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
