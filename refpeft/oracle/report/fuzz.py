"""A search for people: what was found and how small it is, or how much was asked in vain, and what became of old failures."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from refpeft.oracle.fuzzed import Fuzzed
from refpeft.oracle.report.looks import counted
from refpeft.oracle.report.terminal import render as render_run


def render(fuzzed: Fuzzed) -> RenderableType:
    """Everything about a search."""
    parts: list[RenderableType] = [
        Text(f"kept failure, conforms now, removed: {path}") for path in fuzzed.mended
    ]
    if fuzzed.found is not None:
        parts.append(render_run(fuzzed.found))
    return Group(*parts, _verdict(fuzzed))


def _verdict(fuzzed: Fuzzed) -> Text:
    text = Text("\n" if fuzzed.mended or fuzzed.found else "")
    if fuzzed.still:
        what = counted(len(fuzzed.still), "kept failure")
        text.append("STILL WRONG", "bold red")
        return text.append(f"  {what} of earlier searches; nothing new was looked for")
    if fuzzed.example is not None:
        text.append("DISAGREES", "bold red").append(f"  {_found(fuzzed)}")
    elif fuzzed.counts.get("CONFORMS"):
        text.append("NO DISAGREEMENT", "bold green").append(
            f"  {_asked(fuzzed)}: that proves nothing about others"
        )
    else:
        text.append("INCONCLUSIVE", "bold yellow").append(f"  {_asked(fuzzed)}; no question was decided")
    if fuzzed.ended:
        text.append(f"; ended early: {fuzzed.ended}", "yellow")
    shard = f" --shard {fuzzed.shard}" if fuzzed.shard else ""
    return text.append(f"\n  the same again: --seed {fuzzed.seed}{shard}")


def _asked(fuzzed: Fuzzed) -> str:
    """How much, with which verdicts, and how fast."""
    others = "".join(f", {count} {what}" for what, count in fuzzed.counts.items() if what != "CONFORMS")
    good = fuzzed.counts.get("CONFORMS", 0)
    return f"{counted(fuzzed.examples, 'drawn question')} in {fuzzed.seconds:.1f} s, {good} CONFORMS{others}"


def _found(fuzzed: Fuzzed) -> str:
    small = fuzzed.example
    assert small is not None  # noqa: S101  (asked for where there is one)
    sizes = [
        counted(small.layers, "layer"),
        f"{counted(small.heads, 'head')} of {small.head_dim}",
        counted(small.virtual, "virtual token"),
        f"batch {small.batch}",
        counted(small.tokens, "token"),
    ]
    return f"first at drawn question {small.first_at}, shrunk with {small.asked_to_shrink} more to {small.family}: {', '.join(sizes)}"
