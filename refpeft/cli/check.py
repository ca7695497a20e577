"""`refpeft check`: ask a port what it computes and judge its answers."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from refpeft.cli.common import (
    INTERRUPTED,
    STATE,
    ask_everything,
    end_on_signals,
    exit_status,
    failed_before,
    plan,
    print_results,
    reach,
    select,
    several,
    tell_strays,
)
from refpeft.cli.options import (
    PROFILES,
    form_option,
    jobs_option,
    of_own_model,
    scheduler_option,
    selecting,
    shard_option,
    timeout_option,
)
from refpeft.cli.own import select_own
from refpeft.cli.reports import Reports, reporting


@click.command(
    short_help="Ask a port what it computes, and judge its answers.",
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
)
@selecting
@of_own_model(required=False)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=click.Choice(PROFILES),
    help="Numbers to compute in; default: all that the port declares.",
)
@click.option("--last-failed", is_flag=True, help="Only the cases that failed in the last run here.")
@click.option("-x", "--fail-fast", is_flag=True, help="Stop at the first failure.")
@shard_option
@scheduler_option
@timeout_option
@jobs_option
@click.option(
    "--validate", is_flag=True, help="Check each of the port's messages strictly against the schema."
)
@form_option
@click.option(
    "--failures",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Where to write what reproduces each failure [default: .refpeft/failures].",
)
@reporting
@click.argument("port", nargs=-1, type=click.UNPROCESSED)
def check(
    patterns: tuple[str, ...],
    levels: tuple[str, ...],
    methods: tuple[str, ...],
    golden: Path | None,
    base: Path | None,
    adapter: Path | None,
    inputs: Path | None,
    profiles: tuple[str, ...],
    last_failed: bool,
    fail_fast: bool,
    shard: tuple[int, int],
    scheduler: str | None,
    timeout: float | None,
    jobs: int,
    validate: bool,
    form: str,
    failures: Path | None,
    port: tuple[str, ...],
    reports: Reports,
) -> None:
    """Ask PORT what it computes and judge its answers; without PORT, judge refpeft itself.

    PORT is a command that speaks the protocol, or module:object. With --base and --adapter it is asked about your own
    model, and judged by refpeft's own answers.

    \b
    Exit status: 0 conforms, 1 does not, 2 wrong usage, 3 the port could not be run, 4 nothing was decided,
    130 ended from the keyboard.
    """  # noqa: D301
    from refpeft.errors import RefpeftError
    from refpeft.oracle.history import remember

    own = bool(base or adapter or inputs)
    if own:
        vectors = select_own((base, adapter, inputs), (patterns, levels, methods), golden, last_failed)
    else:
        vectors = select(golden, patterns, levels, methods, failed_before() if last_failed else None)
    (part, parts), wanted = shard, len(vectors)
    vectors = vectors[part - 1 :: parts]
    end_on_signals()
    reached, jobs = several(reach(port, timeout, validate, scheduler), jobs)
    partial = bool(golden or patterns or levels or methods or last_failed or len(vectors) < wanted)
    try:
        selection = plan(reached, vectors, profiles, partial)
        if failures is None and not selection.partial and not fail_fast:
            _forget_failures("own.*" if own else "*")
        options = {"fail_fast": fail_fast, "jobs": jobs}
        results, interrupted = ask_everything(reached, selection, form, failures, golden, **options)
    except RefpeftError as error:  # of the vectors: whatever a port does is a verdict
        raise click.UsageError(str(error)) from None
    finally:
        reached.close()
        tell_strays(reached)
    results = reports.completed(results)
    if golden is None and not own:
        note = remember(STATE, results)
        click.echo(note, nl=bool(note), err=True)
    print_results(results, form)
    reports.write(results)
    sys.exit(INTERRUPTED if interrupted else exit_status(results))


def _forget_failures(pattern: str) -> None:
    """Remove what earlier runs wrote about failures."""
    import shutil

    for old in (STATE / "failures").glob(pattern):
        shutil.rmtree(old, ignore_errors=True)
