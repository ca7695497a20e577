"""The options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

METHODS = ("prompt_tuning", "prefix_tuning", "common")

LEVELS = ("config", "components", "model", "gradients", "training", "generation", "checkpoint")

PROFILES = ("float32", "float64", "float64-islands", "tf32", "float16", "bfloat16")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def selecting(command: _Command) -> _Command:
    """The options that choose cases."""
    for option in reversed(
        (
            click.option("-k", "--case", "patterns", multiple=True, metavar="PATTERN", help="Cases whose id, or whose question's name, contains PATTERN or matches it as a glob. Repeatable."),
            click.option("--level", "levels", multiple=True, type=click.Choice(LEVELS), help="Questions of this level. Repeatable."),
            click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="Cases of this method. Repeatable."),
            click.option("--golden", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Vectors other than the shipped ones, such as a failure's directory."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


form_option = click.option(
    "--format",
    "form",
    type=click.Choice(("auto", "pretty", "json")),
    default="auto",
    help="auto: pretty on a terminal, JSON when piped.",
)


def of_own_model(*, required: bool) -> Callable[[_Command], _Command]:
    """The options that name the user's own model."""
    directory = click.Path(exists=True, file_okay=False, path_type=Path)

    def add(command: _Command) -> _Command:
        for option in reversed(
            (
                click.option("--base", metavar="DIRECTORY", type=directory, required=required, help="Your base model: an HF directory with config.json and model.safetensors."),
                click.option("--adapter", metavar="DIRECTORY", type=directory, required=required, help="Your adapter: a directory as HF peft's save_pretrained writes it."),
                click.option("--inputs", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="input_ids and what you like of attention_mask, labels, position_ids, as safetensors or JSON [default: a few drawn texts]."),
            )
        ):  # fmt: skip
            command = option(command)
        return command

    return add


timeout_option = click.option(
    "--timeout",
    default=None,
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="For each answer [default: 60, and 120 to start].",
)


def _parts(ctx: click.Context, parameter: click.Parameter, given: str) -> tuple[int, int]:
    """K/N as two whole numbers."""
    part, slash, parts = given.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise click.BadParameter(f"{given!r} is not K/N, the K-th of N parts, such as 2/4.")
    return int(part), int(parts)


scheduler_option = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Ask on the workers of this Dask cluster, which have refpeft and PORT in the same places.",
)

shard_option = click.option(
    "--shard",
    callback=_parts,
    default="1/1",
    metavar="K/N",
    help="The K-th of N parts of the work, for several machines side by side.",
)

jobs_option = click.option(
    "-j",
    "--jobs",
    default=1,
    metavar="N",
    type=click.IntRange(1, 256),
    help="So many processes of PORT side by side; the results are the same.",
)
