"""One attention layer with a prefix: drawn, or as a model of a family comes to it.

Tolerances, here and in `model_cases.py`: with u = EPSILON / 2 the unit roundoff, a dot product of k terms is off by at most k·u
times the sum of the absolute terms. They are derived from the sizes of the case alone, never from what a run happened to give.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
from hypothesis import strategies as st
from identities.model_cases import DRAWN, ModelCase, model_case
from numpy.typing import NDArray

from refpeft import attention, masks
from refpeft.steps import definition, recording, replaced, scope

Numbers = NDArray[Any]

EPSILON = float(numpy.finfo(numpy.float64).eps)


def assert_close(given: Any, expected: Any, tolerance: float, rows: Numbers | None = None) -> None:
    """|given − expected| ≤ tolerance everywhere, or where `rows` (batch, query) holds; a NaN is a failure.

    With `rows`, the arrays are (batch, heads, query, …).
    """
    assert given.shape == expected.shape
    error = numpy.abs(numpy.asarray(given) - numpy.asarray(expected))
    if rows is not None:
        error = error[numpy.broadcast_to(rows[:, None, :], error.shape[:3])]
    assert error.max(initial=0.0) <= tolerance


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
    softcap: float | None = None
    bias: Numbers | None = None
    """(batch, heads, query, key): what is added to the scores."""
    looks: str = "back"
    """Which keys a query sees: those that are not after it ("back"), or all ("around")."""
    window: int | None = None
    """Of those before it so many alone."""
    cut: int = 0
    """So many first virtual tokens are not in the cache any more."""
    seen: Numbers | None = None
    """(batch, query, key), in the place of what refpeft says of all this."""
    slack: float = 1.0
    """By what tolerances are multiplied: negative controls fail by a margin."""

    @property
    def virtual(self) -> int:
        return int(self.past_key.shape[2])

    @property
    def tokens(self) -> int:
        return int(self.query.shape[2])

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

    def draw(self, *shape: int) -> Numbers:
        return self.random().normal(0.0, 1.0, shape)

    # ---------------------------------------------------------------- other cases

    def slots(self, index: Sequence[int], places: Sequence[int] | None = None) -> AttentionCase:
        """The prefix's slots `index`, at the places `places`, whose columns of mask and bias they get; by default their own."""
        own = numpy.asarray(index, int)
        columns = own if places is None else numpy.asarray(places, int)
        columns = numpy.concatenate([columns, self.virtual + numpy.arange(self.tokens)])
        return replace(
            self,
            past_key=self.past_key[:, :, own],
            past_value=self.past_value[:, :, own],
            seen=self.visible()[..., columns],
            bias=None if self.bias is None else self.bias[..., columns],
        )

    def row(self, b: int) -> AttentionCase:
        """One row of the batch."""
        names = ("query", "key", "value", "past_key", "past_value", "mask", "bias", "seen")
        parts = {name: getattr(self, name) for name in names}
        return replace(
            self, **{name: None if part is None else part[b : b + 1] for name, part in parts.items()}
        )

    def first_tokens(self) -> AttentionCase:
        """The text's first token alone, unmasked, and of each group the first head."""
        one, visible = slice(None, 1), self.visible()
        places = numpy.arange(self.virtual + 1)
        bias = None if self.bias is None else self.bias[:, :: self.group, one, : self.virtual + 1]
        seen = numpy.where(places == self.virtual, True, visible[:, one, : self.virtual + 1])
        return replace(
            self, query=self.query[:, :: self.group, one], key=self.key[:, :, one], value=self.value[:, :, one],
            mask=None, bias=bias, seen=seen,
        )  # fmt: skip

    # ---------------------------------------------------------------- by refpeft

    def visible(self) -> Numbers:
        """What refpeft answers (batch, query, virtual + tokens) to the caller's mask."""
        if self.seen is not None:
            return numpy.array(self.seen)
        mask, n = self.mask, self.virtual + self.cut
        if mask is not None:
            mask = masks.extend_attention_mask(mask, n)
        shape = (len(self.query), self.tokens, n + self.tokens)
        if self.looks == "around":
            visible = masks.bidirectional_visibility(mask, *shape, like=self.query)
        elif self.window is None:
            visible = masks.causal_visibility(mask, *shape, like=self.query)
        else:
            visible = masks.sliding_visibility(mask, *shape, self.window, self.cut, like=self.query)
        return numpy.array(visible)

    def _attend(self, past: Any, visible: Numbers, bias: Numbers | None) -> Numbers:
        options: dict[str, Any] = {} if self.softcap is None else {"softcap": self.softcap}
        options |= {} if bias is None else {"bias": bias}
        with numpy.errstate(over="ignore"):  # the most negative number plus a negative one
            context, _ = attention.attend(
                self.query, self.key, self.value, past, visible, self.scale, **options
            )
        return numpy.asarray(attention.split_heads(context, self.query.shape[1]))

    def attend(self, visible: Numbers | None = None) -> Numbers:
        """Prefix and text together: (batch, heads, query, head_dim)."""
        seen = self.visible() if visible is None else visible
        return self._attend((self.past_key, self.past_value), seen, self.bias)

    def attend_text(self) -> Numbers:
        """Without any prefix."""
        bias = None if self.bias is None else self.bias[..., self.virtual :]
        return self._attend(None, self.visible()[..., self.virtual :], bias)

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

    def measured_share(self) -> Numbers:
        """λ by the weights that refpeft records: (batch, heads, query, 1)."""
        return numpy.asarray(self.weights()[..., : self.virtual].sum(axis=-1, keepdims=True))

    # ---------------------------------------------------------------- by NumPy alone

    def rows(self) -> Numbers:
        """(batch, query): the queries that see at least one key of the text."""
        return numpy.asarray(self.visible()[..., self.virtual :].any(axis=-1))

    def rows_of_prefix(self) -> Numbers:
        """(batch, query): those that see a slot and a key of the text."""
        return numpy.asarray(self.rows() & self.visible()[..., : self.virtual].any(axis=-1))

    def sees(self) -> Numbers:
        """(batch, query, virtual + tokens): keys that are not masked, not after the query, and in its window."""
        places = numpy.arange(self.virtual + self.tokens) - self.virtual  # the slots' are negative
        behind = numpy.arange(self.tokens)[:, None] - places
        seen = numpy.ones(behind.shape, bool) if self.looks == "around" else behind >= 0
        seen = seen if self.window is None else seen & (behind < self.window)
        mask = numpy.ones((len(self.query), self.tokens)) if self.mask is None else self.mask
        shown = numpy.concatenate([numpy.ones((len(mask), self.virtual)), mask], axis=1) != 0
        return numpy.asarray(seen & shown[:, None])

    def open_logits(self) -> Numbers:
        """Scale · q · k, capped, with the bias; head h reads kv head h // group. Nothing hidden."""
        keys = numpy.repeat(self.all_keys, self.group, axis=1)
        products = self.scale * numpy.einsum("bhqd,bhkd->bhqk", self.query, keys)
        if self.softcap is not None:
            products = self.softcap * numpy.tanh(products / self.softcap)
        return numpy.asarray(products if self.bias is None else products + self.bias)

    def logits(self) -> Numbers:
        """The same, −inf for keys not seen."""
        return numpy.where(self.visible()[:, None], self.open_logits(), -numpy.inf)

    def share(self) -> Numbers:
        """λ = σ(LSE_prefix − LSE_text), (batch, heads, query, 1)."""
        logits, n = self.logits(), self.virtual
        with numpy.errstate(over="ignore", invalid="ignore"):
            odds = numpy.exp(log_sum_exp(logits[..., n:]) - log_sum_exp(logits[..., :n]))
        return numpy.asarray(1 / (1 + odds))

    def unit(self) -> float:
        """How far one evaluation of a weight may be off, in relation to the weight.

        Logits: a dot product of head_dim terms, the scale, the maximum taken off: (head_dim + 3)·u·B with B the largest
        scale·Σ|q||k|, in numerator and denominator (a cap makes it less, a bias is added to B); the sum over the keys, exp and
        the division: (keys + 3)·u; the product with the values: keys·u. Together at most (head_dim + keys + 3)·(1 + B)·2u.
        """
        keys = self.all_keys
        largest = numpy.abs(numpy.repeat(keys, self.group, axis=1))
        bound = float((self.scale * numpy.abs(self.query) @ numpy.swapaxes(largest, -1, -2)).max())
        bound += 0.0 if self.bias is None else float(numpy.abs(self.bias).max())
        return self.slack * EPSILON * (self.query.shape[3] + keys.shape[2] + 3) * (1 + bound)

    def tolerance(self) -> float:
        """Four evaluations (both sides, and a mixture of two on one of them), times the largest value."""
        return 4 * self.unit() * float(max(1.0, numpy.abs(self.all_values).max()))


def log_sum_exp(x: Numbers) -> Numbers:
    """By NumPy alone, the last axis kept; −inf for nothing."""
    with numpy.errstate(invalid="ignore"):
        return numpy.asarray(numpy.logaddexp.reduce(x, axis=-1, keepdims=True, initial=-numpy.inf))


# ---------------------------------------------------------------- drawn


def padding_mask(kind: str, batch: int, tokens: int, random: numpy.random.Generator) -> Numbers | None:
    """No mask, ones, or ones with 0 … tokens − 1 zeros on one side of each row."""
    if kind == "none":
        return None
    padding = random.integers(0, tokens, (batch, 1)) if kind != "full" else numpy.zeros((batch, 1), int)
    right = (numpy.arange(tokens) < tokens - padding).astype(numpy.int64)
    return right[:, ::-1].copy() if kind == "left" else right


def drawn_case(
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


SIZES = {
    "batch": st.integers(1, 3),
    "kv_heads": st.integers(1, 3),
    "group": st.integers(1, 3),
    "head_dim": st.integers(1, 6),
    "virtual": st.integers(2, 5),
    "tokens": st.integers(1, 6),
    "kind": st.sampled_from(["none", "full", "left", "right"]),
    "seed": st.integers(0, 2**32 - 1),
}


# ---------------------------------------------------------------- of a family


@functools.lru_cache(maxsize=256)
def attention_case(name: str, seed: int) -> AttentionCase:
    """What a model of `support.MODELS` hands to the attention behind its prefix, in one layer: one with a window if there is one.

    Queries and keys are those of the family: normed, turned, scaled and capped; its biases, and what it sees.
    """
    case = model_case(name, "prefix", seed)
    config, found = case.config, list[dict[str, Any]]()

    def key_states(past: Any, own: Any) -> Any:
        if past is not None:
            found.append({"past_key": past, "key": own})
        return definition("attention.key_states")(past, own)

    def value_states(past: Any, own: Any) -> Any:
        if past is not None:
            found[-1] |= {"past_value": past, "value": own}
        return definition("attention.value_states")(past, own)

    def scores(query: Any, keys: Any, visible: Any, scale: float, **options: Any) -> Any:
        if found and "query" not in found[-1] and "value" in found[-1]:
            found[-1] |= {"query": query, "scale": scale, **options}
        return definition("attention.scores")(query, keys, visible, scale, **options)

    steps = {"attention.key_states": key_states, "attention.value_states": value_states, "attention.scores": scores}  # fmt: skip
    with replaced(steps):
        case.says(case.model())
    windowed = [layer for layer in range(case.layers) if config.window(layer) is not None]
    layer = windowed[-1] if windowed else seed % case.layers
    return AttentionCase(**_of_layer(case, found[layer]), seed=seed, window=config.window(layer))


def _of_layer(case: ModelCase, own: dict[str, Any]) -> dict[str, Any]:
    """Arrays of one layer as fields of a case; the mask is the text's, or all ones of what a decoder behind an encoder reads."""
    bias, (batch, heads, tokens, _) = own.get("bias"), own["query"].shape
    virtual = own["past_key"].shape[2]
    if bias is not None:
        bias = numpy.array(numpy.broadcast_to(bias, (batch, heads, tokens, virtual + tokens)))
    return {
        **own,
        "bias": bias,
        "mask": None if case.kind == "encoder_decoder" else case.mask,
        "looks": "around" if case.kind == "encoder" else "back",
        "cut": case.virtual - virtual,
    }


def attention_cases(name: str) -> st.SearchStrategy[Callable[[], AttentionCase]]:
    """What makes a family's attention, or one whose sizes are all drawn independently."""
    if name == DRAWN:
        return st.fixed_dictionaries(SIZES).map(lambda sizes: functools.partial(drawn_case, **sizes))
    return st.integers(0, 999).map(lambda seed: functools.partial(attention_case, name, seed))
