"""`refpeft list`, `refpeft explain`, `refpeft tour`, `refpeft smoke`: looking around before judging."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from refpeft.cli.common import CONFORMS, UNREACHABLE, as_json, end_on_signals, reach, select, tell_strays
from refpeft.cli.options import form_option, selecting, timeout_option


@click.command(name="list")
@selecting
def list_(
    patterns: tuple[str, ...], levels: tuple[str, ...], methods: tuple[str, ...], golden: Path | None
) -> None:
    """List the golden cases: id and title."""
    for vector in select(golden, patterns, levels, methods):
        click.echo(f"{vector.case.id}  {click.style(vector.case.title, dim=True)}")


@click.command(short_help="Explain a clause, a case, a stage, a property or a mistake.")
@click.argument("topic")
def explain(topic: str) -> None:
    """Explain TOPIC: a clause (PX-2), a case, a stage or step (prefix.layers.0.key), a question (forward), a property (T26), or a mistake (M16).

    A clause is followed by its code, the golden cases to ask, the properties, live tests and known mistakes about it.
    """
    from refpeft.oracle.explain import explain as explanation

    try:
        click.echo(explanation(topic))
    except LookupError as error:
        raise click.UsageError(str(error.args[0])) from None


@click.command(short_help="Follow one token through prefix tuning, number by number.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("auto", "pretty", "json", "markdown")),
    default="auto",
    help="auto: pretty on a terminal, JSON when piped; markdown: the page specs/tour.md.",
)
def tour(form: str) -> None:
    """Follow one token through a model of two layers with a prefix of two: every stage, its shape, formula, clause and numbers."""
    from refpeft.oracle.tour import tour as make_tour

    made = make_tour()
    if form == "markdown":
        from refpeft.oracle.report.tour import markdown

        try:
            click.echo(markdown(made), nl=False)
        except LookupError as error:
            raise click.UsageError(str(error.args[0])) from None
    elif as_json(form):
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(made), indent=1))
    else:
        from rich.console import Console

        from refpeft.oracle.report.tour import render

        Console(highlight=False).print(render(made))


@click.command(
    short_help="Does a port speak the protocol? Values are not judged.",
    context_settings={"allow_interspersed_args": False},
)
@timeout_option
@form_option
@click.argument("port", nargs=-1, type=click.UNPROCESSED)
def smoke(timeout: float | None, form: str, port: tuple[str, ...]) -> None:
    """Does PORT speak the protocol? It is asked one question of each kind; names and shapes count, values do not.

    A failure here means that the harness is wrong, not the mathematics. As JSON it is a list of what was tried, each
    with `ok` and `text`.

    \b
    Exit status: 0 everything is well, 3 something is not, or the port could not be run, 2 wrong usage.
    """  # noqa: D301
    import tempfile

    import msgspec

    from refpeft.errors import RefpeftError
    from refpeft.oracle.smoke import smoke as try_port

    end_on_signals()
    reached = reach(port, timeout, True)
    machine = as_json(form)
    tried = []
    try:
        with tempfile.TemporaryDirectory(prefix="refpeft-") as work:
            for line in try_port(reached, Path(work)):
                tried.append(line)
                mark = click.style("✓", fg="green") if line.ok else click.style("✗", fg="red")
                if not machine:
                    click.echo(f"{mark} {line.text}")
    except RefpeftError as error:  # of the vectors, as in check
        raise click.UsageError(str(error)) from None
    finally:
        reached.close()
        tell_strays(reached)
    if machine:
        click.echo(msgspec.json.format(msgspec.json.encode(tried), indent=1))
    sys.exit(CONFORMS if all(line.ok for line in tried) else UNREACHABLE)
