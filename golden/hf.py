"""The real HF peft, in true float64, watched from outside.

HF computes some things in float32 even after `.double()`: the loss, and whatever else asks for `.float()`. `True64`
turns each such request into float64. `watched` puts hooks on a PeftModel and keeps what passes through, under the
names of the stages; nothing is computed a second time. No value in this file comes from refpeft.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from peft import PeftModel
from torch.overrides import TorchFunctionMode
from transformers import Cache, DynamicCache, GPT2LMHeadModel
from transformers.models.gpt2 import modeling_gpt2

Tensors = dict[str, torch.Tensor]
Keep = Callable[[str, torch.Tensor], None]

_LAYER_STAGES = (
    "input_norm", "attention.query", "attention.key", "attention.value", "attention.key_states",
    "attention.value_states", "attention.scores", "attention.weights", "attention.context", "attention.output",
    "after_attention", "post_attention_norm", "mlp.activation", "mlp.output", "output",
)  # fmt: skip


class True64(TorchFunctionMode):
    """Every cast to float32, and every tensor made in float32 on purpose, becomes float64."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        widened = {name: _widened(value) for name, value in (kwargs or {}).items()}
        result = func(*(_widened(value) for value in args), **widened)
        if isinstance(result, torch.Tensor) and result.dtype is torch.float32 and result.requires_grad:
            raise AssertionError(f"{func} computed in float32")
        return result


def _widened(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("FloatTensor", "DoubleTensor")
    return torch.float64 if value is torch.float32 else value


class _SoftmaxInput(TorchFunctionMode):
    """Keeps what softmax is given: the masked scores."""

    def __init__(self, keep: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self.keep = keep

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.softmax:
            self.keep(args[0])
        return func(*args, **(kwargs or {}))


def arithmetic(dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """`True64` for float64, nothing for float32."""
    return True64() if dtype is torch.float64 else contextlib.nullcontext()


def float32_valued(tensor: torch.Tensor) -> bool:
    """Whether every value is one that float32 has."""
    return bool((tensor == tensor.to(torch.float32).to(torch.float64)).all())


def load_base(name: str, dtype: torch.dtype) -> GPT2LMHeadModel:
    """A fresh copy of the base model in the directory `name` below the current one."""
    return copy.deepcopy(_read_base(name)).to(dtype)


@functools.cache
def _read_base(name: str) -> GPT2LMHeadModel:
    """As HF reads it; asserts that its values are those of the file, and that HF computed no buffer in float32."""
    model = GPT2LMHeadModel.from_pretrained(name, dtype=torch.float32, attn_implementation="eager").eval()
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, parameter.to(torch.bfloat16).to(torch.float32)), (
            f"{key} is off the grid"
        )
    for key, buffer in model.named_buffers():
        assert not buffer.is_floating_point(), f"{key} is a buffer that HF computed in float32"
    return model


def set_parameters(model: PeftModel, parameters: Mapping[str, torch.Tensor]) -> None:
    """Give the prompt encoder these values, under HF's names without the adapter's, in the base model's dtype."""
    encoder = {without_adapter(n): p for n, p in model.named_parameters() if n.startswith("prompt_encoder.")}
    assert encoder.keys() == parameters.keys(), f"{set(encoder)} are not {set(parameters)}"
    with torch.no_grad():
        for name, parameter in encoder.items():
            assert parameter.shape == parameters[name].shape, name
            parameter.data = parameters[name].to(model.dtype)


def without_adapter(name: str) -> str:
    """HF's parameter name without the adapter's: `prompt_encoder.default.embedding.weight` without `default.`."""
    return name.replace(".default.", ".", 1)


@contextlib.contextmanager
def watched(model: PeftModel, batch_size: int) -> Iterator[Tensors]:
    """Keep what passes through a PeftModel, by stage."""
    seen: Tensors = {}
    base: GPT2LMHeadModel = model.get_base_model()

    def keep(name: str, tensor: torch.Tensor) -> None:
        assert name not in seen, f"{name} was computed twice"
        seen[name] = tensor.detach().clone()

    def base_forward(*args: Any, **kwargs: Any) -> Any:
        assert not args
        _keep_call(kwargs, batch_size, keep)
        with watched_attention(keep):
            return original_forward(**kwargs)

    def get_prompt(*args: Any, **kwargs: Any) -> Any:
        prompt = original_get_prompt(*args, **kwargs)
        if isinstance(prompt, torch.Tensor):
            keep("prompt.embeddings", prompt)
        return prompt

    original_forward, original_get_prompt = base.forward, model.get_prompt
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(base, "forward", base_forward))
        stack.enter_context(mock.patch.object(model, "get_prompt", get_prompt))
        for handle in [*_encoder_hooks(model, keep), *_decoder_hooks(base, batch_size, keep)]:
            stack.callback(handle.remove)
        yield seen


def _keep_call(kwargs: Mapping[str, Any], batch_size: int, keep: Keep) -> None:
    """What PEFT hands the base model."""
    if kwargs.get("attention_mask") is not None:
        keep("inputs.attention_mask", kwargs["attention_mask"])
    if kwargs.get("inputs_embeds") is not None:  # prompt tuning
        keep("inputs.embeddings", kwargs["inputs_embeds"])
        if kwargs.get("labels") is not None:
            keep("inputs.labels", kwargs["labels"])
        assert kwargs.get("position_ids") is None, "PEFT drops positions in prompt tuning"
    if kwargs.get("past_key_values") is not None:
        keep_prefix(kwargs["past_key_values"], batch_size, keep)


def keep_prefix(cache: DynamicCache, batch_size: int, keep: Keep) -> None:
    """Each layer's keys and values as PEFT puts them in the cache."""
    for layer, entry in enumerate(cache.layers):
        assert entry.keys.shape[0] == batch_size
        keep(f"prefix.layers.{layer}.key", entry.keys)
        keep(f"prefix.layers.{layer}.value", entry.values)


def _encoder_hooks(model: PeftModel, keep: Keep) -> Iterator[Any]:
    """The prefix encoder: HF computes one equal copy for each row of the batch; one is kept."""
    encoder = model.prompt_encoder["default"]
    if model.active_peft_config.peft_type != "PREFIX_TUNING":
        return

    def one_copy(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: torch.Tensor) -> None:
            rounding = (
                16 * torch.finfo(output.dtype).eps * output.abs().max()
            )  # a batched product may round differently
            assert bool(((output - output[:1]).abs() <= rounding).all()), f"{name} differs between the rows"
            keep(name, output[0])

        return hook

    if model.active_peft_config.inference_mode:  # HF then repeats the table without calling the encoder
        keep("prefix.flat", encoder.embedding.weight)
        return
    if model.active_peft_config.prefix_projection:
        yield encoder.transform[0].register_forward_hook(one_copy("prefix.projection_hidden"))
        yield encoder.transform[1].register_forward_hook(one_copy("prefix.projection_activation"))
    yield encoder.register_forward_hook(one_copy("prefix.flat"))


def _decoder_hooks(base: GPT2LMHeadModel, batch_size: int, keep: Keep) -> Iterator[Any]:
    """Everything of the base model but the inside of attention."""
    decoder = base.transformer

    def keep_positions(module: Any, args: Any) -> None:
        keep("inputs.position_ids", args[0].expand(batch_size, -1))

    def keep_visible(module: Any, args: Any, kwargs: Any) -> None:
        mask = args[2] if len(args) > 2 else kwargs["attention_mask"]
        keep("decoder.visible", (mask == 0)[:, 0].expand(batch_size, -1, -1))

    yield decoder.wte.register_forward_hook(_output("inputs.token_embeddings", keep))
    yield decoder.wpe.register_forward_pre_hook(keep_positions)
    yield decoder.drop.register_forward_pre_hook(_input("decoder.embeddings", keep))
    yield decoder.h[0].register_forward_pre_hook(keep_visible, with_kwargs=True)
    for layer, block in enumerate(decoder.h):
        name = f"decoder.layers.{layer}."
        yield block.ln_1.register_forward_hook(_output(name + "input_norm", keep))
        yield block.ln_2.register_forward_pre_hook(_input(name + "after_attention", keep))
        yield block.ln_2.register_forward_hook(_output(name + "post_attention_norm", keep))
        yield block.mlp.c_proj.register_forward_pre_hook(_input(name + "mlp.activation", keep))
        yield block.mlp.register_forward_hook(_output(name + "mlp.output", keep))
        yield block.register_forward_hook(_output(name + "output", keep))
        yield from attention_hooks(block.attn, keep)
    yield decoder.ln_f.register_forward_hook(_output("decoder.final_norm", keep))


def attention_hooks(attention: modeling_gpt2.GPT2Attention, keep: Keep) -> Iterator[Any]:
    """The context and the output of one attention layer."""
    name = f"decoder.layers.{attention.layer_idx}.attention."
    yield attention.c_proj.register_forward_pre_hook(_input(name + "context", keep))
    yield attention.register_forward_hook(_output(name + "output", keep))


def _input(name: str, keep: Keep) -> Callable[..., None]:
    def hook(module: Any, args: Any) -> None:
        keep(name, args[0])

    return hook


def _output(name: str, keep: Keep) -> Callable[..., None]:
    def hook(module: Any, args: Any, output: Any) -> None:
        keep(name, output if isinstance(output, torch.Tensor) else output[0])

    return hook


@contextlib.contextmanager
def watched_attention(keep: Keep) -> Iterator[None]:
    """Keep queries, keys, values, scores and weights: what HF hands its cache and its attention function."""
    update, attend = Cache.update, modeling_gpt2.eager_attention_forward

    def watched_update(cache: Cache, key: torch.Tensor, value: torch.Tensor, layer: int, *rest: Any) -> Any:
        keep(f"decoder.layers.{layer}.attention.key", key)
        keep(f"decoder.layers.{layer}.attention.value", value)
        return update(cache, key, value, layer, *rest)

    def watched_attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        name = f"decoder.layers.{module.layer_idx}.attention."
        for stage, tensor in (("query", query), ("key_states", key), ("value_states", value)):
            keep(name + stage, tensor)
        with _SoftmaxInput(lambda scores: keep(name + "scores", scores)):
            output, weights = attend(module, query, key, value, mask, **kwargs)
        keep(name + "weights", weights)
        return output, weights

    with (
        mock.patch.object(Cache, "update", watched_update),
        mock.patch.object(modeling_gpt2, "eager_attention_forward", watched_attend),
    ):
        yield


def ordered(tensors: Mapping[str, torch.Tensor], layers: int) -> Tensors:
    """In the order of computation: no tensor depends on a later one.

    Raises:
        AssertionError: a tensor has no place in that order.
    """
    names = ["inputs.token_embeddings", "inputs.attention_mask"]
    names += ["prefix.projection_hidden", "prefix.projection_activation", "prefix.flat"]
    names += [f"prefix.layers.{layer}.{half}" for layer in range(layers) for half in ("key", "value")]
    names += ["prompt.embeddings", "inputs.embeddings", "inputs.labels", "inputs.position_ids"]
    names += ["decoder.embeddings", "decoder.visible"]
    names += [f"decoder.layers.{layer}.{stage}" for layer in range(layers) for stage in _LAYER_STAGES]
    names += ["decoder.final_norm", "logits", "loss"]
    names += [name for name in tensors if name.startswith("gradients.")]
    assert not set(tensors) - set(names), f"no place for {set(tensors) - set(names)}"
    return {name: tensors[name] for name in names if name in tensors}
