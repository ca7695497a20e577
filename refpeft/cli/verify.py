"""`refpeft verify-statement`: whether what was published about a port holds."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from refpeft.cli.common import (
    CONFORMS,
    DIFFERS,
    INTERRUPTED,
    UNREACHABLE,
    ask_everything,
    end_on_signals,
    exit_status,
    plan,
    reach,
    select,
    several,
    tell_strays,
)
from refpeft.cli.options import jobs_option, timeout_option


@click.command(
    name="verify-statement",
    short_help="Repeat what a statement says, and say whether it holds.",
)
@timeout_option
@jobs_option
@click.argument("statement", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("port", nargs=-1, type=click.UNPROCESSED, required=True)
def verify_statement(timeout: float | None, jobs: int, statement: Path, port: tuple[str, ...]) -> None:
    """Ask PORT everything, and say whether STATEMENT, which `refpeft check --statement` wrote, holds of it.

    Exit status: 0 it holds, 1 it does not, 2 it cannot be verified here, 3 the port could not be run.
    """
    from refpeft.errors import RefpeftError
    from refpeft.oracle.statement import broken, golden_hash, read_statement

    try:
        stated = read_statement(statement)
        here = golden_hash()
    except RefpeftError as error:
        raise click.UsageError(str(error)) from None
    if stated.golden != here:
        raise click.UsageError(
            f"'{statement}' was made with other golden vectors, those of refpeft {stated.refpeft}. Verify it with that one."
        )
    end_on_signals()
    reached, jobs = several(reach(port, timeout, False), jobs)
    try:
        selection = plan(reached, select(None, (), (), ()), (), False)
        results, interrupted = ask_everything(reached, selection, "auto", None, None, jobs=jobs)
    finally:
        reached.close()
        tell_strays(reached)
    said = broken(stated, results)
    click.echo("".join(f"- {line}\n" for line in said), nl=False)
    if interrupted:
        sys.exit(INTERRUPTED)
    who = f"{stated.implementation.name} {stated.implementation.version}"
    click.echo(f"The statement about {who} of {stated.date} {'does not hold' if said else 'holds'}.")
    unreached = exit_status(results) == UNREACHABLE
    sys.exit(UNREACHABLE if said and unreached else DIFFERS if said else CONFORMS)
