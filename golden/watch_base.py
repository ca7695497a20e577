"""Hooks on a base model of any family: what passes through its modules, kept by stage. Nothing is computed a second time.

Learned positions are the rows that the table is asked for, without the constant that OPT and BART add.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from sites import Attention, Site, Stack, find
from watch import Watch
from watch_attention import Attending, watched_functions


@contextlib.contextmanager
def watched_base(watch: Watch) -> Iterator[None]:
    """Keep all stages of a base model."""
    with contextlib.ExitStack() as stack:
        for name, described in watch.family.stacks.items():
            for handle in _stack_hooks(watch, name, described):
                stack.callback(handle.remove)
        for handle in _head_hooks(watch):
            stack.callback(handle.remove)
        stack.enter_context(_watched_tables(watch))
        stack.enter_context(watched_functions(watch))
        yield


@contextlib.contextmanager
def watched_attention(watch: Watch, layer: int) -> Iterator[Any]:
    """Keep the stages of one layer's self-attention alone; gives the module that attends."""
    name, described = next(iter(watch.family.stacks.items()))
    block = _stack_module(watch, described).get_submodule(described.layers)[layer]
    with contextlib.ExitStack() as stack:
        for handle in _attention_hooks(watch, name, layer, block, described.attention, cross=False):
            stack.callback(handle.remove)
        stack.enter_context(watched_functions(watch))
        yield block.get_submodule(described.attention.path)


@contextlib.contextmanager
def _watched_tables(watch: Watch) -> Iterator[None]:
    """The rows that tables of tokens and positions are asked for, before any scale."""
    look_up, keepers = torch.nn.Embedding.forward, _table_keepers(watch)

    def watched_look_up(module: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        rows = look_up(module, ids)
        if id(module) in keepers:
            keepers[id(module)](ids, rows)
        return rows

    with mock.patch.object(torch.nn.Embedding, "forward", watched_look_up):
        yield


def _table_keepers(watch: Watch) -> dict[int, Callable[[torch.Tensor, torch.Tensor], None]]:
    """What is kept of a look-up, by the identity of the table's module."""
    keepers: dict[int, Callable[[torch.Tensor, torch.Tensor], None]] = {}
    for name, described in watch.family.stacks.items():
        for table in _token_tables(watch, described):
            assert id(table) not in keepers, f"the {name}'s table is another stack's as well"
            keepers[id(table)] = functools.partial(
                _keep_rows, watch, _inputs(watch, name) + "token_embeddings"
            )
        if described.positions:
            table = _stack_module(watch, described).get_submodule(described.positions)
            offset = getattr(table, "offset", 0)
            keepers[id(table)] = functools.partial(
                _keep_ids, watch, _inputs(watch, name) + "position_ids", offset
            )
    return keepers


def _keep_rows(watch: Watch, stage: str, ids: torch.Tensor, rows: torch.Tensor) -> None:
    if watch.family.types_given_to == "" and stage in watch.seen:
        return  # GPT-2 looks up the types of the tokens among the tokens
    watch.keep(stage, rows)


def _keep_ids(watch: Watch, stage: str, offset: int, ids: torch.Tensor, rows: torch.Tensor) -> None:
    watch.keep_positions(stage, ids - offset)


def _inputs(watch: Watch, stack: str) -> str:
    """How the stages of what a stack is given begin."""
    return "inputs." if stack == next(iter(watch.family.stacks)) else "inputs.decoder_"


def _token_tables(watch: Watch, described: Stack) -> list[Any]:
    """The modules that look up a stack's tokens, each once."""
    found = [find(watch.backbone, path) for path in described.embeddings]
    return list({id(module): module for module in found if module is not None}.values())


def _stack_module(watch: Watch, described: Stack) -> Any:
    return watch.backbone.get_submodule(described.path)


def _stack_hooks(watch: Watch, name: str, described: Stack) -> Iterator[Any]:
    """Everything of one stack."""
    module = _stack_module(watch, described)
    yield from _site_hooks(watch, module, f"{name}.", described.sites)
    for table in _token_tables(watch, described):
        if float(getattr(table, "embed_scale", 1.0)) != 1.0:
            yield table.register_forward_hook(_output(watch, _inputs(watch, name) + "scaled_embeddings"))
    if described.rotary:
        rotary = module.get_submodule(described.rotary)
        yield rotary.register_forward_pre_hook(_rotary_positions(watch), with_kwargs=True)
    if _inputs(watch, name) == "inputs.decoder_":
        yield module.register_forward_pre_hook(_decoder_ids(watch), with_kwargs=True)
    for layer, block in enumerate(module.get_submodule(described.layers)):
        yield from _site_hooks(watch, block, f"{name}.layers.{layer}.", described.layer)
        yield from _attention_hooks(watch, name, layer, block, described.attention, cross=False)
        if described.cross_attention:
            yield from _attention_hooks(watch, name, layer, block, described.cross_attention, cross=True)
        yield block.register_forward_hook(_output(watch, f"{name}.layers.{layer}.output"))


def _site_hooks(watch: Watch, root: Any, prefix: str, sites: Mapping[str, Site]) -> Iterator[Any]:
    for stage, site in sites.items():
        module = find(root, site.path)
        if module is None:
            continue
        if site.after:
            yield module.register_forward_hook(_output(watch, prefix + stage))
        else:
            yield module.register_forward_pre_hook(_input(watch, prefix + stage))


def _input(watch: Watch, name: str) -> Callable[..., None]:
    def hook(module: Any, args: Any) -> None:
        watch.keep(name, _by_row(watch, args[0]))

    return hook


def _output(watch: Watch, name: str) -> Callable[..., None]:
    def hook(module: Any, args: Any, output: Any) -> None:
        watch.keep(name, _by_row(watch, output if isinstance(output, torch.Tensor) else output[0]))

    return hook


def _by_row(watch: Watch, tensor: torch.Tensor) -> torch.Tensor:
    """OPT's feed-forward block sees all rows of the batch as one."""
    return tensor if tensor.shape[0] == watch.batch_size else tensor.unflatten(0, (watch.batch_size, -1))


def _rotary_positions(watch: Watch) -> Callable[..., None]:
    def hook(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        ids = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        watch.keep_positions("inputs.position_ids", ids)

    return hook


def _decoder_ids(watch: Watch) -> Callable[..., None]:
    def hook(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        watch.keep("inputs.decoder_input_ids", kwargs["input_ids"])

    return hook


def _attention_hooks(
    watch: Watch, name: str, layer: int, block: Any, attention: Attention, *, cross: bool
) -> Iterator[Any]:
    module = block.get_submodule(attention.path)
    attending = Attending(watch, name, layer, attention, module, cross=cross)
    yield module.register_forward_pre_hook(attending.before, with_kwargs=True)
    yield module.register_forward_hook(attending.after)
    for path in attention.projections:
        yield block.get_submodule(path).register_forward_hook(attending.on_projection)
    for stage, path in zip(("query_norm", "key_norm"), attention.norms, strict=False):
        yield block.get_submodule(path).register_forward_hook(attending.on_norm(stage))
    output = block.get_submodule(attention.output)
    yield output.register_forward_pre_hook(_input(watch, attending.name + "context"))
    yield output.register_forward_hook(_output(watch, attending.name + "output"))


def _head_hooks(watch: Watch) -> Iterator[Any]:
    """What a classification head computes between the last layer and its answer."""
    pooler = getattr(watch.backbone, "pooler", None)
    if pooler is not None:
        yield pooler.register_forward_hook(_output(watch, "pooler_output"))
    last = find(_active(getattr(watch.base, "classifier", watch.base)), "out_proj")
    if last is not None:
        yield last.register_forward_pre_hook(_input(watch, "head.hidden"))
    if type(watch.base).__name__.endswith("ForSequenceClassification") and hasattr(watch.base, "score"):
        yield watch.base.score.register_forward_hook(_output(watch, "score_logits"))


def _active(module: Any) -> Any:
    """PEFT's copy of a module that is trained too, or the module itself."""
    copies = getattr(module, "modules_to_save", None)
    return module if copies is None else copies["default"]
