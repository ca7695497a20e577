"""The table of families: each row complete, and its names those of HF's checkpoints, written out here by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from support import MODELS, TINY, VARIANTS, need, tasks_of, tiny_values

from refpeft.errors import ConfigError
from refpeft.ops import ACTIVATIONS, NORMS, activation
from refpeft.transformer import families
from refpeft.transformer.columns import LAYER, Source
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.families import FAMILIES, Family, family_of
from refpeft.transformer.shapes import HEADS, parameter_shapes

W, WB = "weight", "{weight,bias}"
_GPT2 = f"""
    transformer.w{{t,p}}e.weight transformer.ln_f.{WB} lm_head.weight
    transformer.h.#.ln_{{1,2}}.{WB} transformer.h.#.attn.c_{{attn,proj}}.{WB} transformer.h.#.mlp.c_{{fc,proj}}.{WB}
"""
_FALCON = f"transformer.word_embeddings.weight transformer.ln_f.{WB} lm_head.weight transformer.h.#.input_layernorm.{WB}"
_MAPS = "{self_attention.{query_key_value,dense},mlp.dense_{h_to_4h,4h_to_h}}"
_LLAMA = """
    model.embed_tokens.weight model.norm.weight lm_head.weight model.layers.#.{input,post_attention}_layernorm.weight
    model.layers.#.self_attn.{q,k,v,o}_proj.weight model.layers.#.mlp.{gate,up,down}_proj.weight
"""
_QK_NORMS = "model.layers.#.self_attn.{q,k}_norm.weight"
_GEMMA2 = f"{_LLAMA} model.layers.#.{{pre,post}}_feedforward_layernorm.weight"
_OPT = "model.decoder.embed_{tokens,positions}.weight lm_head.weight"
_OPT_MAPS = "model.decoder.layers.#.{self_attn.{q,k,v,out}_proj,fc{1,2}}"
_OPT_NORMS = "model.decoder.layers.#.{self_attn,final}_layer_norm"
_BERT = f"""
    *.embeddings.{{word,position,token_type}}_embeddings.weight *.embeddings.LayerNorm.{WB}
    *.encoder.layer.#.attention.{{self.{{query,key,value}},output.{{dense,LayerNorm}}}}.{WB}
    *.encoder.layer.#.{{intermediate.dense,output.{{dense,LayerNorm}}}}.{WB}
"""
_FIRST_TOKEN = f"classifier.{{dense,out_proj}}.{WB}"
_T5 = """
    shared.weight lm_head.weight {encoder,decoder}.final_layer_norm.weight
    {encoder,decoder}.block.0.layer.0.SelfAttention.relative_attention_bias.weight
    encoder.block.#.layer.0.SelfAttention.{q,k,v,o}.weight encoder.block.#.layer.{0,1}.layer_norm.weight
    decoder.block.@.layer.{0.SelfAttention,1.EncDecAttention}.{q,k,v,o}.weight decoder.block.@.layer.{0,1,2}.layer_norm.weight
"""
_T5_NETWORKS = "{encoder.block.#.layer.1,decoder.block.@.layer.2}.DenseReluDense"
_BART_LAYER = "self_attn.{q,k,v,out}_proj,fc{1,2},{self_attn,final}_layer_norm"
_BART = f"""
    model.shared.weight lm_head.weight final_logits_bias
    model.{{encoder,decoder}}.embed_positions.weight model.{{encoder,decoder}}.layernorm_embedding.{WB}
    model.{{encoder.layers.#,decoder.layers.@}}.{{{_BART_LAYER}}}.{WB}
    model.decoder.layers.@.{{encoder_attn.{{q,k,v,out}}_proj,encoder_attn_layer_norm}}.{WB}
"""
NAMES: dict[str, str] = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_bigcode, many keys": _GPT2,
    "opt": f"{_OPT} {_OPT_MAPS}.{WB} {_OPT_NORMS}.{WB} model.decoder.final_layer_norm.{WB}",
    "opt, narrow, norms after": f"{_OPT} {_OPT_MAPS}.{WB} {_OPT_NORMS}.{WB} model.decoder.project_{{in,out}}.weight",
    "opt, plain": f"{_OPT} {_OPT_MAPS}.weight",
    "gpt_neox": f"""
        gpt_neox.embed_in.weight gpt_neox.final_layer_norm.{WB} lm_head.weight
        gpt_neox.layers.#.{{input,post_attention}}_layernorm.{WB} gpt_neox.layers.#.attention.{{query_key_value,dense}}.{WB}
        gpt_neox.layers.#.mlp.dense_{{h_to_4h,4h_to_h}}.{WB}
    """,
    "bloom": f"""
        {_FALCON} transformer.word_embeddings_layernorm.{WB} transformer.h.#.post_attention_layernorm.{WB}
        transformer.h.#.{_MAPS}.{WB}
    """,
    "falcon": f"{_FALCON} transformer.h.#.{_MAPS}.weight",
    "falcon, alibi": f"{_FALCON} transformer.h.#.post_attention_layernorm.{WB} transformer.h.#.{_MAPS}.{WB}",
    "falcon, grouped": f"{_FALCON.replace('input_layernorm', 'ln_{attn,mlp}')} transformer.h.#.{_MAPS}.weight",
    "falcon, grouped, one norm": f"{_FALCON} transformer.h.#.{_MAPS}.weight",
    "llama": _LLAMA,
    "llama, llama3": f"{_LLAMA} model.layers.#.mlp.{{gate,up,down}}_proj.bias",
    "llama, linear": f"{_LLAMA} model.layers.#.self_attn.{{q,k,v,o}}_proj.bias",
    "mistral": _LLAMA,
    "qwen2": f"{_LLAMA} model.layers.#.self_attn.{{q,k,v}}_proj.bias",
    "qwen3": f"{_LLAMA} {_QK_NORMS}",
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": f"{_GEMMA2} {_QK_NORMS}",
    "phi": f"""
        model.embed_tokens.weight model.final_layernorm.{WB} lm_head.{WB} model.layers.#.input_layernorm.{WB}
        model.layers.#.{{self_attn.{{{{q,k,v}}_proj,dense}},mlp.fc{{1,2}}}}.{WB}
    """,
    "bert": f"{_BERT.replace('*', 'bert')} bert.pooler.dense.{WB} classifier.{WB}",
    "roberta": f"{_BERT.replace('*', 'roberta')} {_FIRST_TOKEN}",
    "electra": f"{_BERT.replace('*', 'electra')} electra.embeddings_project.{WB} {_FIRST_TOKEN}",
    "t5": f"{_T5} {_T5_NETWORKS}.{{wi,wo}}.weight",
    "t5, gated": f"{_T5} {_T5_NETWORKS}.{{wi_0,wi_1,wo}}.weight",
    "bart": _BART,
}
"""The tensors of HF's class for language models (encoders: for SEQ_CLS), `#` for each layer and `@` for a decoder's own."""
NAMES["phi, query and key norm"] = f"{NAMES['phi']} model.layers.#.self_attn.{{q,k}}_layernorm.{WB}"
SAME = {
    "gpt_neox, one after the other": "gpt_neox",
    "bloom, from the norm": "bloom",
    "bart, scaled": "bart",
}
"""Options that change no names."""


def expanded(pattern: str, config: ModelConfig) -> Iterator[str]:
    """Every name of a pattern: `{a,b}` is one of both, with braces within braces."""
    innermost = re.search(r"\{([^{}]*)\}", pattern)
    if innermost is not None:
        for choice in innermost[1].split(","):
            yield from expanded(f"{pattern[: innermost.start()]}{choice}{pattern[innermost.end() :]}", config)
        return
    for word in pattern.split():
        layers = config.stack("decoder").num_layers if "@" in word else config.num_layers
        yield from (
            re.sub("[#@]", str(layer), word) for layer in (range(layers) if re.search("[#@]", word) else [0])
        )


def expected_names(name: str) -> set[str]:
    pattern = NAMES[SAME.get(name, name)]
    config = model_config(name)
    return {full for word in pattern.split() for full in expanded(word, config)}


def model_config(name: str) -> ModelConfig:
    family, changes = MODELS[name]
    return ModelConfig.from_dict(tiny_values(family, **changes))


def sources_of(config: ModelConfig) -> dict[str, Source]:
    return family_of(config.family).weights(config)


def with_prefix(name: str, family: Family) -> str:
    """A name of the table as it stands in a checkpoint: the head and T5's stacks have no prefix."""
    bare = name.startswith(("lm_head.", "final_logits_bias")) or family.model_type == "t5"
    return name if bare else family.prefix + name


def test_patterns_expand() -> None:
    config = model_config("t5")
    assert list(expanded("a{b,c{d,}}.#", config)) == [
        f"a{middle}.{layer}" for middle in ("b", "cd", "b", "c") for layer in range(3)
    ]
    assert list(expanded("x.@ y", config)) == ["x.0", "x.1", "y"]


@pytest.mark.parametrize("name", MODELS)
def test_a_row_names_every_tensor_of_hf_and_no_other(name: str) -> None:
    config = model_config(name)
    family = family_of(config.family)
    named: set[str] = set()
    for canonical, source in sources_of(config).items():
        layers = config.stack("decoder").num_layers if canonical.startswith("decoder.") else config.num_layers
        named |= {with_prefix(source.name.format(layer=layer), family) for layer in range(layers)}
    wanted = {full for full in expected_names(name) if not full.startswith(("classifier.", "bert.pooler."))}
    assert named == wanted


@pytest.mark.parametrize("name", MODELS)
def test_a_tensor_is_used_once_or_cut_in_three(name: str) -> None:
    places = [(source.name, source.fused, source.part) for source in sources_of(model_config(name)).values()]
    assert len(set(places)) == len(places)
    fused = {place for place in places if place[1]}
    for full, layout, _ in fused:
        assert {(full, layout, part) for part in ("query", "key", "value")} <= fused
    assert not {full for full, layout, _ in places if not layout} & {full for full, _, _ in fused}
    assert all(part == "query" for _, layout, part in places if not layout)


FUSED = {
    "gpt2": ("sections", "h.{layer}.attn.c_attn"),
    "gpt_bigcode": ("sections", "h.{layer}.attn.c_attn"),
    "gpt_bigcode, many keys": ("interleaved", "h.{layer}.attn.c_attn"),
    "gpt_neox": ("interleaved", "layers.{layer}.attention.query_key_value"),
    "bloom": ("interleaved", "h.{layer}.self_attention.query_key_value"),
    "falcon": ("interleaved", "h.{layer}.self_attention.query_key_value"),
    "falcon, grouped": ("interleaved", "h.{layer}.self_attention.query_key_value"),
}


@pytest.mark.parametrize("name", MODELS)
def test_which_tensors_are_cut(name: str) -> None:
    found = {
        (source.fused, source.name.rpartition(".")[0])
        for source in sources_of(model_config(name)).values()
        if source.fused
    }
    base = next((other for other in (name, name.split(",", maxsplit=1)[0]) if other in FUSED), None)
    assert found == ({FUSED[base]} if base else set())


@pytest.mark.parametrize("name", MODELS)
def test_only_gpt2_stores_its_linear_weights_inputs_by_outputs(name: str) -> None:
    transposed = {
        canonical for canonical, source in sources_of(model_config(name)).items() if source.transposed
    }
    attention = {f"{LAYER}attention.{part}.weight" for part in ("query", "key", "value", "output")}
    assert transposed == (
        attention | {f"{LAYER}mlp.{part}.weight" for part in ("up", "down")} if name == "gpt2" else set()
    )


@pytest.mark.parametrize("name", MODELS)
def test_each_row_is_consistent(name: str) -> None:
    config = model_config(name)
    family = family_of(config.family)
    assert FAMILIES[family.model_type] is family
    assert family.prefix.endswith(".")
    sources = sources_of(config)
    for canonical, source in sources.items():
        assert (LAYER in canonical) == ("{layer}" in source.name), canonical
        assert not source.name.endswith(tuple(part for part in family.ignored if part.startswith("."))), (
            canonical
        )
        assert not source.name.startswith(
            tuple(part for part in family.ignored if not part.startswith("."))
        ), canonical
    assert [canonical for canonical, source in sources.items() if source.optional] == (
        ["head.bias"] if family.model_type == "bart" else []
    )
    assert ("head.weight" in sources) == (family.kind != "encoder")
    assert activation(config.activation)
    assert config.norm in NORMS


def test_families_and_tiny_models_are_the_same() -> None:
    assert set(TINY) == set(FAMILIES)
    assert {family for family, _ in VARIANTS.values()} <= set(FAMILIES)
    assert set(NAMES) | set(SAME) == set(MODELS)
    assert [family.model_type for family in FAMILIES.values()] == list(FAMILIES)
    assert ACTIVATIONS


# ---------------------------------------------------------------- heads

SCORE, CLASSIFIER = ("score", "last_token", False, "tanh"), ("classifier", "each_token", True, "tanh")
SPAN, TOKEN_SCORE = ("qa_outputs", "span", True, "tanh"), ("score", "each_token", True, "tanh")
_OLD = {"SEQ_CLS": SCORE, "TOKEN_CLS": CLASSIFIER, "QUESTION_ANS": SPAN}
_GENERIC = {**_OLD, "TOKEN_CLS": TOKEN_SCORE}
FORMS: dict[str, dict[str, tuple[str, str, bool, str]]] = {
    **dict.fromkeys(("gpt2", "gpt_neox", "bloom", "falcon"), _OLD),
    "gpt_bigcode": {"SEQ_CLS": SCORE, "TOKEN_CLS": CLASSIFIER},
    "opt": {"SEQ_CLS": SCORE, "QUESTION_ANS": SPAN},
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _GENERIC),
    **{key: {"SEQ_CLS": SCORE, "TOKEN_CLS": TOKEN_SCORE} for key in ("gemma", "gemma2", "phi")},
    "gemma3_text": {"SEQ_CLS": SCORE},
    "bert": {**_OLD, "SEQ_CLS": ("classifier", "pooler", True, "tanh")},
    "roberta": {**_OLD, "SEQ_CLS": ("classifier", "first_token", True, "tanh")},
    "electra": {**_OLD, "SEQ_CLS": ("classifier", "first_token", True, "gelu")},
    "t5": {},
    "bart": {},
}
"""Module, form, bias and activation of each head."""


@pytest.mark.parametrize("family", FAMILIES)
def test_heads(family: str) -> None:
    found = {
        task: (head.module, head.form, head.bias, head.activation)
        for task, head in FAMILIES[family].heads.items()
    }
    assert found == FORMS[family]


def test_shapes_of_the_heads() -> None:
    for family, expected in {
        "gpt2": {"score.weight": (8, 15), "classifier.weight": (8, 15), "classifier.bias": (8,), "qa_outputs.weight": (2, 15), "qa_outputs.bias": (2,)},
        "llama": {"score.weight": (8, 18), "score.bias": (8,), "qa_outputs.weight": (2, 18), "qa_outputs.bias": (2,)},
        "bert": {
            "pooler.dense.weight": (15, 15), "pooler.dense.bias": (15,), "classifier.weight": (8, 15), "classifier.bias": (8,),
            "qa_outputs.weight": (2, 15), "qa_outputs.bias": (2,),
        },
        "t5": {},
    }.items():  # fmt: skip
        shapes = parameter_shapes(model_config(family))
        assert {
            name[len(HEADS) :]: shape for name, shape in shapes.items() if name.startswith(HEADS)
        } == expected
    narrow = parameter_shapes(model_config("opt, narrow, norms after"))
    assert narrow[HEADS + "score.weight"] == (8, 13)  # behind the projection back


# ---------------------------------------------------------------- the real HF transformers

CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
TIED = ("encoder.embed_tokens.", "decoder.embed_tokens.")
"""The token table once more, in the state of an encoder-decoder."""


def state_of(name: str, task: str, **others: Any) -> dict[str, Any]:
    transformers = need("transformers")
    need("torch")
    family, changes = MODELS[name]
    config = transformers.AutoConfig.for_model(**tiny_values(family, **changes, **others))
    return dict(getattr(transformers, CLASSES[task]).from_config(config).state_dict())


@pytest.mark.live
@pytest.mark.parametrize("name", MODELS)
def test_live_names(name: str) -> None:
    task = {"decoder": "CAUSAL_LM", "encoder": "SEQ_CLS", "encoder_decoder": "SEQ_2_SEQ_LM"}[
        model_config(name).kind
    ]
    state = state_of(name, task)
    tied = TIED if task == "SEQ_2_SEQ_LM" else ()
    assert {key for key in state if not key.removeprefix("model.").startswith(tied)} == expected_names(name)


@pytest.mark.live
@pytest.mark.parametrize("family", FAMILIES)
def test_live_heads(family: str) -> None:
    """HF has exactly these heads, of these names and shapes; where the table has none, HF has no such class."""
    transformers = need("transformers")
    shapes = parameter_shapes(model_config(family))
    for task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"):
        if FAMILIES[family].kind == "encoder_decoder":
            continue
        if task not in tasks_of(family):
            with pytest.raises(ValueError, match="Unrecognized configuration class"):
                state_of(family, task)
            continue
        module = FAMILIES[family].heads[task].module
        # BERT's span head has num_labels outputs, of which its forward pass can use only two
        others = {"num_labels": 2} if task == "QUESTION_ANS" else {}
        own = {
            key: tuple(value.shape)
            for key, value in state_of(family, task, **others).items()
            if key.startswith(f"{module}.")
        }
        if task == "SEQ_CLS" and FORMS[family][task] == SCORE:
            assert set(own) == {"score.weight"}
        assert own == {name: shapes[HEADS + name] for name in own}
    assert transformers


def test_an_unknown_family() -> None:
    with pytest.raises(ConfigError) as caught:
        family_of("mamba")
    assert str(caught.value) == (
        "The base model's model_type is 'mamba'; refpeft knows bart, bert, bloom, electra, falcon, gemma, gemma2, gemma3_text, "
        "gpt2, gpt_bigcode, gpt_neox, llama, mistral, opt, phi, qwen2, qwen3, roberta, t5."
    )
    assert families.family_of("gpt2") is FAMILIES["gpt2"]
