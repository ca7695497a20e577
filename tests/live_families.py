"""Base models for the live comparison: drawn as `refpeft.testing` draws them, written by HF with a head of one task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support import need

from refpeft.testing.families import (  # noqa: F401  (handed on to the rounds)
    ENCODER_DECODERS,
    ENCODERS,
    FAMILIES,
    Config,
    Draw,
    draw_config,
    sometimes,
)

torch = need("torch")
transformers = need("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)  # tiny tensors: threads only wait for one another

CLASSES = {
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": transformers.AutoModel,
}
OLD_HEADS = {"gpt_neox": "embed_out.weight"}
"""What HF calls a language-model head in files, where that is not what it calls it in models."""
LANGUAGE = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
SPREAD = 0.4
"""The standard deviation of all weights: HF's own 0.02 makes logits nearly flat and hides mistakes."""


def tasks_of(family: str) -> list[str]:
    """The task types for which HF has a class of the family, and HF peft a use."""
    config = type(transformers.AutoConfig.for_model(family))
    if family in ENCODER_DECODERS:
        return ["SEQ_2_SEQ_LM"]
    return [
        task
        for task, kind in CLASSES.items()
        if config in kind._model_mapping
        and task != "SEQ_2_SEQ_LM"
        and not (task == "CAUSAL_LM" and family in ENCODERS)
    ]


# ---------------------------------------------------------------- files


def write_base(config: Config, task_type: str, seed: int, directory: Path, *, own_head: bool = False) -> Path:
    """A directory with HF's model of the task: config.json as given, weights drawn from the seed.

    `own_head`: a head of its own in the file, even if config.json ties it to the token table.
    """
    directory.mkdir(parents=True)
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    made = CLASSES[task_type].from_config(transformers.AutoConfig.from_pretrained(directory))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*made.parameters(), *_stored_buffers(made)]:
            tensor.normal_(0.0, SPREAD, generator=generator)
    made.save_pretrained(directory)
    path.write_text(json.dumps({**config, "architectures": [type(made).__name__]}))
    if own_head:
        file, name = directory / "model.safetensors", OLD_HEADS.get(config["model_type"], "lm_head.weight")
        head = torch.zeros_like(made.lm_head.weight).normal_(0.0, SPREAD, generator=generator)
        save_file({**load_file(file), name: head}, file, metadata={"format": "pt"})
    return directory


def _stored_buffers(model: Any) -> list[Any]:
    """BART's `final_logits_bias`."""
    stored = model.state_dict()
    return [buffer for name, buffer in model.named_buffers() if name in stored and buffer.is_floating_point()]


def load_hf(directory: Path, task_type: str, attention: str = "eager") -> Any:
    """HF's model as its users load it, with the attention whose masked scores refpeft follows."""
    kind = CLASSES[task_type]
    loaded, loading = kind.from_pretrained(
        directory, attn_implementation=attention, dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"], loading
    assert not loading["mismatched_keys"], loading
    return loaded.eval()
