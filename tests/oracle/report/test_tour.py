"""What `refpeft tour` prints for people, and that specs/tour.md is what it writes."""

from __future__ import annotations

import io

import msgspec
from rich.console import Console

from refpeft.oracle.clauses import specs_directory
from refpeft.oracle.report.tour import beginning, ending, markdown, numbers, render
from refpeft.oracle.tour import tour

MADE = tour()
STOPS = {stop.stage: stop for stop in MADE.stops}


def test_the_page_is_what_the_command_writes() -> None:
    page = (specs_directory() / "tour.md").read_text(encoding="utf-8")
    assert page == markdown(MADE), "run refpeft tour --format markdown > specs/tour.md"


def test_what_a_terminal_shows() -> None:
    wanted = ("inputs.position_ids", "decoder.layers.0.attention.weights")
    short = msgspec.structs.replace(MADE, stops=[*(STOPS[name] for name in wanted), STOPS["logits"]])
    file = io.StringIO()
    Console(file=file, width=90, highlight=False).print(render(short))
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines[3:] == [
        "what goes in " + "─" * 77,
        "",
        "inputs.position_ids  (batch 1, query 3)  PO-1",
        "  virtual + 0, virtual + 1, …",
        "  `past, past + 1, …` for each row, whatever the padding; `given + past` where the caller",
        "  gave positions.",
        "           3",
        "    mistakes that show here first: M34",
        "layer 0 " + "─" * 82,
        "",
        "decoder.layers.0.attention.weights  (batch 1, heads 2, query 3, key 5)  AT-4",
        "  softmax(scores)",
        "  One softmax over prefix and text together.",
        "                p0      p1      t0      t1      t2",
        "    head 0   0.464   0.274   0.017   0.246   0.000",
        "    head 1   0.110   0.112   0.155   0.624   0.000",
        "    λ, the prefix's share: 0.737, 0.221",
        "    mistakes that show here first: M47",
        "what comes out " + "─" * 75,
        "",
        "logits  (batch 1, query 3, vocab 5)  TK-2",
        "  x · token tableᵀ",
        "  `hidden · weightᵀ`, without bias in most families; tied to the token embeddings unless",
        "  the checkpoint says otherwise.",
        "       1.022   1.748  −0.312  −0.136   1.700",
        "─" * 90,
        "After t1 the model expects token 1.",
        "→ refpeft explain AT-4, refpeft explain M01: any clause or mistake named above",
    ]


def test_beginning_and_end() -> None:
    assert beginning(MADE) == (
        "Followed: t1, token 3 of the text 1, 3, 0, through a GPT-2 (layers 2, hidden 4, heads 2, head_dim 2, vocab 5) with a "
        "prefix of 2 virtual tokens, p0 to p1. Where a stage has a row for each token, t1's is shown."
    )
    assert ending(MADE) == "After t1 the model expects token 1."


def test_numbers_have_labels() -> None:
    assert numbers(STOPS["decoder.visible"]) == [
        "      p0      p1      t0      t1      t2",
        "    sees    sees    sees    sees       ·",
    ]
    assert numbers(STOPS["prefix.flat"])[3:5] == [
        "p0 block 3  −0.200   0.200   0.600   0.500",
        "p1 block 0  −0.600  −0.200  −0.400   0.100",
    ]
    assert numbers(STOPS["decoder.layers.1.attention.key_states"])[7].startswith("head 1 t0 ")
    assert numbers(STOPS["decoder.layers.1.attention.scores"])[1].endswith("  hidden")
    tiny = msgspec.structs.replace(STOPS["logits"], values=[-0.0001] * 5)
    assert numbers(tiny) == ["   0.000" * 5]
