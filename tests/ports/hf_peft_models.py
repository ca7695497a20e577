"""HF's models for the port's questions: base models by task, and adapters on them with their trainable heads.

Written against HF's own code alone, like the rest of the port (hf_peft.py).
"""

from __future__ import annotations

import copy
import functools
from types import SimpleNamespace
from typing import Any

import peft
import torch
import transformers

CONFIGS = {"PROMPT_TUNING": peft.PromptTuningConfig, "PREFIX_TUNING": peft.PrefixTuningConfig}
BASES = {
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": transformers.AutoModel,
}
"""The class of the base model for each task type."""
HEADS = {
    "SEQ_CLS": ["classifier", "score"],
    "TOKEN_CLS": ["classifier", "score"],
    "QUESTION_ANS": ["qa_outputs"],
}
"""What HF's model of a task appends to `modules_to_save`, once when it is made and once when its adapter is added."""
ADAPTER, COPY = "prompt_encoder.default", ".modules_to_save.default"


def make_config(values: dict[str, Any]) -> Any:
    """An adapter_config.json's contents as the configuration from which HF makes the same contents again.

    That is, without the heads that HF appends: loading and saving would double them.
    """
    config = CONFIGS[values["peft_type"]](**{k: v for k, v in values.items() if k != "peft_type"})
    appended = 2 * HEADS.get(config.task_type, [])
    if appended and (config.modules_to_save or [])[-len(appended) :] == appended:
        config.modules_to_save = config.modules_to_save[: -len(appended)] or None
    return config


def make_blank_config(values: dict[str, Any]) -> Any:
    """The same for a prompt whose values are given: none are drawn from the vocabulary or from a text."""
    if values["peft_type"] == "PROMPT_TUNING":
        values = values | {"prompt_tuning_init": "RANDOM", "tokenizer_kwargs": None}
    return make_config(values)


def in_profile(model: torch.nn.Module, dtype: str) -> Any:
    """In float64 everything is float64; in bfloat16 only what HF loads in it: a prompt stays in float32."""
    return (model.double() if dtype == "float64" else model).eval()


def load_base(request: dict[str, Any], task_type: str) -> Any:
    """The base model of a task, of one's own: adapters change it."""
    return copy.deepcopy(read_base(task_type, request["model"], request["dtype"]))


@functools.lru_cache(maxsize=16)
def read_base(task_type: str, directory: str, dtype: str) -> Any:
    """The same from its files, with eager attention: what masked queries see is part of the questions."""
    stored = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    base = BASES[task_type].from_pretrained(directory, dtype=stored, attn_implementation="eager")
    return in_profile(base, dtype)


def short(name: str) -> str:
    """The question's name of HF's parameter."""
    return name.replace(ADAPTER, "prompt_encoder").replace(COPY, "")


def parameters(model: Any, trainable: bool = True) -> dict[str, torch.nn.Parameter]:
    """By the questions' names: those that are trained, or all."""
    return {short(name): p for name, p in model.named_parameters() if p.requires_grad or not trainable}


def put(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    """Give the model the question's values of its trainable parameters."""
    own = parameters(model, trainable=False)
    with torch.no_grad():
        for name, value in inputs.items():
            if name.startswith("parameters."):
                own[name.removeprefix("parameters.")].copy_(value)
    return model


def load_model(request: dict[str, Any], inputs: dict[str, torch.Tensor]) -> Any:
    """HF's PeftModel with the trainable parameters of the question."""
    config = make_blank_config(request["config"])
    model = peft.get_peft_model(load_base(request, config.task_type), config)
    return put(in_profile(model, request["dtype"]), inputs)


def load_adapter(request: dict[str, Any]) -> Any:
    """HF's PeftModel from an adapter's directory."""
    task_type = peft.PeftConfig.from_pretrained(request["adapter"]).task_type
    model = peft.PeftModel.from_pretrained(load_base(request, task_type), request["adapter"])
    return in_profile(model, request["dtype"])


def make_prefix(request: dict[str, Any], inputs: dict[str, torch.Tensor]) -> Any:
    """The cache that HF's `get_prompt` makes of a prefix, for a base of which nothing is there but its configuration."""
    config = make_config(request["config"])
    if config.num_transformer_submodules is None:
        config.num_transformer_submodules = 2 if config.task_type == "SEQ_2_SEQ_LM" else 1
    encoder = in_profile(peft.PrefixEncoder(config), request["dtype"])
    own = "parameters.prompt_encoder."
    encoder.load_state_dict({k.removeprefix(own): v for k, v in inputs.items() if k.startswith(own)})
    heads = config.num_attention_heads
    base = SimpleNamespace(config=cache_config(request, heads, config.token_dim // heads))
    model = SimpleNamespace(
        active_adapter="default",
        active_peft_config=config,
        prompt_encoder={"default": encoder},
        prompt_tokens={
            "default": torch.arange(config.num_virtual_tokens * config.num_transformer_submodules)
        },
        base_model_torch_dtype=getattr(torch, request["dtype"]),
        base_model=base,
        get_base_model=lambda: base,
        config=base.config,
    )
    return peft.PeftModel.get_prompt(model, request["arguments"]["batch_size"])


def cache_config(request: dict[str, Any], heads: int, head_dim: int) -> Any:
    """What a cache depends on: layers with windows, of which HF peft takes notice in Gemma 2 and 3 alone.

    From the question's list of windows, from its base model, or none.
    """
    if windows := request["arguments"].get("sliding_windows"):
        return transformers.Gemma2Config(
            num_hidden_layers=len(windows),
            num_key_value_heads=heads,
            head_dim=head_dim,
            layer_types=["full_attention" if window is None else "sliding_attention" for window in windows],
            sliding_window=max(window or 1 for window in windows),
        )
    if request["model"]:
        return transformers.AutoConfig.from_pretrained(request["model"])
    return transformers.PreTrainedConfig()


def make_to_save(request: dict[str, Any], inputs: dict[str, torch.Tensor]) -> Any:
    """A PeftModel that HF saves as the question's adapter.

    Without a base model in the question, on a tiny GPT-2 that has modules of the names and sizes of the trainable heads.
    """
    if request["model"]:
        model = load_model(request, inputs)
    else:
        sizes = {"vocab_size": 8, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
        tiny = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False)
        base = transformers.GPT2LMHeadModel(tiny)
        for name, value in inputs.items():
            if name.startswith("parameters.base_model."):
                place(base, name.removeprefix("parameters.base_model."), value)
        model = peft.get_peft_model(base, make_blank_config(request["config"]))
        model = put(in_profile(model, request["dtype"]), inputs)
    model.base_model.name_or_path = request["config"].get("base_model_name_or_path") or ""
    for name in ("base_model_name_or_path", "prompt_tuning_init", "tokenizer_kwargs"):
        if name in request["config"]:
            setattr(model.active_peft_config, name, request["config"][name])
    return model


def place(module: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    """Let a parameter of that dotted name exist, and the modules on the way to it."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, torch.nn.Module())
        module = getattr(module, part)
    module.register_parameter(leaf, torch.nn.Parameter(value.clone()))
