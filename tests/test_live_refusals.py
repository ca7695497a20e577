"""Where HF peft raises, refpeft refuses too: one situation after the other, asked of both. Needs the extra `golden`.

Whole messages of refpeft's are compared elsewhere; here a part of each says that it is refused for the right reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pytest
from support import need, tiny_values

import refpeft

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]
torch, transformers, peft = need("torch"), need("transformers"), need("peft")

from live_families import FAMILIES, load_hf, tasks_of, write_base  # noqa: E402
from live_rounds import ask_hf  # noqa: E402
from true_float64 import as_float64  # noqa: E402

from refpeft.tensors import read_tensors, write_tensors  # noqa: E402

IDS = numpy.array([[5, 9, 3, 7, 11], [4, 8, 12, 6, 10]])
LABELS = numpy.array([[3, 7, 5, 2], [6, 4, 9, 8]])


@dataclass
class Situation:
    """What both sides are given, and what each says."""

    family: str
    task: str | None
    method: str
    theirs: str
    """A regular expression for HF's message, the name of its exception before it."""
    ours: str
    """What refpeft's message says."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Of config.json."""
    adapter: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    files: str = ""
    """The task whose class writes the weights, if it is not the task's own."""

    def configuration(self, library: Any) -> Any:
        name = "PromptTuningConfig" if self.method == "prompt" else "PrefixTuningConfig"
        return getattr(library, name)(**{"task_type": self.task, "num_virtual_tokens": 3, **self.adapter})

    def ask_hf(self, directory: Path) -> None:
        """Make files, load them, adapt the model, run it: one of these fails."""
        values = tiny_values(self.family, **self.changes)
        values = {key: value for key, value in values.items() if value is not ...}
        write_base(values, self.files or str(self.task), 0, directory)
        base = load_hf(directory, self.task or self.files)
        ask_hf(
            as_float64(peft.get_peft_model(base, self.configuration(peft))), {"input_ids": IDS, **self.inputs}
        )

    def ask_refpeft(self, directory: Path) -> None:
        """The same of refpeft, with the files that are there."""
        base = refpeft.load_base_model(directory)
        refpeft.get_peft_model(base, self.configuration(refpeft))(**{"input_ids": IDS, **self.inputs})


NO_CLASS = r"ValueError: Unrecognized configuration class .* for this kind of AutoModel"
CAT_1, CAT_2 = (rf"RuntimeError: Sizes of tensors must match except in dimension {axis}" for axis in (1, 2))
OUT_OF_TABLE = r"IndexError: index out of range in self|RuntimeError: (index \d+ is out of bounds|The expanded size of the tensor)"
MASK_TOO_LONG = r"RuntimeError: The size of tensor a \(\d+\) must match the size of tensor b \(\d+\)"
FILLED_IN = "HF's rule (CF-3) fills in token_dim="
BEHIND = "num_layers and num_attention_heads are "
TWO_STACKS = "task_type is '{}'; a {} base model (encoder-decoder) can have SEQ_2_SEQ_LM."
WITHOUT_CLASS = "HF has no {} model for {}, so there is no head to train or to compare with."
OTHER_HEADS = " model does not have: "
NO_DECODER = "An encoder-decoder needs something to decode"

SITUATIONS: dict[str, Situation] = {
    # ------------------------------------------------ the configuration of the base
    "hidden size that heads do not divide": Situation(
        "gpt2", "CAUSAL_LM", "prompt", r"ValueError: `embed_dim` must be divisible by num_heads", "`embed_dim` must be divisible",
        {"n_embd": 14},
    ),
    "cross-entropy of one class": Situation(
        "bert", "SEQ_CLS", "prompt", r'\w*Error: .*`problem_type="single_label_classification"` requires',
        '`problem_type="single_label_classification"` requires', {"num_labels": 1, "problem_type": "single_label_classification"},
    ),
    "T5's unknown network": Situation(
        "t5", "SEQ_2_SEQ_LM", "prompt", r"\w*Error: .*`feed_forward_proj`: double-gelu is not a valid",
        "`feed_forward_proj`: double-gelu is not a valid", {"feed_forward_proj": "double-gelu"},
    ),
    "RoBERTa without padding": Situation(
        "roberta", "FEATURE_EXTRACTION", "prompt", r"TypeError: ", "pad_token_id of the base model is None", {"pad_token_id": None},
    ),
    "Falcon's groups, one after the other": Situation(
        "falcon", "CAUSAL_LM", "prompt", r"AttributeError: 'FalconDecoderLayer' object has no attribute 'ln_attn'",
        "parallel_attn of the base model is false", {"new_decoder_architecture": True, "parallel_attn": False},
    ),
    "Falcon's groups, one after the other, one norm": Situation(
        "falcon", "CAUSAL_LM", "prompt", r"UnboundLocalError: ", "parallel_attn of the base model is false",
        {"new_decoder_architecture": True, "parallel_attn": False, "num_ln_in_parallel_attn": 1},
    ),
    "Falcon's second norm": Situation(
        "falcon", "CAUSAL_LM", "prompt", r"AttributeError: 'FalconDecoderLayer' object has no attribute 'input_layernorm'",
        "num_ln_in_parallel_attn of the base model is 2", {"num_ln_in_parallel_attn": 2},
    ),
    "part of a head turned, in LLaMA": Situation(
        "llama", "CAUSAL_LM", "prompt", MASK_TOO_LONG, "rope_parameters['partial_rotary_factor'] of the base model is 0.5",
        {"rope_theta": ..., "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0, "partial_rotary_factor": 0.5}},
    ),
    "a span of more than two numbers": Situation(
        "bert", "QUESTION_ANS", "prompt", r"ValueError: too many values to unpack", "'qa_outputs.weight' in ", {"num_labels": 3},
    ),
    # ------------------------------------------------ the task
    "no task": Situation("gpt2", None, "prompt", r"KeyError: None", "task_type is None", files="CAUSAL_LM"),
    "no task, encoder": Situation("bert", None, "prefix", r"KeyError: None", "task_type is None", files="FEATURE_EXTRACTION"),
    "T5 as an encoder, prompt": Situation(
        "t5", "FEATURE_EXTRACTION", "prompt", r"ValueError: You (must|cannot|have to) specify", TWO_STACKS.format("FEATURE_EXTRACTION", "t5"),
    ),
    "T5 as an encoder, prefix": Situation(
        "t5", "FEATURE_EXTRACTION", "prefix", r"\w*Error: ", TWO_STACKS.format("FEATURE_EXTRACTION", "t5"), {"d_model": 20},
    ),
    "BART's classifier": Situation(
        "bart", "SEQ_CLS", "prompt", r"NotImplementedError: Passing input embeddings is currently not supported", OTHER_HEADS,
    ),
    "T5's classifier": Situation(
        "t5", "SEQ_CLS", "prompt", r"NotImplementedError: Passing input embeddings is currently not supported", OTHER_HEADS,
    ),
    "BART's answers": Situation("bart", "QUESTION_ANS", "prompt", r"ValueError: If no `decoder_input_ids`", OTHER_HEADS),
    # ------------------------------------------------ sizes that HF fills in and that do not fit
    "Falcon's one key": Situation("falcon", "CAUSAL_LM", "prefix", CAT_2, FILLED_IN),
    "narrow OPT": Situation("opt", "CAUSAL_LM", "prompt", CAT_1, FILLED_IN, {"word_embed_proj_dim": 9}),
    "narrow ELECTRA": Situation("electra", "FEATURE_EXTRACTION", "prompt", CAT_1, FILLED_IN),
    "T5's heads are not its width": Situation(
        "t5", "SEQ_2_SEQ_LM", "prefix", r"RuntimeError: ", FILLED_IN, inputs={"labels": LABELS},
    ),
    "BART's other heads": Situation(
        "bart", "SEQ_2_SEQ_LM", "prefix", CAT_2, BEHIND, {"decoder_attention_heads": 3}, inputs={"labels": LABELS},
    ),
    "more layers in the decoder": Situation(
        "bart", "SEQ_2_SEQ_LM", "prefix", r"IndexError: list index out of range", BEHIND, {"decoder_layers": 4},
        inputs={"labels": LABELS},
    ),
    "a window of 1": Situation(
        "gemma2", "CAUSAL_LM", "prefix", MASK_TOO_LONG, "sliding_window of the base model is 1", {"sliding_window": 1},
    ),
    "a width that is not the base's": Situation(
        "gpt2", "CAUSAL_LM", "prompt", CAT_1, "token_dim is 9, but this base model needs 15", adapter={"token_dim": 9},
    ),
    "heads that are not the base's": Situation(
        "gpt2", "CAUSAL_LM", "prefix", CAT_2, BEHIND, adapter={"num_attention_heads": 3},
    ),
    "too few layers": Situation(
        "gpt2", "CAUSAL_LM", "prefix", r"(IndexError|RuntimeError): ", BEHIND, adapter={"num_layers": 2},
    ),
    # ------------------------------------------------ inputs
    "labels of the text alone": Situation(
        "bert", "TOKEN_CLS", "prompt", r"ValueError: Expected input batch_size \(16\) to match target batch_size \(10\)",
        "labels must have shape (2, 8), got (2, 5): in TOKEN_CLS", inputs={"labels": IDS % 2},
    ),
    "labels of the text alone, BLOOM": Situation(
        "bloom", "TOKEN_CLS", "prompt", r"RuntimeError: shape '\[\d+\]|.* is invalid for input of size", "labels must have shape (2, 8)",
        inputs={"labels": IDS % 2},
    ),
    "no padding token": Situation(
        "gpt2", "SEQ_CLS", "prompt", r"ValueError: Cannot handle batch sizes > 1 if no padding token is defined.",
        "Cannot handle batch sizes > 1 if no padding token is defined.", {"pad_token_id": None},
    ),
    "no padding token, prefix": Situation(
        "llama", "SEQ_CLS", "prefix", r"ValueError: Cannot handle batch sizes > 1 if no padding token is defined.",
        "Cannot handle batch sizes > 1 if no padding token is defined.", {"pad_token_id": None},
    ),
    "T5 without a decoder's text": Situation(
        "t5", "SEQ_2_SEQ_LM", "prompt", r"ValueError: You (must|cannot|have to) specify", NO_DECODER,
    ),
    "T5 without a decoder's text, prefix": Situation(
        "t5", "SEQ_2_SEQ_LM", "prefix", r"ValueError: You (must|cannot|have to) specify", NO_DECODER, {"d_model": 20},
    ),
    "BART without a decoder's text": Situation(
        "bart", "SEQ_2_SEQ_LM", "prompt", r"ValueError: If no `decoder_input_ids`", NO_DECODER,
    ),
    "labels to shift without padding": Situation(
        "bart", "SEQ_2_SEQ_LM", "prompt", r"ValueError: self.model.config.pad_token_id has to be defined",
        "decoder_start_token_id and pad_token_id of the base model are", {"pad_token_id": None}, inputs={"labels": LABELS},
    ),
    "labels to shift without a start": Situation(
        "t5", "SEQ_2_SEQ_LM", "prompt", r"AttributeError: 'T5Config' object has no attribute 'decoder_start_token_id'",
        "decoder_start_token_id and pad_token_id of the base model are", {"decoder_start_token_id": ...}, inputs={"labels": LABELS},
    ),
    "real numbers for one class": Situation(
        "bert", "SEQ_CLS", "prompt", r"ValueError: Target size", "labels must have shape (2, 8) where they are real numbers",
        inputs={"labels": numpy.array([0.5, 1.0])},
    ),
    "a class that there is not": Situation(
        "bert", "SEQ_CLS", "prefix", r"IndexError: Target 8 is out of bounds", "labels hold 8", inputs={"labels": numpy.array([1, 8])},
    ),
    "a type that there is not": Situation(
        "bert", "SEQ_CLS", "prompt", OUT_OF_TABLE, "token_type_ids run from 3", inputs={"token_type_ids": IDS},
    ),
    "a token that there is not": Situation(
        "gpt2", "CAUSAL_LM", "prefix", OUT_OF_TABLE, "input_ids[0, 0] is 43", inputs={"input_ids": IDS + 38},
    ),
    "a position that there is not": Situation(
        "opt", "CAUSAL_LM", "prefix", OUT_OF_TABLE, "position_ids run from", inputs={"position_ids": IDS + 30},
    ),
    "labels of another length": Situation(
        "gpt2", "CAUSAL_LM", "prefix", r"ValueError: Expected input batch_size", "labels must have the shape of input_ids",
        inputs={"labels": LABELS},
    ),
    "a mask of four dimensions": Situation(
        "llama", "CAUSAL_LM", "prompt", r"RuntimeError: Tensors must have same number of dimensions",
        "attention_mask must have the shape of input_ids", inputs={"attention_mask": numpy.ones((2, 1, 5, 5))},
    ),
}  # fmt: skip

for _family, _keys in {
    "gpt2": ("n_positions",), "gpt_bigcode": ("n_positions",), "opt": ("max_position_embeddings",),
    "bert": ("max_position_embeddings",), "electra": ("max_position_embeddings",), "roberta": ("max_position_embeddings",),
    "bart": ("max_position_embeddings",),
}.items():  # fmt: skip
    for _method in ("prompt", "prefix"):
        _task = tasks_of(_family)[0]
        _taken = 7 + (
            2 if _family == "roberta" else 0
        )  # of 3 + 5 places; RoBERTa's begin behind the padding token's
        _given = {"labels": IDS, "attention_mask": numpy.ones_like(IDS)} if _task != "SEQ_CLS" else {}
        _narrow = {"token_dim": 13} if _family == "electra" and _method == "prompt" else {}
        SITUATIONS[f"a table that is too short, {_family}, {_method}"] = Situation(
            _family,
            _task,
            _method,
            OUT_OF_TABLE,
            "3 virtual tokens and 5 tokens",
            dict.fromkeys(_keys, _taken),
            _narrow,
            _given,
        )
for _family in FAMILIES:
    for _task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"):
        if _family not in ("t5", "bart") and _task not in tasks_of(_family):
            SITUATIONS[f"no class, {_family}, {_task}"] = Situation(
                _family,
                _task,
                "prompt",
                NO_CLASS,
                WITHOUT_CLASS.format(_family, _task),
                files="FEATURE_EXTRACTION",
            )


@pytest.mark.parametrize("name", SITUATIONS)
def test_refpeft_refuses_where_hf_raises(name: str, tmp_path: Path) -> None:
    situation = SITUATIONS[name]
    with pytest.raises(Exception) as theirs:  # noqa: PT011  (HF raises whatever comes)
        situation.ask_hf(tmp_path / "base")
    said = f"{type(theirs.value).__name__}: {theirs.value}"
    assert re.match(situation.theirs, said, re.DOTALL), said
    with pytest.raises((refpeft.ConfigError, refpeft.InputError, refpeft.CheckpointError)) as ours:
        situation.ask_refpeft(tmp_path / "base")
    assert situation.ours in str(ours.value)


# ---------------------------------------------------------------- where HF does not raise, and no number is HF's


def test_a_prefix_on_t5_s_encoder_is_a_silent_no_op_in_hf(tmp_path: Path) -> None:
    directory = write_base(tiny_values("t5", d_model=20), "SEQ_2_SEQ_LM", 0, tmp_path / "base")
    base = as_float64(transformers.T5EncoderModel.from_pretrained(directory, dtype=torch.float32))
    before = ask_hf(base, {"input_ids": IDS}).last_hidden_state
    config = peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
    after = ask_hf(peft.get_peft_model(base, config), {"input_ids": IDS}).last_hidden_state
    assert torch.equal(before, after)
    with pytest.raises(refpeft.ConfigError, match="HF drops a prefix without a word"):
        refpeft.get_peft_model(
            refpeft.load_base_model(directory),
            refpeft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3),
        )


def test_a_model_without_a_task_injects_nothing_in_hf(tmp_path: Path) -> None:
    directory = write_base(tiny_values("gpt2"), "CAUSAL_LM", 0, tmp_path / "base")
    base = as_float64(load_hf(directory, "CAUSAL_LM"))
    before = ask_hf(base, {"input_ids": IDS}).logits
    bare = peft.PeftModel(base, peft.PromptTuningConfig(num_virtual_tokens=3))
    assert torch.equal(before, ask_hf(bare, {"input_ids": IDS}).logits)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_stack_with_a_token_table_of_its_own(tmp_path: Path, family: str, stack: str) -> None:
    """HF reads it; refpeft has one table, and refuses. A copy is no other table."""
    directory = write_base(tiny_values(family), "SEQ_2_SEQ_LM", 0, tmp_path / "base")
    path, prefix = directory / "model.safetensors", "model." if family == "bart" else ""
    tensors = {name: value.copy() for name, value in read_tensors(path, "weights").items()}
    own, shared = f"{prefix}{stack}.embed_tokens.weight", tensors[f"{prefix}shared.weight"]
    inputs = {"input_ids": IDS, "decoder_input_ids": LABELS}
    before = ask_hf(as_float64(load_hf(directory, "SEQ_2_SEQ_LM")), inputs).logits
    write_tensors(path, {**tensors, own: shared}, {"format": "pt"})
    refpeft.load_base_model(directory)
    write_tensors(path, {**tensors, own: shared + 1}, {"format": "pt"})
    assert not torch.equal(before, ask_hf(as_float64(load_hf(directory, "SEQ_2_SEQ_LM")), inputs).logits)
    with pytest.raises(refpeft.CheckpointError) as caught:
        refpeft.load_base_model(directory)
    assert str(caught.value) == (
        f"The {stack} of '{path}' does not read the token table 'shared.weight', which refpeft's encoder-decoders share: it has "
        "one of its own, or none at all though tie_word_embeddings is false."
    )


def test_bart_s_tables_apart(tmp_path: Path) -> None:
    """Without ties BART has three token tables; a file with one leaves two to be drawn at random in HF."""
    directory = write_base(
        tiny_values("bart", tie_word_embeddings=False), "SEQ_2_SEQ_LM", 0, tmp_path / "base"
    )
    path = directory / "model.safetensors"
    tensors = read_tensors(path, "weights")
    names = [
        name for name in tensors if name.endswith(("embed_tokens.weight", "shared.weight", "lm_head.weight"))
    ]
    assert len(names) == 4
    shared = tensors["model.shared.weight"].copy()
    kept = {name: value.copy() for name, value in tensors.items() if "embed_tokens" not in name}
    write_tensors(path, kept, {"format": "pt"})
    with pytest.raises(refpeft.CheckpointError, match="or none at all though tie_word_embeddings is false"):
        refpeft.load_base_model(directory)
    copies = {f"model.{stack}.embed_tokens.weight": shared for stack in ("encoder", "decoder")}
    write_tensors(path, {**kept, **copies}, {"format": "pt"})
    refpeft.load_base_model(directory)
