"""`refpeft export`, `refpeft judge`, `refpeft init`: ports that read and write files, and ports that do not exist yet."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from refpeft.cli.common import INTERRUPTED, STATE, ask_everything, exit_status, print_results, select
from refpeft.cli.options import PROFILES, selecting
from refpeft.cli.reports import Reports, reporting

LANGUAGES = ("python", "javascript", "rust", "elixir")


@click.command(short_help="Write the questions as files, for a port that reads files.")
@selecting
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=click.Choice(PROFILES),
    default=("float32", "float64"),
    show_default=True,
    help="Numbers to ask for. Repeatable.",
)
@click.argument("directory", type=click.Path(path_type=Path))
def export(
    patterns: tuple[str, ...],
    levels: tuple[str, ...],
    methods: tuple[str, ...],
    golden: Path | None,
    profiles: tuple[str, ...],
    directory: Path,
) -> None:
    """Write the questions into DIRECTORY, for a port that only reads and writes files; then `refpeft judge` it.

    DIRECTORY must not exist yet, or be empty. Its README.txt says what to do; clause PP-7 has the details. There are no
    expected values in it.
    """
    from refpeft.errors import RefpeftError
    from refpeft.oracle.budget import PROFILES as ALL
    from refpeft.oracle.export import write_export

    vectors = select(golden, patterns, levels, methods)
    try:
        index = write_export(directory, vectors, [ALL[name] for name in dict.fromkeys(profiles)])
    except RefpeftError as error:
        raise click.UsageError(str(error)) from None
    count = sum(len(case.requests) for case in index.cases)
    click.echo(f"{count} questions in '{directory}'; '{directory / 'README.txt'}' says how to answer them.")


@click.command(short_help="Judge the answers in a directory of exported questions.")
@click.option("--name", help="What the port is called in the report [default: the directory's name].")
@click.option("--language", default="unknown", help="What it is written in.")
@click.option(
    "--golden",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The vectors that the questions were exported from, if other than the shipped ones.",
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
@reporting
@click.argument("directory", type=click.Path(path_type=Path))
def judge(
    name: str | None,
    language: str,
    golden: Path | None,
    form: str,
    failures: Path | None,
    directory: Path,
    reports: Reports,
) -> None:
    """Judge the answers that a port wrote into DIRECTORY, which `refpeft export` made.

    Verdicts and exit status are those of `refpeft check`; what is not answered is skipped.
    """
    import shutil

    from refpeft.errors import RefpeftError
    from refpeft.oracle.files_port import FilesPort
    from refpeft.oracle.judge import Selection

    try:
        port = FilesPort(directory, golden, name, language)
        partial = not port.complete or port.unanswered() > 0
        selection = Selection(port.vectors, port.profiles, not port.complete, port.unanswered())
        if failures is None and not partial:
            shutil.rmtree(STATE / "failures", ignore_errors=True)
        results, interrupted = ask_everything(port, selection, form, failures, golden)
    except RefpeftError as error:  # of the export or the vectors: whatever a port answers is a verdict
        raise click.UsageError(str(error)) from None
    results = reports.completed(results)
    print_results(results, form)
    reports.write(results)
    sys.exit(INTERRUPTED if interrupted else exit_status(results))


@click.command(short_help="Write the beginning of a port, in one of four languages.")
@click.argument("language", type=click.Choice(LANGUAGES))
@click.argument("directory", type=click.Path(path_type=Path), default="my-port")
def init(language: str, directory: Path) -> None:
    """Write the beginning of a port in LANGUAGE into DIRECTORY [default: my-port].

    It speaks the protocol and answers one question. DIRECTORY must not exist yet, or be empty. Its README.md says how to
    run and judge it, and what to write next.
    """
    from refpeft.errors import RefpeftError
    from refpeft.oracle.skeleton import write_skeleton

    try:
        write_skeleton(directory, language)
    except RefpeftError as error:
        raise click.UsageError(str(error)) from None
    click.echo(
        f"A port in {language} in '{directory}'; '{directory / 'README.md'}' says how to run and judge it."
    )
