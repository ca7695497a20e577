"""What stands on top of a stack: the language-model head, and the heads of classification and of question answering.

Follows transformers 5.23.0 `models/gpt2/modeling_gpt2.py` (`GPT2LMHeadModel.forward`), `modeling_layers.py`
(`GenericForSequenceClassification` and its like), `models/bert/modeling_bert.py` (`BertPooler`) and
`models/roberta/modeling_roberta.py` (`RobertaClassificationHead`).
"""

from __future__ import annotations

from jaxtyping import Int

from refpeft import arrays as np
from refpeft.arrays import Array, Float
from refpeft.ops import activation, linear, softcap
from refpeft.steps import step

_GENERIC = "transformers modeling_layers.py "


@step(
    "logits",
    clause="TK-2",
    axes="batch query vocab",
    source="transformers models/gpt2/modeling_gpt2.py GPT2LMHeadModel.forward",
)
def language_model_head(
    hidden: Float[Array, "batch query hidden"],
    weight: Float[Array, "vocab hidden"],
    bias: Float[Array, "*row vocab"] | None = None,
    *,
    scale: float = 1.0,
    cap: float | None = None,
) -> Float[Array, "batch query vocab"]:
    """`hidden · weightᵀ`, without bias in most families; tied to the token embeddings unless the checkpoint says otherwise.

    Phi and BART add a bias; T5 multiplies the hidden states by 1/√hidden first; Gemma-2 caps: c · tanh(logits/c).
    Prompt tuning: virtual + tokens positions, those of the virtual tokens first. Prefix tuning: tokens positions.
    How others differ: the virtual positions cut off (prompt tuning), which moves every index of the caller.
    """
    logits = linear(hidden if scale == 1.0 else hidden * scale, weight, None)
    logits = logits if bias is None else logits + np.reshape(bias, (-1,))
    return logits if cap is None else softcap(logits, cap)


@step(
    "pooler_output",
    clause="TK-5",
    axes="batch hidden",
    source="transformers models/bert/modeling_bert.py BertPooler.forward",
)
def pooler_output(
    hidden: Float[Array, "batch query hidden"],
    weight: Float[Array, "hidden hidden"],
    bias: Float[Array, " hidden"],
) -> Float[Array, "batch hidden"]:
    """`tanh(dense(hidden[:, 0]))`: of the first position, which is the first virtual token in prompt tuning, not [CLS].

    Prefix tuning keeps the text's own first position. How others differ: looking for [CLS] behind the virtual tokens.
    """
    return np.tanh(linear(np.entry(hidden, 0, 1), weight, bias))


@step(
    "head.hidden",
    clause="TK-5",
    axes="batch hidden",
    source="transformers models/roberta/modeling_roberta.py RobertaClassificationHead.forward",
)
def first_token_hidden(
    hidden: Float[Array, "batch query hidden"],
    weight: Float[Array, "hidden hidden"],
    bias: Float[Array, " hidden"],
    name: str,
) -> Float[Array, "batch hidden"]:
    """`activation(dense(hidden[:, 0]))`, tanh for RoBERTa and gelu for ELECTRA; position 0 as `pooler_output` has it."""
    return activation(name)(linear(np.entry(hidden, 0, 1), weight, bias))


@step("head.pooled_logits", clause="TK-5", stage="pooled_logits", axes="batch labels", source=_GENERIC + "GenericForSequenceClassification.forward")  # fmt: skip
def pooled_logits(
    pooled: Float[Array, "batch hidden"],
    weight: Float[Array, "labels hidden"],
    bias: Float[Array, " labels"] | None,
) -> Float[Array, "batch labels"]:
    """The last map of an encoder's classifier."""
    return linear(pooled, weight, bias)


@step("head.score_logits", clause="TK-6", stage="score_logits", axes="batch query labels", source=_GENERIC + "GenericForSequenceClassification.forward")  # fmt: skip
def score_logits(
    hidden: Float[Array, "batch query hidden"], weight: Float[Array, "labels hidden"]
) -> Float[Array, "batch query labels"]:
    """A decoder's classifier, at every position; one of them is then taken."""
    return linear(hidden, weight, None)


def last_token(
    input_ids: Int[Array, "batch query"] | None,
    pad_token_id: int | None,
    hidden: Float[Array, "batch query hidden"],
) -> Int[Array, "batch 1"]:
    """Which position of each row counts: the last that is not pad_token_id; of embeddings without ids, the very last.

    Prompt tuning hands embeddings over, so that padding on the right is what is looked at (clause TK-6).
    Source: transformers 5.23.0 `modeling_layers.py`, `GenericForSequenceClassification.forward`.
    """
    batch, queries, _ = hidden.shape
    if input_ids is None or pad_token_id is None:
        return np.full((batch, 1), queries - 1, "int64", like=hidden)
    places = np.where(input_ids != pad_token_id, np.arange(queries, like=input_ids), 0)
    return np.constant_max(places, axis=-1)


@step("head.last_token_logits", clause="TK-6", stage="pooled_logits", axes="batch labels", source=_GENERIC + "GenericForSequenceClassification.forward")  # fmt: skip
def last_token_logits(
    logits: Float[Array, "batch query labels"], positions: Int[Array, "batch 1"]
) -> Float[Array, "batch labels"]:
    """The logits of one position of each row."""
    chosen = np.arange(logits.shape[1], like=logits) == positions  # (batch, query)
    return np.sum(np.where(chosen[:, :, None], logits, 0.0), axis=1)


@step("head.token_logits", clause="TK-7", stage="token_logits", axes="batch query labels", source=_GENERIC + "GenericForTokenClassification.forward")  # fmt: skip
def token_logits(
    hidden: Float[Array, "batch query hidden"],
    weight: Float[Array, "labels hidden"],
    bias: Float[Array, " labels"] | None,
) -> Float[Array, "batch query labels"]:
    """A class for each position; prompt tuning: virtual positions first, and the caller's labels have to count them."""
    return linear(hidden, weight, bias)


@step("head.start_logits", clause="TK-8", stage="start_logits", axes="batch query", source=_GENERIC + "GenericForQuestionAnswering.forward")  # fmt: skip
def start_logits(
    hidden: Float[Array, "batch query hidden"], weight: Float[Array, "2 hidden"], bias: Float[Array, " 2"]
) -> Float[Array, "batch query"]:
    """How likely each position starts the answer; prompt tuning: virtual positions first, and the caller's are not moved."""
    return np.entry(linear(hidden, weight, bias), 0, 2)


@step("head.end_logits", clause="TK-8", stage="end_logits", axes="batch query", source=_GENERIC + "GenericForQuestionAnswering.forward")  # fmt: skip
def end_logits(
    hidden: Float[Array, "batch query hidden"], weight: Float[Array, "2 hidden"], bias: Float[Array, " 2"]
) -> Float[Array, "batch query"]:
    """How likely each position ends the answer."""
    return np.entry(linear(hidden, weight, bias), 1, 2)


@step("last_hidden_state", clause="TK-9", axes="batch query hidden", source="peft peft_model.py PeftModelForFeatureExtraction.forward")  # fmt: skip
def last_hidden_state(hidden: Float[Array, "batch query hidden"]) -> Float[Array, "batch query hidden"]:
    """The features: the last hidden states; prompt tuning: of the virtual positions too."""
    return hidden
