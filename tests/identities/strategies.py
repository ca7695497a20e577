"""What the identities are tested on: attention inputs and whole models, all their sizes drawn independently.

Tolerances. With u = EPSILON / 2 the unit roundoff, a dot product of k terms is off by at most k·u times the
sum of the absolute terms. They are derived from the sizes of the case alone, never from what a run happened
to give.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import tiny_base

from refpeft import attention, masks, peft_model
from refpeft.config import PrefixTuningConfig, PromptTuningConfig
from refpeft.peft_model import Output, PeftModel, get_peft_model
from refpeft.prefix_encoder import EMBEDDING
from refpeft.steps import recording, scope
from refpeft.transformer import heads, stack
from refpeft.transformer.weights import BaseModel, embed_tokens

Numbers = NDArray[Any]

EPSILON = float(numpy.finfo(numpy.float64).eps)
METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "prompt": (PromptTuningConfig, {}),
    "prefix": (PrefixTuningConfig, {}),
    "projected": (PrefixTuningConfig, {"prefix_projection": True, "encoder_hidden_size": 7}),
}


def padding_mask(kind: str, batch: int, tokens: int, random: numpy.random.Generator) -> Numbers | None:
    """No mask, ones, or ones with 0 … tokens − 1 zeros on one side of each row."""
    if kind == "none":
        return None
    padding = random.integers(0, tokens, (batch, 1)) if kind != "full" else numpy.zeros((batch, 1), int)
    right = (numpy.arange(tokens) < tokens - padding).astype(numpy.int64)
    return right[:, ::-1].copy() if kind == "left" else right


def assert_close(given: Any, expected: Any, tolerance: float, rows: Numbers | None = None) -> None:
    """|given − expected| ≤ tolerance everywhere, or where `rows` (batch, query) holds; a NaN is a failure.

    With `rows`, the arrays are (batch, heads, query, …).
    """
    assert given.shape == expected.shape
    error = numpy.abs(numpy.asarray(given) - numpy.asarray(expected))
    if rows is not None:
        error = error[numpy.broadcast_to(rows[:, None, :], error.shape[:3])]
    assert error.max(initial=0.0) <= tolerance


# ---------------------------------------------------------------- one attention layer


@dataclass(frozen=True)
class AttentionCase:
    """Arguments of `refpeft.attention.attend`, and what NumPy alone says about them."""

    query: Numbers  # (batch, heads, tokens, head_dim)
    key: Numbers  # (batch, kv_heads, tokens, head_dim)
    value: Numbers
    past_key: Numbers  # (batch, kv_heads, virtual, head_dim)
    past_value: Numbers
    mask: Numbers | None  # (batch, tokens)
    scale: float
    seed: int

    @property
    def virtual(self) -> int:
        return int(self.past_key.shape[2])

    @property
    def group(self) -> int:
        return int(self.query.shape[1] // self.key.shape[1])

    @property
    def all_keys(self) -> Numbers:
        return numpy.concatenate([self.past_key, self.key], axis=2)

    @property
    def all_values(self) -> Numbers:
        return numpy.concatenate([self.past_value, self.value], axis=2)

    def random(self) -> numpy.random.Generator:
        return numpy.random.default_rng([self.seed, 1])

    def visible(self) -> Numbers:
        """What refpeft answers (batch, query, virtual + tokens) to the caller's mask."""
        mask = None if self.mask is None else masks.extend_attention_mask(self.mask, self.virtual)
        batch, _, tokens, _ = self.query.shape
        return numpy.array(
            masks.causal_visibility(mask, batch, tokens, self.virtual + tokens, like=self.query)
        )

    def rows(self) -> Numbers:
        """(batch, query): the queries that see at least one key of the text."""
        return self.visible()[..., self.virtual :].any(axis=-1)

    def attend(self, visible: Numbers | None = None) -> Numbers:
        """Prefix and text together: (batch, heads, query, head_dim)."""
        seen = self.visible() if visible is None else visible
        past = (self.past_key, self.past_value)
        context, _ = attention.attend(self.query, self.key, self.value, past, seen, self.scale)
        return numpy.asarray(attention.split_heads(context, self.query.shape[1]))

    def attend_text(self) -> Numbers:
        """Without any prefix."""
        visible = self.visible()[..., self.virtual :]
        context, _ = attention.attend(self.query, self.key, self.value, None, visible, self.scale)
        return numpy.asarray(attention.split_heads(context, self.query.shape[1]))

    def attend_prefix(self) -> Numbers:
        """To the prefix alone: every key of the text hidden."""
        visible = self.visible()
        visible[..., self.virtual :] = False
        return self.attend(visible)

    def weights(self, visible: Numbers | None = None) -> Numbers:
        """The attention weights that refpeft records (batch, heads, query, virtual + tokens)."""
        with scope(stack="decoder", layer=0), recording() as stages:
            self.attend(visible)
        return numpy.asarray(stages["decoder.layers.0.attention.weights"])

    def logits(self) -> Numbers:
        """By NumPy alone: scale · q · k, −inf for keys not seen; head h reads kv head h // group."""
        keys = numpy.repeat(self.all_keys, self.group, axis=1)
        products = self.scale * numpy.einsum("bhqd,bhkd->bhqk", self.query, keys)
        return numpy.where(self.visible()[:, None], products, -numpy.inf)

    def share(self) -> Numbers:
        """By NumPy alone: λ = σ(LSE_prefix − LSE_text), (batch, heads, query, 1)."""
        logits, n = self.logits(), self.virtual
        if n == 0:
            return numpy.zeros((*logits.shape[:3], 1))
        return 1 / (1 + numpy.exp(log_sum_exp(logits[..., n:]) - log_sum_exp(logits[..., :n])))

    def unit(self) -> float:
        """How far one evaluation of a weight may be off, in relation to the weight.

        Logits: a dot product of head_dim terms, the scale, the maximum taken off: (head_dim + 3)·u·B with B
        the largest scale·Σ|q||k|, in numerator and denominator; the sum over the keys, exp and the division:
        (keys + 3)·u; the product with the values: keys·u. Together at most (head_dim + keys + 3)·(1 + B)·2u.
        """
        keys = self.all_keys
        largest = numpy.abs(numpy.repeat(keys, self.group, axis=1))
        bound = float((self.scale * numpy.abs(self.query) @ numpy.swapaxes(largest, -1, -2)).max())
        return EPSILON * (self.query.shape[3] + keys.shape[2] + 3) * (1 + bound)

    def tolerance(self) -> float:
        """Four evaluations (both sides, and a mixture of two on one of them), times the largest value."""
        return 4 * self.unit() * float(max(1.0, numpy.abs(self.all_values).max()))


def log_sum_exp(x: Numbers) -> Numbers:
    """By NumPy alone, the last axis kept; −inf for nothing."""
    return numpy.asarray(numpy.logaddexp.reduce(x, axis=-1, keepdims=True, initial=-numpy.inf))


def attention_case(
    *, batch: int, kv_heads: int, group: int, head_dim: int, virtual: int, tokens: int, kind: str, seed: int
) -> AttentionCase:
    random = numpy.random.default_rng(seed)

    def draw(heads: int, length: int) -> Numbers:
        return random.normal(0.0, 1.0, (batch, heads, length, head_dim))

    own, past = (kv_heads, tokens), (kv_heads, virtual)
    return AttentionCase(
        query=draw(kv_heads * group, tokens),
        key=draw(*own),
        value=draw(*own),
        past_key=draw(*past),
        past_value=draw(*past),
        mask=padding_mask(kind, batch, tokens, random),
        scale=float(random.uniform(0.2, 1.5)),
        seed=seed,
    )


KINDS = st.sampled_from(["none", "full", "left", "right"])
SEEDS = st.integers(0, 2**32 - 1)


def attention_cases(virtual: int = 0, group: int = 1) -> st.SearchStrategy[AttentionCase]:
    """Any sizes, with at least so many virtual tokens and query heads per key/value head."""
    sizes = {
        "batch": st.integers(1, 3),
        "kv_heads": st.integers(1, 3),
        "group": st.integers(group, 3),
        "head_dim": st.integers(1, 6),
        "virtual": st.integers(virtual, 5),
        "tokens": st.integers(1, 6),
    }
    return st.builds(attention_case, kind=KINDS, seed=SEEDS, **sizes)


# ---------------------------------------------------------------- a whole model


@dataclass(frozen=True)
class ModelCase:
    """A base model, inputs for it, and real tokens to put before them."""

    base: BaseModel
    input_ids: Numbers  # (batch, tokens)
    mask: Numbers | None
    labels: Numbers
    prompt_ids: Numbers  # (virtual,)
    method: str
    """The adapter of identities that hold for each: a key of METHODS."""
    seed: int

    @property
    def virtual(self) -> int:
        return int(self.prompt_ids.shape[0])

    @property
    def table(self) -> Numbers:
        return numpy.asarray(self.base.parameters["embeddings.tokens.weight"])

    def random(self) -> numpy.random.Generator:
        return numpy.random.default_rng([self.seed, 1])

    def model(self, method: str = "") -> PeftModel:
        """A new adapter, of the case's own method if none is named; `virtual` ≥ 1."""
        config, options = METHODS[method or self.method]
        made = config(task_type="CAUSAL_LM", num_virtual_tokens=self.virtual, **options)
        return get_peft_model(self.base, made, seed=self.seed)

    def with_rows(self, method: str, rows: Numbers) -> PeftModel:
        """An adapter of these table rows: embeddings of a prompt, or a flat prefix."""
        model = self.model(method)
        model.load_trainable_parameters({EMBEDDING: rows})
        return model

    def embeds(self) -> Numbers:
        """The text as embeddings without positions: (batch, tokens, hidden)."""
        return numpy.asarray(embed_tokens(self.table, self.input_ids))

    def embedded_prompt(self) -> Numbers:
        """The real tokens c as embeddings without positions: (virtual, hidden)."""
        return numpy.asarray(embed_tokens(self.table, self.prompt_ids[None]))[0]

    def base_logits(
        self, ids: Numbers, mask: Numbers | None = None, positions: Numbers | None = None
    ) -> Numbers:
        """What the base model says without any adapter."""
        return self.decode(embed_tokens(self.table, ids), mask, None, positions)[0]

    def decode(
        self,
        embeds: Numbers,
        mask: Numbers | None,
        past: Any,
        positions: Numbers | None = None,
    ) -> tuple[Numbers, Any]:
        """The base on embeddings and a cache: logits, and the cache that it returns."""
        decoded = stack.forward(self.base.parameters, self.base.config, embeds, mask, past, positions)
        logits = heads.language_model_head(decoded.hidden, self.base.parameters["head.weight"])
        return numpy.asarray(logits), decoded.past_key_values

    def cache_of(self, embeds: Numbers) -> Any:
        """The base model's cache after one sequence of embeddings (1, virtual, hidden)."""
        return self.decode(embeds, None, None)[1]

    def tolerance(self) -> float:
        """Of ‖given − expected‖ / ‖expected‖ for logits.

        A layer is a chain of two norms and five maps over `hidden`, one over `inner`, one over `head_dim` and
        one over the keys; each adds at most its length times u on either side, so length · 2u = length ·
        EPSILON. That they never all add up leaves room for what the norms and softmaxes amplify on weights of
        standard deviation 0.4.
        """
        config = self.base.config
        keys = self.virtual + self.input_ids.shape[1]
        length = 7 * config.hidden_size + config.intermediate_size + config.head_dim + keys
        return EPSILON * config.num_layers * length


def without_virtual_tokens(case: ModelCase) -> Output:
    """The functional layer with a table of no rows (a configuration asks for at least one)."""
    model = case.model()
    parameters = model.trainable_parameters()
    empty = {**parameters, EMBEDDING: parameters[EMBEDDING][:0]}
    config = copy.copy(model.config)
    object.__setattr__(config, "num_virtual_tokens", 0)
    return peft_model.forward(empty, case.base, config, case.input_ids, case.mask)


def model_case(
    *,
    batch: int,
    kv_heads: int,
    group: int,
    head_dim: int,
    layers: int,
    inner: int,
    vocab: int,
    virtual: int,
    tokens: int,
    kind: str,
    method: str,
    seed: int,
    **options: Any,
) -> ModelCase:
    heads_ = kv_heads * group
    random = numpy.random.default_rng(seed)
    ids = random.integers(0, vocab, (batch, tokens))
    labels = numpy.where(random.random(ids.shape) < 0.3, -100, random.integers(0, vocab, ids.shape))
    labels[0, 1] = ids[0, 1]  # at least one label counts
    base = tiny_base(
        seed=seed,
        n_embd=heads_ * head_dim,
        n_head=heads_,
        n_layer=layers,
        n_inner=inner,
        vocab_size=vocab,
        n_positions=virtual + tokens + 5,
        **options,
    )
    return ModelCase(
        base=_grouped(base, kv_heads),
        input_ids=ids,
        mask=padding_mask(kind, batch, tokens, random),
        labels=labels,
        prompt_ids=random.integers(0, vocab, virtual),
        method=method,
        seed=seed,
    )


def _grouped(base: BaseModel, kv_heads: int) -> BaseModel:
    """A GPT-2 with fewer key/value heads than heads, which HF has not, so that H ≠ heads in every layout."""
    config = replace(
        base.config,
        num_key_value_heads=kv_heads,
        hf={**base.config.hf, "num_key_value_heads": kv_heads},
    )
    rows = kv_heads * config.head_dim
    parameters = {
        name: value[:rows] if ".attention.key." in name or ".attention.value." in name else value
        for name, value in base.parameters.items()
    }
    return BaseModel(config, parameters)


MODEL_SIZES = {
    "batch": st.integers(1, 3),
    "kv_heads": st.integers(1, 3),
    "group": st.integers(1, 2),
    "head_dim": st.integers(2, 6),
    "layers": st.integers(1, 2),  # three: in test_mutants.py, and in the golden vectors
    "inner": st.integers(3, 9),
    "vocab": st.integers(11, 17),
    "tokens": st.integers(2, 5),
    "kind": KINDS,
    "method": st.sampled_from(sorted(METHODS)),
    "seed": st.integers(0, 2**31),
    "activation_function": st.sampled_from(["gelu_new", "silu", "tanh"]),
    "scale_attn_by_inverse_layer_idx": st.booleans(),
    "tie_word_embeddings": st.booleans(),
}


def model_sizes(virtual: int = 1) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of `model_case` with at least so many virtual tokens, and hidden ≥ 6.

    A norm of fewer numbers is nearly singular. The model itself is built in the test, not in the strategy,
    because beartype uses Python's `random`.
    """
    return st.fixed_dictionaries({**MODEL_SIZES, "virtual": st.integers(virtual, 4)}).filter(
        lambda sizes: sizes["kv_heads"] * sizes["group"] * sizes["head_dim"] >= 6
    )
