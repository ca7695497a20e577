"""HF's counts of parameters: of every family's classes, of adapters, and the sentence that is printed."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from support import MODELS, tiny_model

from refpeft import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig, counts, get_peft_model
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.shapes import parameter_shapes
from refpeft.transformer.weights import HEAD, TOKENS, BaseModel

TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
CLASSES = {
    "gpt2": (6381, None, 6501, 6509, 6413, 6381),
    "opt": (6411, None, 6531, None, 6443, 6411),
    "gpt_neox": (12906, None, 12066, 12074, 11924, 11874),
    "bloom": (16120, None, 16280, 16288, 16162, 16120),
    "gpt_bigcode": (5229, None, 5349, 5357, None, 5229),
    "falcon": (12690, None, 12930, 12938, 12752, 12690),
    "llama": (14958, None, 14328, 14336, 14222, 14184),
    "mistral": (14958, None, 14328, 14336, 14222, 14184),
    "qwen2": (15318, None, 14688, 14696, 14582, 14544),
    "qwen3": (15018, None, 14388, 14396, 14282, 14244),
    "gemma": (14184, None, 14328, 14336, None, 14184),
    "gemma2": (14292, None, 14436, 14444, None, 14292),
    "gemma3_text": (14352, None, 14496, None, None, 14352),
    "phi": (12805, None, 11922, 11930, None, 11730),
    "bert": (None, None, 6794, 6554, 6458, 6666),
    "roberta": (None, None, 6794, 6554, 6458, 6666),
    "electra": (None, None, 6834, 6594, 6498, 6466),
    "t5": (None, 12635, None, None, None, None),
    "bart": (None, 11944, None, None, None, None),
    "opt, narrow, norms after": (6685, None, 6789, None, 6713, 6685),
    "opt, plain": (5910, None, 6030, None, 5942, 5910),
    "gpt_neox, one after the other": (12906, None, 12066, 12074, 11924, 11874),
    "bloom, from the norm": (16120, None, 16280, 16288, 16162, 16120),
    "gpt_bigcode, many keys": (6381, None, 6501, 6509, None, 6381),
    "falcon, alibi": (16986, None, 17226, 17234, 17048, 16986),
    "falcon, grouped": (9144, None, 9336, 9344, 9194, 9144),
    "falcon, grouped, one norm": (9000, None, 9192, 9200, 9050, 9000),
    "llama, llama3": (15144, None, 14514, 14522, 14408, 14370),
    "llama, linear": (15372, None, 14742, 14750, 14636, 14598),
    "phi, query and key norm": (12901, None, 12018, 12026, None, 11826),
    "t5, gated": (None, 14285, None, None, None, None),
    "bart, scaled": (None, 11944, None, None, None, None),
}
"""The numbers of HF's class for each task, as torch counts them (transformers 5.23.0); None where there is no class to adapt."""


@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_of_hf_classes(name: str) -> None:
    """The directory holds the heads of all tasks; each class has its own, and the pooler where the class has one."""
    family, changes = MODELS[name]
    base = tiny_model(family, **changes)
    wanted = {task: number for task, number in zip(TASKS, CLASSES[name], strict=True) if number is not None}
    assert {task: counts.base_parameters(base, task) for task in wanted} == wanted


def test_a_table_and_a_head_that_differ_count_twice() -> None:
    """Also where config.json ties them: HF leaves two different tensors untied."""
    base = tiny_model("gpt2")
    untied = BaseModel(base.config, {**base.parameters, HEAD: base.parameters[TOKENS] + 1})
    assert counts.base_parameters(untied, "CAUSAL_LM") == CLASSES["gpt2"][0] + 43 * 15


# ---------------------------------------------------------------- four models, written out

SIZES = {
    "gpt2": {"vocab_size": 41, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": {
        "vocab_size": 41, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "t5": {"vocab_size": 41, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2},
    "bert": {
        "vocab_size": 41, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 64, "num_labels": 3,
    },
}  # fmt: skip
TASK_OF = {"gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM", "bert": "SEQ_CLS"}
PRINTED = {
    ("gpt2", 20, "prompt"): "trainable params: 160 || all params: 2,760 || trainable%: 5.7971",
    ("gpt2", 20, "prefix"): "trainable params: 640 || all params: 3,240 || trainable%: 19.7531",
    ("gpt2", 20, "projected"): "trainable params: 520 || all params: 3,120 || trainable%: 16.6667",
    ("gpt2", 20, "narrow"): "trainable params: 397 || all params: 2,997 || trainable%: 13.2466",
    ("gpt2", 3, "prompt"): "trainable params: 24 || all params: 2,624 || trainable%: 0.9146",
    ("gpt2", 3, "prefix"): "trainable params: 96 || all params: 2,696 || trainable%: 3.5608",
    ("gpt2", 3, "projected"): "trainable params: 384 || all params: 2,984 || trainable%: 12.8686",
    ("gpt2", 3, "narrow"): "trainable params: 261 || all params: 2,861 || trainable%: 9.1227",
    ("llama", 20, "prompt"): "trainable params: 320 || all params: 5,552 || trainable%: 5.7637",
    ("llama", 20, "prefix"): "trainable params: 640 || all params: 5,872 || trainable%: 10.8992",
    ("llama", 3, "narrow"): "trainable params: 261 || all params: 5,493 || trainable%: 4.7515",
    ("t5", 20, "prompt"): "trainable params: 320 || all params: 3,432 || trainable%: 9.3240",
    ("t5", 20, "prefix"): "trainable params: 640 || all params: 3,752 || trainable%: 17.0576",
    ("t5", 3, "projected"): "trainable params: 384 || all params: 3,496 || trainable%: 10.9840",
    ("bert", 20, "prompt"): "trainable params: 187 || all params: 2,358 || trainable%: 7.9304",
    ("bert", 20, "prefix"): "trainable params: 667 || all params: 2,838 || trainable%: 23.5025",
    ("bert", 3, "projected"): "trainable params: 411 || all params: 2,582 || trainable%: 15.9179",
    ("bert", 3, "narrow"): "trainable params: 288 || all params: 2,459 || trainable%: 11.7121",
}
"""What HF peft 0.21.2 prints. BERT's head of 27 numbers counts twice: the base model keeps its own."""


def plain_base(family: str) -> BaseModel:
    config = ModelConfig.from_dict({"model_type": family, **SIZES[family]})
    parameters: dict[str, Any] = {
        name: numpy.zeros(shape) for name, shape in parameter_shapes(config).items()
    }
    if config.tie_word_embeddings and HEAD in parameters:
        parameters[HEAD] = parameters[TOKENS]
    return BaseModel(config, parameters)


def adapter(task: str, virtual: int, method: str) -> PromptLearningConfig:
    if method == "prompt":
        return PromptTuningConfig(task_type=task, num_virtual_tokens=virtual)
    hidden = 5 if method == "narrow" else None
    return PrefixTuningConfig(
        task_type=task,
        num_virtual_tokens=virtual,
        prefix_projection=method != "prefix",
        encoder_hidden_size=hidden,
    )


@pytest.mark.parametrize("what", PRINTED, ids=lambda what: "-".join(map(str, what)))
def test_what_is_printed(what: tuple[str, int, str], capsys: pytest.CaptureFixture[str]) -> None:
    family, virtual, method = what
    model = get_peft_model(plain_base(family), adapter(TASK_OF[family], virtual, method))
    model.print_trainable_parameters()
    assert capsys.readouterr().out == PRINTED[what] + "\n"


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("virtual", [1, 3, 20])
def test_the_formulas(family: str, virtual: int) -> None:
    """n·S·d; n·2·L·token_dim; n·t + (t·e + e) + (e·2·L·t + 2·L·t); and the head."""
    base, task = plain_base(family), TASK_OF[family]
    found = {}
    for method in ("prompt", "prefix", "projected", "narrow"):
        model = get_peft_model(base, adapter(task, virtual, method))
        found[method] = model.num_trainable_parameters()
        assert model.get_nb_trainable_parameters()[0] == found[method]
    n, layers, hidden = virtual, 2, base.config.hidden_size
    t = {"llama": 8}.get(family, hidden)  # two key/value heads of 4
    submodules, head = 2 if family == "t5" else 1, 27 if family == "bert" else 0
    assert found == {
        "prompt": n * submodules * hidden + head,
        "prefix": n * 2 * layers * t + head,
        "projected": n * t + (t * t + t) + (t * 2 * layers * t + 2 * layers * t) + head,
        "narrow": n * t + (t * 5 + 5) + (5 * 2 * layers * t + 2 * layers * t) + head,
    }


def test_several_adapters() -> None:
    """Trained are all prompt encoders, and one head; a head counts once for the base and once for each copy."""
    model = get_peft_model(plain_base("bert"), adapter("SEQ_CLS", 20, "prompt"))
    model.add_adapter("b", adapter("SEQ_CLS", 3, "prompt"))
    assert model.get_nb_trainable_parameters() == (160 + 24 + 27, 2171 + 160 + 24 + 2 * 27)
    model.set_adapter("b", inference_mode=True)
    assert model.get_nb_trainable_parameters() == (160 + 24, 2171 + 160 + 24 + 2 * 27)
    model.delete_adapter("default")
    assert model.get_nb_trainable_parameters() == (24, 2171 + 24 + 27)
