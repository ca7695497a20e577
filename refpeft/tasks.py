"""What each task type makes of inputs and outputs: put the virtual tokens in, run the frozen base, apply the head, take the loss.

Follows HF peft 0.21.2 `peft_model.py` (`PeftModelForCausalLM.forward` and those of the other task types).

    prompt tuning   x = [P ; E(ids)]    positions 0 … n+m−1    labels = [−100 … ; labels]    logits (batch, n+m, vocab)
    prefix tuning   cache = (K, V)      positions n … n+m−1    labels unchanged              logits (batch, m, vocab)
    both            mask = [1 … ; mask], None stays None

    encoder-decoder     prompt tuning: the first n rows before the encoder's text, mask extended, decoder untouched
                        prefix tuning: before the decoder's keys and values, its mask extended, encoder untouched
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Int, Shaped

from refpeft import arrays as np
from refpeft import kernels as _kernels  # noqa: F401  (they enter themselves)
from refpeft import language_model, masks, ops, prompt_embedding, shared_prompt
from refpeft.arrays import Array, Float, Parameters
from refpeft.config import PrefixTuningConfig, PromptLearningConfig
from refpeft.errors import InputError
from refpeft.language_model import TRAINED
from refpeft.steps import scope, step
from refpeft.transformer import heads, stack
from refpeft.transformer import rows as _rows  # noqa: F401  (as kernels do)
from refpeft.transformer.block import KeyValue
from refpeft.transformer.columns import Head
from refpeft.transformer.families import family_of
from refpeft.transformer.shapes import HEADS
from refpeft.transformer.stack import Given, StackOutput
from refpeft.transformer.weights import BaseModel, word_embeddings

_PEFT = "peft peft_model.py "


@dataclass(frozen=True)
class Output:
    """What a forward pass returns; the names are HF's."""

    loss: Array | None
    """The task's loss, or None without labels."""
    logits: Array | None
    """CAUSAL_LM: (batch, virtual + tokens, vocab) for prompt tuning, (batch, tokens, vocab) for prefix tuning; SEQ_2_SEQ_LM: of
    the decoder's tokens; SEQ_CLS: (batch, labels); TOKEN_CLS: (batch, positions, labels); else None."""
    past_key_values: tuple[KeyValue, ...]
    """Each layer's key and value states (batch, kv_heads, virtual + tokens, head_dim); behind an encoder, the decoder's own."""
    start_logits: Array | None = None
    """QUESTION_ANS: (batch, positions)."""
    end_logits: Array | None = None
    """QUESTION_ANS: (batch, positions)."""
    last_hidden_state: Array | None = None
    """FEATURE_EXTRACTION: (batch, positions, hidden)."""
    pooler_output: Array | None = None
    """FEATURE_EXTRACTION with BERT or RoBERTa: (batch, hidden)."""
    encoder_last_hidden_state: Array | None = None
    """SEQ_2_SEQ_LM: what the decoder's cross-attention reads."""


@dataclass(frozen=True)
class Batch:
    """Checked inputs; each may be None but the first."""

    input_ids: Array
    attention_mask: Array | None = None
    labels: Array | None = None
    position_ids: Array | None = None
    token_type_ids: Array | None = None
    decoder_input_ids: Array | None = None
    decoder_attention_mask: Array | None = None
    start_positions: Array | None = None
    end_positions: Array | None = None
    loss_alone: bool = False
    """Nobody asks for the logits of a language model."""


@step(
    "inputs.labels",
    clause="TK-1",
    axes="batch query",
    kind="exact",
    source=_PEFT + "PeftModelForCausalLM.forward",
)
def extend_labels(labels: Int[Array, "batch tokens"], num_virtual_tokens: int) -> Int[Array, "batch query"]:
    """Prompt tuning: −100 for each virtual token, then the labels. Prefix tuning leaves labels as they are.

    The loss shifts labels by one, so the first real token *is* predicted, by the last virtual token: the mean is over
    m terms per row, against m − 1 for prefix tuning.
    How others differ: labels not extended (another length, or every label off by n), or padded with 0 or a pad id.
    """
    ignored = np.full((labels.shape[0], num_virtual_tokens), ops.IGNORE_INDEX, labels.dtype, like=labels)
    return np.concatenate([ignored, labels], axis=1)


@step("inputs.token_type_ids", clause="TK-4", axes="batch query", kind="exact", source=_PEFT + "PeftModelForSequenceClassification.forward")  # fmt: skip
def extend_token_types(
    token_type_ids: Int[Array, "batch tokens"], num_virtual_tokens: int
) -> Int[Array, "batch query"]:
    """Prompt tuning: type 0 for each virtual token. Only SEQ_CLS and TOKEN_CLS look at types; QUESTION_ANS drops them silently."""
    zeros = np.full(
        (token_type_ids.shape[0], num_virtual_tokens), 0, token_type_ids.dtype, like=token_type_ids
    )
    return np.concatenate([zeros, token_type_ids], axis=1)


@step("inputs.decoder_input_ids", clause="TK-10", axes="batch decoder_tokens", kind="exact", source="transformers models/bart/modeling_bart.py shift_tokens_right")  # fmt: skip
def shift_right(
    labels: Int[Array, "batch decoder_tokens"], decoder_start_token_id: int, pad_token_id: int
) -> Int[Array, "batch decoder_tokens"]:
    """What the decoder reads where the caller gives labels alone: the start token, then all labels but the last; −100 as padding.

    How others differ: labels that are shifted again in the loss, which for an encoder-decoder is not shifted.
    """
    start = np.full((labels.shape[0], 1), decoder_start_token_id, labels.dtype, like=labels)
    shifted = np.concatenate([start, labels[:, :-1]], axis=1)
    return np.where(shifted == ops.IGNORE_INDEX, pad_token_id, shifted)


def forward(
    parameters: Parameters,
    base: BaseModel,
    config: PromptLearningConfig,
    input_ids: Int[Array, "batch tokens"],
    attention_mask: Shaped[Array, "batch tokens"] | None = None,
    labels: Array | None = None,
    position_ids: Int[Array, "batch tokens"] | None = None,
    **others: Any,
) -> Output:
    """The adapted model on checked inputs: a pure function of the trainable parameters.

    `others` are the further fields of `Batch`. Zero virtual tokens give the base model.
    Source: HF peft 0.21.2 `peft_model.py`, `PeftModelFor….forward`.

    `labels` have the shape that the task gives them (`refpeft.peft_model.PeftModel.__call__`).
    """
    batch = Batch(input_ids, attention_mask, labels, position_ids, **others)
    if base.config.kind == "encoder_decoder":
        return _encoder_decoder(parameters, base, config, batch)
    embeds, mask = text_inputs(base, config, input_ids, attention_mask)
    virtual = config.num_virtual_tokens
    rows = 0 if isinstance(config, PrefixTuningConfig) else virtual
    types = batch.token_type_ids if config.task_type in ("SEQ_CLS", "TOKEN_CLS") else None
    types = None if types is None else extend_token_types(types, rows)
    prompt = shared_prompt.prompt_before(parameters, config, input_ids.shape[0], base)
    if isinstance(prompt, tuple):
        positions = None if config.task_type == "QUESTION_ANS" else position_ids
        batch, given = _asked(config, batch, Given(positions, types, input_ids, virtual))
        decoded = stack.forward(base.parameters, base.config, embeds, mask, prompt, given)
    else:
        together = prompt_embedding.prepend(prompt, embeds)
        if labels is not None and config.task_type == "CAUSAL_LM":
            batch = replace(batch, labels=extend_labels(labels, virtual))
        batch, given = _asked(config, batch, Given(token_type_ids=types))
        decoded = shared_prompt.forward(base, together, prompt, embeds, mask, given)
    return _finished(parameters, base, config, batch, decoded)


def _asked(config: PromptLearningConfig, batch: Batch, given: Given) -> tuple[Batch, Given]:
    """Of a loss alone, no cache; of a language model's, the positions alone that predict a label."""
    if not batch.loss_alone:
        return batch, given
    given = replace(given, use_cache=False)
    if batch.labels is None or config.task_type != "CAUSAL_LM":
        return batch, given
    first = language_model.first_made(ops.next_labels(batch.labels) != ops.IGNORE_INDEX)
    return replace(batch, labels=batch.labels[:, first:]), replace(given, first=first)


def _encoder_decoder(
    parameters: Parameters, base: BaseModel, config: PromptLearningConfig, batch: Batch
) -> Output:
    """SEQ_2_SEQ_LM."""
    embeds, mask = text_inputs(base, config, batch.input_ids, batch.attention_mask)
    prompt = shared_prompt.prompt_before(parameters, config, batch.input_ids.shape[0], base)
    encoded = encode(base, config, prompt, embeds, mask)
    ids = _decoder_ids(base, config, batch)
    decoder_mask, past = batch.decoder_attention_mask, None
    if isinstance(prompt, tuple):
        past = prompt
    decoded = decode(base, config, ids, decoder_mask, past, encoded, mask, use_cache=not batch.loss_alone)
    return replace(
        _language_model(parameters, base, "seq2seq", batch, decoded), encoder_last_hidden_state=encoded
    )


def text_inputs(
    base: BaseModel,
    config: PromptLearningConfig,
    input_ids: Int[Array, "batch tokens"],
    attention_mask: Shaped[Array, "batch tokens"] | None,
) -> tuple[Float[Array, "batch tokens embedding"], Shaped[Array, "batch key"] | None]:
    """The text's embeddings, and its mask with ones for virtual tokens; a prefix stands before the decoder, not the encoder.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModelFor….forward`.
    """
    embeds, virtual = word_embeddings(base, input_ids), config.num_virtual_tokens
    if base.config.kind == "encoder_decoder" and isinstance(config, PrefixTuningConfig):
        virtual = 0
    return embeds, None if attention_mask is None else masks.extend_attention_mask(attention_mask, virtual)


def encode(
    base: BaseModel,
    config: PromptLearningConfig,
    prompt: Array | tuple[KeyValue, ...],
    embeds: Float[Array, "batch tokens hidden"],
    mask: Shaped[Array, "batch encoder_key"] | None,
) -> Float[Array, "batch encoder_key hidden"]:
    """The encoder's last hidden states. `mask`: virtual tokens included.

    Prompt tuning puts the first n of its 2n rows before the text; rows n … 2n − 1 are never used (clause PT-8). A prefix does not
    reach the encoder.

    `prompt`: what `get_prompt` gives, (batch, 2 · virtual, hidden) or keys and values.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModelForSeq2SeqLM.forward`; transformers 5.23.0
    `models/t5/modeling_t5.py`, `T5Stack.forward`.
    """
    if not isinstance(prompt, tuple):
        embeds = prompt_embedding.prepend(
            prompt_embedding.encoder_rows(prompt, config.num_virtual_tokens), embeds
        )
    parameters, own = stack.stack_parameters(base.parameters, "encoder"), base.config.stack("encoder")
    return stack.forward(parameters, own, embeds, mask, given=Given(use_cache=False), name="encoder").hidden


def decode(
    base: BaseModel,
    config: PromptLearningConfig,
    ids: Int[Array, "batch decoder_tokens"],
    decoder_mask: Shaped[Array, "batch decoder_tokens"] | None,
    past: tuple[KeyValue, ...] | None,
    encoded: Array,
    encoder_mask: Array | None,
    *,
    cached: int | None = None,
    use_cache: bool = True,
) -> StackOutput:
    """The decoder on its own tokens, behind the prefix or an earlier call's cache, with its eyes on the encoder's states.

    `cached`: how many positions the cache holds, if it is not the prefix's. `use_cache`: whether keys and values are returned.

    `encoded` is (batch, encoder_key, hidden), `encoder_mask` (batch, encoder_key).

    Source: transformers 5.23.0 `models/t5/modeling_t5.py`, `T5ForConditionalGeneration.forward`;
    `models/bart/modeling_bart.py`, `BartModel.forward`.
    """
    with scope(which="decoder_"):
        embeds, virtual = word_embeddings(base, ids), 0
        if isinstance(config, PrefixTuningConfig):
            virtual = config.num_virtual_tokens
        if decoder_mask is not None:
            decoder_mask = masks.extend_attention_mask(decoder_mask, virtual)
        parameters, own = stack.stack_parameters(base.parameters, "decoder"), base.config.stack("decoder")
        if cached is None:
            cached = virtual if past is not None else 0
        given = Given(past=cached, encoded=encoded, encoder_mask=encoder_mask, use_cache=use_cache)
        return stack.forward(parameters, own, embeds, decoder_mask, past, given, name="decoder")


def _decoder_ids(base: BaseModel, config: PromptLearningConfig, batch: Batch) -> Array:
    """The caller's, or the labels shifted; BART with a prefix falls back on the encoder's text, as HF does (clause TK-10)."""
    if batch.decoder_input_ids is not None:
        return batch.decoder_input_ids
    source = batch.labels
    if source is None and base.config.family == "bart" and isinstance(config, PrefixTuningConfig):
        source = batch.input_ids
    if source is None:
        raise InputError(
            "An encoder-decoder needs something to decode: give labels, or decoder_input_ids that begin with its "
            "decoder_start_token_id."
        )
    start, pad = base.config.decoder_start_token_id, base.config.pad_token_id
    if start is None or pad is None:
        raise InputError(
            f"decoder_start_token_id and pad_token_id of the base model are {start} and {pad}; labels are shifted with both. Set "
            "them in config.json, or give decoder_input_ids."
        )
    return shift_right(source, start, pad)


def _language_model(
    parameters: Parameters,
    base: BaseModel,
    kind: Literal["causal_lm", "seq2seq"],
    batch: Batch,
    decoded: StackOutput,
) -> Output:
    """The head of CAUSAL_LM and SEQ_2_SEQ_LM."""
    hidden, past, labels = decoded.hidden, decoded.past_key_values, batch.labels
    if batch.loss_alone and labels is not None:
        return Output(language_model.loss(parameters, base, kind, hidden, labels), None, past)
    logits = language_model.logits(parameters, base, hidden)
    return Output(None if labels is None else ops.loss(kind, logits, labels), logits, past)


def head_of(base: BaseModel, task_type: str | None) -> Head | None:
    """The head of a task type of classification in the base model's family; None if it has none.

    Source: transformers 5.23.0 `models/auto/modeling_auto.py`: the class of each task.
    """
    return family_of(base.config.family).heads.get(str(task_type))


def head_tensors(head: Head) -> tuple[str, ...]:
    """HF's names of the tensors of a head, in HF's order.

    Source: transformers 5.23.0 `models/*/modeling_*.py`, `__init__` of the classes `…ForSequenceClassification` and
    their likes.
    """
    modules = ("dense.", "out_proj.") if head.form == "first_token" else ("",)
    kinds = ("weight", "bias") if head.bias else ("weight",)
    return tuple(f"{head.module}.{module}{kind}" for module in modules for kind in kinds)


def head_parameters(base: BaseModel, head: Head) -> dict[str, Array]:
    """The tensors of a head in the base model's checkpoint, under HF's names.

    Weights are (labels, hidden) or (hidden, hidden), biases (labels) or (hidden).

    Source: as `head_tensors`.
    """
    found = {name: base.parameters.get(HEADS + name) for name in head_tensors(head)}
    return {name: value for name, value in found.items() if value is not None}


def _pooled(base: BaseModel, hidden: Array) -> Array | None:
    weight = base.parameters.get(HEADS + "pooler.dense.weight")
    return (
        None
        if weight is None
        else heads.pooler_output(hidden, weight, base.parameters[HEADS + "pooler.dense.bias"])
    )


def _finished(
    parameters: Parameters, base: BaseModel, config: PromptLearningConfig, batch: Batch, decoded: StackOutput
) -> Output:
    """The head and the loss of a model of one stack."""
    hidden, past, labels, task = decoded.hidden, decoded.past_key_values, batch.labels, config.task_type
    if task == "FEATURE_EXTRACTION":
        features = heads.last_hidden_state(hidden)
        return Output(None, None, past, last_hidden_state=features, pooler_output=_pooled(base, hidden))
    if task == "CAUSAL_LM":
        return _language_model(parameters, base, "causal_lm", batch, decoded)
    head = head_of(base, task)
    assert head is not None  # noqa: S101  (a model without the head is refused before)
    module = {
        name: parameters.get(TRAINED + name, value) for name, value in head_parameters(base, head).items()
    }
    if task == "SEQ_CLS":
        logits = _sequence_logits(base, config, batch, hidden, head, module)
        if labels is None:
            return Output(None, logits, past)
        return Output(
            ops.loss("sequence_classification", logits, labels, problem_type(base, labels)), logits, past
        )
    weight, bias = module[f"{head.module}.weight"], module[f"{head.module}.bias"]
    if task == "TOKEN_CLS":
        logits = heads.token_logits(hidden, weight, bias)
        return Output(
            None if labels is None else ops.loss("token_classification", logits, labels), logits, past
        )
    span = heads.start_logits(hidden, weight, bias), heads.end_logits(hidden, weight, bias)
    positions = batch.start_positions, batch.end_positions
    known = positions[0] is not None and positions[1] is not None
    loss = ops.loss("question_answering", *span, *positions) if known else None
    return Output(loss, None, past, *span)


def _sequence_logits(
    base: BaseModel,
    config: PromptLearningConfig,
    batch: Batch,
    hidden: Array,
    head: Head,
    module: Mapping[str, Array],
) -> Array:
    """SEQ_CLS: one row of logits for each text."""
    if head.form == "last_token":
        ids = batch.input_ids if isinstance(config, PrefixTuningConfig) else None
        positions = heads.last_token(ids, base.config.pad_token_id, hidden)
        return heads.last_token_logits(heads.score_logits(hidden, module[f"{head.module}.weight"]), positions)
    if head.form == "pooler":
        pooled = _pooled(base, hidden)
        assert pooled is not None  # noqa: S101  (a model without the pooler is refused before)
        return heads.pooled_logits(pooled, module[f"{head.module}.weight"], module[f"{head.module}.bias"])
    dense, last = f"{head.module}.dense.", f"{head.module}.out_proj."
    first = heads.first_token_hidden(
        hidden, module[dense + "weight"], module[dense + "bias"], head.activation
    )
    return heads.pooled_logits(first, module[last + "weight"], module[last + "bias"])


def problem_type(base: BaseModel, labels: Array) -> Any:
    """SEQ_CLS: the base model's `problem_type`, or what its number of labels and the labels' format say (clause TK-5).

    Of `labels` (batch) or (batch, labels) the dtype alone counts.

    Source: transformers 5.23.0 `loss/loss_utils.py`, `ForSequenceClassificationLoss`.
    """
    if base.config.problem_type is not None:
        return base.config.problem_type
    if base.config.num_labels == 1:
        return "regression"
    whole = labels.dtype.kind in "iu"
    return "single_label_classification" if whole else "multi_label_classification"
