"""Plain SVG: cells, words and lines on a card, in colours for light and dark pages. The same calls give the same file."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

INK = {
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#59636e", "#9198a1"),
    "key": ("#8250df", "#ab7df8"),
    "value": ("#0f766e", "#2dba9e"),
    "virtual": ("#bc4c00", "#f0883e"),
    "text": ("#0969da", "#58a6ff"),
    "none": ("#8c959f", "#656c76"),
    "wrong": ("#cf222e", "#f85149"),
}
"""What each kind of thing is drawn in: on a light card, on a dark card. Words in these have a contrast of 4.5 to 1 with it; "none"
is for outlines."""
CARD = (("#ffffff", "#d1d9e0"), ("#0d1117", "#3d444d"))
"""The card's own colour and its edge, light and dark: the picture is legible whatever the page behind it is."""
FONTS = (
    ".words{font-family:-apple-system,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif}"
    ".mono{font-family:ui-monospace,SFMono-Regular,Menlo,'DejaVu Sans Mono',monospace}"
    ".bold{font-weight:600}"
)


def _rules(mode: int) -> str:
    fill, edge = CARD[mode]
    rules = [f".card{{fill:{fill};stroke:{edge}}}"]
    for kind, colours in INK.items():
        rules.append(f".w-{kind}{{fill:{colours[mode]}}}")
        rules.append(f".c-{kind}{{fill:{colours[mode]};fill-opacity:.2;stroke:{colours[mode]}}}")
        rules.append(f".l-{kind}{{fill:none;stroke:{colours[mode]}}}")
        rules.append(f".f-{kind}{{fill:{colours[mode]};fill-opacity:.08}}")
    return "".join(rules)


class Picture:
    """A picture of a given size, with a title and a description for those who do not see it."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self.width, self.height = width, height
        self.title, self.description = title, description
        self._parts: list[str] = []

    def cell(
        self, x: float, y: float, width: float, height: float, kind: str, words: object = "", **how: bool
    ) -> None:
        """A rectangle with words in its middle. `empty`: its outline alone; `dashed`: a broken outline."""
        style = f"l-{kind}" if how.get("empty") else f"c-{kind}"
        dashes = ' stroke-dasharray="3 2"' if how.get("dashed") else ""
        self._parts.append(
            f'<rect class="{style}" x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" '
            f'height="{_number(height)}" rx="2"{dashes}/>'
        )
        if str(words):
            ink = "soft" if how.get("empty") else "ink"
            self.words(x + width / 2, y + height / 2 + 4, words, ink, size=12, mono=True)

    def words(self, x: float, y: float, words: object, kind: str = "ink", **how: object) -> None:
        """A line of text. `size`; `anchor`, middle unless start or end is given; `mono`, `bold`."""
        size, anchor = how.get("size", 13), how.get("anchor", "middle")
        style = " ".join(
            [f"w-{kind}", "mono" if how.get("mono") else "words", *["bold"] * bool(how.get("bold"))]
        )
        self._parts.append(
            f'<text class="{style}" x="{_number(x)}" y="{_number(y)}" font-size="{size}" '
            f'text-anchor="{anchor}">{escape(str(words))}</text>'
        )

    def line(self, points: Sequence[tuple[float, float]], kind: str = "none", width: float = 1) -> None:
        """A line through points."""
        path = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._parts.append(f'<polyline class="l-{kind}" stroke-width="{_number(width)}" points="{path}"/>')

    def curve(
        self, start: tuple[float, float], end: tuple[float, float], kind: str, width: float = 1.6
    ) -> None:
        """A line from above to below that leaves and arrives upright."""
        (x, y), (u, v) = start, end
        half = (y + v) / 2
        numbers = (x, y, x, half, u, half, u, v)
        a, b, c, d, e, f, g, h = map(_number, numbers)
        self._parts.append(
            f'<path class="l-{kind}" stroke-width="{_number(width)}" d="M{a} {b}C{c} {d} {e} {f} {g} {h}"/>'
        )

    def shade(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A faint surface."""
        path = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._parts.append(f'<polygon class="f-{kind}" points="{path}"/>')

    def bracket(self, x: float, y: float, width: float, kind: str = "soft") -> None:
        """A bracket above something of this width, its top at y."""
        self.line([(x, y + 5), (x, y), (x + width, y), (x + width, y + 5)], kind)

    def svg(self) -> str:
        """The file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" aria-labelledby="title description">'
        )
        style = f"<style>{FONTS}{_rules(0)}@media (prefers-color-scheme: dark){{{_rules(1)}}}</style>"
        card = (
            f'<rect class="card" x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" rx="8"/>'
        )
        words = (
            f'<title id="title">{escape(self.title)}</title>',
            f'<desc id="description">{escape(self.description)}</desc>',
        )
        return "\n".join([head, *words, style, card, *self._parts, "</svg>", ""])


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
