"""Recipes of the questions about parts: random draws, initial values, masks, prefixes, one attention layer, configurations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from family_recipes import FAMILY_RECIPES
from generation import GENERATION_RECIPES
from recipes import FOLDED, MODEL_RECIPES, PROJECTED, SQUARE, SQUARE_EVEN, ZERO, Recipe, Text
from training import RECIPES as TRAINING

from refpeft.oracle.questions import COMMON, PREFIX, PROMPT


def _draws(name: str, title: str, seed: int, *draws: dict[str, Any]) -> Recipe:
    return Recipe(COMMON, "random", name, title, "PT-4", arguments={"seed": seed, "draws": list(draws)})


def _normal(*shape: int) -> dict[str, Any]:
    return {"kind": "normal", "shape": list(shape)}


def _uniform(*shape: int) -> dict[str, Any]:
    return {"kind": "uniform", "shape": list(shape)}


def _randint(low: int, high: int, *shape: int) -> dict[str, Any]:
    return {"kind": "randint", "low": low, "high": high, "shape": list(shape)}


_RANDOM = (
    _draws("normal-few", "fewer than 16 normals are made one by one", 11, _normal(5), _normal(15)),
    _draws("normal-16", "16 normals are made as one block", 12, _normal(16)),
    _draws("normal-17", "the last 16 of 17 are a block of new draws", 13, _normal(17)),
    _draws("normal-33", "two blocks and one that overlaps", 14, _normal(33)),
    _draws("normal-100", "many blocks, in a matrix", 15, _normal(4, 25)),
    _draws("cached-normal", "the second normal of a pair waits for the next draw of that kind", 16, _normal(5), _normal(3),
           _uniform(7), _normal(20), _normal(1), _normal(2)),
    _draws("randint", "integers below 2^28 take 32 random bits each, from there on 64", 17, _randint(0, 53, 20),
           _randint(-7, 2**28 - 7, 6), _randint(0, 2**28 + 1, 6), _randint(0, 2**40, 5)),
    _draws("linear", "a linear layer: weight, then bias, both uniform", 18,
           {"kind": "linear", "inputs": 9, "outputs": 4}, {"kind": "linear", "inputs": 3, "outputs": 50}),
    _draws("embedding", "an embedding: standard normals", 19, {"kind": "embedding", "rows": 3, "columns": 5},
           {"kind": "embedding", "rows": 2, "columns": 8}, {"kind": "embedding", "rows": 7, "columns": 11}),
    _draws("prefix-encoder", "what a projected prefix encoder draws, and what is drawn after it", 20,
           {"kind": "embedding", "rows": 5, "columns": 24}, {"kind": "linear", "inputs": 24, "outputs": 10},
           {"kind": "linear", "inputs": 10, "outputs": 144}, _uniform(3)),
    _draws("big-seed", "only the low 32 bits of a seed count", 123_456_789_012, _uniform(5), _normal(17), _normal(3)),
)  # fmt: skip


def _init(
    method: str, name: str, title: str, clauses: str, model: str, seed: int, n: int, equal_axes: str = "",
    **config: Any,
) -> Recipe:  # fmt: skip
    arguments: dict[str, Any] = {"seed": seed}
    if config.get("prompt_tuning_init") == "TEXT" and not config.get("inference_mode"):
        arguments["tokenizer"] = "models/gpt2-odd/tokenizer.json"
    return Recipe(
        method, "init", name, title, clauses, f"gpt2-{model}", {"num_virtual_tokens": n, **config}, arguments,
        equal_axes=equal_axes,
    )  # fmt: skip


def _text(text: str) -> dict[str, Any]:
    return {
        "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": text, "tokenizer_name_or_path": "gpt2-odd",
    }  # fmt: skip


_SAMPLE: dict[str, Any] = {"prompt_tuning_init": "SAMPLE_VOCAB"}
_INIT = (
    _init(PROMPT, "random-12-values", "fewer than 16 values", "PT-4", "even", 101, 1),
    _init(PROMPT, "random-16-values", "exactly 16 values, with a token_dim of the caller's", "PT-4 CF-3", "even", 102, 2,
          token_dim=8),
    _init(PROMPT, "random-60-values", "a number of values that 16 does not divide", "PT-4", "even", 103, 5),
    _init(PROMPT, "random-48-values", "a number of values that 16 divides", "PT-4", "odd", 104, 2),
    _init(PROMPT, "sample-vocab", "rows of the token table, drawn after a table that is thrown away", "PT-5 PT-6",
          "odd", 105, 5, **_SAMPLE),
    _init(PROMPT, "sample-vocab-many", "20 of 53 tokens: with replacement", "PT-5 PT-6", "even", 106, 20, **_SAMPLE),
    _init(PROMPT, "text-cut", "10 ids for 2 rows: the first two", "PT-5 PT-6", "odd", 107, 2, **_text("the License")),
    _init(PROMPT, "text-repeated", "5 ids for 7 rows: from the start again", "PT-5 PT-6", "odd", 108, 7, **_text("the")),
    _init(PROMPT, "text-repeated-four-times", "5 ids for 20 rows", "PT-5 PT-6", "even", 120, 20, **_text("+,-")),
    _init(PROMPT, "text-cut-short", "5 ids for 2 rows: the first two", "PT-5 PT-6", "even", 121, 2, **_text("+,-")),
    _init(PROMPT, "text-exact", "5 ids for 5 rows", "PT-5 PT-6", "odd", 109, 5, **_text("the")),
    _init(PROMPT, "text-first-special-token", "one row: the special token before the text", "PT-5", "odd", 110, 1,
          **_text("and the other")),
    _init(PROMPT, "text-inference-mode", "in inference mode the text is not looked at", "PT-4", "odd", 111, 5,
          inference_mode=True, **_text("the License")),
    _init(PREFIX, "random", "a table of normals", "PX-6", "odd", 112, 2),
    _init(PREFIX, "zero", "a table of zeros", "PX-6", "even", 113, 5, **ZERO),
    _init(PREFIX, "projected", "table, first map, second map, in that order", "PX-6", "odd", 114, 5, **PROJECTED),
    _init(PREFIX, "projected-zero", "the second map is zero", "PX-6", "even", 115, 5, **ZERO, **PROJECTED),
    _init(PREFIX, "projected-default-width", "encoder_hidden_size left out: token_dim", "PX-6 CF-4", "even", 116, 2,
          equal_axes="encoder_hidden_size is token_dim by default", prefix_projection=True),
    _init(PREFIX, "folded-projection", "in inference mode one flat table is drawn", "PX-5 PX-6", "even", 117, 1,
          **FOLDED),
)  # fmt: skip


def _mask(name: str, title: str, n: int, text: Text) -> Recipe:
    return Recipe(COMMON, "mask", name, title, "MK-1", arguments={"num_virtual_tokens": n}, text=text)


_MASKS = (
    _mask("full", "a mask of ones", 1, Text(2, 7, "full")),
    _mask("left-padding", "virtual tokens before the padding", 5, Text(2, 7, "left")),
    _mask("right-padding", "virtual tokens before the text", 20, Text(3, 7, "right")),
    _mask("left-padding-boolean", "a boolean mask", 4, Text(5, 7, "left", boolean=True)),
)


def _encode(
    name: str, title: str, clauses: str, model: str, n: int, batch: int, equal_axes: str = "", **config: Any
) -> Recipe:
    return Recipe(
        PREFIX, "prefix.encode", name, title, clauses, f"gpt2-{model}", {"num_virtual_tokens": n, **config},
        {"batch_size": batch}, equal_axes=equal_axes,
    )  # fmt: skip


_ENCODE = (
    _encode("odd-layers", "an odd number of layers", "PX-3 PX-4", "odd", 5, 2),
    _encode("even-layers", "an even number of layers", "PX-3 PX-4", "even", 2, 5),
    _encode("one-virtual-token", "one virtual token", "PX-3 PX-4", "odd", 1, 2),
    _encode("many-virtual-tokens", "20 virtual tokens in a batch of one", "PX-3 PX-4", "even", 20, 1),
    _encode("projected", "through the projection", "PX-1 PX-2 PX-3 PX-4", "odd", 5, 2, **PROJECTED),
    _encode("projected-square", "a projection with a square first weight", "PX-1 PX-2", "even", 2, 5, equal_axes=SQUARE,
            **SQUARE_EVEN),
    _encode("folded-projection", "a projection in inference mode", "PX-5", "odd", 2, 5, **FOLDED),
    _encode("projected-zero-init", "a projection whose last map is zero", "PX-6", "even", 5, 2, **ZERO, **PROJECTED),
    replace(
        _encode("full-float32-parameters", "parameters that no half precision holds, through the projection", "PX-1 PX-2",
                "odd", 2, 5, **PROJECTED),
        on_grid=False,
    ),
)  # fmt: skip


def _attention(name: str, title: str, clauses: str, model: str, layer: int, n: int, text: Text) -> Recipe:
    return Recipe(
        COMMON, "attention", name, title, clauses, f"gpt2-{model}", {"num_virtual_tokens": n}, {"layer": layer},
        text=text, stages=model != "aligned",
    )  # fmt: skip


_ATTENTION = (
    _attention("prefix", "a prefix before the text, no padding", "AT-1 AT-2 AT-3 AT-4 AT-5", "odd", 0, 5, Text(2, 7)),
    _attention("prefix-left-padding", "a prefix before left padding", "AT-2 AT-3 AT-4 MK-3", "odd", 2, 2,
               Text(5, 7, "left")),
    _attention("no-prefix", "the layer's own keys alone", "AT-1 AT-3 AT-4", "odd", 1, 0, Text(2, 7, "right")),
    _attention("scaled-by-layer", "scores scaled by the layer's number too", "AT-3", "even", 4, 20,
               Text(2, 7, "right")),
    _attention("aligned", "sizes that are multiples of 32", "AT-2 AT-4", "aligned", 2, 8, Text(4, 16, "left")),
)  # fmt: skip

_GPT2 = {"model_type": "gpt2", "n_embd": 24, "n_layer": 3, "n_head": 4, "vocab_size": 293}
_LLAMA = {
    "model_type": "llama", "hidden_size": 48, "num_hidden_layers": 5, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 293,
}  # fmt: skip
_T5 = {"model_type": "t5", "d_model": 30, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 6, "d_kv": 5}
_CAUSAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}


def _config(
    method: str, name: str, title: str, clauses: str, base: dict[str, Any] | None, **config: Any
) -> Recipe:
    config = {"peft_type": method.upper(), **config}
    return Recipe(
        method, "config.resolve", name, title, clauses, arguments={"config": config, "base_config": base}
    )


_CONFIGS = (
    _config(PROMPT, "minimal", "three fields, the rest from the base model", "CF-1 CF-3 CF-5", _GPT2, **_CAUSAL),
    _config(PROMPT, "without-base", "defaults alone", "CF-1 CF-5", None, **_CAUSAL),
    _config(PROMPT, "complete", "everything given: nothing is taken from the base model", "CF-1 CF-3 CF-6", _GPT2,
            **_CAUSAL, auto_mapping=None, base_model_name_or_path="another", inference_mode=True, modules_to_save=None,
            num_attention_heads=9, num_layers=7, num_transformer_submodules=1, peft_version="0.18.0",
            prompt_tuning_init="TEXT", prompt_tuning_init_text="a text", revision="main", token_dim=32,
            tokenizer_kwargs={"revision": "main"}, tokenizer_name_or_path="another"),
    _config(PROMPT, "grouped-heads", "grouped key/value heads do not matter to prompt tuning", "CF-3", _LLAMA, **_CAUSAL),
    _config(PROMPT, "encoder-decoder", "two submodules", "CF-3 CF-7", _T5, task_type="SEQ_2_SEQ_LM",
            num_virtual_tokens=5),
    _config(PROMPT, "text-config", "sizes of the language part", "CF-3", {"model_type": "llava", "text_config": _LLAMA},
            **_CAUSAL),
    _config(PROMPT, "rejected-task-type", "an unknown task type", "CF-2", _GPT2, task_type="causal_lm",
            num_virtual_tokens=5),
    _config(PROMPT, "rejected-text-without-tokenizer", "TEXT needs a tokenizer", "CF-2", _GPT2, **_CAUSAL,
            prompt_tuning_init="TEXT", prompt_tuning_init_text="a text"),
    _config(PROMPT, "rejected-text-without-text", "TEXT needs a text", "CF-2", _GPT2, **_CAUSAL,
            prompt_tuning_init="TEXT", tokenizer_name_or_path="gpt2-odd"),
    _config(PROMPT, "rejected-tokenizer-kwargs", "tokenizer_kwargs need TEXT", "CF-2", _GPT2, **_CAUSAL,
            tokenizer_kwargs={"revision": "main"}),
    _config(PROMPT, "rejected-size-unknown", "the number of heads stands under no known key", "CF-3",
            {"model_type": "mpt", "d_model": 24, "n_layers": 3, "n_heads": 4}, **_CAUSAL),
    _config(PREFIX, "minimal", "three fields, the rest from the base model", "CF-1 CF-3 CF-4 CF-5", _GPT2, **_CAUSAL),
    _config(PREFIX, "without-base", "defaults alone", "CF-1 CF-5", None, **_CAUSAL),
    _config(PREFIX, "grouped-heads", "key/value heads and their width", "CF-3 CF-4", _LLAMA, **_CAUSAL,
            prefix_projection=True),
    _config(PREFIX, "grouped-heads-overwrite", "the base model's key/value heads win over the caller's sizes", "CF-3",
            _LLAMA, **_CAUSAL, token_dim=96, num_attention_heads=12, encoder_hidden_size=17),
    _config(PREFIX, "head-dim", "a head_dim of the base model's own", "CF-3 CF-4", {**_LLAMA, "head_dim": 10}, **_CAUSAL),
    _config(PREFIX, "encoder-decoder", "two submodules", "CF-3 CF-7", _T5, task_type="SEQ_2_SEQ_LM",
            num_virtual_tokens=5),
    _config(PREFIX, "unknown-key", "a key of a later version is ignored", "CF-6", _GPT2, **_CAUSAL, init_weights="zero",
            invented_in_2099=True),
    _config(PREFIX, "rejected-task-type", "an unknown task type", "CF-2", _GPT2, task_type="LM", num_virtual_tokens=5),
)  # fmt: skip

RECIPES: tuple[Recipe, ...] = (
    *_CONFIGS, *_RANDOM, *_INIT, *_MASKS, *_ENCODE, *_ATTENTION, *MODEL_RECIPES, *TRAINING, *GENERATION_RECIPES,
    *FAMILY_RECIPES,
)  # fmt: skip
"""Every recipe, from the least that a port can do to the most."""
