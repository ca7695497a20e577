"""How the families of `families` are described: sides of modules, attention, stacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from sizes import Heads, separate


class Site(NamedTuple):
    """One side of a module."""

    path: str
    """Below the stack or the layer; `a|b` is the first of the two that the model has; empty: itself."""
    after: bool


def into(path: str) -> Site:
    """What a module is given."""
    return Site(path, after=False)


def out_of(path: str) -> Site:
    """What a module answers."""
    return Site(path, after=True)


@dataclass(frozen=True)
class Attention:
    """The attention of one layer, by the paths of its modules below the layer."""

    path: str
    """The module whose forward attends."""
    projections: tuple[str, ...]
    """The maps that make queries, keys and values, or the one that makes all three."""
    output: str
    """The map that the heads' contexts go through."""
    split: Callable[[tuple[torch.Tensor, ...], Any], Heads] = separate
    norms: tuple[str, ...] = ()
    """The norms of the heads of queries and keys."""
    heads_last: bool = False
    """Whether the norms are given (batch, query, heads, head_dim)."""


@dataclass(frozen=True)
class Stack:
    """An encoder or a decoder, by the paths of its modules below the backbone or, of its own stages, below itself."""

    path: str
    layers: str
    """Below the stack."""
    embeddings: tuple[str, ...]
    """Every module below the backbone that looks up this stack's tokens."""
    attention: Attention
    layer: Mapping[str, Site]
    """The stages of a layer that are not within attention."""
    sites: Mapping[str, Site] = field(default_factory=dict)
    """The stages around the layers."""
    positions: str = ""
    """The table of learned positions, below the stack."""
    rotary: str = ""
    """The module that makes sines and cosines of positions, below the stack."""
    cross_attention: Attention | None = None


@dataclass(frozen=True)
class Family:
    """One row."""

    stacks: Mapping[str, Stack]
    """In the order of computation."""
    types_given_to: str | None = None
    """The module below the backbone that is given token types, where a family uses them."""


def find(root: Any, path: str) -> Any:
    """The first of the modules that a path names, or None."""
    for name in path.split("|"):
        try:
            return root.get_submodule(name)
        except AttributeError:
            continue
    return None
