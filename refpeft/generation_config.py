"""The options of `generate`: names and meanings are those of HF's `GenerationConfig`; clauses GN-5 to GN-10.

Follows transformers 5.23.0 `generation/configuration_utils.py` and `generation/utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy

from refpeft.errors import InputError
from refpeft.rules import is_integer


def _integer_from(least: int) -> Callable[[Any], bool]:
    return lambda value: value is None or (is_integer(value) and value >= least)


def _several(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(map(int, value))


def _is_end(value: Any) -> bool:
    several = isinstance(value, list | tuple) and all(map(is_integer, value))
    return value is None or is_integer(value) or several


_TOKENIZER = "the base model's tokenizer knows which"
_OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_new_tokens": ("an integer above 0", _integer_from(1)),
    "max_length": ("an integer above 0", _integer_from(1)),
    "min_new_tokens": ("an integer of at least 0, or None", _integer_from(0)),
    "num_beams": ("an integer above 0", lambda value: value is not None and _integer_from(1)(value)),
    "num_return_sequences": ("an integer above 0", lambda value: value is not None and _integer_from(1)(value)),
    "length_penalty": ("a finite number", lambda value: (is_integer(value) or isinstance(value, float)) and math.isfinite(value)),
    "early_stopping": ("True, False or 'never'", lambda value: isinstance(value, bool) or (isinstance(value, str) and value == "never")),
    "eos_token_id": (f"the id of a token, a list of such, or None ({_TOKENIZER})", _is_end),
    "pad_token_id": (f"the id of a token, or None ({_TOKENIZER})", lambda value: value is None or is_integer(value)),
    "decoder_start_token_id": ("the id of a token, or None", lambda value: value is None or is_integer(value)),
    "forced_bos_token_id": ("the id of a token, or None", lambda value: value is None or is_integer(value)),
    "forced_eos_token_id": ("the id of a token, a list of such, or None", _is_end),
    "use_cache": ("True or False", lambda value: isinstance(value, bool)),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How to decode. Names and meanings are HF's; a combination that HF refuses is refused here.

    Source: transformers 5.23.0 `generation/configuration_utils.py`, `GenerationConfig`; `generation/utils.py`,
    `_prepare_special_tokens`.
    """

    max_new_tokens: int | None = None
    """How many tokens to add at most; wins over `max_length`."""
    max_length: int | None = None
    """How long a row may become, its text included and virtual tokens not. With neither, 20 tokens are added, or as many
    as the position table holds."""
    min_new_tokens: int | None = None
    """Before so many new tokens, the end of sequence is never chosen."""
    num_beams: int = 1
    """1: greedy. More: beam search."""
    num_return_sequences: int = 1
    """How many of a row's beams are returned, the best first."""
    length_penalty: float = 1.0
    """Beam search: a finished beam's score is divided by its number of new tokens to this power."""
    early_stopping: bool | str = False
    """Beam search: when a row stops. True: as soon as num_beams beams are finished; False, "never": GN-8."""
    eos_token_id: int | Sequence[int] | None = None
    """A token, or one of several, that ends a row."""
    pad_token_id: int | None = None
    """What finished rows are filled with; without it, the first eos_token_id."""
    decoder_start_token_id: int | None = None
    """Behind an encoder: what the decoder begins with; without it, the base model's own, or its bos_token_id."""
    forced_bos_token_id: int | None = None
    """The token that must follow a single one: the first that a decoder behind an encoder adds."""
    forced_eos_token_id: int | Sequence[int] | None = None
    """The token, or one of those, that must be the last where a row reaches its maximum length."""
    use_cache: bool = True
    """Whether keys and values are kept between steps. Without a cache every step computes the whole text again."""

    __no_type_check__: ClassVar[bool] = True
    """Its own messages for wrong types are better than a type checker's."""

    def __post_init__(self) -> None:
        for name, (expected, accepts) in _OPTIONS.items():
            value = getattr(self, name)
            if isinstance(value, numpy.generic | numpy.ndarray):
                value = value.tolist()
                object.__setattr__(self, name, value)
            if not accepts(value):
                raise InputError(f"{name} must be {expected}, got {value!r}.")
        if self.num_return_sequences > self.num_beams:
            raise InputError(
                f"num_return_sequences ({self.num_return_sequences}) must not exceed num_beams ({self.num_beams}): each "
                "returned sequence is a beam. Raise num_beams."
            )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All tokens that end a row; none if rows end at the maximum length alone."""
        return _several(self.eos_token_id)

    @property
    def forced_eos_token_ids(self) -> tuple[int, ...]:
        """All tokens that may be the last of a row of the maximum length; none if any may."""
        return _several(self.forced_eos_token_id)

    @property
    def filler(self) -> int | None:
        """pad_token_id, or in its place the first eos_token_id."""
        return (
            self.eos_token_ids[0] if self.pad_token_id is None and self.eos_token_ids else self.pad_token_id
        )

    def new_tokens(self, tokens: int, positions: int | None, whose: str = "The text has") -> int:
        """How many tokens are added at most to a text of `tokens`, on a base model with so many positions.

        `positions`: HF's max_position_embeddings, also where there is no table of them; None where the base names none.

        Source: transformers 5.23.0 `generation/utils.py`, `_prepare_generated_length`, `_validate_generated_length`.

        Raises:
            InputError: max_length leaves no room for a token.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        default = tokens + 20 if positions is None else min(tokens + 20, positions)
        longest = default if self.max_length is None else self.max_length
        if tokens >= longest:
            raise InputError(
                f"{whose} {tokens} token{'s' * (tokens != 1)}, and max_length is {longest}: nothing can be added. Give max_new_tokens."
            )
        return longest - tokens


def as_generation_config(options: dict[str, Any]) -> GenerationConfig:
    """Keyword arguments of `generate` as a configuration.

    Source: transformers 5.23.0 `generation/utils.py`, `_prepare_generation_config`.

    Raises:
        InputError: an option that refpeft does not know, or does not compute.
    """
    strange = sorted(set(options) - set(_OPTIONS))
    if strange:
        raise InputError(
            f"generate does not take {', '.join(strange)}. It decodes greedily or with beams, with a growing cache, and takes "
            f"{', '.join(_OPTIONS)}; leave the others out (HF's sampling, other caches and score processors are not computed)."
        )
    return GenerationConfig(**options)
