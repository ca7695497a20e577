"""The columns of the table of families: how a row says what HF's config.json means, and where HF's checkpoint keeps what.

`families.py` holds the rows. A row is data and small functions of the configuration; no forward pass is written there.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from refpeft.rules import BOOLEAN, SIZE, STRING, Rule, is_integer

if TYPE_CHECKING:
    from refpeft.transformer.config import ModelConfig

Kind = Literal["decoder", "encoder", "encoder_decoder"]
"""Which stacks an architecture has."""
Part = Literal["query", "key", "value"]

LAYER = "layers.{layer}."
"""What stands before the canonical names of a layer's parameters."""


class Row(NamedTuple):
    """One field of a configuration: HF's keys (the family's own last, as the others win), default, and rule."""

    name: str
    keys: tuple[str, ...]
    default: Any
    rule: Rule


@dataclass(frozen=True)
class Source:
    """Where a canonical parameter stands in an HF checkpoint."""

    name: str
    """HF's name, with `{layer}`, without the prefix that the model class puts before it."""
    transposed: bool = False
    """Stored inputs × outputs (GPT-2's Conv1D)."""
    fused: Literal["", "sections", "interleaved"] = ""
    """How queries, keys and values stand in one tensor: one after the other (`sections`), or anew for each key/value head
    (`interleaved`: the query heads of its group, then its key, then its value)."""
    part: Part = "query"
    """Which of the three it is, where they are fused."""
    optional: bool = False
    """A buffer that old checkpoints leave out; zeros then."""


@dataclass(frozen=True)
class Head:
    """A head that HF trains with the virtual tokens (`modules_to_save`)."""

    module: str
    """HF's name of the module."""
    form: Literal["last_token", "pooler", "first_token", "each_token", "span"]
    """Where it looks: at the last token that is no padding, at the pooler, at the first token (through a dense map), at each
    token, or at each token for the start and the end of an answer."""
    bias: bool = True
    """Whether its last map has a bias."""
    activation: str = "tanh"
    """first_token: what stands between its two maps."""


@dataclass(frozen=True)
class Family:
    """What makes an architecture."""

    model_type: str
    """HF's `model_type` in config.json."""
    kind: Kind
    """Which stacks it has."""
    prefix: str
    """What the classes with a head put before the backbone's parameter names."""
    rows: tuple[Row, ...]
    """The fields that stand in config.json."""
    derive: Callable[[dict[str, Any]], dict[str, Any]]
    """The fields read, checked against each other, together with the choices that follow from them."""
    weights: Callable[[ModelConfig], dict[str, Source]]
    """Canonical parameters, those of each layer with `layers.{layer}.` before their names, and where HF keeps them."""
    heads: Mapping[str, Head] = field(default_factory=dict)
    """HF's heads of classification by task type, as far as HF has such a class of the family."""
    heads_drop_positions: bool = False
    """Whether HF's classes for sequences and tokens take positions and do not hand them on (Falcon)."""
    ignored: tuple[str, ...] = ()
    """How tensors begin (or, with a dot before, end) that are buffers or heads nobody adapts."""
    unsupported: Mapping[str, str] = field(default_factory=dict)
    """HF's options that refpeft does not implement, and why."""


OPTIONAL_TOKEN = Rule("an integer", is_integer).or_none()
END_TOKENS = Rule(
    "an integer, a list of integers,",
    lambda value: is_integer(value) or (isinstance(value, list) and all(is_integer(item) for item in value)),
).or_none()
EPSILON = Rule(
    "a finite number with a decimal point, at least 0",
    lambda value: isinstance(value, float) and math.isfinite(value) and value >= 0,
)
POSITIVE = Rule(
    "a finite number above 0",
    lambda value: (
        isinstance(value, float | int) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
    ),
)
LAYER_TYPES = Rule(
    "a list of 'full_attention' and 'sliding_attention'",
    lambda value: isinstance(value, list) and set(value) <= {"full_attention", "sliding_attention"},
).or_none()


def size(name: str, *keys: str, default: int | None) -> Row:
    """A size; None is allowed where it is the default."""
    return Row(name, keys or (name,), default, SIZE.or_none() if default is None else SIZE)


def flag(name: str, *keys: str, default: bool) -> Row:
    """True or false."""
    return Row(name, keys or (name,), default, BOOLEAN)


def word(name: str, *keys: str, default: str) -> Row:
    """A string."""
    return Row(name, keys or (name,), default, STRING)


def epsilon(*keys: str, default: float) -> Row:
    """A norm's epsilon."""
    return Row("norm_epsilon", keys, default, EPSILON)


def special_tokens(pad: int | None, begin: int | None, end: int | None) -> tuple[Row, ...]:
    """The tokens with a meaning, and whether the head is the token table (`tied_head` is added apart)."""
    return (
        Row("pad_token_id", ("pad_token_id",), pad, OPTIONAL_TOKEN),
        Row("bos_token_id", ("bos_token_id",), begin, OPTIONAL_TOKEN),
        Row("eos_token_id", ("eos_token_id",), end, END_TOKENS),
    )


def linear(canonical: str, name: str, *, bias: bool = True, transposed: bool = False) -> dict[str, Source]:
    """The weight of a linear map, and its bias if it has one."""
    entries = {f"{canonical}.weight": Source(f"{name}.weight", transposed)}
    return {**entries, f"{canonical}.bias": Source(f"{name}.bias")} if bias else entries


def table(canonical: str, name: str) -> dict[str, Source]:
    """The rows of an embedding."""
    return linear(canonical, name, bias=False)


norm = linear
"""A norm's weight and bias stand as those of a linear map."""


def fused(
    canonical: str,
    name: str,
    layout: Literal["sections", "interleaved"],
    *,
    bias: bool = True,
    transposed: bool = False,
) -> dict[str, Source]:
    """Queries, keys and values in one linear map."""
    entries: dict[str, Source] = {}
    parts: tuple[Part, ...] = ("query", "key", "value")
    for part in parts:
        entries[f"{canonical}.{part}.weight"] = Source(f"{name}.weight", transposed, layout, part)
        if bias:
            entries[f"{canonical}.{part}.bias"] = Source(f"{name}.bias", False, layout, part)
    return entries


def attention(
    canonical: str, names: Mapping[str, str], *, bias: bool = True, output_bias: bool = True
) -> dict[str, Source]:
    """Four linear maps: `names` has HF's for query, key, value and output."""
    entries: dict[str, Source] = {}
    for part, name in names.items():
        entries |= linear(f"{canonical}.{part}", name, bias=output_bias if part == "output" else bias)
    return entries
