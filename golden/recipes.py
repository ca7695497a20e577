"""What is asked: one recipe for each golden vector. No values here; `answers.py` gets them from HF.

The seed of a case's inputs is the CRC-32 of its id, so that a new case changes no other.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refpeft.oracle.questions import PREFIX, PROMPT
from refpeft.oracle.vectors import DIALECT

SUITES = {"checkpoint.load": "checkpoint", "checkpoint.save": "checkpoint", "config.resolve": "config"}
"""The directory of a question's cases, where it is not the question's name."""


@dataclass(frozen=True)
class Text:
    """A batch of token ids and what goes with it."""

    batch: int
    tokens: int
    padding: str = ""
    """`left`, `right`, `full` (a mask of ones), or nothing: no mask."""
    labels: str = ""
    """Of tokens: `all`, `some` (a prompt without labels, then a completion). Of rows: `classes`, `numbers`, `shares` (one
    number between 0 and 1 for each class). Of answers: `spans`, `spans-outside` (one of them ends behind the text). Or
    nothing: no labels."""
    positions: str = ""
    """`cumsum` (counted from the first real token), `given` (others), or nothing."""
    boolean: bool = False
    """Whether the mask is of booleans; else int64."""
    pad: int | None = None
    """A token that stands where the padding is, in the place of a mask."""
    pads: bool = False
    """Whether the model's own token to pad with stands where the padding is, and nowhere else."""
    token_types: bool = False
    """Whether there are token types: 0 for the first tokens of a row, 1 for the others."""
    decoder_tokens: int = 0
    """How many tokens the decoder of an encoder-decoder gets."""
    decoder_padding: str = ""
    """Like `padding`, of the decoder's tokens."""
    decoder_ids: bool = False
    """Whether the decoder's tokens are the caller's, and not made from the labels."""
    most_padding: int = 4
    """A row is not padded by more: behind a window of padding, a token sees no key, and what HF computes is an artefact."""


@dataclass(frozen=True)
class Recipe:
    """One golden vector."""

    method: str
    question: str
    name: str
    title: str
    clauses: str
    model: str | None = None
    config: dict[str, Any] | None = None
    """Arguments of HF's configuration class."""
    arguments: dict[str, Any] = field(default_factory=dict)
    text: Text | None = None
    stages: bool = False
    """Keep every stage, not just what an answer must have."""
    layers: tuple[int, ...] = ()
    """Of which layers stages are kept; of all, if none is named."""
    equal_axes: str = ""
    task_type: str = "CAUSAL_LM"
    on_grid: bool = True
    """Whether real inputs lie on the bfloat16 grid; off it, a port that rounds them to half precision is found."""

    adapter: Path | None = None
    """An adapter stored before, to load in the place of one made anew."""

    @property
    def id(self) -> str:
        """The case's id: its path below golden/vectors."""
        suite = SUITES.get(self.question, self.question.replace(".", "_"))
        return f"{DIALECT}/{self.method}/{suite}/{self.name}"

    @property
    def seed(self) -> int:
        """What the inputs are drawn from."""
        return zlib.crc32(self.id.encode())


def _forward(
    method: str, question: str, name: str, title: str, clauses: str, model: str, text: Text | None,
    n: int, stages: bool = False, equal_axes: str = "", on_grid: bool = True, **config: Any,
) -> Recipe:  # fmt: skip
    return Recipe(
        method, question, name, title, clauses, f"gpt2-{model}", {"num_virtual_tokens": n, **config},
        text=text, stages=stages, equal_axes=equal_axes, on_grid=on_grid,
    )  # fmt: skip


SQUARE = (
    "encoder_hidden_size equals token_dim on purpose: a transposed square weight passes every test of shapes"
)
PROJECTED: dict[str, Any] = {"prefix_projection": True, "encoder_hidden_size": 10}
SQUARE_EVEN: dict[str, Any] = {"prefix_projection": True, "encoder_hidden_size": 12}
FOLDED: dict[str, Any] = {"prefix_projection": True, "encoder_hidden_size": 10, "inference_mode": True}
ZERO: dict[str, Any] = {"init_weights": "zero"}

_INPUTS = (
    _forward(PROMPT, "inputs", "no-mask-no-labels", "no mask stays no mask, no labels stay none",
             "PT-2 PT-3 MK-2 PO-1", "even", Text(2, 8), 5),
    _forward(PROMPT, "inputs", "left-padding", "virtual tokens stand before the padding; positions do not skip it",
             "PT-3 MK-1 MK-3 PO-1 TK-1", "even", Text(2, 8, "left", "all"), 5),
    _forward(PROMPT, "inputs", "right-padding", "mask and labels extended by the virtual tokens",
             "PT-3 MK-1 MK-3 TK-1", "odd", Text(5, 7, "right", "some"), 2),
    _forward(PROMPT, "inputs", "position-ids-ignored", "the caller's positions are dropped", "PO-1 PO-2", "even",
             Text(2, 7, "left", positions="cumsum"), 20),
    _forward(PREFIX, "inputs", "no-mask", "positions start behind the prefix", "MK-2 PO-1 PO-2", "even",
             Text(2, 8), 5),
    _forward(PREFIX, "inputs", "left-padding", "every query sees the prefix; positions do not skip the padding",
             "MK-1 MK-3 PO-1", "even", Text(2, 8, "left", "all"), 5),
    _forward(PREFIX, "inputs", "right-padding", "mask extended, labels as they are", "MK-1 MK-3 TK-1", "odd",
             Text(5, 7, "right", "some"), 2),
    _forward(PREFIX, "inputs", "position-ids-shifted", "the caller's positions are moved on by the prefix",
             "PO-1 PO-2", "even", Text(2, 7, "left", positions="cumsum"), 20),
    _forward(PREFIX, "inputs", "position-ids-with-room", "the caller's positions, where the table has room for more",
             "PO-1 PO-2", "odd", Text(2, 7, "left", positions="cumsum"), 5),
)  # fmt: skip

_FORWARD_PROMPT = (
    _forward(PROMPT, "forward", "stages-right-padding", "every stage, right padding",
             "PT-1 PT-2 PT-3 MK-1 MK-3 PO-1 PO-2 AT-1 AT-3 AT-4 AT-5 TK-1 TK-2 TK-3", "odd",
             Text(2, 7, "right", "all"), 5, stages=True),
    _forward(PROMPT, "forward", "one-row-no-mask", "a batch of one, no mask, no labels", "PT-3 MK-2 TK-2", "odd",
             Text(1, 7), 2),
    _forward(PROMPT, "forward", "one-virtual-token", "one virtual token, a mask of ones", "PT-3 MK-1 TK-1 TK-3",
             "odd", Text(2, 7, "full", "all"), 1),
    _forward(PROMPT, "forward", "many-virtual-tokens-left-padding", "20 virtual tokens, left padding",
             "PT-3 MK-1 MK-3 PO-1 TK-3", "odd", Text(2, 7, "left", "all"), 20),
    _forward(PROMPT, "forward", "left-padding", "left padding", "MK-1 MK-3 PO-1 TK-1 TK-3", "even",
             Text(2, 8, "left", "all"), 5),
    _forward(PROMPT, "forward", "no-mask-with-labels", "no mask, labels for each token: the mean is over m terms",
             "MK-2 TK-1 TK-3", "even", Text(5, 7, "", "all"), 2),
    _forward(PROMPT, "forward", "some-labels", "labels for a part of the text", "TK-1 TK-3", "even",
             Text(2, 7, "full", "some"), 1),
    _forward(PROMPT, "forward", "many-virtual-tokens-right-padding", "20 virtual tokens, right padding, no labels",
             "PT-3 MK-1 MK-3", "even", Text(2, 7, "right"), 20),
    _forward(PROMPT, "forward", "position-ids-ignored", "the caller's positions change nothing", "PO-1 PO-2", "even",
             Text(2, 8, "left", "all", "cumsum"), 5),
    _forward(PROMPT, "forward", "inference-mode", "in inference mode the table is used as it is", "PT-2 CF-1", "even",
             Text(2, 8, "right", "all"), 5, inference_mode=True),
    _forward(PROMPT, "forward", "full-float32-parameters", "parameters that no half precision holds", "PT-3", "odd",
             Text(5, 7, "left", "some"), 2, on_grid=False),
    _forward(PROMPT, "forward", "aligned", "sizes that are multiples of 32", "PT-3 MK-1 AT-3", "aligned",
             Text(4, 16, "right", "all"), 8),
)  # fmt: skip

_FORWARD_PREFIX = (
    _forward(PREFIX, "forward", "stages-right-padding", "every stage, right padding",
             "PX-1 PX-3 PX-4 MK-1 MK-3 PO-1 PO-2 AT-1 AT-2 AT-3 AT-4 AT-5 AT-6 TK-1 TK-2 TK-3", "odd",
             Text(2, 7, "right", "all"), 5, stages=True),
    _forward(PREFIX, "forward", "stages-projected", "every stage, with a projection",
             "PX-1 PX-2 PX-3 PX-4 MK-1 MK-3 PO-1 AT-2 AT-4 TK-2 TK-3", "odd", Text(2, 7, "left", "all"), 5,
             stages=True, **PROJECTED),
    _forward(PREFIX, "forward", "one-row-no-mask", "a batch of one, no mask, no labels", "PX-4 MK-2 TK-2", "odd",
             Text(1, 7), 2),
    _forward(PREFIX, "forward", "one-virtual-token", "one virtual token, a mask of ones", "PX-4 AT-2 MK-1", "odd",
             Text(2, 7, "full", "all"), 1),
    _forward(PREFIX, "forward", "many-virtual-tokens-left-padding", "20 virtual tokens, left padding",
             "PX-3 PX-4 MK-1 MK-3 PO-1", "odd", Text(2, 7, "left", "all"), 20),
    _forward(PREFIX, "forward", "left-padding", "left padding", "MK-1 MK-3 PO-1 TK-3", "even",
             Text(2, 8, "left", "all"), 5),
    _forward(PREFIX, "forward", "left-padding-cumsum-positions", "left padding, positions counted from the first token",
             "MK-3 PO-1 PO-2", "even", Text(2, 8, "left", "all", "cumsum"), 5),
    _forward(PREFIX, "forward", "position-ids", "positions of the caller's own", "PO-1 PO-2", "even",
             Text(2, 7, "", "", "given"), 20),
    _forward(PREFIX, "forward", "no-mask-with-labels", "no mask, labels for each token: the mean is over m − 1 terms",
             "MK-2 TK-1 TK-3", "even", Text(5, 7, "", "all"), 2),
    _forward(PREFIX, "forward", "some-labels", "labels for a part of the text", "TK-1 TK-3", "even",
             Text(2, 7, "full", "some"), 1),
    _forward(PREFIX, "forward", "projected-square", "a projection with a square first weight", "PX-1 PX-2", "even",
             Text(2, 8, "right", "all"), 5, equal_axes=SQUARE, **SQUARE_EVEN),
    _forward(PREFIX, "forward", "projected-left-padding", "20 virtual tokens through a projection, left padding",
             "PX-1 PX-2 MK-3 PO-1", "even", Text(2, 7, "left", "all"), 20, **PROJECTED),
    _forward(PREFIX, "forward", "zero-init", "a prefix of zeros still takes its share of the softmax", "PX-6 AT-4",
             "even", Text(2, 8, "right", "all"), 5, **ZERO),
    _forward(PREFIX, "forward", "folded-projection", "a projection in inference mode: the flat prefix itself",
             "PX-5 CK-3", "even", Text(2, 8, "right", "all"), 5, **FOLDED),
    _forward(PREFIX, "forward", "full-float32-parameters", "parameters that no half precision holds", "PX-4 AT-2", "odd",
             Text(5, 7, "left", "some"), 2, on_grid=False),
    _forward(PREFIX, "forward", "aligned", "sizes that are multiples of 32", "PX-3 PX-4 AT-2 AT-3", "aligned",
             Text(4, 16, "left", "all"), 8),
)  # fmt: skip

_GRADIENTS = (
    _forward(PROMPT, "gradients", "left-padding", "the table's gradient is the sum over the batch", "PT-2 TK-1 TK-3",
             "even", Text(2, 8, "left", "all"), 5),
    _forward(PROMPT, "gradients", "one-row-no-mask", "a batch of one, no mask", "PT-2 MK-2 TK-3", "odd",
             Text(1, 7, "", "all"), 2),
    _forward(PROMPT, "gradients", "many-virtual-tokens-some-labels", "20 virtual tokens, right padding, some labels",
             "PT-2 TK-1 TK-3", "even", Text(2, 7, "right", "some"), 20),
    _forward(PREFIX, "gradients", "right-padding", "through keys and values", "PX-3 PX-4 AT-2 TK-3", "even",
             Text(2, 8, "right", "all"), 5),
    _forward(PREFIX, "gradients", "left-padding", "left padding", "PX-4 MK-3 PO-1", "odd",
             Text(5, 8, "left", "some"), 2),
    _forward(PREFIX, "gradients", "left-padding-cumsum-positions", "left padding, positions of the caller's", "PO-1",
             "even", Text(2, 7, "left", "all", "cumsum"), 20),
    _forward(PREFIX, "gradients", "one-virtual-token", "one virtual token, no mask", "PX-4 MK-2", "odd",
             Text(2, 7, "", "all"), 1),
    _forward(PREFIX, "gradients", "projected", "through the projection", "PX-1 PX-2", "even",
             Text(2, 8, "right", "all"), 5, **PROJECTED),
    _forward(PREFIX, "gradients", "projected-square", "through a projection with a square first weight", "PX-1 PX-2",
             "even", Text(2, 8, "left", "all"), 5, equal_axes=SQUARE, **SQUARE_EVEN),
    _forward(PREFIX, "gradients", "zero-init", "a prefix of zeros has a gradient", "PX-6 AT-4", "odd",
             Text(2, 7, "right", "all"), 5, **ZERO),
    _forward(PREFIX, "gradients", "projected-zero-init",
             "with a zero last map only that map has a gradient; the others' are zero", "PX-2 PX-6", "even",
             Text(2, 8, "right", "all"), 5, **ZERO, **PROJECTED),
    _forward(PREFIX, "gradients", "folded-projection", "a loaded adapter can be differentiated", "PX-5", "even",
             Text(2, 8, "right", "all"), 5, **FOLDED),
)  # fmt: skip

_CHECKPOINT = (
    _forward(PROMPT, "checkpoint.load", "load", "an adapter that HF wrote", "CK-1 CK-3", "odd", Text(2, 7), 5),
    _forward(PROMPT, "checkpoint.load", "load-left-padding", "an adapter that HF wrote, left padding", "CK-3 MK-3",
             "even", Text(2, 7, "left"), 20),
    _forward(PREFIX, "checkpoint.load", "load", "an adapter that HF wrote", "CK-1 CK-3 PX-3", "odd", Text(1, 8), 2),
    _forward(PREFIX, "checkpoint.load", "load-folded-projection", "a projection comes back as the flat prefix",
             "CK-1 CK-3 PX-5", "even", Text(2, 8, "right"), 5, **PROJECTED),
    _forward(PREFIX, "checkpoint.load", "load-folded-square", "a folded projection whose weight was square",
             "CK-3 PX-5", "even", Text(2, 8), 5, **SQUARE_EVEN),
    _forward(PROMPT, "checkpoint.save", "save", "the table and its configuration", "CK-1 CK-2", "even", None, 5),
    _forward(PROMPT, "checkpoint.save", "full-float32-parameters", "a table that no half precision holds", "CK-1", "odd", None, 5,
             on_grid=False),
    _forward(PREFIX, "checkpoint.save", "save", "the flat prefix and its configuration", "CK-1 CK-2", "odd", None, 2),
    _forward(PREFIX, "checkpoint.save", "save-folded-projection", "the evaluated projection, not its weights",
             "CK-1 CK-2 PX-2", "odd", None, 5, **PROJECTED),
    _forward(PREFIX, "checkpoint.save", "save-again", "saving a folded projection once more", "CK-1 PX-5", "even",
             None, 5, **FOLDED),
)  # fmt: skip

MODEL_RECIPES = (*_INPUTS, *_FORWARD_PROMPT, *_FORWARD_PREFIX, *_GRADIENTS, *_CHECKPOINT)
"""The recipes whose question is asked of a base model with an adapter."""
