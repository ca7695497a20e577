"""Prompt tuning's parameters: one table of virtual-token embeddings, put in front of the text's own embeddings.

Follows HF peft 0.21.2 `tuners/prompt_tuning/model.py` (`PromptEmbedding`) and `peft_model.py` (`get_prompt`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from jaxtyping import Int

from refpeft import arrays as np
from refpeft.arrays import Array, Float, Parameters
from refpeft.config import PromptTuningConfig
from refpeft.errors import ConfigError, InputError
from refpeft.steps import step
from refpeft.torch_random import Generator, embedding

EMBEDDING = "prompt_encoder.embedding.weight"
"""HF's name of the table, without the adapter's name."""


def parameter_shapes(config: PromptTuningConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the trainable parameters: one table (virtual · submodules, token_dim). Clause PT-1.

    Source: HF peft 0.21.2 `tuners/prompt_tuning/model.py`, `PromptEmbedding.__init__`.
    """
    return {EMBEDDING: (config.total_virtual_tokens, _token_dim(config))}


@step(
    "prompt.embeddings",
    clause="PT-2",
    axes="batch virtual hidden",
    kind="exact",
    source="peft peft_model.py PeftModel.get_prompt",
)
def forward(parameters: Parameters, batch_size: int) -> Float[Array, "batch virtual hidden"]:
    """The table, once for each row of the batch: every row of the batch sees the same virtual tokens.

    The gradient of the table is therefore the *sum* over the batch.
    Source: `PeftModel.get_prompt`: `prompt_embeddings.repeat(batch_size, 1, 1)`.
    """
    table = parameters[EMBEDDING]
    return np.broadcast_to(table, (batch_size, *table.shape))


@step(
    "inputs.embeddings",
    clause="PT-3",
    axes="batch query hidden",
    kind="exact",
    source="peft peft_model.py PeftModelForCausalLM.forward",
)
def prepend(
    prompts: Float[Array, "batch virtual hidden"], token_embeddings: Float[Array, "batch tokens hidden"]
) -> Float[Array, "batch virtual+tokens hidden"]:
    """The virtual tokens first, then the text (with its padding, on whichever side).

    How others differ: after a BOS token, behind the text, in place of its first tokens, or added to them.
    """
    return np.concatenate([np.cast_to(prompts, token_embeddings.dtype), token_embeddings], axis=1)


@step("prompt.encoder_rows", clause="PT-8", stage="", axes="batch virtual hidden", kind="exact", source="peft peft_model.py PeftModelForSeq2SeqLM.forward")  # fmt: skip
def encoder_rows(
    prompt: Float[Array, "batch virtual_rows hidden"], num_virtual_tokens: int
) -> Float[Array, "batch virtual hidden"]:
    """Before an encoder's text: the first n of the table's 2n rows. The others are never used.

    How others differ: all 2n rows; or the second half for the decoder, as the table's size suggests.
    """
    return np.cut(prompt, 0, num_virtual_tokens, 1)


@step(
    "prompt.init_token_ids",
    clause="PT-5",
    axes="virtual",
    kind="exact",
    source="peft tuners/prompt_tuning/model.py",
)
def fit_token_ids(text_ids: Int[Array, " text"], total_virtual_tokens: int) -> Int[Array, " virtual"]:
    """The text's token ids, special tokens included, cut on the right or repeated from the start to fit.

        a b c -> 2: a b;    a b c -> 7: a b c a b c a

    How others differ: padding with a pad or random token, dropping the special tokens, cutting on the left.

    Raises:
        ConfigError: the tokenizer gives no token for the text (HF: ZeroDivisionError).
    """
    if text_ids.shape[0] == 0:
        raise ConfigError(
            "prompt_tuning_init_text gives no tokens, so there is nothing to start from. Give a text of at least one "
            "token, or choose prompt_tuning_init='RANDOM'."
        )
    repeats = math.ceil(total_virtual_tokens / text_ids.shape[0])
    return np.concatenate([text_ids] * max(repeats, 1), axis=0)[:total_virtual_tokens]


def initial_parameters(
    config: PromptTuningConfig,
    generator: Generator,
    word_embeddings: Callable[[Array], Array],
    vocab_size: int,
    like: Array,
) -> dict[str, Array]:
    """The table's initial values: those that HF gives after `torch.manual_seed(seed)`. Clauses PT-4 to PT-6.

    RANDOM draws N(0, 1), as `torch.nn.Embedding` does, whatever the method. SAMPLE_VOCAB first makes that draw and
    throws it away, then draws token ids uniformly *with* replacement from the whole vocabulary. TEXT takes the ids of
    the text (`fit_token_ids`). Ids become rows through the base model's embedding *module* (clause PT-6). In inference
    mode every choice is RANDOM, because loaded values follow.

    Args:
        config: Filled in; its `tokenizer_name_or_path` names a directory with a `tokenizer.json`, or that file.
        generator: torch's CPU generator; it moves on by the draws made.
        word_embeddings: ids (virtual) -> rows (virtual, hidden): the base model's embedding module.
        vocab_size: The number of rows of that module's table.
        like: An array of the dtype and place that the values get. They are float32 values, as HF's, whatever the base model is.

    Source: HF peft 0.21.2 `tuners/prompt_tuning/model.py`, `PromptEmbedding.__init__`.
    How others differ: standard deviation 0.02; sampling without replacement or from the 5,000 commonest tokens.

    Raises:
        ConfigError: the init text's tokenizer is missing, or gives no token; or `tokenizer_kwargs` are given.
        InputError: the tokenizer gives a token id that the base model does not have.
    """
    rows = config.total_virtual_tokens
    table = embedding(generator, rows, _token_dim(config))  # drawn by nn.Embedding, even if overwritten below
    if not config.inference_mode and config.prompt_tuning_init in ("SAMPLE_VOCAB", "TEXT"):
        if config.prompt_tuning_init == "SAMPLE_VOCAB":
            ids = generator.randint(0, vocab_size, (rows,))
        else:
            _refuse_tokenizer_kwargs(config)
            text_ids = tokenize(str(config.tokenizer_name_or_path), str(config.prompt_tuning_init_text))
            ids = fit_token_ids(text_ids, rows)
            if int(ids.max()) >= vocab_size:
                raise InputError(
                    f"The tokenizer at {config.tokenizer_name_or_path} gives token id {int(ids.max())} for the init "
                    f"text, but the base model's vocabulary has {vocab_size} rows. Use the base model's own tokenizer."
                )
        return {EMBEDDING: word_embeddings(ids).astype("float32").astype(like.dtype)}
    return {EMBEDDING: np.place(table.astype(like.dtype), like)}


def tokenize(tokenizer_path: str, text: str) -> Int[Array, " text"]:
    """The token ids of a text, special tokens included, from a local `tokenizer.json`. Clause PT-5.

    Padding and truncation that the file asks for are switched off, as HF switches them off in a plain call.
    Source: HF's `tokenizer(text)["input_ids"]`, whose fast tokenizers run the same `tokenizers` library. A
    tokenizer_config.json beside the file, which can change the pipeline in HF, is not read (specs/stricter.md).

    Raises:
        ConfigError: there is no readable tokenizer.json at the path, or it does not end (`refpeft.tokenizer`).
    """
    import numpy

    from refpeft.tokenizer import token_ids

    path = Path(tokenizer_path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"No tokenizer.json at {tokenizer_path!r}, which tokenizer_name_or_path names. refpeft reads local files "
            "only: save the tokenizer there, with tokenizer.save_pretrained(directory)."
        )
    return numpy.asarray(token_ids(file, text), dtype=numpy.int64)


def _refuse_tokenizer_kwargs(config: PromptTuningConfig) -> None:
    kwargs = {
        name: value for name, value in (config.tokenizer_kwargs or {}).items() if name != "trust_remote_code"
    }
    if kwargs:
        raise ConfigError(
            f"tokenizer_kwargs is {kwargs}; they configure transformers' AutoTokenizer, and refpeft reads tokenizer.json as "
            "it is. Save the tokenizer with these options applied and leave tokenizer_kwargs out."
        )


def _token_dim(config: PromptTuningConfig) -> int:
    if config.token_dim is None:
        raise ConfigError(
            "token_dim is not set. Fill the configuration in from the base model: fill_in(config, base_config)."
        )
    return config.token_dim
