"""What is said of a run: that it asked less than it might have (JG-7), what its failures look like, which prefixes are projected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec


def cut_short(asked: int, planned: int, *, interrupted: bool, fail_fast: bool) -> str:
    """Why a run ended before everything that was planned was asked; nothing if it did not."""
    if asked >= planned:
        return ""
    if interrupted:
        return "interrupted"
    return "stopped at the first failure" if fail_fast else "given up after three time-outs in a row"


def why_partial(selected: bool, unanswered: int, cut: str) -> str:
    """Why less was asked or answered than could be; nothing if everything was."""
    silent = f"{unanswered} question{'' if unanswered == 1 else 's'} not answered" if unanswered else ""
    return ", ".join(filter(None, ["only a selection was asked" if selected else "", silent, cut]))


def is_projected(config: Mapping[str, Any] | None) -> bool:
    """Whether the prefix of a configuration comes out of an MLP: with a projection that is not folded yet (PX-5)."""
    return bool(config and config.get("prefix_projection") and not config.get("inference_mode"))


class Known(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Why a failure is expected, and where that is followed up."""

    reason: str
    url: str = ""


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """What some failing cases have in common."""

    kind: Literal["mutant", "two mutants", "arithmetic", "none"]
    title: str
    """The mistake in words."""
    cases: list[str]
    """The failing (case, profile)s it explains, as `case (profile)`."""
    looked_at: int
    """Among how many of those that failed."""
    first: str = ""
    """The tensor in which it is first seen."""
    mutants: list[str] = []
    """Ids of mutants; of those that explain the same cases equally well, all."""
    clauses: list[str] = []
    bits: float | None = None
    """To how many bits everything before the first difference agrees; of arithmetic, the significant bits it has."""
    against: int = 0
    """Conforming cases in which the mistake should have shown."""
    seen: str = ""
    """Where the mistake was seen before."""
    switch: str = ""
    """What turns the arithmetic off."""
    forced: str = ""
    """What came of asking for the first wrong stage with refpeft's own inputs."""
