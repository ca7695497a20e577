"""HF peft's Prompt Tuning and Prefix Tuning in JAX, for GPT-2, LLaMA and T5: a second implementation.

It is written from specs/ and from HF's source and shares no code with refpeft, so that two readings of the same
clauses are compared. Run it as `refpeft check -- python tests/ports/jax_port.py`.

JAX has what gradients flow through; ids, masks, positions and frozen tables are NumPy's. XLA takes far longer to
compile such tiny models than to run them: so layers are what is compiled, and XLA is told to hurry.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy
from safetensors.numpy import load_file, save_file

HURRY = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"  # jaxlib 0.10 has them
os.environ.setdefault("XLA_FLAGS", HURRY)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_disable_most_optimizations", True)

PARTS, TASKS = ("query", "key", "value", "output"), ("CAUSAL_LM", "SEQ_2_SEQ_LM")
TABLE, HEAD = "prompt_encoder.embedding.weight", "base_model.lm_head.weight"
GELU, TANH_GELU = (partial(jax.nn.gelu, approximate=x) for x in (False, True))
ACTIVATIONS = {"gelu": GELU, "gelu_new": TANH_GELU, "gelu_pytorch_tanh": TANH_GELU}
ACTIVATIONS |= {"relu": jax.nn.relu, "silu": jax.nn.silu, "swish": jax.nn.silu}


class SkipError(Exception):
    """A question that is beyond this port."""


def wider(dtype):
    """The format of angles and of the loss."""
    return numpy.promote_types(dtype, numpy.float32)


def in_format(tensors, dtype):
    """Real numbers in the format of the request; ids and masks as they are."""
    real = {name for name, x in tensors.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return {name: x.astype(jnp.dtype(dtype)) if name in real else x for name, x in tensors.items()}


# ---------------------------------------------------------------- base models


class Sizes(NamedTuple):
    """What a stack's layers are compiled for."""

    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    activation: str
    centred: bool  # layer norm; else RMS norm


class Base(NamedTuple):
    """A base model. Its stacks come from `stack_of`; tables and head are rows × hidden."""

    config: dict[str, Any]
    tokens: Any
    positions: Any
    head: Any
    decoder: Any
    encoder: Any = None
    head_scale: float = 1.0


def weights(tensors, start, names):
    """Weights and biases under this port's names, as far as the file has them."""
    both = {f"{own}.{x}": f"{start}{theirs}.{x}" for own, theirs in names.items() for x in ("weight", "bias")}
    return {own: tensors[theirs] for own, theirs in both.items() if theirs in tensors}


def stack_of(name, sizes, tensors, start, names, scales, norm, frequencies=None, distances=None):
    """An encoder or a decoder. `frequencies`: of rotary positions; `distances`: T5's table, buckets, furthest."""
    layers = [weights(tensors, f"{start}.{i}.", names) for i in range(len(scales))]
    given = {"frequencies": frequencies, "distances": distances, "norm": weights(tensors, "", {"norm": norm})}
    return SimpleNamespace(name=name, sizes=sizes, layers=layers, scales=scales, **given)


def read_gpt2(config, tensors):
    """Conv1D weights are inputs × outputs; queries, keys and values stand side by side in one."""
    if config.get("add_cross_attention") or config.get("reorder_and_upcast_attn"):
        raise SkipError("GPT-2 with cross-attention, or with attention in float32, is not written")
    tensors = {name: x.T if ".c_" in name else x for name, x in tensors.items()}
    for name in [name for name in tensors if ".c_attn." in name]:
        three = zip(PARTS[:3], numpy.split(tensors[name], 3), strict=True)
        tensors |= {name.replace("c_attn", part): x for part, x in three}
    names = {"input_norm": "ln_1", **{f"attention.{x}": f"attn.{x}" for x in PARTS}}
    names |= {"attention.output": "attn.c_proj", "post_attention_norm": "ln_2"}
    names |= {"mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    heads, head_dim = config["n_head"], config["n_embd"] // config["n_head"]
    choices = config["layer_norm_epsilon"], config["activation_function"], True
    scale = head_dim**-0.5 if config["scale_attn_weights"] else 1.0
    by_layer = config.get("scale_attn_by_inverse_layer_idx")
    scales = [scale / (i + 1 if by_layer else 1) for i in range(config["n_layer"])]
    sizes, tokens = Sizes(heads, heads, head_dim, *choices), tensors["wte.weight"]
    decoder = stack_of("decoder", sizes, tensors, "h", names, scales, "ln_f")
    return Base(config, tokens, tensors["wpe.weight"], tensors.get("lm_head.weight", tokens), decoder)


def rotary_frequencies(config, head_dim, dtype):
    """The angle of each pair of numbers at position 1; older files have two keys for it."""
    older = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}
    rope = config.get("rope_parameters") or older
    kind = rope.get("rope_type", rope.get("type", "default"))
    pairs = numpy.arange(0, head_dim, 2, dtype=wider(dtype)) / head_dim
    frequencies = 1 / rope.get("rope_theta", 10000.0) ** pairs
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        context = rope.get("original_max_position_embeddings", config["max_position_embeddings"])
        turns = context * frequencies / (2 * math.pi)
        kept = numpy.clip((turns - low) / (high - low), 0, 1)
        return (1 - kept) * frequencies / rope["factor"] + kept * frequencies
    if kind not in ("default", "linear"):
        raise SkipError(f"rotary positions of type {kind} are not written")
    return frequencies / (rope["factor"] if kind == "linear" else 1)


def read_llama(config, tensors):
    names = {"input_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
    names |= {f"attention.{x}": f"self_attn.{x[0]}_proj" for x in PARTS}
    names |= {f"mlp.{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    heads, tokens = config["num_attention_heads"], tensors["embed_tokens.weight"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    counts = heads, config.get("num_key_value_heads") or heads, head_dim
    sizes = Sizes(*counts, config["rms_norm_eps"], config["hidden_act"], centred=False)
    scales = [head_dim**-0.5] * config["num_hidden_layers"]
    frequencies = rotary_frequencies(config, head_dim, tokens.dtype)
    decoder = stack_of("decoder", sizes, tensors, "layers", names, scales, "norm", frequencies=frequencies)
    return Base(config, tokens, None, tensors.get("lm_head.weight", tokens), decoder)


def read_t5(config, tensors):
    """The first layer's table of biases is its stack's; `scale_decoder_outputs` goes before the tied head."""
    gate, _, act = config["feed_forward_proj"].rpartition("-")
    dense = {"mlp.gate": "wi_0", "mlp.up": "wi_1"} if gate else {"mlp.up": "wi"}
    act = "gelu_new" if (gate, act) == ("gated", "gelu") else act
    heads, choices = config["num_heads"], (config["layer_norm_epsilon"], act, False)
    sizes = Sizes(heads, heads, config["d_kv"], *choices)
    buckets, furthest = config["relative_attention_num_buckets"], config["relative_attention_max_distance"]
    attentions = {"attention": "SelfAttention", "cross_attention": "EncDecAttention"}
    norms = ("input_norm", "post_attention_norm", "post_cross_attention_norm")

    def stack(name, count, parts):
        names = {own: f"layer.{i}.layer_norm" for i, own in enumerate(norms[: parts + 1])}
        for i, (own, theirs) in enumerate([*attentions.items()][:parts]):
            names |= {f"{own}.{x}": f"layer.{i}.{theirs}.{x[0]}" for x in PARTS}
        names |= {own: f"layer.{parts}.DenseReluDense.{x}" for own, x in {**dense, "mlp.down": "wo"}.items()}
        table = tensors[f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        distances = table, buckets // (1 if name == "decoder" else 2), furthest
        scales, last = [1.0] * count, f"{name}.final_layer_norm"
        return stack_of(name, sizes, tensors, f"{name}.block", names, scales, last, distances=distances)

    encoder = stack("encoder", config["num_layers"], 1)
    decoder = stack("decoder", config.get("num_decoder_layers") or config["num_layers"], 2)
    tokens, scaled = tensors["shared.weight"], config.get("tie_word_embeddings") is not False
    scale = config["d_model"] ** -0.5 if config.get("scale_decoder_outputs", scaled) else 1.0
    return Base(config, tokens, None, tensors.get("lm_head.weight", tokens), decoder, encoder, scale)


READERS = {"gpt2": read_gpt2, "llama": read_llama, "t5": read_t5}
DEFAULTS = {
    "gpt2": {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "scale_attn_weights": True},
    "llama": {"rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 2048},
    "t5": {"layer_norm_epsilon": 1e-6, "feed_forward_proj": "relu", "pad_token_id": 0},
}
DEFAULTS["t5"] |= {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}


@lru_cache(maxsize=8)
def read_base(directory, dtype):
    """An unmodified HF directory, in the format of the request."""
    config = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    family, tensors = config["model_type"], in_format(load_file(Path(directory) / "model.safetensors"), dtype)
    own = {name.removeprefix("transformer.").removeprefix("model."): x for name, x in tensors.items()}
    base = READERS[family]({**DEFAULTS[family], **config}, own)
    if base.decoder.sizes.activation not in ACTIVATIONS:
        raise SkipError(f"the activation {base.decoder.sizes.activation} is not written")
    return base


# ---------------------------------------------------------------- layers


def affine(layer, name, x):
    return x @ layer[f"{name}.weight"].T + layer.get(f"{name}.bias", 0.0)


@partial(jax.jit, static_argnums=(0, 2))
def norm(sizes, layer, name, x):
    x = x - x.mean(-1, keepdims=True) if sizes.centred else x
    x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + sizes.epsilon)
    return x * layer[f"{name}.weight"] + layer.get(f"{name}.bias", 0.0)


def turned(x, cosine, sine):
    """Number i of a head is turned with number i + d/2."""
    first, second = jnp.split(x, 2, axis=-1)
    return x * cosine + jnp.concatenate([-second, first], axis=-1) * sine


@partial(jax.jit, static_argnums=(0, 1))
def attention(sizes, part, layer, hidden, view, past=None, encoded=None):
    """→ output, (keys, values) behind those of the past, stages. `view`: who sees whom, scale, and turn or bias."""
    stages, source = {}, hidden if encoded is None else encoded
    given = ("query", hidden, sizes.heads), ("key", source, sizes.kv_heads), ("value", source, sizes.kv_heads)
    for name, x, count in given:
        x = affine(layer, f"{part}.{name}", x)
        stages[name] = x.reshape(*x.shape[:2], count, sizes.head_dim).swapaxes(1, 2)
    query, key, value = stages.values()
    if "turn" in view:
        query = stages["query_rotated"] = turned(query, *view["turn"])
        key = stages["key_rotated"] = turned(key, *view["turn"])
    if past is not None:
        key, value = (jnp.concatenate(both, axis=2) for both in zip(past, (key, value), strict=True))
    if encoded is None:
        stages |= {"key_states": key, "value_states": value}
    keys, values = (x.repeat(sizes.heads // sizes.kv_heads, axis=1) for x in (key, value))
    scores = query @ keys.swapaxes(2, 3) * view["scale"] + view.get("bias", 0.0)
    scores = stages["scores"] = jnp.where(view["visible"][:, None], scores, jnp.finfo(scores.dtype).min)
    shares = stages["weights"] = jax.nn.softmax(scores, axis=-1)
    context = (shares @ values).swapaxes(1, 2)
    context = stages["context"] = context.reshape(*context.shape[:2], -1)
    output = stages["output"] = affine(layer, f"{part}.output", context)
    return output, (key, value), {f"{part}.{name}": stage for name, stage in stages.items()}


@partial(jax.jit, static_argnums=0)
def block(sizes, layer, hidden, view, past, cross):
    """One layer → hidden states, (keys, values), stages. `cross`: the encoder's states and the view of them."""
    normed = norm(sizes, layer, "input_norm", hidden)
    output, kept, told = attention(sizes, "attention", layer, normed, view, past)
    stages = {"input_norm": normed, **told}
    hidden = stages["after_attention"] = hidden + output
    normed = stages["post_attention_norm"] = norm(sizes, layer, "post_attention_norm", hidden)
    if cross:
        output, _, told = attention(sizes, "cross_attention", layer, normed, cross[1], None, cross[0])
        hidden = stages["after_cross_attention"] = hidden + output
        normed = stages["post_cross_attention_norm"] = norm(sizes, layer, "post_cross_attention_norm", hidden)
        stages |= told
    act, up = ACTIVATIONS[sizes.activation], affine(layer, "mlp.up", normed)
    inner = act(affine(layer, "mlp.gate", normed)) * up if "mlp.gate.weight" in layer else act(up)
    output = affine(layer, "mlp.down", inner)
    stages |= {"mlp.activation": inner, "mlp.output": output, "output": hidden + output}
    return stages["output"], kept, stages


def turn(stack, positions):
    """Cosines and sines of the positions' angles, once for all heads."""
    angles = positions[:, None, :, None].astype(stack.frequencies.dtype) * numpy.tile(stack.frequencies, 2)
    return [x.astype(stack.norm["norm.weight"].dtype) for x in (numpy.cos(angles), numpy.sin(angles))]


def relative_bias(stack, query, keys):
    """T5's biases by distance → (heads, query, key). The logarithm is float32's in every format."""
    table, buckets, furthest = stack.distances
    distance = numpy.arange(keys)[None] - numpy.arange(keys - query, keys)[:, None]
    right = buckets * (distance > 0) if stack.name == "encoder" else 0
    distance = numpy.abs(distance) if stack.name == "encoder" else -numpy.minimum(distance, 0)
    single, exact = numpy.float32, buckets // 2
    far = numpy.log(numpy.maximum(distance, 1).astype(single) / single(exact))
    far = exact + (far / single(math.log(furthest / exact)) * single(buckets - exact)).astype(int)
    place = right + numpy.where(distance < exact, distance, numpy.minimum(far, buckets - 1))
    return table[place].transpose(2, 0, 1)


def visible(mask, batch, query, keys, causal):
    """Who sees whom: what no mask hides, and of a decoder nothing behind the query, which stands last."""
    last = numpy.arange(keys - query, keys)[:, None] if causal else keys
    seen = numpy.broadcast_to(numpy.arange(keys) <= last, (batch, query, keys))
    return seen if mask is None else seen & (mask[:, None] != 0)


def run_stack(stack, hidden, mask, positions, past, cross, stages):
    """All layers and the final norm → hidden states, the cache."""
    batch, query = hidden.shape[:2]
    keys, cache = query + (past[0][0].shape[2] if past else 0), []
    view = {"visible": visible(mask, batch, query, keys, stack.name == "decoder")}
    stages[f"{stack.name}.visible"] = view["visible"]
    if stack.distances:
        view["bias"] = stages[f"{stack.name}.relative_bias"] = relative_bias(stack, query, keys)
    if stack.frequencies is not None:
        view["turn"] = turn(stack, positions)
    for i, layer in enumerate(stack.layers):
        given = {**view, "scale": stack.scales[i]}
        hidden, kept, told = block(stack.sizes, layer, hidden, given, past[i] if past else None, cross)
        cache.append(kept)
        stages |= {f"{stack.name}.layers.{i}.{name}": stage for name, stage in told.items()}
    hidden = stages[f"{stack.name}.final_norm"] = norm(stack.sizes, stack.norm, "norm", hidden)
    return hidden, cache


# ---------------------------------------------------------------- virtual tokens


class Adapter(NamedTuple):
    """What of an adapter's configuration is computed with."""

    prompt: bool
    virtual: int
    layers: int
    heads: int
    submodules: int
    projected: bool


def adapter_of(config, loaded=False):
    """An adapter that was loaded is folded."""
    if config["task_type"] not in TASKS:
        raise SkipError(f"the task {config['task_type']} is not written")
    names = ("num_virtual_tokens", "num_layers", "num_attention_heads", "num_transformer_submodules")
    projected = bool(config.get("prefix_projection")) and not (loaded or config["inference_mode"])
    return Adapter(config["peft_type"] == "PROMPT_TUNING", *(config[x] for x in names), projected)


@partial(jax.jit, static_argnums=(0, 2, 3))
def prefix(adapter, parameters, batch, windows=()):
    """(keys, values) of each layer, and stages. A layer with a window w keeps the last w − 1 virtual tokens."""
    past, stages, flat, blocks = [], {}, parameters[TABLE], 2 * adapter.layers
    if adapter.projected:
        hidden = stages["prefix.projection_hidden"] = affine(parameters, "prompt_encoder.transform.0", flat)
        hidden = stages["prefix.projection_activation"] = jnp.tanh(hidden)
        flat = affine(parameters, "prompt_encoder.transform.2", hidden)
    stages["prefix.flat"] = flat
    rows = flat.reshape(adapter.virtual, blocks, 1, adapter.heads, -1).transpose(1, 2, 3, 0, 4)
    rows = rows.repeat(batch, axis=1)
    for layer, window in enumerate(windows or [None] * adapter.layers):
        first = 2 * layer * adapter.submodules % blocks
        cut = max(0, adapter.virtual + 1 - window) if window else 0
        past.append((rows[first, :, :, cut:], rows[first + 1, :, :, cut:]))
        stages[f"prefix.layers.{layer}.key"], stages[f"prefix.layers.{layer}.value"] = past[-1]
    return past, stages


def extended(mask, batch, virtual):
    """Ones for the virtual tokens in front; without a mask, nothing but them."""
    ones = numpy.ones((batch, virtual), numpy.int64)
    return ones if mask is None else numpy.concatenate([ones, mask], axis=1)


def begin(base, adapter, parameters, inputs, stages):
    """What the decoder is given: virtual tokens are put before the text, or into the decoder's cache."""
    ids, virtual, past = inputs["input_ids"], adapter.virtual, None
    masks = {which: inputs.get(f"{which}attention_mask") for which in ("", "decoder_")}
    counted = "decoder_" if base.encoder and not adapter.prompt else ""
    if masks[counted] is not None:
        masks[counted] = extended(masks[counted], len(ids), virtual)
    stages |= {f"inputs.{which}attention_mask": mask for which, mask in masks.items() if mask is not None}
    embedded = stages["inputs.token_embeddings"] = base.tokens[ids]
    if adapter.prompt:
        rows = jnp.broadcast_to(parameters[TABLE], (len(ids), *parameters[TABLE].shape))
        embedded = jnp.concatenate([rows[:, :virtual], embedded], axis=1)
        stages |= {"prompt.embeddings": rows, "inputs.embeddings": embedded}
    else:
        past, told = prefix(adapter, parameters, len(ids))
        stages |= told
    if not base.encoder:
        text = numpy.arange(embedded.shape[1])[None]
        positions = text if adapter.prompt else virtual + inputs.get("position_ids", text)
        positions = stages["inputs.position_ids"] = numpy.broadcast_to(positions, embedded.shape[:2])
        return {"embedded": embedded, "mask": masks[""], "past": past, "positions": positions}
    ids = inputs.get("decoder_input_ids")
    if ids is None:
        start = numpy.full((len(embedded), 1), base.config["decoder_start_token_id"])
        ids = numpy.concatenate([start, inputs["labels"][:, :-1]], axis=1)
        ids = stages["inputs.decoder_input_ids"] = numpy.where(ids == -100, base.config["pad_token_id"], ids)
    tokens = stages["inputs.decoder_token_embeddings"] = base.tokens[ids]
    encoded, _ = run_stack(base.encoder, embedded, masks[""], None, None, None, stages)
    return {"embedded": tokens, "mask": masks["decoder_"], "past": past, "encoded": (encoded, masks[""])}


@jax.jit
def logits_of(hidden, scale, head):
    return (hidden * scale) @ head.T


def decode(base, head, stages, embedded, mask, past, positions=None, encoded=None):
    """Logits of the new tokens, and the cache."""
    hidden, cross, (batch, query) = embedded, None, embedded.shape[:2]
    if base.positions is not None:
        hidden = stages["decoder.embeddings"] = embedded + base.positions[positions]
    if encoded:
        seen = visible(encoded[1], batch, query, encoded[0].shape[1], causal=False)
        stages["decoder.cross_visible"] = seen
        cross = encoded[0], {"visible": seen, "scale": 1.0}
    hidden, cache = run_stack(base.decoder, hidden, mask, positions, past, cross, stages)
    stages["logits"] = logits_of(hidden, base.head_scale, head)
    return stages["logits"], cache


# ---------------------------------------------------------------- loss and training


@partial(jax.jit, static_argnums=2)
def cross_entropy(logits, labels, following):
    """One mean over all labels that are not −100, of the same or of the following position."""
    logits = logits.astype(wider(logits.dtype))
    logits, labels = (logits[:, :-1], labels[:, 1:]) if following else (logits, labels)
    counted = labels != -100
    taken = jnp.take_along_axis(logits, jnp.where(counted, labels, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - taken, 0.0).sum() / counted.sum()


def forward(base, adapter, parameters, inputs):
    stages, labels = {}, inputs.get("labels")
    reading = begin(base, adapter, parameters, inputs, stages)
    logits, _ = decode(base, parameters.get(HEAD, base.head), stages, **reading)
    if labels is not None and adapter.prompt and not base.encoder:
        labels = numpy.pad(labels, ((0, 0), (adapter.virtual, 0)), constant_values=-100)
        stages["inputs.labels"] = labels
    if labels is not None:
        stages["loss"] = cross_entropy(logits, labels, base.encoder is None)
    return stages


def loss_and_gradients(base, adapter, parameters, inputs):
    """All stages of the forward pass, and a gradient for each parameter."""

    def loss(parameters):
        stages = forward(base, adapter, parameters, inputs)
        return stages["loss"], stages

    (_, stages), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
    return stages, gradients


def learning_rate(how, step):
    """Transformers' schedules: a warm-up begins at 0."""
    peak, kind, warmup = how["learning_rate"], how["lr_scheduler_type"], how["warmup_steps"]
    if kind != "constant" and step < warmup:
        return peak * step / warmup
    done = (step - warmup) / max(1, how["max_steps"] - warmup)
    left = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return peak * max(0.0, left.get(kind, 1.0))


@partial(jax.jit, static_argnums=0)
def adamw(betas, state, gradient, rate, decay, epsilon, corrections):
    """One parameter and its two moments anew."""
    theta, first, second = state
    first = first + (1 - betas[0]) * (gradient - first)
    second = betas[1] * second + (1 - betas[1]) * gradient * gradient
    update = first / (jnp.sqrt(second) / corrections[1] + epsilon)
    return theta * (1 - rate * decay) - rate / corrections[0] * update, first, second


def train(base, adapter, parameters, inputs, how):
    """The plain loop: k micro-batches a step, clipping, AdamW."""
    series, states = {}, {name: (p, p * 0, p * 0) for name, p in parameters.items()}
    count, betas = how["gradient_accumulation_steps"], (how["adam_beta1"], how["adam_beta2"])
    for step in range(how["max_steps"]):
        told, total = {"learning_rate": learning_rate(how, step), "loss": 0.0}, dict.fromkeys(parameters, 0.0)
        parameters = {name: state[0] for name, state in states.items()}
        for number in range(step * count, (step + 1) * count):
            batch = {name: x[number % len(x)] for name, x in inputs.items()}
            stages, gradients = loss_and_gradients(base, adapter, parameters, batch)
            told["loss"] += stages["loss"] / count
            total = {name: total[name] + gradient / count for name, gradient in gradients.items()}
        told |= {f"gradients.{name}": gradient for name, gradient in total.items()}
        told["gradient_norm"] = size = jnp.sqrt(sum((x * x).sum() for x in total.values()))
        if how["max_grad_norm"]:
            told["clip_coefficient"] = clip = jnp.minimum(1.0, how["max_grad_norm"] / (size + 1e-6))
            total = {name: gradient * clip for name, gradient in total.items()}
        corrections = 1 - betas[0] ** (step + 1), math.sqrt(1 - betas[1] ** (step + 1))
        given = told["learning_rate"], how["weight_decay"], how["adam_epsilon"], corrections
        states = {name: adamw(betas, state, total[name], *given) for name, state in states.items()}
        for i, kind in enumerate(("parameters", "exp_avg", "exp_avg_sq")):
            told |= {f"{kind}.{name}": state[i] for name, state in states.items()}
        for name in ("loss", "learning_rate", "gradient_norm"):
            plural = "training.losses" if name == "loss" else f"training.{name}s"
            series[plural] = numpy.append(series.get(plural, []), numpy.float64(told[name]))
        series |= {f"training.steps.{step}.{name}": x for name, x in told.items()}
    return series | {f"trained.{name}": state[0] for name, state in states.items()}


# ---------------------------------------------------------------- generation


def options_of(given, config):
    """The arguments of `generate`; tokens that are not given are those of the base's config.json."""

    def ids(name):
        value = given.get(name, config.get(name))
        return [] if value is None else value if isinstance(value, list) else [value]

    if not given.get("use_cache", True):
        raise SkipError("generating without a cache is not written")
    defaults = {"min_new_tokens": 0, "num_beams": 1, "num_return_sequences": 1, "length_penalty": 1.0}
    options = SimpleNamespace(**{"early_stopping": False, **defaults, **given})
    options.ends = ids("eos_token_id")
    options.first, options.last = ids("forced_bos_token_id"), ids("forced_eos_token_id")
    options.pad = next(iter(ids("pad_token_id") + options.ends), None)
    options.start = next(iter(ids("decoder_start_token_id") + ids("bos_token_id")), None)
    return options


def adjusted(scores, length, new, options):
    """Ends that come too early are forbidden; then a first or a last token may be forced."""
    scores = scores.copy()
    if new < options.min_new_tokens:
        scores[:, options.ends] = -numpy.inf
    for forced, now in ((options.first, length == 1), (options.last, new == options.max_new_tokens - 1)):
        if forced and now:
            scores[:] = -numpy.inf
            scores[:, forced] = 0
    return scores


class Writer:
    """Reads what stands there, and then one token at a time behind its cache.

    The cache is as long at every step, so that XLA compiles one step: zeros that the mask hides stand before it.
    """

    def __init__(self, base, head, stages, reading, room):
        self.decode, self.stages, self.tokens = partial(decode, base, head), stages, base.tokens
        self.reading, self.room, self.cache = reading, room, None

    def next(self, rows, parents):
        """Logits behind rows of tokens; each goes on with the cache of a row of the step before."""
        if self.cache:
            self.reading["embedded"] = self.tokens[rows[:, -1:]]
            self.reading["past"] = [[x[parents, :, 1:] for x in layer] for layer in self.cache]
            self.reading["mask"] = numpy.pad(self.mask, ((0, 0), (0, 1)), constant_values=1)[parents, 1:]
            if "positions" in self.reading:
                self.reading["positions"] = self.reading["positions"][parents, -1:] + 1
        logits, cache = self.decode(self.stages, **self.reading)
        mask, before = self.reading["mask"], ((0, 0), (self.room, 0))
        mask = numpy.ones((len(rows), cache[0][0].shape[2]), int) if mask is None else mask
        self.cache = [[numpy.pad(x, ((0, 0), *before, (0, 0))) for x in layer] for layer in cache]
        self.mask, self.room, self.stages = numpy.pad(mask, before), 0, {}
        return numpy.asarray(logits)[:, -1].astype(wider(logits.dtype))


def greedy(writer, rows, options):
    ended, steps = numpy.zeros(len(rows), bool), []
    while len(steps) < options.max_new_tokens and not ended.all():
        steps.append(writer.next(rows, numpy.arange(len(rows))))
        tokens = adjusted(steps[-1], rows.shape[1], len(steps) - 1, options).argmax(axis=-1)
        tokens = numpy.where(ended, -1 if options.pad is None else options.pad, tokens)
        rows = numpy.concatenate([rows, tokens[:, None]], axis=1)
        ended |= numpy.isin(tokens, options.ends)
    return {"sequences": rows, "generation.logits": numpy.stack(steps, axis=1)}


def largest(scores, count):
    """The places of the largest scores, the first of equal ones first."""
    return numpy.argsort(-scores, axis=-1, kind="stable")[:, :count]


def beam_search(writer, rows, options):
    """HF's search: running beams, and for each text the best that have ended, at first none in their places."""
    beams, new, going_on, penalty = options.num_beams, 0, True, options.length_penalty
    running, texts = rows.reshape(len(rows) // beams, beams, -1), numpy.arange(len(rows) // beams)[:, None]
    parents = numpy.arange(beams) + 0 * texts
    scores = numpy.where(parents == 0, 0.0, -1e9)
    done, still_open = [[(-1e9, row, False) for row in text] for text in running], [True for _ in texts]
    early = options.early_stopping
    while going_on:
        logits = writer.next(running.reshape(len(rows), -1), (texts * beams + parents).ravel())
        logits -= logits.max(axis=-1, keepdims=True)
        chances = logits - numpy.log(numpy.exp(logits).sum(axis=-1, keepdims=True))
        chances = adjusted(chances, running.shape[2], new, options).reshape(len(texts), beams, -1)
        sums = (scores[..., None].astype(chances.dtype) + chances).reshape(len(texts), -1)
        places = largest(sums, beams * max(2, 1 + len(options.ends)))
        sums, (parents, tokens) = sums[texts, places], numpy.divmod(places, chances.shape[2])
        candidates = numpy.concatenate([running[texts, parents], tokens[..., None]], axis=2)
        new += 1
        ends = numpy.isin(tokens, options.ends) | (new == options.max_new_tokens)
        left = numpy.where(ends, sums - 1e9, sums)
        places = largest(left, beams)
        running, scores, parents = (x[texts, places] for x in (candidates, left, parents))
        reach = options.max_new_tokens if early == "never" and penalty > 0 else new
        for text, ready in enumerate(done):
            if still_open[text] and not (early is True and all(ended for *_, ended in ready)):
                ended = [i for i in range(beams) if ends[text, i]]  # an end further down is dropped
                ready += [(sums[text, i] / new**penalty, candidates[text, i], True) for i in ended]
                ready[:] = sorted(ready, key=lambda beam: -beam[0])[:beams]
            hope, worst = scores[text, 0] / reach**penalty, ready[-1][0]
            still_open[text] &= any(hope > (worst if ended else -1e9) for *_, ended in ready)
        complete = early is True and all(ended for ready in done for *_, ended in ready)
        going_on = any(still_open) and not complete and not ends.all()
    best = [beam for ready in done for beam in ready[: options.num_return_sequences]]
    length = max(len(ids) for _, ids, _ in best)
    filler = (options.pad or options.ends[0]) if options.ends else -1
    filled = [numpy.pad(ids, (0, length - len(ids)), constant_values=filler) for _, ids, _ in best]
    return {"sequences": numpy.stack(filled), "sequences_scores": numpy.stack([beam[0] for beam in best])}


def generate(base, adapter, parameters, inputs, options):
    """Masks and positions as `generate` makes them; rows are repeated for their beams before virtual tokens come in."""
    stages, given = {}, {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    rows = ids = given["input_ids"]
    if base.encoder:
        rows = given["decoder_input_ids"] = numpy.full((len(ids), 1), options.start)
    else:
        if "attention_mask" not in given:
            padded = ids == options.pad if options.pad not in options.ends else ids < 0
            given["attention_mask"] = stages["generation.attention_mask"] = 1 - padded
        mask = given["attention_mask"]
        positions = numpy.where(mask == 0, 0, numpy.cumsum(mask, axis=1) - 1)
        given["position_ids"] = stages["generation.position_ids"] = positions
        if mask.all():
            del given["attention_mask"]
    given = {name: x.repeat(options.num_beams, axis=0) for name, x in given.items()}
    reading = begin(base, adapter, parameters, given, stages)
    writer = Writer(base, parameters.get(HEAD, base.head), stages, reading, options.max_new_tokens)
    search = greedy if options.num_beams == 1 else beam_search
    return stages | search(writer, rows.repeat(options.num_beams, axis=0), options)


# ---------------------------------------------------------------- the protocol


def attend(stack, inputs, number):
    """One layer's attention, whose queries stand behind the past."""
    past = (inputs["past.key"], inputs["past.value"]) if "past.key" in inputs else None
    view = {"visible": inputs["visible"], "scale": stack.scales[number]}
    if stack.frequencies is not None:
        query, keys = inputs["visible"].shape[1:]
        view["turn"] = turn(stack, numpy.arange(keys - query, keys)[None])
    _, _, stages = attention(stack.sizes, "attention", stack.layers[number], inputs["hidden"], view, past)
    return {f"{stack.name}.layers.{number}.{name}": stage for name, stage in stages.items()}


def load_adapter(directory, dtype):
    """A directory as HF peft writes it: the table, or the flat prefix, and perhaps a head."""
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    parameters = in_format(load_file(directory / "adapter_model.safetensors"), dtype)
    return adapter_of(config, loaded=True), {TABLE: parameters.pop("prompt_embeddings"), **parameters}


def save_adapter(directory, config, parameters):
    """A projection is folded; heads stand beside the virtual tokens."""
    adapter, table = adapter_of(config), parameters[TABLE]
    table = table if adapter.prompt else prefix(adapter, parameters, 1)[1]["prefix.flat"]
    heads = {name: x for name, x in parameters.items() if not name.startswith("prompt_encoder.")}
    directory.mkdir()
    write(directory / "adapter_model.safetensors", {"prompt_embeddings": table, **heads})
    written = json.dumps({**config, "inference_mode": True}, indent=2, sort_keys=True)
    (directory / "adapter_config.json").write_text(written, encoding="utf-8")


def write(file, tensors):
    """NumPy arrays in row-major order; bfloat16 as float32, which holds it."""
    arrays = {name: numpy.array(x, order="C") for name, x in tensors.items()}
    arrays = {name: x.astype("float32") if x.dtype == "bfloat16" else x for name, x in arrays.items()}
    save_file(arrays, file, metadata={"format": "pt"})


def answer(request, inputs, parameters):
    """Every question but `checkpoint.save` → tensors."""
    question, config, arguments = (request[x] for x in ("question", "config", "arguments"))
    if question == "mask":
        batch, virtual = arguments["batch_size"], arguments["num_virtual_tokens"]
        return {"inputs.attention_mask": extended(inputs.get("attention_mask"), batch, virtual)}
    if question == "prefix.encode":
        windows = tuple(arguments.get("sliding_windows") or ())
        return prefix(adapter_of(config), parameters, arguments["batch_size"], windows)[1]
    base = read_base(request["model"], request["dtype"])
    if question == "attention":
        return attend(getattr(base, arguments.get("stack") or "decoder"), inputs, arguments["layer"])
    if question == "checkpoint.load":
        adapter, parameters = load_adapter(Path(request["adapter"]), request["dtype"])
    else:
        adapter = adapter_of(config)
    if question == "training":
        return train(base, adapter, parameters, inputs, arguments)
    if question == "generate":
        return generate(base, adapter, parameters, inputs, options_of(arguments, base.config))
    if question == "gradients":
        stages, gradients = loss_and_gradients(base, adapter, parameters, inputs)
        return stages | {f"gradients.{name}": gradient for name, gradient in gradients.items()}
    return forward(base, adapter, parameters, inputs)


def run(request):
    output, start = Path(request["output"]), "parameters."
    tensors = in_format(load_file(request["inputs"]), request["dtype"]) if request["inputs"] else {}
    parameters = {name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)}
    inputs = {name: x for name, x in tensors.items() if not name.startswith(start)}
    if request["question"] == "checkpoint.save":
        save_adapter(output / "adapter", request["config"], parameters)
        return {"adapter": "adapter"}
    write(output / "answer.safetensors", answer(request, inputs, parameters))
    return {"tensors": "answer.safetensors"}


QUESTIONS = ["mask", "prefix.encode", "inputs", "attention", "forward", "gradients", "training", "generate"]
ABILITIES = {
    "version": 1,
    "implementation": {"name": "jax-port", "language": "python", "version": "1"},
    "families": list(READERS),
    "methods": ["prompt_tuning", "prefix_tuning"],
    "tasks": list(TASKS),
    "questions": [*QUESTIONS, "checkpoint.load", "checkpoint.save"],
    "profiles": ["float32", "float64", "bfloat16"],
}


def main():
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if request["cmd"] == "stop":
            return
        try:
            reply = ABILITIES if request["cmd"] == "start" else {"seq": request["seq"], **run(request)}
        except SkipError as error:
            reply = {"seq": request["seq"], "skipped": {"message": str(error)}}
        except Exception as error:
            shown = {"message": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            reply = {"seq": request.get("seq", -1), "errored": shown}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
