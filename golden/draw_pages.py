"""The pictures in specs/: what they show is computed by the specification itself, and by known mistakes where they are drawn.

python golden/draw_pages.py       writes specs/pictures/*.svg anew
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy
from svg import Picture

from refpeft import masks, positions, prefix_encoder
from refpeft.arrays import Array
from refpeft.config import PrefixTuningConfig
from refpeft.files import write_atomically
from refpeft.oracle.mutants import MUTANTS
from refpeft.steps import replaced

PICTURES = Path(__file__).resolve().parent.parent / "specs/pictures"
LIKE = numpy.zeros(0)
KINDS = ("key", "value")


# ---------------------------------------------------------------- the flat row


def blocks_of_ramp(config: PrefixTuningConfig) -> list[Array]:
    """Each layer's key and value, (kv_heads, virtual, head_dim), where the flat table holds 0, 1, 2, …."""
    virtual, width = config.num_virtual_tokens or 0, config.prefix_embedding_dim
    ramp = numpy.arange(virtual * width).reshape(virtual, width).astype(numpy.float64)
    past = prefix_encoder.forward({prefix_encoder.EMBEDDING: ramp}, config, 1)
    return [block[0].astype(int) for pair in past for block in pair]


def meaning(blocks: list[Array], column: int) -> tuple[int, int, int, int]:
    """Layer, key (0) or value (1), head and place of a column of the flat row: where the specification puts it."""
    for number, block in enumerate(blocks):
        for head, token, place in numpy.argwhere(block == column):
            assert token == 0
            return number // 2, number % 2, int(head), int(place)
    raise AssertionError(f"column {column} is in no block")


def flat_row() -> Picture:
    """The flat table as blocks, and what each becomes."""
    layers, heads, head_dim, virtual = 2, 2, 3, 2
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=virtual, num_layers=layers, num_attention_heads=heads,
        token_dim=heads * head_dim, num_transformer_submodules=1,
    )  # fmt: skip
    blocks = blocks_of_ramp(config)
    width = config.prefix_embedding_dim
    columns = [meaning(blocks, column) for column in range(width)]
    picture = Picture(
        920, 420, "A flat prefix row as blocks",
        f"A table of {virtual} virtual tokens by {width} numbers, numbered row by row. Each row holds layer 0's keys, layer 0's "
        "values, layer 1's keys, layer 1's values; each of these head 0, then head 1; each head 3 numbers. Below, each block as "
        "the array that attention gets: for each head, one row for each virtual token.",
    )  # fmt: skip
    left, top, side, tall = 116, 112, 32, 28
    for depth, (y, label) in enumerate(((26, "layer {}"), (52, "{}"), (76, "head {}")), 1):
        spans = [list(group) for _, group in groupby(range(width), key=lambda c, d=depth: columns[c][:d])]  # type: ignore[misc]
        for span in spans:
            value = columns[span[0]][depth - 1]
            kind = KINDS[columns[span[0]][1]] if depth > 1 else "ink"
            x = left + span[0] * side
            words = label.format(KINDS[value] if depth == 2 else value)
            picture.words(
                x + len(span) * side / 2, y, words, kind, size=13 if depth < 3 else 12, bold=depth < 3
            )
            picture.bracket(x + 2, y + 5, len(span) * side - 4, "soft" if depth == 1 else kind)
    picture.words(left - 10, 104, "place in the head", "soft", size=11, anchor="end")
    for column in range(width):
        picture.words(left + (column + 0.5) * side, 104, columns[column][3], "soft", size=11, mono=True)
    for token in range(virtual):
        y = top + token * tall
        picture.words(left - 10, y + 19, f"virtual token {token}", "virtual", size=12, anchor="end")
        for column in range(width):
            kind = KINDS[columns[column][1]]
            picture.cell(left + column * side, y, side, tall, kind, token * width + column)
    _blocks_below(picture, blocks, left, side, top + virtual * tall)
    picture.words(
        left, 396, "each block: (kv_heads, virtual, head_dim); the numbers say where in the flat table they stood",
        "soft", size=12, anchor="start",
    )  # fmt: skip
    return picture


def _blocks_below(picture: Picture, blocks: list[Array], left: float, side: float, bottom: float) -> None:
    """Each block as attention gets it, joined to its columns of the flat row."""
    heads, virtual, head_dim = blocks[0].shape
    cell, gap, between, top = 29, 8, 20, 262
    wide = heads * head_dim * cell + (heads - 1) * gap
    start = (
        left + (len(blocks) * heads * head_dim * side - len(blocks) * wide - (len(blocks) - 1) * between) / 2
    )
    for number, block in enumerate(blocks):
        kind, x = KINDS[number % 2], start + number * (wide + between)
        first = left + number * heads * head_dim * side
        last = first + heads * head_dim * side
        picture.shade([(first, bottom), (last, bottom), (x + wide, top - 38), (x, top - 38)], kind)
        picture.words(x + wide / 2, top - 22, f"prefix.layers.{number // 2}.{kind}", kind, size=12, mono=True)
        for head in range(heads):
            own = x + head * (head_dim * cell + gap)
            picture.words(own + head_dim * cell / 2, top - 5, f"head {head}", "soft", size=11)
            for token in range(virtual):
                for place in range(head_dim):
                    words = block[head, token, place]
                    picture.cell(own + place * cell, top + token * 28, cell, 28, kind, words)
        if number == 0:
            for token in range(virtual):
                words = f"virtual token {token}"
                picture.words(x - 8, top + token * 28 + 19, words, "virtual", size=12, anchor="end")
    picture.words(
        left, 348, f"block r, head h, place d of virtual token t  =  flat[t, (r · {heads} + h) · {head_dim} + d]",
        "ink", size=12, anchor="start", mono=True,
    )  # fmt: skip
    picture.words(
        left, 372, "keys and values alternate: layer i has block 2i as keys, block 2i + 1 as values (PX-4)",
        "ink", size=12, anchor="start",
    )  # fmt: skip


# ---------------------------------------------------------------- who sees whom

VIRTUAL, TOKENS, WINDOW = 3, 6, 4
LEFT_PADDED = numpy.array([[0, 0, 1, 1, 1, 1]])


def attention_maps() -> list[tuple[str, str, Array, Array | None]]:
    """Title, clause, who sees whom (query, key), and the text's mask, beside a prefix."""
    keys = VIRTUAL + TOKENS
    padded = masks.extend_attention_mask(LEFT_PADDED, VIRTUAL)
    causal = masks.causal_visibility(None, 1, TOKENS, keys, LIKE)
    left = masks.causal_visibility(padded, 1, TOKENS, keys, LIKE)
    sliding = masks.sliding_visibility(None, 1, TOKENS, keys, WINDOW, 0, LIKE)
    both = masks.bidirectional_visibility(None, 1, TOKENS, keys, LIKE)
    return [
        ("causal", "MK-3", causal[0], None),
        ("causal, padded on the left", "MK-1, MK-3", left[0], LEFT_PADDED[0]),
        (f"sliding window of {WINDOW}", "MK-4", sliding[0], None),
        ("bidirectional (encoders)", "MK-5", both[0], None),
    ]


def attention_map() -> Picture:
    """Who sees whom beside a prefix, for four kinds of masks."""
    picture = Picture(
        860, 624, "Which keys each query sees beside a prefix",
        f"Four maps with {TOKENS} queries as rows and {VIRTUAL} prefix keys and {TOKENS} text keys as columns. Causal: every query "
        "sees all prefix keys and the text up to itself. Padded on the left: the padding's columns are hidden from all, and "
        "padding queries still see the prefix. Sliding window of 4: later queries lose the prefix, the fourth sees none of it. "
        "Bidirectional: every query sees every key.",
    )  # fmt: skip
    for number, (title, clause, seen, mask) in enumerate(attention_maps()):
        x, y = 84 + number % 2 * 414, 78 + number // 2 * 274
        _map(picture, x, y, seen, mask)
        picture.words(x, y - 38, title, "ink", size=14, anchor="start", bold=True)
        picture.words(x + 9 * 34, y - 38, clause, "soft", size=12, anchor="end")
    y = 592
    for x, kind, words in (
        (84, "virtual", "prefix key, seen"), (258, "text", "text key, seen"), (418, "none", "not seen"),
    ):  # fmt: skip
        if kind == "none":
            picture.cell(x, y - 14, 18, 18, kind, "", empty=True)
        else:
            picture.cell(x, y - 14, 18, 18, kind, "•")
        picture.words(x + 26, y, words, "soft", size=12, anchor="start")
    picture.words(544, y, "p: virtual token · t: text · #: padding (mask 0)", "soft", size=12, anchor="start")
    return picture


def _map(picture: Picture, x: float, y: float, seen: Array, mask: Array | None) -> None:
    side, tall = 34, 31
    padding = [mask is not None and mask[token] == 0 for token in range(TOKENS)]
    for key in range(VIRTUAL + TOKENS):
        token = key - VIRTUAL
        words, kind = (f"p{key}", "virtual") if token < 0 else (f"t{token}", "text")
        words, kind = ("#", "soft") if token >= 0 and padding[token] else (words, kind)
        picture.words(x + (key + 0.5) * side, y - 9, words, kind, size=12, mono=True)
        for query in range(TOKENS):
            place = (x + key * side, y + query * tall, side, tall)
            if seen[query, key]:
                picture.cell(*place, "virtual" if token < 0 else "text", "•")
            else:
                picture.cell(*place, "none", "", empty=True)
    for query in range(TOKENS):
        words, kind = ("#", "soft") if padding[query] else (f"t{query}", "text")
        picture.words(x - 12, y + (query + 0.5) * tall + 4, words, kind, size=12, anchor="end", mono=True)
    picture.words(x - 36, y - 9, "query", "soft", size=11)
    picture.line([(x + VIRTUAL * side, y - 4), (x + VIRTUAL * side, y + TOKENS * tall + 4)], "ink", 1.6)


# ---------------------------------------------------------------- positions


def position_lanes() -> list[tuple[str, str, str, list[int], bool]]:
    """Title, comment, clause or mistake, the positions computed, and whether the rows are padded on the left."""
    n, m = VIRTUAL, TOKENS
    padded = masks.extend_attention_mask(LEFT_PADDED, n)

    def counted(queries: int, past: int) -> list[int]:
        return positions.position_ids(1, queries, past, None, LIKE)[0].tolist()

    def mistaken(name: str, compute: Callable[[], list[int]]) -> list[int]:
        with replaced(MUTANTS[name].make()):
            return compute()

    def beside_padding() -> list[int]:
        masks.extend_attention_mask(LEFT_PADDED, n)
        return counted(m, n)

    by_mask = positions.position_ids_of_mask(padded, n, None)[0].tolist()
    return [
        ("the base model alone", "from 0", "", counted(m, 0), False),
        ("prompt tuning", "virtual tokens have positions", "PO-1", counted(n + m, 0), False),
        ("prefix tuning", f"the text starts at n = {n}", "PO-1", counted(m, n), False),
        ("prefix, not shifted", "known mistake", "M34", mistaken("M34", lambda: counted(m, n)), False),
        ("prompt tuning", "padding counts", "PO-1", counted(n + m, 0), True),
        ("prefix tuning", "padding counts", "PO-1", counted(m, n), True),
        ("prefix tuning, OPT", "counted along the mask", "PO-4", by_mask, True),
        ("prefix, padding skipped", "known mistake", "M35", mistaken("M35", beside_padding), True),
    ]


def position_rows() -> Picture:
    """Which position each token has, with virtual tokens before it."""
    lanes = position_lanes()
    said = "; ".join(
        f"{title}{' (padded on the left)' if padded else ''}, {comment}: {', '.join(map(str, found))}"
        for title, comment, _, found, padded in lanes
    )
    picture = Picture(
        860, 482, "Positions beside virtual tokens",
        f"{VIRTUAL} virtual tokens and {TOKENS} tokens of text. {said}. A prefix's keys have no position of their own.",
    )  # fmt: skip
    left, side = 200, 46
    for padded, top in ((False, 56), (True, 262)):
        words = "padded on the left" if padded else "no padding"
        picture.words(24, top - 14, words, "ink", size=14, anchor="start", bold=True)
        for key in range(VIRTUAL + TOKENS):
            name = f"p{key}" if key < VIRTUAL else f"t{key - VIRTUAL}"
            token = key - VIRTUAL
            hidden = padded and token >= 0 and LEFT_PADDED[0, token] == 0
            kind = "virtual" if token < 0 else "soft" if hidden else "text"
            middle = left + (key + 0.5) * side
            picture.words(middle, top - 14, "#" if hidden else name, kind, size=12, mono=True)
        for number, lane in enumerate(lane for lane in lanes if lane[4] == padded):
            _lane(picture, left, side, top + number * 43, lane)
    picture.words(
        24, 458, "dashed: keys in the cache, used as stored, with no position of their own (PO-3) · #: padding",
        "soft", size=12, anchor="start",
    )  # fmt: skip
    return picture


def _lane(
    picture: Picture, left: float, side: float, y: float, lane: tuple[str, str, str, list[int], bool]
) -> None:
    title, comment, clause, found, padded = lane
    wrong = clause.startswith("M")
    picture.words(left - 14, y + 21, title, "wrong" if wrong else "ink", size=13, anchor="end")
    picture.words(
        left + 9 * side + 14, y + 21, f"{comment}{', ' * bool(clause)}{clause}", "wrong" if wrong else "soft",
        size=12, anchor="start",
    )  # fmt: skip
    first = VIRTUAL + TOKENS - len(found)
    if first and title != "the base model alone":
        for key in range(first):
            picture.cell(left + key * side, y, side - 4, 32, "virtual", "k v", empty=True, dashed=True)
    for place, position in enumerate(found, first):
        token = place - VIRTUAL
        hidden = padded and token >= 0 and LEFT_PADDED[0, token] == 0
        kind = "virtual" if token < 0 else "none" if hidden else "wrong" if wrong else "text"
        picture.cell(left + place * side, y, side - 4, 32, kind, str(position).replace("-", "−"))


# ---------------------------------------------------------------- behind an encoder


def block_rows(layers: int, behind_encoder: bool) -> list[tuple[int, int]]:
    """The blocks that hold each layer's keys and values: found by following 2 · layers numbers through the prefix encoder."""
    config = PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM" if behind_encoder else "CAUSAL_LM", num_virtual_tokens=1, num_layers=layers,
        num_attention_heads=1, token_dim=1, num_transformer_submodules=2 if behind_encoder else 1,
    )  # fmt: skip
    ramp = numpy.arange(2.0 * layers)[None]
    past = prefix_encoder.forward({prefix_encoder.EMBEDDING: ramp}, config, 1)
    return [(int(key.item()), int(value.item())) for key, value in past]


def decoder_rows() -> Picture:
    """Which blocks of the flat row become which decoder layer's keys and values."""
    panels = [
        ("a decoder alone, 4 layers", "PX-4", block_rows(4, False)),
        ("behind an encoder, 4 layers", "PX-8", block_rows(4, True)),
        ("behind an encoder, 3 layers", "PX-8", block_rows(3, True)),
    ]
    said = ". ".join(
        f"{title}: " + ", ".join(f"layer {i} takes blocks {k} and {v}" for i, (k, v) in enumerate(rows))
        for title, _, rows in panels
    )
    picture = Picture(
        860, 634, "Which blocks of a flat prefix row become which layer's keys and values",
        f"{said}. With 4 layers behind an encoder, blocks 2, 3, 6 and 7 are never used.",
    )  # fmt: skip
    for number, (title, clause, rows) in enumerate(panels):
        y = 58 + number * 190
        picture.words(24, y - 18, title, "ink", size=14, anchor="start", bold=True)
        picture.words(836, y - 18, clause, "soft", size=12, anchor="end")
        _row_panel(picture, 148, y, rows)
    picture.words(
        24, 610, "K: keys · V: values · dashed, in grey: blocks that no layer reads; they are stored, trained and saved, with a gradient of zero",
        "soft", size=12, anchor="start",
    )  # fmt: skip
    return picture


def _row_panel(picture: Picture, x: float, y: float, rows: list[tuple[int, int]]) -> None:
    side, low, layers = 84, y + 92, len(rows)
    used = {block for row in rows for block in row}
    picture.words(x - 14, y + 20, "flat row, block", "soft", size=12, anchor="end")
    picture.words(x - 14, low + 20, "decoder layer", "soft", size=12, anchor="end")
    for layer, blocks in enumerate(rows):
        for which, block in enumerate(blocks):
            start = (x + (block + 0.5) * side, y + 30)
            picture.curve(start, (x + (2 * layer + which + 0.5) * side, low), KINDS[which])
    for block in range(2 * layers):
        place = (x + block * side + 3, y, side - 6, 30)
        kind = KINDS[block % 2]
        if block in used:
            picture.cell(*place, kind, block)
        else:
            picture.cell(*place, "none", block, empty=True, dashed=True)
    for layer, blocks in enumerate(rows):
        for which, block in enumerate(blocks):
            place = (x + (2 * layer + which) * side + 3, low, side - 6, 30)
            picture.cell(*place, KINDS[which], f"{'KV'[which]} ← {block}")
        picture.words(x + (2 * layer + 1) * side, low + 46, f"layer {layer}", "soft", size=12)


DRAWINGS: dict[str, Callable[[], Picture]] = {
    "flat-row": flat_row,
    "attention-map": attention_map,
    "positions": position_rows,
    "decoder-rows": decoder_rows,
}
"""Each picture by the name of its file."""


def main() -> None:
    """Write every picture."""
    PICTURES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        write_atomically(PICTURES / f"{name}.svg", draw().svg().encode())


if __name__ == "__main__":
    main()
