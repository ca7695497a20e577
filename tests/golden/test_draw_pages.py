"""The pictures of specs/: what they show, that the stored ones are those of the code, and that they can be read by everybody."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from draw_pages import (
    DRAWINGS,
    PICTURES,
    attention_maps,
    block_rows,
    blocks_of_ramp,
    decoder_rows,
    flat_row,
    meaning,
    position_lanes,
    position_rows,
)
from svg import CARD, INK, Picture

from refpeft.config import PrefixTuningConfig
from refpeft.oracle.mutants import MUTANTS
from refpeft.steps import replaced

SVG = "{http://www.w3.org/2000/svg}"


def test_there_is_a_file_for_each_picture() -> None:
    assert sorted(path.name for path in PICTURES.iterdir()) == sorted(f"{name}.svg" for name in DRAWINGS)


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_stored_picture_is_that_of_the_code(name: str) -> None:
    stored = (PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    assert stored == DRAWINGS[name]().svg(), "run golden/draw_pages.py"


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_says_what_it_shows(name: str) -> None:
    root = ElementTree.fromstring(DRAWINGS[name]().svg())  # noqa: S314  (our own)
    assert root.get("role") == "img"
    title, description = (root.find(f"{SVG}{tag}") for tag in ("title", "desc"))
    assert title is not None
    assert description is not None
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert 10 < len(title.text or "") < 90
    assert len(description.text or "") > 150
    pages = [p for p in PICTURES.parent.glob("*.md") if f"(pictures/{name}.svg)" in p.read_text("utf-8")]
    assert len(pages) == 1


@pytest.mark.parametrize("name", DRAWINGS)
def test_nothing_is_drawn_beyond_the_card(name: str) -> None:
    picture = DRAWINGS[name]()
    for element in ElementTree.fromstring(picture.svg()).iter(f"{SVG}rect"):  # noqa: S314
        x, y, width, height = (float(element.get(key, "nan")) for key in ("x", "y", "width", "height"))
        assert 0 <= x < x + width <= picture.width
        assert 0 <= y < y + height <= picture.height


def test_a_flat_row_is_cut_as_the_specification_cuts_it() -> None:
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, num_layers=2, num_attention_heads=2, token_dim=6,
        num_transformer_submodules=1,
    )  # fmt: skip
    blocks = blocks_of_ramp(config)
    assert blocks[1].tolist() == [[[6, 7, 8], [30, 31, 32]], [[9, 10, 11], [33, 34, 35]]]
    assert meaning(blocks, 0) == (0, 0, 0, 0)
    assert meaning(blocks, 16) == (1, 0, 1, 1)
    assert meaning(blocks, 23) == (1, 1, 1, 2)
    right = flat_row().svg()
    with replaced(MUTANTS["M01"].make()):
        assert flat_row().svg() != right


def test_the_maps_are_those_of_the_masks() -> None:
    shown = {
        title: ["".join(".x"[int(x)] for x in row) for row in seen] for title, _, seen, _ in attention_maps()
    }
    assert shown == {
        "causal": ["xxxx.....", "xxxxx....", "xxxxxx...", "xxxxxxx..", "xxxxxxxx.", "xxxxxxxxx"],
        "causal, padded on the left": [
            "xxx......", "xxx......", "xxx..x...", "xxx..xx..", "xxx..xxx.", "xxx..xxxx",
        ],
        "sliding window of 4": ["xxxx.....", ".xxxx....", "..xxxx...", "...xxxx..", "....xxxx.", ".....xxxx"],
        "bidirectional (encoders)": ["xxxxxxxxx"] * 6,
    }  # fmt: skip


def test_the_positions_are_those_of_the_specification() -> None:
    text, whole = list(range(3, 9)), list(range(9))
    assert [(title, clause, found, padded) for title, _, clause, found, padded in position_lanes()] == [
        ("the base model alone", "", [0, 1, 2, 3, 4, 5], False),
        ("prompt tuning", "PO-1", whole, False),
        ("prefix tuning", "PO-1", text, False),
        ("prefix, not shifted", "M34", [0, 1, 2, 3, 4, 5], False),
        ("prompt tuning", "PO-1", whole, True),
        ("prefix tuning", "PO-1", text, True),
        ("prefix tuning, OPT", "PO-4", [-1, -1, 3, 4, 5, 6], True),
        ("prefix, padding skipped", "M35", [2, 2, 3, 4, 5, 6], True),
    ]
    assert "−1" in position_rows().svg()


def test_the_rows_behind_an_encoder_are_those_of_the_prefix_encoder() -> None:
    assert block_rows(4, behind_encoder=False) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert block_rows(4, behind_encoder=True) == [(0, 1), (4, 5), (0, 1), (4, 5)]
    assert block_rows(3, behind_encoder=True) == [(0, 1), (4, 5), (2, 3)]
    right = decoder_rows().svg()
    with replaced(MUTANTS["M12"].make()):
        assert block_rows(4, behind_encoder=True) == block_rows(4, behind_encoder=False)
        assert decoder_rows().svg() != right


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_the_card(mode: int) -> None:
    card = luminance(CARD[mode][0])
    for kind, colours in INK.items():
        light, dark = sorted((luminance(colours[mode]), card), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= (3 if kind == "none" else 4.5), kind


def test_words_are_escaped_and_numbers_are_short() -> None:
    picture = Picture(20, 10, "a < b", "c & d")
    picture.words(1.25, 2.0, "<x>", "soft", size=11, anchor="end", mono=True, bold=True)
    text = picture.svg()
    assert (
        '<text class="w-soft mono bold" x="1.2" y="2" font-size="11" text-anchor="end">&lt;x&gt;</text>'
        in text
    )
    assert '<title id="title">a &lt; b</title>\n<desc id="description">c &amp; d</desc>' in text
    assert re.search(r"@media \(prefers-color-scheme: dark\)\{\.card\{fill:#0d1117;stroke:#3d444d\}", text)
