"""The golden generator against every family and task of HF: what is watched, in true float64. Needs the extra `golden`.

What a family shows is written down here a second time, in the order of computation, apart from the paths of its modules.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from support import need

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = need("torch")
transformers = need("transformers")
peft = need("peft")

import answers  # noqa: E402  (golden/; needs torch)
import hf  # noqa: E402
from cases import make  # noqa: E402
from model_table import BACKBONE, LM, MODELS, SEQ_2_SEQ, SEQUENCE, SPAN, TOKEN  # noqa: E402
from models import make_model  # noqa: E402
from recipes import Recipe, Text  # noqa: E402
from sizes import axis_sizes  # noqa: E402
from stages import ordered  # noqa: E402

torch.set_num_threads(1)  # the models are too small for more
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

METHODS = ("prompt", "prefix", "projected")
TASKS = {
    LM: "CAUSAL_LM",
    SEQ_2_SEQ: "SEQ_2_SEQ_LM",
    SEQUENCE: "SEQ_CLS",
    TOKEN: "TOKEN_CLS",
    SPAN: "QUESTION_ANS",
    BACKBONE: "FEATURE_EXTRACTION",
}
VIRTUAL, BATCH, TOKENS, DECODER_TOKENS = 6, 5, 11, 12
SIZES_OF_ADAPTERS: dict[tuple[str, str], dict[str, int]] = {
    ("opt-even", "prompt"): {"token_dim": 14},
    ("electra-odd", "prompt"): {"token_dim": 14},
    ("electra-aligned", "prompt"): {"token_dim": 192},
    ("falcon-odd", "prefix"): {"token_dim": 6, "num_attention_heads": 1},
    ("t5-even", "prefix"): {"token_dim": 24},
}
"""Sizes that PEFT reads wrongly in these models' configurations, so that its users have to give them."""

ATTENTION = "attention.query attention.key attention.value"
ROTATED = "attention.query_rotated attention.key_rotated"
NORMED = "attention.query_norm attention.key_norm"
ATTENDED = " ".join(
    f"attention.{part}" for part in ("key_states", "value_states", "scores", "weights", "context", "output")
)
BLOCK = "after_attention post_attention_norm mlp.activation mlp.output output"
SANDWICH = "attention_output_norm after_attention post_attention_norm mlp.activation mlp.output mlp_output_norm output"
PARALLEL = "post_attention_norm mlp.activation mlp.output output"
POST_NORM = "after_attention post_attention_norm mlp.activation mlp.output after_mlp output"
CROSS = " ".join(
    f"cross_attention.{part}" for part in ("query", "key", "value", "scores", "weights", "context", "output")
)
CROSSED = f"{CROSS} after_cross_attention post_cross_attention_norm"

LAYERS: dict[str, str] = {
    "gpt2": f"input_norm {ATTENTION} {ATTENDED} {BLOCK}",
    "gpt-bigcode": f"input_norm {ATTENTION} {ATTENDED} {BLOCK}",
    "opt": f"input_norm {ATTENTION} {ATTENDED} {BLOCK}",
    "opt-even": f"{ATTENTION} {ATTENDED} {POST_NORM}",
    "bloom": f"input_norm {ATTENTION} {ATTENDED} {BLOCK}",
    "falcon": f"input_norm {ATTENTION} {ROTATED} {ATTENDED} {PARALLEL}",
    "falcon-odd": f"input_norm {ATTENTION} {ROTATED} {ATTENDED} mlp.activation mlp.output output",
    "falcon-alibi": f"input_norm {ATTENTION} {ATTENDED} {BLOCK}",
    "gpt-neox": f"input_norm {ATTENTION} {ROTATED} {ATTENDED} {PARALLEL}",
    "gpt-neox-even": f"input_norm {ATTENTION} {ROTATED} {ATTENDED} {BLOCK}",
    "phi": f"input_norm {ATTENTION} {ROTATED} {ATTENDED} mlp.activation mlp.output output",
    "llama": f"input_norm {ATTENTION} {ROTATED} {ATTENDED} {BLOCK}",
    "mistral": f"input_norm {ATTENTION} {ROTATED} {ATTENDED} {BLOCK}",
    "qwen2": f"input_norm {ATTENTION} {ROTATED} {ATTENDED} {BLOCK}",
    "qwen3": f"input_norm {ATTENTION} {NORMED} {ROTATED} {ATTENDED} {BLOCK}",
    "gemma": f"input_norm {ATTENTION} {ROTATED} {ATTENDED} {BLOCK}",
    "gemma2": f"input_norm {ATTENTION} {ROTATED} {ATTENDED} {SANDWICH}",
    "gemma3": f"input_norm {ATTENTION} {NORMED} {ROTATED} {ATTENDED} {SANDWICH}",
    "bert": f"{ATTENTION} {ATTENDED} {POST_NORM}",
    "roberta": f"{ATTENTION} {ATTENDED} {POST_NORM}",
    "electra": f"{ATTENTION} {ATTENDED} {POST_NORM}",
    "t5": f"input_norm {ATTENTION} {ATTENDED} {BLOCK}",
    "bart": f"{ATTENTION} {ATTENDED} {POST_NORM}",
}
"""The stages of a layer, by the model's name or its family's."""
DECODER_LAYERS = {name: LAYERS[name].replace(" mlp.", f" {CROSSED} mlp.", 1) for name in ("t5", "bart")}
STACKS: dict[str, tuple[str, str]] = {
    "gpt2": ("embeddings visible", "final_norm"),
    "gpt-bigcode": ("embeddings visible", "final_norm"),
    "opt": ("embeddings visible", "final_norm"),
    "opt-even": ("embeddings_projection embeddings visible", "output_projection"),
    "bloom": ("embeddings_norm visible alibi", "final_norm"),
    "falcon-alibi": ("visible alibi", "final_norm"),
    "mistral": ("sliding_visible", "final_norm"),
    "qwen2-even": ("visible sliding_visible", "final_norm"),
    "gemma2": ("visible sliding_visible", "final_norm"),
    "gemma2-aligned": ("sliding_visible", "final_norm"),
    "gemma3": ("visible sliding_visible", "final_norm"),
    "gemma3-aligned": ("sliding_visible", "final_norm"),
    "bert": ("typed_embeddings embeddings_norm visible", ""),
    "roberta": ("typed_embeddings embeddings_norm visible", ""),
    "electra": ("typed_embeddings embeddings_norm embeddings_out_projection visible", ""),
    "t5": ("visible relative_bias", "final_norm"),
    "bart": ("embeddings embeddings_norm visible", ""),
}
"""The stages of a stack before its layers and behind them, where they are not `visible` and `final_norm`."""
SCALED = ("gemma", "gemma2", "gemma3", "bart-even")
WITHOUT_POSITIONS = ("bloom", "t5", "falcon-alibi")
HEADS: dict[str, str] = {
    "CAUSAL_LM": "logits loss",
    "SEQ_2_SEQ_LM": "logits loss",
    "SEQ_CLS": "score_logits pooled_logits loss",
    "TOKEN_CLS": "token_logits loss",
    "QUESTION_ANS": "start_logits end_logits loss",
    "FEATURE_EXTRACTION": "last_hidden_state",
    "bert SEQ_CLS": "pooler_output pooled_logits loss",
    "bert FEATURE_EXTRACTION": "last_hidden_state pooler_output",
    "roberta SEQ_CLS": "head.hidden pooled_logits loss",
    "roberta FEATURE_EXTRACTION": "last_hidden_state pooler_output",
    "electra SEQ_CLS": "head.hidden pooled_logits loss",
}
ENCODERS, BOTH = ("bert", "roberta", "electra"), ("t5", "bart")


def of(table: dict[str, Any], name: str, default: Any = None) -> Any:
    """A table's row for a model, else for its family."""
    return table.get(name, table.get(name.rsplit("-", 1)[0], default))


def expected_stages(name: str, task: str, method: str, layers: int) -> list[str]:
    """What a model shows, in order, given a mask, token types where they are used, and labels."""
    family = name.rsplit("-", 1)[0]
    stacks = {"encoder": ("encoder",), "both": ("encoder", "decoder")}.get(
        "encoder" if family in ENCODERS else "both" if family in BOTH else "", ("decoder",)
    )
    scaled = family in SCALED or name in SCALED
    positions = family not in WITHOUT_POSITIONS and name not in WITHOUT_POSITIONS
    stages = ["inputs.token_embeddings", *["inputs.scaled_embeddings"] * scaled, "inputs.attention_mask"]
    stages += ["inputs.token_type_ids"] * (task in ("SEQ_CLS", "TOKEN_CLS"))
    if method == "prompt":
        stages += ["prompt.embeddings", "inputs.embeddings", *["inputs.labels"] * (task == "CAUSAL_LM")]
    else:
        stages += ["prefix.projection_hidden", "prefix.projection_activation"] * (method == "projected")
        stages += ["prefix.flat"]
        stages += [f"prefix.layers.{layer}.{half}" for layer in range(layers) for half in ("key", "value")]
    stages += ["inputs.position_ids"] * positions
    for stack in stacks:
        before, after = of(STACKS, name, ("visible", "final_norm"))
        in_layer = of(DECODER_LAYERS if (stack, len(stacks)) == ("decoder", 2) else LAYERS, name)
        if (stack, len(stacks)) == ("decoder", 2):
            given = ["input_ids", "token_embeddings", *["scaled_embeddings"] * scaled, "attention_mask"]
            stages += [f"inputs.decoder_{what}" for what in given + ["position_ids"] * positions]
            before = before.replace(" visible", " visible cross_visible").replace(
                "visible rel", "visible cross_visible rel"
            )
        stages += [f"{stack}.{stage}" for stage in before.split()]
        stages += [f"{stack}.layers.{i}.{stage}" for i in range(layers) for stage in in_layer.split()]
        stages += [f"{stack}.{stage}" for stage in after.split()]
    return stages + HEADS.get(f"{family} {task}", HEADS[task]).split()


def recipe_of(name: str, task: str, method: str, question: str = "forward") -> Recipe:
    """A question to a model, with everything that its task can be given."""
    family = name.rsplit("-", 1)[0]
    labels = {"SEQ_CLS": "classes", "QUESTION_ANS": "spans-outside", "FEATURE_EXTRACTION": ""}.get(
        task, "some"
    )
    if task == "SEQ_CLS" and name == "llama-linear":
        labels = "numbers"
    typed = task in ("SEQ_CLS", "TOKEN_CLS") and family in (*ENCODERS, "gpt2", "gpt-bigcode")
    text = Text(
        BATCH,
        TOKENS,
        "left" if method == "prefix" else "right",
        labels,
        pads=MODELS[name].config.get("pad_token_id") is not None,
        token_types=typed,
        decoder_tokens=DECODER_TOKENS if task == "SEQ_2_SEQ_LM" else 0,
        decoder_padding="right" if task == "SEQ_2_SEQ_LM" else "",
    )
    config: dict[str, Any] = {"num_virtual_tokens": VIRTUAL}
    config |= SIZES_OF_ADAPTERS.get((name, "prompt" if method == "prompt" else "prefix"), {})
    if method == "projected":
        config |= {"prefix_projection": True, "encoder_hidden_size": 13}
    kind = "prompt_tuning" if method == "prompt" else "prefix_tuning"
    return Recipe(
        kind,
        question,
        f"{name}-{task}-{method}",
        "",
        "PX-1",
        name,
        config,
        text=text,
        stages=True,
        task_type=task,
    )


def tasks_of(name: str) -> list[str]:
    """The tasks that a directory has the heads for."""
    classes = MODELS[name].classes
    backbone = () if SEQ_2_SEQ in classes or BACKBONE in classes or name.endswith("-aligned") else (BACKBONE,)
    return [TASKS[kind] for kind in (*classes, *backbone)]


QUESTIONS = [
    (name, task, method)
    for name in MODELS
    for task in tasks_of(name)
    for method in (METHODS if task == tasks_of(name)[0] else METHODS[:2])
]


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every base model, made anew; the current directory is theirs."""
    directory, before = tmp_path_factory.mktemp("models"), Path.cwd()
    for name in MODELS:
        make_model(name, directory / name)
    os.chdir(directory)
    yield directory
    os.chdir(before)


@pytest.mark.parametrize(("name", "task", "method"), QUESTIONS)
def test_every_stage_of_every_family(name: str, task: str, method: str) -> None:
    recipe = recipe_of(name, task, method)
    made = make(
        recipe
    )  # asserts that every tensor has the sizes of its axes, and that none was computed in float32
    layers = made.case.dims["layers"]
    expected = expected_stages(name, task, method, layers)
    if "token_type_ids" not in made.inputs:
        expected = [stage for stage in expected if stage != "inputs.token_type_ids"]
    assert list(made.expected) == expected
    unwatched = run_unwatched(recipe, made.inputs)
    for stage, tensor in unwatched.items():
        numpy.testing.assert_array_equal(made.expected[stage], tensor.numpy(), err_msg=stage)


def run_unwatched(recipe: Recipe, inputs: dict[str, Any]) -> dict[str, Any]:
    """HF's answer without a hook, in true float64."""
    model = answers._adapted(recipe, torch.float64)
    given = {name: torch.tensor(value) for name, value in inputs.items()}
    hf.set_parameters(
        model, {n.removeprefix("parameters."): t for n, t in given.items() if n.startswith("parameters.")}
    )
    with hf.arithmetic(torch.float64):
        output = model(**answers._text_of(given, torch.float64))
    return hf.results(output, recipe.task_type)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        (name, task)
        for name in MODELS
        if not name.endswith("-aligned")
        for task in tasks_of(name)
        if task in ("SEQ_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM")
    ],
)
def test_gradients_of_prefixes_and_heads(name: str, task: str) -> None:
    made = make(recipe_of(name, task, "prefix", "gradients"))
    gradients = {n.removeprefix("gradients.") for n in made.expected if n.startswith("gradients.")}
    assert gradients == {n.removeprefix("parameters.") for n in made.inputs if n.startswith("parameters.")}
    assert any(n.startswith("base_model.") for n in gradients) == (task != "SEQ_2_SEQ_LM")


@pytest.mark.parametrize("name", MODELS)
def test_without_a_mask_everything_is_seen_that_is_not_later(name: str) -> None:
    recipe = recipe_of(name, tasks_of(name)[0], "prefix")
    model = answers._adapted(recipe, torch.float64)
    text = {"input_ids": torch.arange(BATCH * TOKENS).reshape(BATCH, TOKENS) % 40}
    if recipe.task_type == "SEQ_2_SEQ_LM":
        text["labels"] = text["input_ids"][:, :4].contiguous()
    with hf.arithmetic(torch.float64), hf.watched(model, BATCH) as seen:
        model(**text)
    assert "inputs.attention_mask" not in seen
    for stage, visible in ordered(seen).items():
        if stage.endswith(("encoder.visible", "cross_visible")):
            assert visible.all()
        elif stage.endswith(".visible"):
            queries, keys = visible.shape[1:]
            causal = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
            assert torch.equal(visible, causal.expand_as(visible))


@pytest.mark.parametrize("name", MODELS)
def test_the_axes_of_a_model_have_different_sizes(name: str) -> None:
    config = transformers.AutoConfig.from_pretrained(name)
    sizes = axis_sizes(config)
    if not {SEQUENCE, TOKEN} & set(MODELS[name].classes):
        del sizes["labels"]
    if sizes["kv_heads"] == sizes["heads"]:  # the same thing where heads are not grouped
        del sizes["kv_heads"]
    if sizes["width"] == sizes["hidden"]:
        del sizes["width"]
    assert len(set(sizes.values())) == len(sizes), sizes


def test_falcon_adds_alibi_twice_where_attention_is_eager() -> None:
    """Which the golden values come from; HF's default, sdpa, adds it once."""
    from transformers.models.falcon import modeling_falcon as falcon

    ids, make_alibi = torch.arange(3, 15)[None], falcon.build_alibi_tensor

    def logits(attention: str, factor: float) -> Any:
        base = transformers.AutoModelForCausalLM.from_pretrained(
            "falcon-alibi", attn_implementation=attention
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                falcon, "build_alibi_tensor", lambda *given, **named: factor * make_alibi(*given, **named)
            )
            return base.double().eval()(ids).logits

    once = logits("sdpa", 1.0)
    assert (logits("eager", 1.0) - once).abs().max() > 0.1
    assert (logits("eager", 0.5) - once).abs().max() < 1e-12
