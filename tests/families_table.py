"""The tables of specs/families.md, read from the code: `python tests/families_table.py` writes them into the page anew."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from refpeft.fitting import HEADS_OF_TASKS, TASKS
from refpeft.rules import BOOLEAN
from refpeft.transformer.columns import Family
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.families import FAMILIES

PAGE = Path(__file__).resolve().parent.parent / "specs/families.md"
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
OTHERWISE: dict[str, dict[str, Any]] = {
    "opt": {"word_embed_proj_dim": 512},
    "falcon": {"num_kv_heads": 1, "num_ln_in_parallel_attn": 1},
    "llama": {"num_key_value_heads": 8, "head_dim": 64},
    "mistral": {"sliding_window": None},
    "gemma2": {"query_pre_attn_scalar": 144, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma3_text": {
        "final_logit_softcapping": 30.0,
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 5000.0,
    },
    "t5": {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 3, "tie_word_embeddings": False},
    "bart": {"decoder_layers": 6, "decoder_attention_heads": 8},
}
"""Options that are no booleans, with another value than the default. Booleans are turned round without being listed."""
TOGETHER: dict[tuple[str, str], dict[str, Any]] = {
    ("falcon", "num_kv_heads"): {"new_decoder_architecture": True},
    ("falcon", "num_ln_in_parallel_attn"): {"new_decoder_architecture": True},
    ("qwen2", "use_sliding_window"): {"max_window_layers": 1},
    ("qwen3", "use_sliding_window"): {"max_window_layers": 1},
}
"""What has to stand beside an option so that it means something."""
SIZES = {"hf", "hidden_size", "num_attention_heads", "num_layers"}


def config_of(family: str, values: Mapping[str, Any]) -> ModelConfig:
    """HF's defaults, but for `values`."""
    return ModelConfig.from_dict({"model_type": family, **values})


def tables() -> dict[str, str]:
    """Each table by the name that its marker in the page has."""
    return {
        "choices": _table(
            (
                "family",
                "stacks",
                "positions",
                "norm",
                "where norms stand",
                "network",
                "keys and values",
                "besides",
            ),
            map(_choices, FAMILIES.values()),
        ),
        "weights": _table(
            ("family", "HF's names begin with", "queries, keys and values", "without a bias"),
            map(_weights, FAMILIES.values()),
        ),
        "options": _table(
            ("family", "key in config.json", "default", "tried", "what it changes"),
            (row for family in FAMILIES.values() for row in _options(family)),
        ),
        "heads": _table(("family", *HEADS_OF_TASKS), map(_heads, FAMILIES.values())),
        "refused": _table(("key in config.json", "refused of", "because"), _refused()),
    }


def _table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(heading)
    lines = [names, ["---"] * len(names), *map(list, rows)]
    return "".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) + "\n" for line in lines)


# ---------------------------------------------------------------- choices

_NORMS = {"layer_norm": "layer norm", "rms_norm": "RMS norm", "rms_norm_plus_one": "RMS norm, 1 + weight"}
_ORDERS = {"before": "before each part", "after": "after each sum", "around": "before and after each part"}
_RULES = {"sequence": "", "mask": ", counted along the mask", "tokens": ", counted along the tokens"}


def _choices(family: Family) -> list[str]:
    c = config_of(family.model_type, {})
    return [
        f"`{family.model_type}`",
        c.kind.replace("encoder_decoder", "encoder and decoder"),
        _positions(c),
        _NORMS[c.norm],
        f"{_ORDERS[c.norm_order]}{_side_by_side(c)}",
        f"{c.activation}{', gated' if c.gated else ''}",
        _key_values(family, c),
        "; ".join(_besides(c)),
    ]


def _positions(c: ModelConfig) -> str:
    if c.positions == "learned":
        first = f"row {c.position_offset}" if c.position_offset else ""
        first = "row `pad_token_id` + 1" if c.position_rule == "tokens" else first
        return f"table{_RULES[c.position_rule]}{f', from {first}' if first else ''}"
    if c.rotary is None:
        return {"alibi": "ALiBi", "relative": "relative bias"}[c.positions]
    part = "" if c.rotary[0].dimensions == c.head_dim else f" of {c.rotary[0].dimensions} in {c.head_dim}"
    return f"rotary{part}{', two bases' if len(set(c.rotary)) > 1 else ''}"


def _side_by_side(c: ModelConfig) -> str:
    if not c.parallel:
        return ""
    return f", side by side, {'one norm' if c.shared_norm else 'two norms'}"


def _key_values(family: Family, c: ModelConfig) -> str:
    keys = {key for row in family.rows for key in row.keys}
    if "num_key_value_heads" in keys:
        return "`num_key_value_heads`"
    if c.num_key_value_heads == 1:
        return "one head"
    return "one for each head"


def _besides(c: ModelConfig) -> list[str]:
    sliding = sum(window is not None for window in c.sliding_windows or ())
    usual_scale = abs(c.attention_scale * c.head_dim**0.5 - 1) < 1e-12
    said = {
        "embeddings times √hidden": c.embedding_scale != 1.0,
        f"embeddings of width {c.embedding_width}, then a linear map": c.embedding_width != c.hidden_size,
        "norm of the embeddings": c.embedding_norm,
        "token types": c.token_types > 0,
        "norm of queries and keys": c.query_key_norm,
        "products of attention not scaled": c.attention_scale == 1.0,
        "products of attention scaled by a number of its own": c.attention_scale != 1.0 and not usual_scale,
        f"windows in {sliding} of {c.num_layers} layers": sliding > 0,
        "softcaps": (c.attention_softcap or c.logits_softcap) is not None,
        "prefixes cut (PX-9)": c.cuts_prefix,
        "pooler": c.pooler,
        "head reads hidden / √hidden_size": c.logits_scale != 1.0,
        "head with a bias": c.head_bias,
    }
    return [text for text, holds in said.items() if holds]


# ---------------------------------------------------------------- weights


def _weights(family: Family) -> list[str]:
    c = config_of(family.model_type, {})
    sources = family.weights(c)
    stack = "decoder." if c.kind == "encoder_decoder" else ""
    query = sources[f"{stack}layers.{{layer}}.attention.query.weight"]
    layout = {
        "": "three matrices",
        "sections": "one matrix: queries, then keys, then values",
        "interleaved": "one matrix: for each key/value head its queries, its key, its value",
    }[query.fused]
    turned = ", stored inputs × outputs" if query.transposed else ""
    parts = {"attention": "q, k, v", "output": "attention's output", "mlp": "network"}
    biased = {"attention": c.attention_bias, "output": c.output_bias, "mlp": c.mlp_bias}
    bare = [parts[name] for name, bias in biased.items() if not bias]
    return [f"`{family.model_type}`", f"`{family.prefix}`", layout + turned, ", ".join(bare)]


# ---------------------------------------------------------------- options


def _options(family: Family) -> Iterator[list[str]]:
    """Every boolean turned round, and the options of `OTHERWISE`: what of the derived configuration is then another."""
    probes = {
        row.keys[-1]: (row.default, not row.default)
        for row in family.rows
        if row.rule is BOOLEAN and row.keys[-1] != "tie_word_embeddings"
    }
    defaults = {key: row.default for row in family.rows for key in row.keys}
    probes |= {key: (defaults[key], value) for key, value in OTHERWISE.get(family.model_type, {}).items()}
    for key, (default, tried) in probes.items():
        around = TOGETHER.get((family.model_type, key), {})
        before, after = (config_of(family.model_type, {**around, **given}) for given in ({}, {key: tried}))
        changed = [
            field.name
            for field in dataclasses.fields(ModelConfig)
            if field.name not in SIZES and getattr(before, field.name) != getattr(after, field.name)
        ]
        beside = f" with {', '.join(f'`{k}` {_shown(v)}' for k, v in around.items())}" if around else ""
        yield [
            f"`{family.model_type}`",
            f"`{key}`{beside}",
            _shown(default),
            _shown(tried),
            ", ".join(f"`{name}`" for name in changed),
        ]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# ---------------------------------------------------------------- heads and refusals


def _heads(family: Family) -> list[str]:
    cells = [f"`{family.model_type}`"]
    for task in HEADS_OF_TASKS:
        head = family.heads.get(task) if task in TASKS[family.kind] else None
        cells.append(f"`{head.module}`{'' if head.bias else ', no bias'}" if head else "")
    return cells


def _refused() -> Iterator[list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for family in FAMILIES.values():
        for key, reason in family.unsupported.items():
            found.setdefault((key, reason), []).append(f"`{family.model_type}`")
    for (key, reason), families in found.items():
        who = "all" if len(families) == len(FAMILIES) else ", ".join(families)
        yield [f"`{key}`", who, reason]


def written(text: str) -> str:
    """The page with its tables made anew."""
    made = tables()
    return BLOCK.sub(lambda match: f"{match[1]}\n{made[match[2]]}\n{match[4]}", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
