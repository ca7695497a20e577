"""`refpeft answer`, `refpeft inspect`, and the questions of `refpeft check --base`: the user's own model."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from refpeft.cli.common import CONFORMS, DIFFERS, as_json, choose
from refpeft.cli.options import form_option, of_own_model

if TYPE_CHECKING:
    from refpeft.oracle.vectors import Vector


def select_own(
    own: tuple[Path | None, Path | None, Path | None],
    choice: tuple[Sequence[str], Sequence[str], Sequence[str]],
    golden: Path | None,
    last_failed: bool,
) -> list[Vector]:
    """The questions about the user's own model that the options choose; a usage error if it cannot be read.

    Their inputs are written to a directory that lives as long as the command.
    """
    from refpeft.errors import RefpeftError
    from refpeft.oracle.cases import in_order
    from refpeft.oracle.own import NOT_ASKED, draw_texts, open_own_model, own_vectors, read_text

    (base, adapter, inputs), (patterns, levels, methods) = own, choice
    if base is None or adapter is None:
        raise click.UsageError("Give both --base and --adapter: an adapter is judged on its base model.")
    if golden is not None or last_failed:
        raise click.UsageError(
            "--golden and --last-failed are for golden vectors; leave them out with --base. Runs on your own model are not "
            "recorded: choose what failed with -k."
        )
    again = ["refpeft", "check", "--base", str(base.resolve()), "--adapter", str(adapter.resolve())]
    again += ["--inputs", str(inputs.resolve())] if inputs else []
    work = click.get_current_context().with_resource(tempfile.TemporaryDirectory(prefix="refpeft-"))
    try:
        model = open_own_model(base, adapter)
        texts = {"given": read_text(inputs, model)} if inputs else draw_texts(model)
        gradients = "gradients" in levels
        vectors = own_vectors(model, texts, Path(work), gradients=gradients, command=shlex.join(again))
        ordered = in_order(vectors)
    except RefpeftError as error:
        raise click.UsageError(str(error)) from None
    for note in model.notes:
        click.echo(f"Note: {note}", err=True)
    asked = ", ".join(vector.case.id for vector in ordered)
    hint = f"of your own model these are asked: {asked}. Nothing of the levels {' and '.join(NOT_ASKED)} is."
    return choose(ordered, patterns, levels, methods, None, hint)


@click.command(short_help="Write every stage of a forward pass to a safetensors file.")
@of_own_model(required=True)
@click.option(
    "--dtype",
    type=click.Choice(("float64", "float32")),
    default="float64",
    help="Numbers to compute in [default: float64].",
)
@click.option(
    "--gradients", is_flag=True, help="Also the gradient of each trainable parameter; needs labels."
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The safetensors file to write.",
)
def answer(base: Path, adapter: Path, inputs: Path | None, dtype: str, gradients: bool, output: Path) -> None:
    """Write every stage of a forward pass to one safetensors file, for comparing by hand.

    The stages have the names of specs/notation.md; their order is in the metadata, under `order`. Without --inputs, a
    small text is drawn; the file holds it too.
    """
    from refpeft.errors import RefpeftError
    from refpeft.oracle.own import draw_texts, open_own_model, read_text, write_answer

    try:
        model = open_own_model(base, adapter)
        text = read_text(inputs, model) if inputs else draw_texts(model)["labels"]
        names = write_answer(output, model, text, dtype, gradients=gradients)
    except RefpeftError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.UsageError(f"Can't write '{output}': {error.strerror or error}.") from None
    for note in model.notes:
        click.echo(f"Note: {note}", err=True)
    click.echo(
        f"{output}: {len(names)} tensors in {dtype}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
    )


@click.command(short_help="Say what an adapter's directory holds, and what is wrong.")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option(
    "--base",
    metavar="DIRECTORY",
    type=click.Path(path_type=Path),
    help="The base model that it should fit: an HF directory with config.json.",
)
@form_option
def inspect(adapter: Path, base: Path | None, form: str) -> None:
    """Say what the directory ADAPTER holds, and in words what is wrong with it. Nothing is unpickled.

    \b
    Exit status: 0 nothing is wrong, 1 something is, 2 wrong usage.
    """  # noqa: D301
    import msgspec

    from refpeft.errors import RefpeftError
    from refpeft.oracle.examine import examine

    for option, path in (("ADAPTER", adapter), ("--base", base)):
        if path is not None and not path.is_dir():
            raise click.UsageError(f"{option}: {_no_directory(path)}")
    try:
        found = examine(adapter, base)
    except RefpeftError as error:
        raise click.UsageError(str(error)) from None
    if as_json(form):
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1))
    else:
        from rich.console import Console

        from refpeft.oracle.report.adapter import render

        Console(highlight=False, soft_wrap=True).print(render(found))
    sys.exit(DIFFERS if found.problems else CONFORMS)


def _no_directory(path: Path) -> str:
    """What to do about a path that is no directory."""
    if path.is_file():
        return f"'{path}' is a file; give the directory that it lies in: '{path.parent}'."
    parts = path.parts
    if not path.is_absolute() and len(parts) == 2 and "." not in parts[0] and not path.parent.exists():
        return (
            f"there is no directory '{path}' here. If it is a name on the Hugging Face Hub: refpeft does not download; "
            f"`huggingface-cli download {path} --local-dir DIRECTORY` does."
        )
    near = path.parent
    inside = sorted(p.name for p in near.iterdir() if p.is_dir())[:5] if near.is_dir() else []
    return f"there is no directory '{path}'" + (f"; '{near}' has {', '.join(inside)}." if inside else ".")
