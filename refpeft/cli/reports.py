"""`refpeft report` and `refpeft diff`, and the options of `refpeft check` that write reports."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refpeft.cli.common import CANNOT_WRITE, CONFORMS, DIFFERS, as_json
from refpeft.cli.options import form_option

if TYPE_CHECKING:
    from refpeft.oracle.expected_failures import Expected
    from refpeft.oracle.judge import Results

KINDS = ("html", "markdown", "junit", "badge", "json", "pretty")


@dataclass(frozen=True)
class Reports:
    """What is made of a run's results besides what is printed."""

    files: tuple[tuple[str, Path], ...]
    """Kinds and paths of reports."""
    command: list[str]
    """What was typed."""
    track: Path | None
    """A file of runs, to which this one is appended."""
    expected: Expected | None
    """Failures that are expected."""
    statements: tuple[Path, ...]
    """Where to write what may be published."""

    def completed(self, results: Results) -> Results:
        """With what the command line knows of the run."""
        import msgspec

        from refpeft.oracle.expected_failures import with_expected

        results = msgspec.structs.replace(results, command=self.command)
        return with_expected(results, self.expected) if self.expected else results

    def write(self, results: Results) -> None:
        """Write each report, whole or not at all; ends with CANNOT_WRITE if one cannot be written."""
        if self.track:
            append(self.track, results)
        if self.statements:
            state(self.statements, results)
        from refpeft.oracle.report.kinds import make

        for kind, path in self.files:
            put(path, make(results, kind))


def reporting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that write reports; the command gets them as `reports`."""

    @functools.wraps(command)
    def run(
        *args: Any,
        report: tuple[str, ...],
        track: Path | None,
        expected_failures: Path | None,
        statement: tuple[Path, ...],
        **options: Any,
    ) -> Any:
        from refpeft.errors import RefpeftError
        from refpeft.oracle.changes import last_of
        from refpeft.oracle.report.kinds import of_file

        try:
            files = tuple(of_file(each) for each in report)
            if track and track.exists():
                last_of(track.read_bytes(), str(track))
            expected = expectations(expected_failures, options) if expected_failures else None
        except RefpeftError as error:
            raise click.UsageError(str(error)) from None
        for path in (*(path for _, path in files), *([track] if track else []), *statement):
            require_place(path)
        if statement:
            require_whole(options)
        return command(
            *args,
            reports=Reports(files, typed(click.get_current_context()), track, expected, statement),
            **options,
        )

    file = click.Path(dir_okay=False, path_type=Path)
    for option in reversed(
        (
            click.option("--report", multiple=True, metavar="FILE", help="Write a report too: FILE.html, .md, .xml (JUnit), .json (results), .txt, badge.json; or KIND:FILE. Repeatable."),
            click.option("--track", type=file, metavar="FILE", help="Append this run to FILE, and say what has changed since the last one there."),
            click.option("--expected-failures", type=file, metavar="FILE", help="TOML that says which cases are expected to fail, and why; they do not fail the run."),
            click.option("--statement", type=file, multiple=True, metavar="FILE", help="Write what may be published about the port: FILE.json, or FILE.md. Only of a whole run. Repeatable."),
        )
    ):  # fmt: skip
        run = option(run)
    return run


def expectations(path: Path, options: Mapping[str, Any]) -> Expected:
    """The failures that a file expects, of cases that there are; those about one's own model are not known beforehand."""
    from refpeft.oracle.expected_failures import read_expected
    from refpeft.oracle.vectors import all_vectors

    known = None if options.get("base") else [v.case.id for v in all_vectors(options.get("golden"))]
    return read_expected(path, known)


SELECTING = (
    "patterns",
    "levels",
    "methods",
    "golden",
    "base",
    "adapter",
    "inputs",
    "profiles",
    "last_failed",
)
"""The options with which a run asks less, or something else."""


def require_whole(options: Mapping[str, Any]) -> None:
    """A usage error, before anything is asked, where no statement could be made."""
    chosen = [
        o.opts[-1]
        for o in click.get_current_context().command.params
        if o.name in SELECTING and options.get(o.name)
    ]
    if chosen:
        raise click.UsageError(
            f"A statement is about everything that the port can do: leave out {', '.join(chosen)}."
        )


def state(paths: Sequence[Path], results: Results) -> None:
    """Write what may be published of a run; ends with CANNOT_WRITE if nothing may."""
    from datetime import UTC, datetime

    from refpeft.errors import RefpeftError
    from refpeft.oracle.report.statement import markdown
    from refpeft.oracle.statement import encode_statement, statement_of

    try:
        statement = statement_of(results, datetime.now(UTC).date().isoformat())
    except RefpeftError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(CANNOT_WRITE)
    for path in paths:
        put(path, markdown(statement).encode() if path.suffix == ".md" else encode_statement(statement))


def append(path: Path, results: Results) -> None:
    """Append a run to a track, and say what has changed; ends with CANNOT_WRITE if that cannot be done."""
    from datetime import UTC, datetime

    from refpeft.errors import RefpeftError
    from refpeft.oracle.changes import in_words, track, tracked

    try:
        found = track(path, tracked(results, datetime.now(UTC).isoformat(timespec="seconds")))
    except RefpeftError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(CANNOT_WRITE)
    except OSError as error:
        click.echo(f"Error: can't write '{path}': {error.strerror}.", err=True)
        sys.exit(CANNOT_WRITE)
    if found:
        click.echo(f"Note: since the last run in '{path}': {in_words(found)}.", err=True)


def require_place(path: Path) -> None:
    """A usage error, before anything is asked, where a file cannot be."""
    if path.is_dir():
        raise click.UsageError(f"'{path}' is a directory; give the name of a file.")
    if not path.absolute().parent.is_dir():
        raise click.UsageError(
            f"'{path}' cannot be written: there is no directory '{path.parent}'. Make it first."
        )


def put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; ends with CANNOT_WRITE if that cannot be done."""
    from refpeft.files import write_atomically

    try:
        write_atomically(path, data)
    except OSError as error:
        click.echo(f"Error: can't write '{path}': {error.strerror}.", err=True)
        sys.exit(CANNOT_WRITE)


DECIDING = (
    *("patterns", "levels", "methods", "golden", "base", "adapter", "inputs", "profiles"),
    *("last_failed", "fail_fast", "timeout", "validate"),
)
"""The options that decide what is asked, and how."""


def typed(context: click.Context) -> list[str]:
    """The command line, as far as it decides what is asked."""

    def options() -> Iterator[str]:
        for option in context.command.params:
            value = context.params.get(option.name or "")
            if option.name not in DECIDING or value in (None, (), False) or value == option.default:
                continue
            for each in value if isinstance(value, tuple) else (value,):
                yield option.opts[-1]
                if value is not True:
                    yield str(each)

    port = [*context.params.get("port", ())]
    directory = context.params.get("directory")
    rest = ["--", *port] if port else [str(directory)] if directory else []
    return ["refpeft", context.command.name or "", *options(), *rest]


def read(path: Path) -> Results:
    """A results document; a usage error if the file holds none."""
    from refpeft.errors import RefpeftError
    from refpeft.oracle.results import read_results

    try:
        return read_results(path)
    except RefpeftError as error:
        raise click.UsageError(str(error)) from None


@click.command(short_help="Make a report of a run's results.")
@click.option(
    "--format", "form", type=click.Choice(KINDS), default="pretty", show_default=True, help="Which."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    help="The file [default: standard output].",
)
@click.argument("results", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def report(form: str, output: Path | None, results: Path) -> None:
    """Make a report of RESULTS, a file that `refpeft check --report FILE.json` wrote."""
    from refpeft.oracle.report.kinds import make

    made = make(read(results), form)
    if output is None:
        click.echo(made, nl=False)
        return
    require_place(output)
    put(output, made)


@click.command(short_help="Compare the results of two runs.")
@form_option
@click.option(
    "--factor",
    default=2.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Tell errors whose share of their budget has grown by more.",
)
@click.argument("old", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def diff(form: str, factor: float, old: Path, new: Path) -> None:
    """Compare two results documents, which `refpeft check --report FILE.json` wrote.

    Exit status: 1 if something fails newly, else 0.
    """
    import msgspec

    from refpeft.oracle.changes import changes

    found = changes(read(old), read(new), factor)
    if as_json(form):
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1))
    else:
        from rich.console import Console

        from refpeft.oracle.report.changes import render

        Console(highlight=False, soft_wrap=True).print(render(found))
    sys.exit(DIFFERS if found.newly_failing else CONFORMS)
