"""What HF peft raises on, as a port: skipped with its message, and nothing else is. Needs the extra `golden`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support import need

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

torch = need("torch")
transformers = need("transformers")
need("peft")

from ports.hf_peft_bases import VOCABULARY  # noqa: E402  (it needs torch)
from ports.hf_peft_questions import (  # noqa: E402
    BATCH,
    ENCODERS,
    PREFIX,
    PROMPT,
    TOKENS,
    VIRTUAL,
    Conversation,
    base_models,
    conversation,
    filled_in,
    texts,
)

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

MASK_TOO_LONG = (
    "RuntimeError: The size of tensor a (6) must match the size of tensor b (11) at non-singleton dimension 3"
)
NO_EMBEDDINGS = "NotImplementedError: Passing input embeddings is currently not supported for "
NO_CACHE = "ValueError: Model does not support past key values which are required for prefix tuning."
NO_HEAD = "AttributeError: '{}ForSequenceClassification' object has no attribute 'cls_layer_name'"
NO_INPUT = "ValueError: You must specify exactly one of input_ids or inputs_embeds"
NO_DECODER_INPUT = (
    "ValueError: If no `decoder_input_ids` or `decoder_inputs_embeds` are passed, `input_ids` cannot be `None`. "
    "Please pass either `input_ids` or `decoder_input_ids` or `decoder_inputs_embeds`."
)
NO_CLASS = (
    "ValueError: Unrecognized configuration class <class 'transformers.models.{}Config'> "
    "for this kind of AutoModel: AutoModelFor{}."
)
WIDTHS = (
    "RuntimeError: Sizes of tensors must match except in dimension {}. "
    "Expected size {} but got size {} for tensor number 1 in the list."
)
ALL = ("input_ids", "attention_mask", "labels", "start_positions", "end_positions")
UNMASKED = ("input_ids", "decoder_input_ids")

NEVER: list[tuple[str, str, str, tuple[str, ...], str]] = [
    ("opt", PROMPT, "TOKEN_CLS", ALL, NO_CLASS.format("opt.configuration_opt.OPT", "TokenClassification")),
    ("phi", PREFIX, "QUESTION_ANS", ALL, NO_CLASS.format("phi.configuration_phi.Phi", "QuestionAnswering")),
    ("gpt2", PROMPT, "SEQ_2_SEQ_LM", ALL, NO_CLASS.format("gpt2.configuration_gpt2.GPT2", "Seq2SeqLM")),
    ("t5", PREFIX, "CAUSAL_LM", ALL, NO_CLASS.format("t5.configuration_t5.T5", "CausalLM")),
    ("t5", PROMPT, "SEQ_CLS", ALL, NO_EMBEDDINGS + "T5ForSequenceClassification"),
    ("bart", PROMPT, "SEQ_CLS", ALL, NO_EMBEDDINGS + "BartForSequenceClassification"),
    ("t5", PREFIX, "SEQ_CLS", ALL, MASK_TOO_LONG),
    ("bart", PREFIX, "SEQ_CLS", ALL, MASK_TOO_LONG),
    ("t5", PREFIX, "SEQ_CLS", UNMASKED, NO_HEAD.format("T5")),
    ("bart", PREFIX, "SEQ_CLS", UNMASKED, NO_HEAD.format("Bart")),
    ("t5", PREFIX, "TOKEN_CLS", ALL, NO_CACHE),
    ("t5", PROMPT, "QUESTION_ANS", ALL, NO_DECODER_INPUT),
    ("bart", PROMPT, "QUESTION_ANS", ALL, NO_DECODER_INPUT),
    ("t5", PREFIX, "QUESTION_ANS", ALL, MASK_TOO_LONG),
    ("bart", PREFIX, "QUESTION_ANS", ALL, MASK_TOO_LONG),
    (
        *("bart", PREFIX, "QUESTION_ANS", UNMASKED),
        "AttributeError: 'Seq2SeqModelOutput' object has no attribute 'hidden_states'",
    ),
    ("t5", PROMPT, "FEATURE_EXTRACTION", ALL, NO_INPUT),
    ("bart", PROMPT, "FEATURE_EXTRACTION", ALL, NO_DECODER_INPUT),
    ("t5", PREFIX, "FEATURE_EXTRACTION", ALL, MASK_TOO_LONG),
    ("bart", PREFIX, "FEATURE_EXTRACTION", ALL, MASK_TOO_LONG),
    ("t5", PREFIX, "SEQ_2_SEQ_LM", ("input_ids", "attention_mask"), NO_INPUT),
    ("bart", PROMPT, "SEQ_2_SEQ_LM", ("input_ids", "attention_mask"), NO_DECODER_INPUT),
]
"""Family, method, task, the inputs that are given, and HF's message."""
DOES_NOT_FIT: list[tuple[str, str, str, dict[str, Any], str]] = [
    ("opt", PROMPT, "CAUSAL_LM", {"word_embed_proj_dim": 16}, WIDTHS.format(1, 32, 16)),
    ("electra", PROMPT, "SEQ_CLS", {"embedding_size": 16}, WIDTHS.format(1, 32, 16)),
    ("falcon", PREFIX, "CAUSAL_LM", {}, WIDTHS.format(2, 4, 1)),
    ("t5", PREFIX, "SEQ_2_SEQ_LM", {"d_kv": 6}, WIDTHS.format(2, 8, 6)),
    ("bart", PREFIX, "SEQ_2_SEQ_LM", {"decoder_attention_heads": 2}, WIDTHS.format(2, 4, 2)),
    ("bart", PREFIX, "SEQ_2_SEQ_LM", {"decoder_layers": 4}, "IndexError: list index out of range"),
    ("t5", PREFIX, "SEQ_2_SEQ_LM", {"num_decoder_layers": 4}, "IndexError: list index out of range"),
    (
        *("t5", PREFIX, "SEQ_2_SEQ_LM", {"d_model": 30}),
        "RuntimeError: shape '[2, 5, 6, 4, 7]' is invalid for input of size 1800",
    ),
    ("bert", PREFIX, "QUESTION_ANS", {"num_labels": 3}, "ValueError: too many values to unpack (expected 2)"),
    (
        *("gpt2", PREFIX, "SEQ_CLS", {"pad_token_id": None}),
        "ValueError: Cannot handle batch sizes > 1 if no padding token is defined.",
    ),
]
"""Family, method, task, what is otherwise in the base model's configuration, and HF's message."""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conversation]:
    with conversation(tmp_path_factory.mktemp("port")) as opened:
        yield opened


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return base_models(tmp_path_factory.mktemp("bases"))


def skipped(port: Conversation, question: str, inputs: dict[str, Any], **fields: Any) -> str:
    """Why."""
    answer = port.ask(question, inputs, **fields)
    assert answer.keys() == {"skipped"}, answer
    return answer["skipped"]["message"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("family", "method", "task", "names", "message"), NEVER)
def test_what_hf_never_computes_is_skipped_with_its_message(
    port: Conversation, bases: Any, family: str, method: str, task: str, names: tuple[str, ...], message: str
) -> None:
    inputs = {k: v for k, v in texts(family, method, task).items() if k in names}
    if "decoder_input_ids" in names:
        inputs["decoder_input_ids"] = inputs["input_ids"].clone()
    fields = {"config": filled_in(port, bases(family), method, task), "method": method}
    assert skipped(port, "forward", inputs, **fields, model=bases(family)) == f"HF raises {message}"


@pytest.mark.parametrize(("family", "method", "task", "changes", "message"), DOES_NOT_FIT)
def test_sizes_that_hf_fills_in_wrongly_are_skipped_with_its_message(
    port: Conversation, bases: Any, family: str, method: str, task: str, changes: dict[str, Any], message: str
) -> None:
    base = bases(family, **changes)
    config = filled_in(port, base, method, task)
    if family == "falcon":
        config |= {"token_dim": 32, "num_attention_heads": 4}  # as HF fills in by itself
    fields = {"model": base, "config": config, "method": method}
    assert skipped(port, "forward", texts(family, method, task), **fields) == f"HF raises {message}"


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("bert", "ValueError: Expected input batch_size (22) to match target batch_size (12)."),
        ("llama", "ValueError: Expected input batch_size (22) to match target batch_size (12)."),
        ("bloom", "RuntimeError: shape '[12, 2]' is invalid for input of size 44"),
        ("falcon", "RuntimeError: shape '[12, 2]' is invalid for input of size 44"),
    ],
)
def test_labels_of_the_text_alone_beside_virtual_tokens_are_skipped(
    port: Conversation, bases: Any, family: str, message: str
) -> None:
    config = filled_in(port, bases(family), PROMPT, "TOKEN_CLS")
    inputs = texts(family, PROMPT, "TOKEN_CLS")
    inputs["labels"] = inputs["labels"][:, VIRTUAL:]
    fields = {"model": bases(family), "config": config, "method": PROMPT}
    assert skipped(port, "forward", inputs, **fields) == f"HF raises {message}"


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_goes_on_after_a_prompt_and_is_skipped_after_a_prefix(
    port: Conversation, bases: Any, family: str
) -> None:
    inputs = texts("gpt2", PREFIX, "CAUSAL_LM")
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    how = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0}
    fields = {"model": bases(family), "arguments": how}
    config = filled_in(port, bases(family), PROMPT, "CAUSAL_LM")
    assert port.tensors("generate", inputs, **fields, config=config)["sequences"].shape == (BATCH, TOKENS + 3)
    config = filled_in(port, bases(family), PREFIX, "CAUSAL_LM")
    message = skipped(port, "generate", inputs, **fields, config=config, method=PREFIX)
    assert message == f"HF raises {MASK_TOO_LONG.replace('(11)', '(12)')}"


def test_a_loaded_adapter_is_skipped_likewise(port: Conversation, bases: Any) -> None:
    base = bases("bert", num_labels=3)
    config = filled_in(port, base, PREFIX, "QUESTION_ANS")
    table = torch.zeros(VIRTUAL, 2 * config["num_layers"] * config["token_dim"])
    inputs = {
        "parameters.prompt_encoder.embedding.weight": table,
        "parameters.base_model.qa_outputs.weight": torch.zeros(3, 32),
        "parameters.base_model.qa_outputs.bias": torch.zeros(3),
    }
    adapter = port.ask("checkpoint.save", inputs, config=config, method=PREFIX)["adapter"]
    fields = {"model": base, "adapter": adapter, "method": PREFIX}
    message = skipped(port, "checkpoint.load", texts("bert", PREFIX, "QUESTION_ANS"), **fields)
    assert message == "HF raises ValueError: too many values to unpack (expected 2)"


def test_anything_else_that_is_raised_is_an_error(port: Conversation, bases: Any) -> None:
    config = filled_in(port, bases("gpt2"), PREFIX, "CAUSAL_LM")
    inputs = texts("gpt2", PREFIX, "CAUSAL_LM") | {"input_ids": torch.full((BATCH, TOKENS), VOCABULARY)}
    answer = port.ask("forward", inputs, model=bases("gpt2"), config=config, method=PREFIX)
    assert answer["errored"]["message"] == "IndexError: index out of range in self"
    assert answer["errored"]["traceback"].startswith("Traceback (most recent call last):")
    missing = port.ask("forward", inputs, model=bases("gpt2") / "none", config=config, method=PREFIX)
    assert missing.keys() == {"errored"}
