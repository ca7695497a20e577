"""Pictures of numbers."""

from __future__ import annotations

import base64
import struct
import zlib

import pytest

from refpeft.oracle.report import picture
from refpeft.oracle.report.picture import NO_NUMBER, NOTHING, Colour, data_uri, of_ratio, of_value, scale_of


def pixels(address: str) -> list[list[Colour]]:
    """The picture at an address, read as the PNG specification says."""
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    png = base64.b64decode(data)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    place, chunks = 8, {}
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        tag, body = png[place + 4 : place + 8], png[place + 8 : place + 8 + size]
        assert struct.unpack(">I", png[place + 8 + size : place + 12 + size]) == (zlib.crc32(tag + body),)
        chunks[tag] = body
        place += 12 + size
    width, height, depth, kind = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert depth == 8
    raw, step = zlib.decompress(chunks[b"IDAT"]), 1 if kind == 3 else 4
    rows = [raw[y * (width * step + 1) :][: width * step + 1] for y in range(height)]
    assert {row[0] for row in rows} == {0}
    if kind == 6:
        return [[tuple(row[1 + 4 * x :][:4]) for x in range(width)] for row in rows]  # type: ignore[misc]
    palette = [(*chunks[b"PLTE"][3 * i :][:3], chunks[b"tRNS"][i]) for i in range(len(chunks[b"tRNS"]))]
    return [[palette[i] for i in row[1:]] for row in rows]  # type: ignore[misc]


@pytest.mark.parametrize("colours", [3, 256, 257])
def test_a_picture_is_a_png(colours: int) -> None:
    """With a palette as long as one byte counts its colours."""
    rows: list[list[Colour]] = [[(i % 256, i // 256, x, 255 - x) for i in range(colours)] for x in range(1)]
    assert pixels(data_uri(rows)) == rows


def test_errors_are_blue_within_the_budget_and_red_beyond() -> None:
    within, at, over, far, beyond = (of_ratio(x) for x in (0.0, 1.0, 1.01, 1e6, 1e300))
    assert within[:3] == at[:3] == (46, 113, 178)
    assert within[3] < at[3] < over[3]
    assert over == (244, 173, 54, 255)
    assert far == beyond == (196, 26, 32, 255)
    assert {of_ratio(x) for x in (None, float("nan"), float("inf"))} == {NO_NUMBER}


def test_values_have_signs_and_zero_is_nothing() -> None:
    assert of_value(0.0, 2.0) == of_value(1.0, 0.0) == NOTHING
    assert of_value(2.0, 2.0) == of_value(5.0, 2.0) == (203, 57, 43, 255)
    assert of_value(-1.0, 2.0)[:3] == (36, 105, 173)
    assert of_value("nan", 2.0) == of_value(float("inf"), 2.0) == NO_NUMBER


def test_the_scale_is_the_largest_number() -> None:
    assert scale_of([[1.0, -3.0]], [["inf", 2.0, float("inf")]]) == 3.0
    assert scale_of([["nan"]]) == scale_of() == 0.0
    assert picture.LARGEST == 1e6
