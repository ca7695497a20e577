"""HF peft as a port, by messages alone: every family, method and task, without the oracle. Needs the extra `golden`.

What HF answers is judged elsewhere. Here its answers are all there, have the right shapes, agree with each other, and every
input reaches HF; what HF raises on is skipped with its message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support import need

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

torch = need("torch")
transformers = need("transformers")
need("peft")

from ports.hf_peft_bases import SIZES, VOCABULARY  # noqa: E402  (it needs torch)
from ports.hf_peft_questions import (  # noqa: E402
    BATCH,
    DECODER_TOKENS,
    ENCODER_DECODERS,
    ENCODERS,
    LOOSE,
    PREFIX,
    PROJECTION,
    PROMPT,
    TOKENS,
    VIRTUAL,
    Conversation,
    base_models,
    conversation,
    drawn,
    filled_in,
    near,
    tasks,
    texts,
)
from safetensors.torch import load_file  # noqa: E402

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conversation]:
    with conversation(tmp_path_factory.mktemp("port")) as opened:
        yield opened


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return base_models(tmp_path_factory.mktemp("bases"))


def expected_shapes(family: str, method: str, task: str, sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """What a forward pass answers."""
    query = TOKENS + VIRTUAL * (method == PROMPT)
    shapes: dict[str, tuple[int, ...]] = {"loss": ()}
    if method == PROMPT:
        rows = VIRTUAL * (2 if task == "SEQ_2_SEQ_LM" else 1)
        shapes["prompt.embeddings"] = (BATCH, rows, 32)
    else:
        heads = sizes["num_attention_heads"]
        for layer in range(sizes["num_layers"]):
            cut = layer == 0 and family in ("gemma2", "gemma3_text")
            shape = (BATCH, heads, 3 if cut else VIRTUAL, sizes["token_dim"] // heads)
            shapes |= {f"prefix.layers.{layer}.key": shape, f"prefix.layers.{layer}.value": shape}
    match task:
        case "CAUSAL_LM":
            shapes["logits"] = (BATCH, query, VOCABULARY)
        case "SEQ_2_SEQ_LM":
            shapes["logits"] = (BATCH, DECODER_TOKENS, VOCABULARY)
        case "SEQ_CLS":
            shapes["pooled_logits"] = (BATCH, 2)
            if family == "bert":
                shapes["pooler_output"] = (BATCH, 32)
            elif family in ENCODERS:
                shapes["head.hidden"] = (BATCH, 32)
            else:
                shapes["score_logits"] = (BATCH, query, 2)
        case "TOKEN_CLS":
            shapes["token_logits"] = (BATCH, query, 2)
        case "QUESTION_ANS":
            shapes |= {"start_logits": (BATCH, query), "end_logits": (BATCH, query)}
        case "FEATURE_EXTRACTION":
            del shapes["loss"]
            shapes["last_hidden_state"] = (BATCH, query, 32)
            if family in ("bert", "roberta"):
                shapes["pooler_output"] = (BATCH, 32)
    return shapes


# ---------------------------------------------------------------- every family, method and task


def test_the_port_says_what_it_can_do(port: Conversation) -> None:
    answer = port.tell({"cmd": "start", "version": 1})
    assert answer["families"] == list(SIZES)
    assert answer["methods"] == [PROMPT, PREFIX]
    assert answer["profiles"] == ["float32", "float64-islands", "bfloat16"]


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *((family, method) for family in SIZES for method in (PROMPT, PREFIX)),
        *((family, PROJECTION) for family in ("gpt2", "llama", "bert", "t5")),
    ],
)
def test_a_family_is_answered_in_all_its_tasks(
    port: Conversation, bases: Any, family: str, method: str
) -> None:
    base = bases(family)
    for task in tasks(family):
        config = filled_in(port, base, method, task)
        fields = {"model": base, "config": config, "method": method.partition(" ")[0]}
        parameters, text = drawn(port, fields), texts(family, method, task)
        inputs = parameters | text
        answer = port.tensors("forward", inputs, **fields)
        assert {k: tuple(v.shape) for k, v in answer.items()} == expected_shapes(family, method, task, config)
        near(port.tensors("forward", inputs, **fields, dtype="float64"), answer, 1e-4)
        near(port.tensors("forward", inputs, **fields, dtype="bfloat16"), answer, 0.3)
        if method != PROMPT:
            layers = {k: v for k, v in answer.items() if k.startswith("prefix.")}
            asked = fields | {"arguments": {"batch_size": BATCH}}
            prompt = {k: v for k, v in parameters.items() if "prompt_encoder" in k}
            near(port.tensors("prefix.encode", prompt, **asked), layers, 0.0)
        check_adapter_files(port, fields, parameters, text, answer)
        if "loss" in answer:
            check_gradients(port, fields, inputs, answer)


@pytest.mark.parametrize("method", [PROMPT, PREFIX])
@pytest.mark.parametrize("family", SIZES)
def test_a_family_is_trained_and_goes_on_in_every_profile(
    port: Conversation, bases: Any, family: str, method: str
) -> None:
    base, task = bases(family), tasks(family)[0]
    fields = {"model": base, "config": filled_in(port, base, method, task), "method": method}
    inputs = drawn(port, fields) | texts(family, method, task)
    answer = port.tensors("forward", inputs, **fields)
    for dtype in LOOSE:
        check_gradients(port, fields | {"dtype": dtype}, inputs, answer)
        check_training(port, fields | {"dtype": dtype}, inputs, answer)
        if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
            check_generation(port, fields | {"dtype": dtype}, inputs)


def check_adapter_files(
    port: Conversation,
    fields: dict[str, Any],
    parameters: dict[str, Any],
    text: dict[str, Any],
    answer: dict[str, Any],
) -> None:
    """The question does not say on which base; loaded onto it, the adapter gives the same answers."""
    asked = {k: v for k, v in fields.items() if k != "model"}
    directory = port.ask("checkpoint.save", parameters, **asked)["adapter"]
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config == fields["config"] | {"inference_mode": True}
    heads = {k.removeprefix("parameters.") for k in parameters if "prompt_encoder" not in k}
    assert load_file(directory / "adapter_model.safetensors").keys() == {"prompt_embeddings"} | heads
    loading = {"model": fields["model"], "method": fields["method"], "adapter": directory}
    near(port.tensors("checkpoint.load", text, **loading), answer, 1e-5)


def check_gradients(
    port: Conversation, fields: dict[str, Any], inputs: dict[str, Any], answer: dict[str, Any]
) -> None:
    """For every parameter, and zero for none but the one that moves all logits of a softmax alike."""
    names = ["gradients." + k.removeprefix("parameters.") for k in inputs if k.startswith("parameters.")]
    found = port.tensors("gradients", inputs, **fields)
    assert found.keys() == {"loss", *names}
    assert found["loss"].item() == pytest.approx(
        answer["loss"].item(), rel=LOOSE[fields.get("dtype", "float32")]
    )
    assert {k for k in names if not found[k].abs().max() > 1e-6} <= {"gradients.base_model.qa_outputs.bias"}


def check_training(
    port: Conversation, fields: dict[str, Any], inputs: dict[str, Any], answer: dict[str, Any]
) -> None:
    """Two steps of two micro-batches, the first from the loss that `forward` answers."""
    names = [k.removeprefix("parameters.") for k in inputs if k.startswith("parameters.")]
    stacked = {
        k: v if k.startswith("parameters.") else v[None].repeat_interleave(2, 0) for k, v in inputs.items()
    }
    how = {
        "max_steps": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.02,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
    }
    found = port.tensors("training", stacked, **fields, arguments=how)
    series = {"training." + name: (2,) for name in ("losses", "learning_rates", "gradient_norms")}
    trained = {"trained." + name: tuple(inputs["parameters." + name].shape) for name in names}
    assert {k: tuple(v.shape) for k, v in found.items()} == series | trained
    first = found["training.losses"][0].item()
    assert first == pytest.approx(answer["loss"].item(), rel=LOOSE[fields["dtype"]])
    for name in names:
        assert (found["trained." + name].float() - inputs["parameters." + name]).abs().max() > 0.001


def check_generation(port: Conversation, fields: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Greedy and with beams, padded on the left."""
    start = TOKENS if fields["config"]["task_type"] == "CAUSAL_LM" else 1
    inputs = inputs | {"attention_mask": inputs["attention_mask"].flip(1)}
    how = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0}
    found = port.tensors("generate", inputs, **fields, arguments=how)
    assert found["sequences"].shape == (BATCH, start + 3)
    assert found["generation.logits"].shape == (BATCH, 3, VOCABULARY)
    how |= {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": "never"}
    found = port.tensors("generate", inputs, **fields, arguments=how)
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        "sequences": (2 * BATCH, start + 3),
        "sequences_scores": (2 * BATCH,),
    }


# ---------------------------------------------------------------- details


def test_rows_of_an_encoder_decoders_prefix(port: Conversation) -> None:
    """Layer l reads rows 4l and 4l + 1 of the 2L, counted around: in three layers 0 1, 4 5, 2 3."""
    config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "SEQ_2_SEQ_LM",
        "num_virtual_tokens": 2,
        "num_layers": 3,
        "num_attention_heads": 2,
        "token_dim": 8,
        "num_transformer_submodules": 2,
        "encoder_hidden_size": 8,
    }
    table = torch.arange(2 * 48.0).view(2, 48)
    inputs = {"parameters.prompt_encoder.embedding.weight": table}
    fields = {"config": config, "method": PREFIX, "arguments": {"batch_size": 1}}
    found = port.tensors("prefix.encode", inputs, **fields, dtype="float64")
    rows = table.double().view(2, 6, 2, 4).permute(1, 2, 0, 3)[:, None]
    order = {"0.key": 0, "0.value": 1, "1.key": 4, "1.value": 5, "2.key": 2, "2.value": 3}
    near(found, {f"prefix.layers.{name}": rows[row] for name, row in order.items()}, 0.0)


def test_windows_that_are_known_cut_a_prefix(port: Conversation, bases: Any) -> None:
    config = filled_in(port, bases("gemma2"), PREFIX, "CAUSAL_LM")
    table = torch.randn(VIRTUAL, 2 * config["num_layers"] * config["token_dim"])
    fields = {"config": config, "method": PREFIX, "arguments": {"batch_size": 1}}
    inputs = {"parameters.prompt_encoder.embedding.weight": table}
    whole = port.tensors("prefix.encode", inputs, **fields)
    assert {tuple(tensor.shape) for tensor in whole.values()} == {(1, 2, VIRTUAL, 12)}
    cut = {k: v[:, :, -3:] if ".0." in k else v for k, v in whole.items()}
    near(port.tensors("prefix.encode", inputs, **fields, model=bases("gemma2")), cut, 0.0)
    fields["arguments"] |= {"sliding_windows": [4, None]}
    near(port.tensors("prefix.encode", inputs, **fields), cut, 0.0)


@pytest.mark.parametrize("family", ["gpt2", "gemma", "bart", "t5"])
def test_sampled_rows_are_scaled_as_the_embeddings_are(port: Conversation, bases: Any, family: str) -> None:
    task = "SEQ_2_SEQ_LM" if family in ENCODER_DECODERS else "CAUSAL_LM"
    config = filled_in(port, bases(family), PROMPT, task, prompt_tuning_init="SAMPLE_VOCAB")
    found = port.tensors("init", model=bases(family), config=config, arguments={"seed": 5})
    tensors = load_file(bases(family) / "model.safetensors")
    table = next(v for k, v in tensors.items() if v.shape == (VOCABULARY, 32))
    rows = (2 if task == "SEQ_2_SEQ_LM" else 1) * VIRTUAL
    torch.manual_seed(5)
    torch.nn.Embedding(rows, 32)
    scale = 32**0.5 if family in ("gemma", "bart") else 1.0
    expected = scale * table[torch.randint(0, VOCABULARY, (rows,))]
    near(found, {"parameters.prompt_encoder.embedding.weight": expected}, 1e-7)


REACHES = [
    ("bert", PREFIX, "SEQ_CLS", "token_type_ids"),
    ("bert", PROMPT, "TOKEN_CLS", "token_type_ids"),
    ("gpt2", PREFIX, "SEQ_CLS", "position_ids"),
    ("llama", PREFIX, "CAUSAL_LM", "position_ids"),
    ("t5", PREFIX, "SEQ_2_SEQ_LM", "decoder_attention_mask"),
    ("bart", PROMPT, "SEQ_2_SEQ_LM", "decoder_attention_mask"),
    ("t5", PROMPT, "SEQ_2_SEQ_LM", "decoder_input_ids"),
    ("bart", PREFIX, "SEQ_2_SEQ_LM", "decoder_input_ids"),
    ("roberta", PREFIX, "QUESTION_ANS", "attention_mask"),
]


@pytest.mark.parametrize(("family", "method", "task", "name"), REACHES)
def test_an_input_reaches_the_model(
    port: Conversation, bases: Any, family: str, method: str, task: str, name: str
) -> None:
    given = {
        "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1]] * BATCH),
        "position_ids": torch.tensor([[3, 1, 4, 1, 5, 9]] * BATCH),
        "decoder_attention_mask": torch.tensor([[1, 0, 1, 1]] * BATCH),
        "decoder_input_ids": torch.tensor([[7, 8, 9, 3]] * BATCH),
        "attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1]] * BATCH),
    }
    config = filled_in(port, bases(family), method, task)
    changes = {"type_vocab_size": 2} if name == "token_type_ids" else {}
    fields = {"model": bases(family, **changes), "config": config, "method": method}
    inputs = drawn(port, fields) | texts(family, method, task)
    before = port.tensors("forward", inputs, **fields)
    after = port.tensors("forward", inputs | {name: given[name]}, **fields)
    assert (after["loss"] - before["loss"]).abs() > 1e-5


def test_labels_of_a_regression_are_read_in_the_profiles_numbers(port: Conversation, bases: Any) -> None:
    base = bases("bert", problem_type="regression", num_labels=1)
    for method in (PROMPT, PREFIX):
        config = filled_in(port, base, method, "SEQ_CLS")
        fields = {"model": base, "config": config, "method": method}
        inputs = (
            drawn(port, fields) | texts("bert", method, "SEQ_CLS") | {"labels": torch.tensor([0.5, -1.25])}
        )
        losses = [
            port.tensors("gradients", inputs, **fields, dtype=d)["loss"] for d in ("float32", "bfloat16")
        ]
        assert losses[1].dtype == torch.bfloat16
        assert losses[1].item() == pytest.approx(losses[0].item(), rel=LOOSE["bfloat16"])


@pytest.mark.parametrize("method", [PROMPT, PROJECTION])
def test_an_adapter_is_saved_alike_with_and_without_its_base(
    port: Conversation, bases: Any, method: str
) -> None:
    base, changes = bases("roberta"), {"base_model_name_or_path": "an/encoder"}
    if method == PROMPT:
        changes |= {
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": "x",
            "tokenizer_name_or_path": "none",
        }
    config = filled_in(port, base, method, "SEQ_CLS", **changes)
    fields = {"config": config, "method": method.partition(" ")[0]}
    parameters = drawn(port, fields | {"model": base, "config": filled_in(port, base, method, "SEQ_CLS")})
    saved = [port.ask("checkpoint.save", parameters, **fields, model=m)["adapter"] for m in (base, None)]
    configs = [json.loads((directory / "adapter_config.json").read_text()) for directory in saved]
    assert configs == 2 * [config | {"inference_mode": True}]
    tensors = [load_file(directory / "adapter_model.safetensors") for directory in saved]
    near(tensors[0], tensors[1], 0.0)


def test_heads_other_than_the_tasks_are_trained_and_saved(port: Conversation, bases: Any) -> None:
    base = bases("llama")
    config = filled_in(port, base, PREFIX, "CAUSAL_LM", modules_to_save=["lm_head"])
    fields = {"model": base, "config": config, "method": PREFIX}
    parameters, text = drawn(port, fields), texts("llama", PREFIX, "CAUSAL_LM")
    head = "parameters.base_model.lm_head.weight"
    assert parameters.keys() == {"parameters.prompt_encoder.embedding.weight", head}
    answer = port.tensors("forward", parameters | text, **fields)
    moved = port.tensors("forward", parameters | text | {head: 2 * parameters[head]}, **fields)
    near(moved, answer | {"logits": 2 * answer["logits"], "loss": moved["loss"]}, 1e-6)
    check_adapter_files(port, fields, parameters, text, answer)
    check_gradients(port, fields, parameters | text, answer)
    check_training(port, fields | {"dtype": "float32"}, parameters | text, answer)
