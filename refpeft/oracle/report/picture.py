"""Tables of numbers as small PNG pictures, one pixel a number: for a page that asks nothing of the network.

Colours have an alpha channel, so that zero shows the page's own background, light or dark.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence

Colour = tuple[int, int, int, int]

NOTHING: Colour = (0, 0, 0, 0)
NO_NUMBER: Colour = (168, 60, 190, 255)
"""Where there is no number: NaN, infinity, a missing tensor, another shape."""
LARGEST = 1e6
"""Errors above so many budgets look alike."""


def data_uri(rows: Sequence[Sequence[Colour]]) -> str:
    """A PNG of these pixels as an address that holds it."""
    palette = {colour: place for place, colour in enumerate(dict.fromkeys(c for row in rows for c in row))}
    width, height = len(rows[0]), len(rows)
    if len(palette) <= 256:
        kind = 3  # one byte a pixel, into a palette
        raw = b"".join(b"\0" + bytes(palette[c] for c in row) for row in rows)
        chunks = [
            (b"PLTE", b"".join(bytes(c[:3]) for c in palette)),
            (b"tRNS", bytes(c[3] for c in palette)),
        ]
    else:
        kind, chunks = 6, []
        raw = b"".join(b"\0" + b"".join(bytes(c) for c in row) for row in rows)
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in parts
    )
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def of_ratio(ratio: float | None) -> Colour:
    """Of an error in budgets: blue within, from yellow to dark red beyond, on a logarithmic scale."""
    if ratio is None or not math.isfinite(ratio):
        return NO_NUMBER
    if ratio <= 1:
        return (46, 113, 178, 40 + round(110 * min(1.0, max(0.0, ratio)) ** 0.5))
    share = round(12 * min(1.0, math.log10(ratio) / math.log10(LARGEST))) / 12
    return (*_between((244, 173, 54), (196, 26, 32), share), 255)


def of_value(x: float | str, scale: float) -> Colour:
    """Of a number among others up to `scale`: red above zero, blue below, more opaque the larger."""
    if isinstance(x, str) or not math.isfinite(x):
        return NO_NUMBER
    share = min(1.0, abs(x) / scale) if scale > 0 else 0.0
    red, green, blue = (203, 57, 43) if x > 0 else (36, 105, 173)
    return (red, green, blue, round(255 * share**0.6)) if share else NOTHING


def scale_of(*tables: Sequence[Sequence[float | str]]) -> float:
    """The largest finite number."""
    numbers = [abs(x) for table in tables for row in table for x in row if not isinstance(x, str)]
    return max(filter(math.isfinite, numbers), default=0.0)


def _between(first: tuple[int, int, int], last: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, last, strict=True))
    return red, green, blue
