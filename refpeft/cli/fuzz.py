"""`refpeft fuzz`: search for a question that a port answers wrongly."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refpeft.cli.common import (
    CONFORMS,
    DIFFERS,
    INTERRUPTED,
    STATE,
    UNDECIDED,
    UNREACHABLE,
    as_json,
    end_on_signals,
    reach,
    tell_strays,
)
from refpeft.cli.options import METHODS, PROFILES, form_option, scheduler_option, shard_option, timeout_option

if TYPE_CHECKING:
    from refpeft.oracle.drawn import Drawn
    from refpeft.oracle.fuzzed import Fuzzed
    from refpeft.oracle.reply import Port
    from refpeft.oracle.search import Search

QUESTIONS = ("mask", "prefix.encode", "inputs", "attention", "forward", "gradients", "training", "generate", "checkpoint.load", "checkpoint.save")  # fmt: skip
"""What can be drawn: the keys of `refpeft.oracle.drawn.CLAUSES`."""
FAST = Path("/dev/shm")  # noqa: S108
"""Where Linux keeps files in memory: each question is a few small ones."""


@click.command(
    short_help="Search for a question that a port answers wrongly.",
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
)
@click.option(
    "--max-examples",
    default=200,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=1),
    help="So many questions at most, until one is answered wrongly.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(min=0),
    help="What questions are drawn from [default: another one each time; it is printed].",
)
@click.option(
    "--time-limit",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="End after so long, with the smallest wrong answer found so far.",
)
@click.option(
    "--family",
    "families",
    multiple=True,
    metavar="NAME",
    help="Base models of this architecture, by HF's model_type. Repeatable.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(METHODS[:2]),
    help="Adapters of this method. Repeatable.",
)
@click.option(
    "--question", "questions", multiple=True, type=click.Choice(QUESTIONS), help="This question. Repeatable."
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=click.Choice(PROFILES),
    help="Numbers to compute in; default: all that the port declares.",
)
@shard_option
@scheduler_option
@timeout_option
@form_option
@click.argument("port", nargs=-1, type=click.UNPROCESSED)
def fuzz(
    max_examples: int,
    seed: int | None,
    time_limit: float | None,
    families: tuple[str, ...],
    methods: tuple[str, ...],
    questions: tuple[str, ...],
    profiles: tuple[str, ...],
    shard: tuple[int, int],
    scheduler: str | None,
    timeout: float | None,
    form: str,
    port: tuple[str, ...],
) -> None:
    """Draw models, adapters and inputs, ask PORT about them, and shrink the first wrong answer to the smallest.

    What is expected is refpeft's own answer. What was found is kept below .refpeft/fuzz, as a directory for
    `refpeft check --golden`, and asked first next time.

    \b
    Exit status: 0 no disagreement found, 1 found, 2 wrong usage, 3 the port could not be run, 4 nothing was decided,
    130 ended from the keyboard.
    """  # noqa: D301
    from refpeft.errors import RefpeftError

    end_on_signals()
    reached = reach(port, timeout, validate=False, scheduler=scheduler)
    try:
        with _work() as work:
            fuzzed = _search(
                reached,
                work,
                (max_examples, seed, time_limit),
                (families, methods, questions, profiles),
                shard,
                form,
            )
    except (LookupError, RefpeftError) as error:
        raise click.UsageError(str(error.args[0])) from None
    finally:
        reached.close()
        tell_strays(reached)
    _print(fuzzed, form)
    sys.exit(_status(fuzzed))


@contextlib.contextmanager
def _work() -> Iterator[Path]:
    """A directory for questions and answers, in memory where there is such a place."""
    from hypothesis.configuration import set_hypothesis_home_dir

    fast = FAST if FAST.is_dir() and os.access(FAST, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="refpeft-", dir=fast, ignore_cleanup_errors=True) as work:
        set_hypothesis_home_dir(Path(work, "hypothesis"))  # else it leaves a directory where the user stands
        yield Path(work)


def _search(
    port: Port,
    work: Path,
    limits: tuple[int, int | None, float | None],
    chosen: tuple[Sequence[str], ...],
    shard: tuple[int, int],
    form: str,
) -> Fuzzed:
    """First what is kept from earlier; then, if that conforms, what is drawn.

    Raises:
        LookupError: nothing can be drawn.
    """
    import secrets

    from refpeft.oracle import fuzzed
    from refpeft.oracle.evidence import Evidence
    from refpeft.oracle.search import Search, try_kept
    from refpeft.testing import cases

    max_examples, given, time_limit = limits
    (families, methods, questions, profiles), started = chosen, time.monotonic()
    seed = secrets.randbelow(2**32) if given is None else given
    choices = {
        "families": families,
        "methods": methods,
        "questions": questions,
        "profiles": _declared(port, profiles),
    }
    strategy = cases(port.abilities, **choices)
    evidence, state, kept = Evidence(), STATE / "fuzz", []
    search = Search(port, work, until=None if time_limit is None else started + time_limit)
    try:
        for one in try_kept(port, state, work, _declared(port, profiles), evidence):
            kept.append(one)  # noqa: PERF402  (one by one: an interrupt keeps what there is)
    except KeyboardInterrupt:
        search.ended = "interrupted"
    found, example = fuzzed.of_kept(kept, evidence, port), None
    if found is None and not search.ended:
        with _progress(form, max_examples) as search.advance:
            workers = getattr(port, "workers", 1)
            if workers > 1:
                _search_there(port, search, (choices, max_examples, fuzzed.seed_of(seed, shard)))
            else:
                search.run(strategy, max_examples=max_examples, seed=fuzzed.seed_of(seed, shard))
        smallest = fuzzed.of_search(search, state)
        example, found = smallest or (None, None)
    seconds = time.monotonic() - started
    shown = "" if shard == (1, 1) else f"{shard[0]}/{shard[1]}"
    return fuzzed.result_of(port, search, seed, seconds, kept, found, example, shown)


def _search_there(port: Any, search: Search, whole: tuple[dict[str, Any], int, int]) -> None:
    """A search on each worker of a cluster; the smallest wrong answer is asked for once more, from here.

    Of the smallest each worker knows; which of those is the smallest is seen when they are asked again.
    """
    from refpeft.oracle.fuzzed import seed_of

    choices, max_examples, seed = whole
    share = -(-max_examples // port.workers)
    seconds = None if search.until is None else search.until - time.monotonic()
    parts = [
        (choices, share, seed_of(seed, (part, port.workers)), seconds) for part in range(1, port.workers + 1)
    ]
    for counts, first_at, ended, smallest in port.each(_searched, parts):
        search.take(counts, first_at, ended, smallest)


def _searched(port: Port, wanted: tuple[Any, ...]) -> tuple[dict[str, int], int, str, Drawn | None]:
    """A whole search, where this runs: counts, when the first wrong answer came, why it ended early, the smallest."""
    from refpeft.oracle.search import Search
    from refpeft.testing import cases

    choices, max_examples, seed, seconds = wanted
    with _work() as work:
        search = Search(port, work, until=None if seconds is None else time.monotonic() + seconds)
        search.run(cases(port.abilities, **choices), max_examples=max_examples, seed=seed)
        return dict(search.counts), search.first_at, search.ended, search.found[0] if search.found else None


def _declared(port: Port, profiles: Sequence[str]) -> list[str]:
    """The profiles that are wanted and declared; a usage error if one is not."""
    declared = port.abilities.profiles
    beyond = sorted(set(profiles) - set(declared))
    if beyond:
        raise click.UsageError(
            f"The port declares the profiles {', '.join(declared)}, not {', '.join(beyond)}."
        )
    return [name for name in declared if not profiles or name in profiles]


@contextlib.contextmanager
def _progress(form: str, total: int) -> Iterator[Any]:
    """A function to call after each question: a bar on a terminal. Questions asked to shrink go beyond its end."""
    if as_json(form) or not sys.stdout.isatty():
        yield lambda: None
        return
    from rich.console import Console

    from refpeft.oracle.report.terminal import progress_bar

    with progress_bar(Console(), total) as progress:
        yield lambda: progress.advance(progress.task_ids[0])


def _print(fuzzed: Fuzzed, form: str) -> None:
    if as_json(form):
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(fuzzed), indent=1))
        return
    from rich.console import Console

    from refpeft.oracle.report.fuzz import render

    Console(highlight=False, soft_wrap=True).print(render(fuzzed))


def _status(fuzzed: Fuzzed) -> int:
    """The exit status of clause JG-8, by all that was asked."""
    if fuzzed.ended == "interrupted":
        return INTERRUPTED
    if fuzzed.found is None:
        return CONFORMS if fuzzed.verdict == "CONFORMS" else UNDECIDED
    unreached = {case.verdict for case in fuzzed.found.cases} <= {"CRASHED", "TIMEOUT"}
    return UNREACHABLE if unreached and not fuzzed.counts.get("CONFORMS") else DIFFERS
