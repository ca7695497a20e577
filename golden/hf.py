"""The real HF peft, in true float64, watched from outside.

HF computes some things in float32 even after `.double()`: the loss, norms, softmax, rotary angles, whatever else asks for
`.float()`. `True64` turns each such request into float64, and what HF computed in float32 when it made a model is computed
again. `watched` puts hooks on a PeftModel and keeps what passes through, under the names of the stages; nothing is computed
a second time. No value in this file comes from refpeft.
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
from sites import find
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    EncoderDecoderCache,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5Attention
from watch import Tensors, Watch
from watch_base import watched_base

Keep = Callable[[str, torch.Tensor], None]

CLASSES = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": AutoModel,
}
"""What HF makes of a directory for each of PEFT's tasks."""


class True64(TorchFunctionMode):
    """Every cast to float32, and every tensor made in float32 on purpose, becomes float64."""

    paused = False
    """Whether float32 stays float32 for now."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if self.paused:
            return func(*args, **(kwargs or {}))
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


@contextlib.contextmanager
def _true64() -> Iterator[None]:
    """`True64`, but for T5's buckets, which are integers that HF decides upon in float32, in a float64 model as well."""
    decide = T5Attention._relative_position_bucket

    def decide_in_float32(*args: Any, **kwargs: Any) -> torch.Tensor:
        mode.paused = True
        try:
            return decide(*args, **kwargs)
        finally:
            mode.paused = False

    with (
        mock.patch.object(T5Attention, "_relative_position_bucket", staticmethod(decide_in_float32)),
        True64() as mode,
    ):
        yield


def arithmetic(dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """`True64` for float64, nothing for float32."""
    return _true64() if dtype is torch.float64 else contextlib.nullcontext()


def float32_valued(tensor: torch.Tensor) -> bool:
    """Whether every value is one that float32 has."""
    return bool((tensor == tensor.to(torch.float32).to(torch.float64)).all())


def load_base(name: str, dtype: torch.dtype, task_type: str = "CAUSAL_LM") -> Any:
    """A fresh copy of the base model in the directory `name` below the current one, as a task's class has it."""
    model = copy.deepcopy(_read_base(name, task_type)).to(dtype)
    if dtype is torch.float64:
        _make_constants_anew(model)
    return model


@functools.cache
def _read_base(name: str, task_type: str) -> Any:
    """As HF reads it; asserts that its values are those of the file, all there."""
    model, loading = CLASSES[task_type].from_pretrained(
        name, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not loading["missing_keys"], f"{name} lacks {loading['missing_keys']}"
    assert not loading["mismatched_keys"], f"{name}: {loading['mismatched_keys']} have other shapes"
    for key, tensor in model.state_dict().items():
        assert not tensor.is_floating_point() or torch.equal(
            tensor, tensor.to(torch.bfloat16).to(torch.float32)
        ), f"{key} is off the grid"
    return model.eval()


def _make_constants_anew(model: torch.nn.Module) -> None:
    """Inverse frequencies and scales of embeddings, which HF computes in float32 whatever the model's dtype.

    Asserts that no other buffer is computed so.
    """
    stored = model.state_dict()
    before = {key: buffer for key, buffer in model.named_buffers() if key not in stored}
    with True64():
        for module in model.modules():
            if hasattr(module, "rope_type"):
                _make_frequencies_anew(module)
            if isinstance(getattr(module, "embed_scale", None), torch.Tensor):
                scale = getattr(
                    module, "scalar_embed_scale", model.config.hidden_size**0.5
                )  # Gemma-3's before 5.0
                module.embed_scale = torch.tensor(scale, dtype=torch.float64)
    for key, buffer in model.named_buffers():
        anew = key not in before or buffer is not before[key]
        assert anew or not buffer.is_floating_point() or torch.equal(buffer, buffer.round()), (
            f"HF computed the buffer {key} in float32"
        )


def _make_frequencies_anew(rotary: Any) -> None:
    """Of a module with one kind of rotation, or with one for each kind of layer."""
    kinds = rotary.rope_type if isinstance(rotary.rope_type, dict) else {None: rotary.rope_type}
    for layer_type, rope_type in kinds.items():
        compute = ROPE_INIT_FUNCTIONS.get(rope_type) or rotary.compute_default_rope_parameters
        frequencies, _ = compute(rotary.config, **({"layer_type": layer_type} if layer_type else {}))
        prefix = f"{layer_type}_" if layer_type else ""
        for name in ("inv_freq", "original_inv_freq"):
            assert hasattr(rotary, prefix + name), f"there is no {prefix}{name}"
            setattr(rotary, prefix + name, frequencies.clone())


def trainable(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The prompt encoder's parameters, and those of the modules that PEFT trains too, under their names in files."""
    return {
        without_adapter(name): parameter
        for name, parameter in model.named_parameters()
        if name.startswith("prompt_encoder.") or ".modules_to_save.default." in name
    }


def set_parameters(model: PeftModel, parameters: Mapping[str, torch.Tensor]) -> None:
    """Give everything that is trained these values, under HF's names without the adapter's, in the base's dtype."""
    trained = trainable(model)
    assert trained.keys() == parameters.keys(), f"{set(trained)} are not {set(parameters)}"
    with torch.no_grad():
        for name, parameter in trained.items():
            assert parameter.shape == parameters[name].shape, name
            parameter.data = parameters[name].to(model.dtype)


def without_adapter(name: str) -> str:
    """HF's parameter name without the adapter's: `prompt_encoder.default.embedding.weight` without `default.`.

    Of a module that is trained too: `base_model.score.weight` for `base_model.score.modules_to_save.default.weight`.
    """
    return name.replace(".modules_to_save.default.", ".", 1).replace(".default.", ".", 1)


@contextlib.contextmanager
def watched(model: PeftModel, batch_size: int) -> Iterator[Tensors]:
    """Keep what passes through a PeftModel, by stage."""
    watch = Watch(model.get_base_model(), batch_size)

    def get_prompt(*args: Any, **kwargs: Any) -> Any:
        prompt = original_get_prompt(*args, **kwargs)
        if isinstance(prompt, torch.Tensor):
            watch.keep("prompt.embeddings", prompt)
        return prompt

    original_get_prompt = model.get_prompt
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(model, "get_prompt", get_prompt))
        for handle in [*_encoder_hooks(model, watch.keep), *_call_hooks(model, watch)]:
            stack.callback(handle.remove)
        stack.enter_context(watched_base(watch))
        yield watch.seen


def _call_hooks(model: PeftModel, watch: Watch) -> Iterator[Any]:
    """What PEFT hands the base model, or, where that cannot take a prefix, its backbone."""
    task_type, called = model.active_peft_config.task_type, []

    def keep_call(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        if not called:  # the model's own call of its backbone is not PEFT's
            called.append(module)
            assert not args
            _keep_call(kwargs, task_type, watch)

    for module in {id(m): m for m in (watch.base, watch.backbone)}.values():
        yield module.register_forward_pre_hook(keep_call, with_kwargs=True)
    if watch.family.types_given_to is not None:
        typed = find(watch.backbone, watch.family.types_given_to)
        yield typed.register_forward_pre_hook(functools.partial(_keep_types, watch), with_kwargs=True)


def _keep_types(watch: Watch, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("token_type_ids") is not None:
        watch.keep("inputs.token_type_ids", kwargs["token_type_ids"])


def _keep_call(kwargs: Mapping[str, Any], task_type: str, watch: Watch) -> None:
    for name in ("attention_mask", "decoder_attention_mask"):
        if kwargs.get(name) is not None:
            watch.keep(f"inputs.{name}", kwargs[name])
    if kwargs.get("inputs_embeds") is not None:  # prompt tuning
        watch.keep("inputs.embeddings", kwargs["inputs_embeds"])
        if kwargs.get("labels") is not None and task_type == "CAUSAL_LM":
            watch.keep("inputs.labels", kwargs["labels"])
        assert kwargs.get("position_ids") is None, "PEFT drops positions in prompt tuning"
    if kwargs.get("past_key_values") is not None:
        keep_prefix(kwargs["past_key_values"], watch.batch_size, watch.keep)


def keep_prefix(cache: Any, batch_size: int, keep: Keep) -> None:
    """Each layer's keys and values as PEFT puts them in the cache; of an encoder-decoder, the decoder's own."""
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    for layer, entry in enumerate(own.layers):
        assert entry.keys.shape[0] == batch_size
        keep(f"prefix.layers.{layer}.key", entry.keys)
        keep(f"prefix.layers.{layer}.value", entry.values)


def results(output: Any, task_type: str) -> Tensors:
    """What the model answers, under the names of the stages of its task."""
    names = {
        "SEQ_CLS": {"logits": "pooled_logits"},
        "TOKEN_CLS": {"logits": "token_logits"},
        "QUESTION_ANS": {"start_logits": "start_logits", "end_logits": "end_logits"},
        "FEATURE_EXTRACTION": {"last_hidden_state": "last_hidden_state"},
    }.get(task_type, {"logits": "logits"})
    answered = {stage: output[name].detach() for name, stage in names.items()}
    if output.get("loss") is not None:
        answered["loss"] = output.loss.detach()
    return answered


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
