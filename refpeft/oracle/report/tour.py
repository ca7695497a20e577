"""What `refpeft tour` shows: on a terminal, and as the page specs/tour.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from refpeft.oracle.clauses import clauses
from refpeft.oracle.mutants import MUTANTS
from refpeft.oracle.tour import LAYERS, VIRTUAL, Stop, Tour

WIDTH = 8
"""Of a column of numbers."""
LABELS = {"heads": "head {}", "kv_heads": "head {}", "virtual": "p{}", "rows": "block {}"}


def beginning(tour: Tour) -> str:
    """What is followed, through what."""
    sizes = ", ".join(f"{name} {size}" for name, size in tour.model.items())
    tokens = ", ".join(map(str, tour.text))
    return (
        f"Followed: t{tour.followed}, token {tour.text[tour.followed]} of the text {tokens}, through a GPT-2 ({sizes}) with a "
        f"prefix of {tour.virtual} virtual tokens, p0 to p{tour.virtual - 1}. Where a stage has a row for each token, t{tour.followed}'s is shown."
    )


def render(tour: Tour) -> RenderableType:
    """The tour for a terminal."""
    lines: list[RenderableType] = [Text(beginning(tour))]
    for part, stops in groupby(tour.stops, key=lambda stop: stop.part):
        lines.append(Rule(f"[bold]{part}", align="left", style="dim"))
        for stop in stops:
            lines += _stop_lines(stop)
    lines.append(Rule(style="dim"))
    lines.append(Text(ending(tour)))
    lines.append(
        Text("→ refpeft explain AT-4, refpeft explain M01: any clause or mistake named above", "cyan")
    )
    return Group(*lines)


def _stop_lines(stop: Stop) -> Iterator[RenderableType]:
    heading = Text(f"\n{stop.stage}", "bold")
    heading.append(f"  ({shape_of(stop)})", "not bold dim")
    heading.append(f"  {stop.clause}", "not bold cyan")
    yield heading
    yield Padding(Text(stop.formula, "green"), (0, 0, 0, 2), expand=False)
    yield Padding(Text(stop.meaning, "dim"), (0, 0, 0, 2), expand=False)
    for number, line in enumerate(numbers(stop)):
        style = "dim" if not number and _has_heading(stop) else ""
        yield Padding(Text(line, style, no_wrap=True, overflow="fold"), (0, 0, 0, 4), expand=False)
    if stop.note:
        yield Padding(Text(stop.note, "yellow"), (0, 0, 0, 4), expand=False)
    if stop.mistakes:
        yield Padding(
            Text(f"mistakes that show here first: {', '.join(stop.mistakes)}", "dim"),
            (0, 0, 0, 4),
            expand=False,
        )


def ending(tour: Tour) -> str:
    """Which token the model expects next."""
    logits = tour.stops[-1].values
    best = max(range(len(logits)), key=logits.__getitem__)
    return f"After t{tour.followed} the model expects token {best}."


def shape_of(stop: Stop) -> str:
    """The whole stage's axes with their sizes."""
    return ", ".join(f"{axis} {size}" for axis, size in zip(stop.axes, stop.shape, strict=True))


def numbers(stop: Stop) -> list[str]:
    """The numbers of the followed token as lines, with what their rows and columns are."""
    axes, values = stop.shown_axes, stop.values
    if axes[-1:] == ["prefix_width"]:  # a row of it as the blocks that it will be cut into
        axes, values = [*axes[:-1], "rows", "block"], [_cut(row) for row in values]
    rows = list(_rows(values, axes))
    margin = max(len(label) for label, _ in rows)
    exact = stop.kind == "exact"
    lines = [f"{label:<{margin}}{''.join(_number(value, exact) for value in row)}" for label, row in rows]
    if _has_heading(stop):
        count = len(rows[0][1])
        names = [f"p{i}" if i < VIRTUAL else f"t{i - VIRTUAL}" for i in range(count)]
        lines.insert(0, " " * margin + "".join(f"{name:>{WIDTH}}" for name in names))
    return lines


def _has_heading(stop: Stop) -> bool:
    return stop.shown_axes[-1:] == ["key"]


def _rows(values: Any, axes: list[str], label: str = "") -> Iterator[tuple[str, list[Any]]]:
    if len(axes) < 2:
        yield label, values if axes else [values]
        return
    for place, part in enumerate(values):
        name = LABELS.get(axes[0], "").format(place)
        if axes[0] == "key":
            name = f"p{place}" if place < VIRTUAL else f"t{place - VIRTUAL}"
        yield from _rows(part, axes[1:], f"{label} {name}".strip())


def _cut(row: list[float]) -> list[list[float]]:
    size = len(row) // (2 * LAYERS)
    return [row[start : start + size] for start in range(0, len(row), size)]


def _number(value: Any, exact: bool) -> str:
    if value is None:
        return f"{'hidden':>{WIDTH}}"
    if isinstance(value, bool):
        return f"{'sees' if value else '·':>{WIDTH}}"
    text = f"{value:g}" if exact else f"{value:.3f}"
    return f"{('0.000' if text == '-0.000' else text).replace('-', '−'):>{WIDTH}}"


# ---------------------------------------------------------------- the page

_HEAD = """# A tour

One token on its way through prefix tuning, with every number. This page is `refpeft tour --format markdown`; on a terminal
`refpeft tour` shows the same, and `--format json` gives every number whole.

"""
_FOOT = """

## The same in code

```python
from refpeft.oracle.tour import tour

stops = {stop.stage: stop for stop in tour().stops}
assert list(stops)[-1] == "logits" and len(stops) == 42
shares = [sum(head[:2]) for head in stops["decoder.layers.0.attention.weights"].values]
assert all(0 < share < 1 for share in shares)  # λ of each head: what the prefix takes (papers.md)
assert stops["inputs.position_ids"].values == 2 + 1  # behind two virtual ones and t0
assert stops["decoder.layers.1.attention.scores"].values[0][4] is None  # it does not see what comes after it
```
"""


def markdown(tour: Tour) -> str:
    """The tour as a page of specs/."""
    known, lines = clauses(), [_HEAD + beginning(tour)]
    for part, stops in groupby(tour.stops, key=lambda stop: stop.part):
        lines.append(f"## {part[0].upper()}{part[1:]}")
        for stop in stops:
            lines.append(f"**`{stop.stage}`** · ({shape_of(stop)}) · {_link(known, stop.clause)}")
            lines.append(f"    {stop.formula}")
            lines.append(stop.meaning)
            lines.append("```text\n" + "\n".join(numbers(stop)) + "\n```")
            if stop.note:
                lines.append(f"{stop.note}.")
            if stop.mistakes:
                said = "; ".join(f"{MUTANTS[name].title} ({name})" for name in stop.mistakes)
                lines.append(f"Mistakes that show here first: {said}.")
    return "\n\n".join([*lines, ending(tour)]) + _FOOT


def _link(known: dict[str, str], label: str) -> str:
    """A link to a clause, as code hosts make its heading's anchor."""
    title, page = known[label].split("\n", 1)[0], known[label].rsplit("(specs/", 1)[1].removesuffix(")")
    return f"[{label}]({page}#{re.sub(r'[^a-z0-9_ -]', '', title.lower()).replace(' ', '-')})"
