"""Hooks inside attention, and on the functions that HF computes it with.

Queries, keys and values are the projections' outputs, split into heads (a view of them); what is rotated and what is attended
to is what HF hands its cache and its attention function; scores and weights are what softmax is given and answers.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from sites import Attention
from sizes import is_sliding
from torch.overrides import TorchFunctionMode
from transformers import Cache
from watch import Watch


class Attending:
    """One attention while it runs."""

    def __init__(
        self, watch: Watch, stack: str, layer: int, attention: Attention, module: Any, *, cross: bool
    ) -> None:
        self.watch, self.stack, self.layer, self.module, self.cross = watch, stack, layer, module, cross
        self.attention = attention
        self.rotates = bool(watch.family.stacks[stack].rotary)
        # BLOOM and Falcon have none: there, what is attended to is what the cache gives.
        self.has_function = hasattr(sys.modules[type(module).__module__], "eager_attention_forward")
        self.name = f"{stack}.layers.{layer}.{'cross_attention' if cross else 'attention'}."
        self.projected: list[torch.Tensor] = []
        self.keys = 0
        self.mask: torch.Tensor | None = None

    def keep(self, stage: str, tensor: torch.Tensor) -> None:
        """Keep a stage of this attention."""
        self.watch.keep(self.name + stage, tensor)

    def on_projection(self, module: Any, args: Any, output: torch.Tensor) -> None:
        """Queries, keys and values, once the last projection has run."""
        self.projected.append(output)
        if len(self.projected) == len(self.attention.projections):
            heads = self.attention.split(tuple(self.projected), self.watch.config)
            for stage, tensor in zip(("query", "key", "value"), heads, strict=True):
                self.keep(stage, tensor)
            self.keys = heads[1].shape[2]

    def on_norm(self, stage: str) -> Callable[..., None]:
        """A hook for the norm of the heads' queries or keys."""

        def hook(module: Any, args: Any, output: torch.Tensor) -> None:
            self.keep(stage, output.transpose(1, 2) if self.attention.heads_last else output)

        return hook

    def on_update(self, key: torch.Tensor, states: tuple[torch.Tensor, torch.Tensor]) -> None:
        """What HF hands its cache, and gets from it."""
        if self.cross:
            return
        if self.rotates:
            self.keep("key_rotated", key)
        if not self.has_function:
            self.keep_states(*states)

    def on_attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """What HF hands its attention function."""
        if self.cross:
            return
        if self.rotates:
            self.keep("query_rotated", query)
        self.keep_states(key, value)

    def keep_states(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """The keys and values that are attended to."""
        self.keep("key_states", key)
        self.keep("value_states", value)
        self.keys = key.shape[2]

    def before(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """What HF hands the module: its mask, and BLOOM's ALiBi (Falcon's is not what is added, but see below)."""
        self.watch.attending = self
        self.projected, self.mask = [], kwargs.get("attention_mask", kwargs.get("mask"))
        if self.watch.config.model_type == "bloom":
            alibi = kwargs["alibi"].reshape(self.watch.batch_size, -1, kwargs["alibi"].shape[-1])
            self.watch.keep_same(f"{self.stack}.alibi", alibi)

    def after(self, module: Any, args: Any, output: Any) -> None:
        """What it could see, and T5's biases, which the first layer makes for all."""
        self.watch.attending = None
        self.watch.keep_same(f"{self.stack}.{self.visibility}", self.visible(output[0].shape[1]))
        if getattr(module, "has_relative_attention_bias", False):
            self.watch.keep(f"{self.stack}.relative_bias", output[1][0])

    @property
    def visibility(self) -> str:
        """The stage of what this attention may see."""
        if self.cross:
            return "cross_visible"
        return "sliding_visible" if is_sliding(self.watch.config, self.layer) else "visible"

    def visible(self, queries: int) -> torch.Tensor:
        """Where the additive mask is not the lowest number; everything, where there is no mask."""
        if self.mask is None:
            return torch.ones(self.watch.batch_size, queries, self.keys, dtype=torch.bool)
        seen = self.mask > torch.finfo(self.mask.dtype).min / 2
        assert torch.equal(seen, seen[:, :1].expand_as(seen)), "the heads see different keys"
        return seen[:, 0].expand(self.watch.batch_size, queries, -1)


class _Functions(TorchFunctionMode):
    """Shows each call of a function, and its result, to whoever watches that function."""

    def __init__(self, watchers: Mapping[Callable[..., Any], Callable[[tuple[Any, ...], Any], None]]) -> None:
        super().__init__()
        self.watchers = watchers

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self.watchers:
            self.watchers[func](args, result)
        return result


@contextlib.contextmanager
def watched_functions(watch: Watch) -> Iterator[None]:
    """Softmax, the cache, and the functions of the family's own module."""
    update = Cache.update

    def watched_update(cache: Cache, key: Any, value: Any, *rest: Any, **others: Any) -> Any:
        states = update(cache, key, value, *rest, **others)
        if watch.attending:
            watch.attending.on_update(key, states)
        return states

    functions = {torch.nn.functional.softmax: _on_softmax(watch), torch.masked_fill: _on_masked_fill(watch)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(Cache, "update", watched_update))
        for patch in _module_patches(watch):
            stack.enter_context(patch)
        stack.enter_context(_Functions(functions))
        yield


def _on_softmax(watch: Watch) -> Callable[[tuple[Any, ...], Any], None]:
    def watcher(args: tuple[Any, ...], weights: torch.Tensor) -> None:
        if watch.attending:
            watch.attending.keep("scores", args[0])
            watch.attending.keep("weights", weights)

    return watcher


def _on_masked_fill(watch: Watch) -> Callable[[tuple[Any, ...], Any], None]:
    """Falcon fills the mask into its ALiBi, divided by the root of head_dim, and adds that to the scores.

    It has added ALiBi before, and divided the sum: what it adds altogether is twice as much. Doubling is exact.
    """

    def watcher(args: tuple[Any, ...], result: Any) -> None:
        if watch.config.model_type == "falcon":
            watch.keep("decoder.alibi", 2 * args[0][:, :, 0])

    return watcher


def _module_patches(watch: Watch) -> Iterator[Any]:
    """What the family's module hands its attention function; Falcon has none, so there what its rotation gives."""
    family = sys.modules[type(watch.backbone).__module__]
    if hasattr(family, "eager_attention_forward"):
        attend = family.eager_attention_forward

        def watched_attend(module: Any, query: Any, key: Any, value: Any, *rest: Any, **others: Any) -> Any:
            if watch.attending:
                watch.attending.on_attend(query, key, value)
            return attend(module, query, key, value, *rest, **others)

        yield mock.patch.object(family, "eager_attention_forward", watched_attend)
    elif hasattr(family, "apply_rotary_pos_emb"):
        rotate = family.apply_rotary_pos_emb

        def watched_rotate(*args: Any, **others: Any) -> Any:
            query, key = rotate(*args, **others)
            if watch.attending:
                watch.attending.keep("query_rotated", query)
            return query, key

        yield mock.patch.object(family, "apply_rotary_pos_emb", watched_rotate)
