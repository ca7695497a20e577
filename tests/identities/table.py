"""T1 to T50: what each identity says, under which preconditions, whose it is, where it is run, and where it must fail.

specs/properties.md is made of this table (`python tests/traceability.py`), and `test_properties.py` runs it. Symbols: q, k, v
queries, keys and values of the text; Pk, Pv keys and values of the prefix's n slots; l the scaled logits; A the weights; λᵢ the
prefix's share of query i's; o the output and o⁰ that without a prefix; x a text of m tokens and c one of n; base(·) what the
frozen base model says, PT and PX what it says with a prompt and a prefix; W the flat prefix; G = ∂L/∂o.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
from identities import of_attention as attention
from identities import of_gradients as gradients
from identities import of_models as models
from identities import wrong_steps as wrong
from identities.model_cases import DRAWN
from support import METHODS, MODELS, tiny_model

from refpeft.oracle.mutants import MUTANTS, Steps

# ---------------------------------------------------------------- where identities apply

_CONFIGS = {name: tiny_model(family, 0, **changes).config for name, (family, changes) in MODELS.items()}


def _those(condition: Callable[[Any], bool]) -> tuple[str, ...]:
    return tuple(name for name, config in _CONFIGS.items() if condition(config))


def _but(names: tuple[str, ...], *others: str) -> tuple[str, ...]:
    return tuple(name for name in names if name not in others)


FAMILIES = tuple(MODELS)
EVERY = (DRAWN, *FAMILIES)
DECODERS = _those(lambda config: config.kind == "decoder")
ENCODERS = _those(lambda config: config.kind == "encoder")
BEHIND = _those(lambda config: config.kind == "encoder_decoder")
CAUSAL = (DRAWN, *DECODERS, *BEHIND)
BIASED = _those(lambda config: config.positions in ("alibi", "relative"))
WINDOWED = _those(lambda config: any(config.window(layer) for layer in range(config.num_layers)))
CUT = _those(lambda config: config.cuts_prefix)
CAPPED = _those(lambda config: config.attention_softcap is not None)
PLACED = (*BIASED, *WINDOWED)
"""Where a slot has a place: a bias counts it, or a window lets go of it."""
GROUPED = _those(lambda config: 1 < config.num_key_value_heads < config.num_attention_heads)
SCALED = _those(lambda config: config.embedding_scale != 1.0)
KINKED = _those(lambda config: config.activation == "relu")
BY_MASK = _those(lambda config: config.position_rule == "mask" or config.positions == "alibi")
"""Whose positions come from the mask."""
BY_DISTANCE = _those(lambda config: config.positions == "relative")
BY_TOKENS = _those(lambda config: config.position_rule == "tokens")
NARROW = _those(
    lambda config: (
        config.stack("decoder").num_attention_heads
        >= config.stack("decoder").num_key_value_heads * config.head_dim
    )
)
"""Which have no direction at right angles to all queries of a group."""

# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Run:
    """A check, and what it is run over."""

    check: Callable[[Any], None]
    on: tuple[str, ...]
    """Names of `support.MODELS`, and DRAWN."""
    methods: tuple[str, ...] = ()
    """Of whole models; without them one attention layer."""
    layers: tuple[int, ...] = ()
    """Numbers of layers, instead of the tiny model's own."""
    violated: str = ""
    """Of a negative control: which precondition does not hold."""
    steps: Callable[[], Steps] | None = None
    """Of a negative control: wrong steps."""

    @property
    def name(self) -> str:
        """The check's own name."""
        function = self.check.func if isinstance(self.check, partial) else self.check
        return str(getattr(function, "__name__", function))


@dataclass(frozen=True)
class Property:
    """A row."""

    number: str
    title: str
    statement: str
    preconditions: str
    paper: str
    holds: tuple[Run, ...]
    fails: tuple[Run, ...]
    """Negative controls."""
    silent: str = ""
    """Why it says nothing of the families over which it neither holds nor fails."""


def control(
    violated: str,
    run: Run,
    on: tuple[str, ...] = (),
    steps: Callable[[], Steps] | None = None,
    **arguments: Any,
) -> Run:
    """The same check where a precondition does not hold; on families alone, for drawn sizes may be too small to violate it."""
    return Run(
        partial(run.check, **arguments) if arguments else run.check,
        on or _but(run.on, DRAWN), run.methods, run.layers, violated, steps,
    )  # fmt: skip


_VASWANI = "Vaswani et al. 2017, §3.2.1"
_HE = "He et al. 2021, §3.1"
_PETROV = "Petrov et al. 2023, §4"
_LI = "Li, Liang 2021, §4.2"
_PROJECTION = "Li, Liang 2021, §4.3"
_LESTER = "Lester et al. 2021, §2"
_MERGE = "Dao et al. 2022 (FlashAttention), §3.1"
_GROUPS = "Ainslie et al. 2023, §2.2"
_ALIBI = "Press et al. 2022 (ALiBi), §3; Raffel et al. 2020 (T5), §2.1"
_WINDOW = "Jiang et al. 2023 (Mistral), §2"
_MASK = "Vaswani et al. 2017, §3.2.3"
_NONE = "none: HF's own"
_SOFTMAX = "one softmax over prefix and text; rows that see a key of the text"

_ONCE = tuple(METHODS)
_PREFIXES = ("prefix", "projected")


def _attention(check: Callable[[Any], None], on: tuple[str, ...] = EVERY) -> Run:
    return Run(check, on)


_separate = MUTANTS["M47"].make

_t01 = _attention(attention.gating)
_t02 = _attention(attention.share_is_a_sigmoid)
_t03 = _attention(attention.text_is_rescaled)
_t04 = _attention(attention.bias_lies_in_the_cone)
_t05 = _attention(attention.slots_may_be_permuted, _but(EVERY, *PLACED))
_t05_model = Run(models.slots_may_be_permuted, _but(EVERY, *PLACED), _PREFIXES)
_t06 = _attention(attention.keys_alone_may_not)
_t07 = _attention(attention.values_moved_alike)
_t08 = _attention(attention.affine_in_the_prefix_s_values)
_t09 = _attention(attention.keys_moved_alike, _but(EVERY, *CAPPED))
_t10 = _attention(attention.queries_against_keys)
_t11 = _attention(attention.zeros_shrink, _but(EVERY, *BIASED))
_t12 = _attention(attention.limits_without_effect, _but(EVERY, *CAPPED))
_t13 = _attention(attention.copies_are_one_slot, _but(EVERY, *PLACED))
_t14 = _attention(attention.equal_keys_are_one_slot, _but(EVERY, *PLACED))
_t15 = _attention(attention.blocks_merge)
_t16 = _attention(attention.convex_hull)
_t17 = _attention(attention.share_grows, _but(EVERY, *WINDOWED))
_t18 = _attention(attention.first_token, _but(CAUSAL, *_but(WINDOWED, *CUT)))
_t19 = Run(models.causality, CAUSAL, _ONCE)
_t20 = _attention(attention.grouped_heads)
_t21 = _attention(attention.rows_apart)
_t21_model = Run(models.rows_apart, EVERY, _ONCE)
_t22 = Run(models.right_padding, EVERY, _ONCE)
_t23 = Run(models.left_padding, BY_MASK, _ONCE)
_t23_prefix = Run(models.left_padding, (*BY_DISTANCE, *BY_TOKENS), _PREFIXES)
_t23_counted = Run(models.left_padding_counted, _but((*DECODERS, *ENCODERS), *WINDOWED), ("prefix",))
_t23_dropped = Run(models.given_positions_are_dropped, (DRAWN, *DECODERS), ("prompt",))
_t23_written = Run(models.left_padding_in_generation, _but((*DECODERS, *BY_DISTANCE), *WINDOWED), _PREFIXES)
_t24 = Run(models.masks_that_mean_the_same, EVERY, _ONCE)
_t24_deleted = Run(models.hidden_is_deleted, _but((*DECODERS, *ENCODERS), *WINDOWED), _PREFIXES)
_t25 = Run(models.prompt_of_real_tokens, EVERY, ("prompt",))
_t26 = Run(models.prefix_of_real_tokens, CAUSAL, ("prefix",))
_t26_shallow = Run(models.prefix_of_real_tokens, ENCODERS, ("prefix",), layers=(1,))
_t27 = Run(models.compilation, (DRAWN, *DECODERS), ("prefix",))
_t27_shallow = Run(models.compilation, ENCODERS, ("prefix",), layers=(1,))
_t28 = Run(models.fold, EVERY, ("projected",))
_t29 = Run(models.symmetries_of_the_projection, EVERY, ("projected",))
_t30 = Run(models.zeros_are_a_prefix, EVERY, ("projected",))
_t31 = _attention(attention.no_slots)
_t31_model = Run(models.no_virtual_tokens, EVERY, _ONCE)
_t32 = Run(models.pieces, CAUSAL, _ONCE)
_t32_written = Run(models.generated_with_a_cache, CAUSAL, _ONCE)
_t33 = Run(models.prefixes_join, CAUSAL, ("prefix",))
_t34 = Run(models.layers_are_local, EVERY, ("prefix",))
_t34_blind = Run(models.blind_directions, _but(FAMILIES, *NARROW), ("prefix",))
_t35 = Run(models.dead_blocks, BEHIND, ("prefix",), layers=(1, 2, 3, 4))
_t36 = Run(models.second_half_of_a_prompt, BEHIND, ("prompt",))
_t37 = Run(models.slots_with_their_columns, BIASED, ("prefix",))
_t38 = Run(models.horizon_of_windows, DECODERS, ("prefix",), layers=(1, 2, 3))
_t39 = _attention(gradients.by_hand, _but(EVERY, *CAPPED))
_t40 = _attention(gradients.keys_sum_to_zero, _but(EVERY, *CAPPED))
_t41 = _attention(gradients.values_sum_to_the_output)
_t42 = Run(gradients.sum_over_rows, EVERY, ("prompt", "prefix"))
_t42_labels = Run(gradients.losses_weighed_by_labels, EVERY, _ONCE)
_t43 = Run(gradients.zeros_learn_alike, _but(EVERY, *PLACED), ("prefix",))
_t44 = Run(gradients.equal_slots_stay_equal, _but(EVERY, *PLACED), ("prefix",))
_t45 = Run(gradients.last_map_learns_first, EVERY, ("projected",))
_t46 = Run(gradients.frozen_base, EVERY, _ONCE)
_t47 = Run(gradients.first_token_is_predicted, (DRAWN, *DECODERS), _ONCE)
_t48 = Run(gradients.finite_differences, _but(EVERY, *KINKED), _ONCE)
_t49 = _attention(gradients.euler)
_t50 = _attention(attention.uniform_without_a_query, _but(EVERY, *BIASED))

_ENCODERS_LOOK_AHEAD = "virtual tokens see the text: an encoder of several layers"

PROPERTIES: tuple[Property, ...] = (
    Property(
        "T1", "attention with a prefix is a mixture",
        "o = (1 − λ)·Attn(q, k, v) + λ·Attn(q, Pk, Pv)",
        _SOFTMAX, _HE, (_t01,), (control("a softmax of its own for the prefix", _t01, steps=_separate),),
    ),
    Property(
        "T2", "the share is a sigmoid",
        "λ = σ(LSE(l of the prefix) − LSE(l of the text))",
        _SOFTMAX, _HE, (_t02,), (control("another temperature for the prefix", _t02, steps=wrong.cooler_prefix),),
    ),
    Property(
        "T3", "the text's weights are rescaled",
        "A_ij = (1 − λᵢ)·A⁰_ij for every key j of the text",
        f"{_SOFTMAX}; the same q and k", _PETROV, (_t03,),
        (control("the text's logits change beside a prefix", _t03, steps=wrong.cooler_text),),
    ),
    Property(
        "T4", "what a prefix adds lies in the cone of its values",
        "oᵢ − (1 − λᵢ)·oᵢ⁰ = Σ_p c_p·Pv_p, c_p ≥ 0, Σ c_p = λᵢ",
        f"{_SOFTMAX}; values as they are stored", _PETROV, (_t04,),
        (control("a bias on the prefix's values", _t04, steps=wrong.shifted_values),),
    ),
    Property(
        "T5", "the slots of a prefix have no order",
        "o(Pk[π], Pv[π]) = o(Pk, Pv); PX(x; W[π]) = PX(x; W)",
        "a slot has no place: no bias by position (ALiBi, T5), no window", _LI, (_t05, _t05_model),
        (
            control("biases and windows that count the slots", _t05, PLACED),
            control("biases and windows that count the slots", _t05_model, PLACED),
            Run(models.slots_may_be_permuted, FAMILIES, ("prompt",), violated="the rows of a prompt, which have positions"),
        ),
    ),
    Property(
        "T6", "keys alone have one",
        "o(Pk[π], Pv) ≠ o(Pk, Pv)",
        "two slots or more with different values", _LI, (_t06,), (control("values that are all alike", _t06, _but(FAMILIES, *PLACED), alike=True),),
    ),
    Property(
        "T7", "values moved alike move the output",
        "o(Pv + 1cᵀ, v + 1cᵀ) = o + c; o(α·Pv, α·v) = α·o",
        f"weights that sum to one: {_SOFTMAX}", _VASWANI, (_t07,),
        (
            control("a softmax of its own for the prefix", _t07, steps=_separate),
            control("the prefix's values not moved", _t07, prefix_too=False),
        ),
    ),
    Property(
        "T8", "the output is affine in the prefix's values",
        "o(2·Pv) − o(Pv) = λ·Attn(q, Pk, Pv)",
        f"{_SOFTMAX}; values as they are stored", _HE, (_t08,),
        (control("a softmax of its own for the prefix", _t08, steps=_separate),),
    ),
    Property(
        "T9", "keys moved alike do nothing",
        "o(Pk + 1wᵀ, k + 1wᵀ) = o; Pk alone: logit(λ) grows by s·q·w",
        f"{_SOFTMAX}; logits not capped", _VASWANI, (_t09,), (control("logits that are capped (Gemma-2)", _t09, CAPPED),),
    ),
    Property(
        "T10", "queries and keys share a scale",
        "o(q/α, α·k, α·Pk) = o(q, k, Pk)",
        "the same queries against prefix and text", _VASWANI, (_t10,),
        (control("the prefix's keys not scaled", _t10, prefix=1.0),),
    ),
    Property(
        "T11", "zeros shrink",
        "Pk = Pv = 0: o = (1 − λ)·o⁰, λ = nᵢ / (nᵢ + Σⱼ exp lⱼ); Pk = 0, Pv = v̄: o = (1 − λ)·o⁰ + λ·v̄",
        f"{_SOFTMAX}; no bias; nᵢ slots seen", "follows from He et al. 2021, §3.1", (_t11,),
        (control("a bias on the slots (ALiBi, T5)", _t11, BIASED),),
    ),
    Property(
        "T12", "a prefix without effect",
        "hidden: o = o⁰; logits below −d: ‖o − o⁰‖ ≤ λ·spread of values, λ ≤ n·exp(−d − LSE of the text)",
        f"{_SOFTMAX}; logits not capped, so that they have no lower bound", "follows from He et al. 2021, §3.1", (_t12,),
        (control("logits that are capped (Gemma-2)", _t12, CAPPED),),
    ),
    Property(
        "T13", "copies of a slot are one slot",
        "r copies of (Pk_p, Pv_p) = one, with log r added to its logit",
        "copies in the same place: no bias by position, no window", "follows from Vaswani et al. 2017, §3.2.1", (_t13,),
        (control("biases and windows that tell copies apart", _t13, PLACED),),
    ),
    Property(
        "T14", "slots with one key are one slot",
        "n slots of one key = one with the mean of their values, and log n added to its logit",
        "in the same place: no bias by position, no window", "follows from Vaswani et al. 2017, §3.2.1", (_t14,),
        (control("biases and windows that tell slots apart", _t14, PLACED),),
    ),
    Property(
        "T15", "blocks of keys merge",
        "o = Σ_B exp(LSE_B − LSE)·o_B for any partition in two",
        "rows that see a key of each; blocks weighed by their LSE", _MERGE, (_t15,),
        (control("blocks that count half each", _t15, weighed=False),),
    ),
    Property(
        "T16", "the output lies among the values",
        "min_j v_j ≤ o ≤ max_j v_j in each coordinate, over the keys that the row sees",
        "weights that sum to one; the row sees a key", _VASWANI, (_t16,),
        (control("a softmax of its own for the prefix", _t16, steps=_separate),),
    ),
    Property(
        "T17", "one more slot has more of a share",
        "λ(n + 1) > λ(n); 0 < λ < 1; λᵢ ≤ 1 − A_ii",
        "every query sees every slot; the other logits as they were", "follows from He et al. 2021, §3.1", (_t17,),
        (control("slots outside a window", _t17, WINDOWED),),
    ),
    Property(
        "T18", "the first token sees the prefix and itself",
        "o₀ = λ₀·Attn(q₀, Pk, Pv) + (1 − λ₀)·v₀",
        "causal; token 0 not masked; the whole prefix in the window", f"{_MASK}; {_LI}", (_t18,),
        (
            control("both directions (encoders)", _t18, ENCODERS),
            control("a prefix that reaches out of the window", _t18, _but(WINDOWED, *CUT)),
        ),
    ),
    Property(
        "T19", "causality",
        "another token j: the same at positions before j and in the prefix's keys and values, to the bit; another at j; another "
        "virtual token: another from the first token on",
        "causal", _MASK, (_t19,), (control("both directions (encoders)", _t19, ENCODERS),),
    ),
    Property(
        "T20", "heads in groups",
        "head h = attention of query head h to key/value head ⌊h / group⌋; copies of key/value heads in that order change nothing",
        "heads = key/value heads · group, in that order", _GROUPS, (_t20,),
        (control("key/value heads tiled: h mod heads", _t20, GROUPED, MUTANTS["M09"].make),),
    ),
    Property(
        "T21", "rows of a batch are apart",
        "f(x)[b] = f(x[b : b + 1])",
        "nothing is shared along the batch but the virtual tokens", _NONE, (_t21, _t21_model),
        (
            control("a mean over the batch", _t21, steps=wrong.mixed_rows),
            control("a mean over the batch", _t21_model, steps=wrong.mixed_rows),
        ),
    ),
    Property(
        "T22", "padding on the right does nothing",
        "f(x ∥ padding)[: n + m] = f(x)",
        "the mask is 0 on the padding", _NONE, (_t22,), (control("a mask that is 0 on other tokens", _t22, mask_at_the_end=False),),
    ),
    Property(
        "T23", "padding on the left",
        "f(padding ∥ x)[−m :] = f(x)",
        "positions from the mask (OPT, BLOOM; in generation all, behind a prefix), from ids or distances that a prefix does not move (RoBERTa, T5), or given by the "
        "caller as the mask counts them; a prompt drops given ones",
        _NONE, (_t23, _t23_prefix, _t23_counted, _t23_dropped, _t23_written),
        (
            control("positions that count the padding", _t23, _but(FAMILIES, *BY_MASK, *BY_DISTANCE, *BY_TOKENS)),
            Run(
                models.left_padding, (*BY_DISTANCE, *BY_TOKENS), ("prompt",),
                violated="a prompt's embeddings, which have no ids, and distances to its rows",
            ),
            control("windows, which count the padding whatever the positions", _t23_counted, WINDOWED),
            Run(
                models.left_padding_in_generation, _but(DECODERS, *BY_MASK), ("prompt",),
                violated="later tokens of a prompt, which are counted from the cache",
            ),
        ),
    ),
    Property(
        "T24", "masks that mean the same",
        "f(x; no mask) = f(x; ones); f(x; 0 for token j) = f(x without j)",
        "of Falcon's ALiBi, products that bfloat16 holds (PO-5); for the second: the others keep their positions, "
        "and no window or distance counts j", _NONE, (_t24, _t24_deleted),
        (
            control("one 0 among the ones", _t24, ones=False),
            control("windows and distances that count the hidden token", _t24_deleted, (*WINDOWED, *BY_DISTANCE)),
        ),
    ),
    Property(
        "T25", "a prompt of real tokens is those tokens",
        "PT(x; embed(c)) = base(c ∥ x), all n + m rows",
        "embeddings through the module that scales them; in front of the text", _LESTER, (_t25,),
        (
            control("rows past the module that scales", _t25, SCALED, scaled=False),
            control("the prompt behind the text", _t25, steps=MUTANTS["M24"].make),
        ),
    ),
    Property(
        "T26", "a prefix of real tokens is those tokens",
        "PX(x; cache of c) = base(c ∥ x)[n :]",
        "causal, or one layer; keys as they are attended to; where a cache is cut, what no query sees", f"{_LI}, §7.4",
        (_t26, _t26_shallow), (control(_ENCODERS_LOOK_AHEAD, _t26, ENCODERS),),
    ),
    Property(
        "T27", "a prompt compiles into a prefix",
        "PX(x; cache of E) = PT(x; E)[n :] for any soft prompt E",
        "causal, or one layer; both in one stack; the converse is false: 2·layers·kv_heads·head_dim numbers a slot, not hidden",
        f"{_LI}; {_LESTER}", (_t27, _t27_shallow), (control(_ENCODERS_LOOK_AHEAD, _t27, ENCODERS),),
        "behind an encoder a prompt stands in the encoder and a prefix in the decoder",
    ),
    Property(
        "T28", "the projection folds",
        "PX(x; E, W₀, b₀, W₂, b₂) = PX(x; tanh(E·W₀ᵀ + b₀)·W₂ᵀ + b₂), which is what is saved, and loads to the bit",
        "tanh, nothing else between", _PROJECTION, (_t28,),
        (control("folded with relu", _t28, activation=partial(numpy.maximum, 0.0)),),
    ),
    Property(
        "T29", "the projection's symmetries",
        "hidden units in any order; (W₀, b₀, W₂) and (−W₀, −b₀, −W₂) alike",
        "an odd activation", _PROJECTION, (_t29,),
        (
            control("relu, which is not odd", _t29, steps=MUTANTS["M16"].make),
            control("scaled as relu may be: (2·W₀, 2·b₀, W₂/2)", _t29, sign=2.0, outer=0.5),
        ),
    ),
    Property(
        "T30", "a last map of zeros is a prefix of zeros",
        "W₂ = b₂ = 0: all keys and values are 0, and PX(x) ≠ base(x) at the same positions (T11)",
        "the slots are seen", _PROJECTION, (_t30,), (control("slots that no query sees", _t30, seen=False),),
    ),
    Property(
        "T31", "no virtual tokens is no adapter",
        "n = 0: o = o⁰; PT(x) = PX(x) = base(x), to the bit",
        "n = 0, which functions take and configurations refuse", _NONE, (_t31, _t31_model),
        (control("n = 1", _t31, slots=1), control("n = 1", _t31_model, virtual=1)),
    ),
    Property(
        "T32", "piece by piece",
        "f(x) = f(x₁) ∥ f(x₂; cache) ∥ …, as tokens are generated too; a second call gives the same bits; a given cache stays as it was",
        "causal; the mask covers past and present", _MASK, (_t32, _t32_written),
        (
            control("both directions (encoders)", _t32, ENCODERS),
            Run(
                models.generated_with_a_cache, _but(DECODERS, *BIASED), ("prefix",),
                violated="later positions not moved on by the prefix", steps=MUTANTS["M38"].make,
            ),
        ),
    ),
    Property(
        "T33", "prefixes join",
        "PX(x; [W₁ ; W₂]) = base(c₁ ∥ c₂ ∥ x)[n :] with W₁ the cache of c₁, W₂ that of c₂ behind c₁",
        "causal; c₂ has seen c₁", f"{_LI}, §7.4", (_t33,), (
            control("c₂ has not seen c₁", _t33, in_sight=False),
            control(_ENCODERS_LOOK_AHEAD, _t33, ENCODERS),
        ),
    ),
    Property(
        "T34", "layers are local",
        "block (l, ·) of W changed: layers before l stay to the bit, l does not; the last layer's keys moved at right angles to "
        "every query: the same",
        "of the second: head_dim > group, one token", f"{_LI}; {_PETROV}", (_t34, _t34_blind),
        (
            control("said of the output of layer l itself", _t34, of_layer=0),
            control("keys moved along a query", _t34_blind, across=False),
        ),
    ),
    Property(
        "T35", "blocks behind an encoder",
        "layer l reads blocks 4·l and 4·l + 1 mod 2·layers; the others have no gradient; the encoder sees no prefix",
        "an encoder-decoder", f"{_NONE} (Li, Liang 2021, §4.2 have a prefix for each stack)", (_t35,),
        (Run(models.dead_blocks, (*DECODERS, *ENCODERS), ("prefix",), (2,), "one stack, whose blocks are all alive"),),
    ),
    Property(
        "T36", "the second half of a prompt behind an encoder",
        "rows n … 2n − 1: gradient 0, no effect",
        "an encoder-decoder", f"{_NONE} ({_LESTER} has n rows)", (_t36,),
        (control("one stack, whose rows are n and all alive", _t36, (*DECODERS, *ENCODERS)),),
    ),
    Property(
        "T37", "slots with their columns have no order",
        "W[π] and bias[…, π]: the same",
        "biases by the slot's place alone (ALiBi, T5)", _ALIBI, (_t37,), (control("columns left where they are", _t37, columns=False),),
        "without a bias there are no columns to turn",
    ),
    Property(
        "T38", "the horizon of windows",
        "query i feels slot p as far as n + i − p ≤ Σ over layers of (w − 1), if n − p ≤ w − 1 in one, and not beyond, to the bit",
        "windows of w keys; without one, everywhere", _WINDOW, (_t38,),
        (control("said of layers without windows", _t38, _but(DECODERS, *WINDOWED), window=2),),
        "no encoder and no encoder-decoder has windows",
    ),
    Property(
        "T39", "gradients by hand",
        "∂L/∂Pv = A_pᵀ·G; ∂L/∂Pk = s·dl_pᵀ·q, dl = A ⊙ (G·vᵀ − Σⱼ A_ij·(G·vᵀ)_ij)",
        f"{_SOFTMAX}; logits not capped", _VASWANI, (_t39,), (control("logits that are capped (Gemma-2)", _t39, CAPPED),),
    ),
    Property(
        "T40", "gradients of keys sum to zero",
        "Σ_p ∂L/∂Pk_p + Σⱼ ∂L/∂k_j = s·Σᵢ (Σⱼ dl_ij)·qᵢ = 0",
        f"{_SOFTMAX}; logits not capped", "T9, differentiated", (_t40,), (control("logits that are capped (Gemma-2)", _t40, CAPPED),),
    ),
    Property(
        "T41", "gradients of values sum to the output's",
        "Σ_p ∂L/∂Pv_p + Σⱼ ∂L/∂v_j = Σᵢ Gᵢ",
        f"weights that sum to one: {_SOFTMAX}", "T7, differentiated", (_t41,),
        (control("a softmax of its own for the prefix", _t41, steps=_separate),),
    ),
    Property(
        "T42", "a sum over the batch",
        "∂L/∂W = Σ_b ∂L/∂(row b's copy); N·∂L/∂W = Σ_b N_b·∂L_b/∂W with N_b labels in row b",
        "one table for all rows; a mean over labels", _LI, (_t42, _t42_labels),
        (
            control("a gradient averaged over the batch", _t42, steps=wrong.averaged_gradient),
            control("a mean of the rows' means", _t42_labels, steps=MUTANTS["M129"].make),
        ),
    ),
    Property(
        "T43", "zeros learn alike",
        "W = 0: all slots have one gradient, and it is not zero",
        "T5's: a slot has no place", "none", (_t43,),
        (
            control("biases and windows that count the slots", _t43, PLACED),
            control("W as it is drawn", _t43, zero=False),
        ),
    ),
    Property(
        "T44", "equal slots stay equal",
        "W_a = W_b: ∂L/∂W_a = ∂L/∂W_b",
        "T5's: a slot has no place", "none", (_t44,),
        (
            control("biases and windows that count the slots", _t44, PLACED),
            control("different slots", _t44, equal=False),
        ),
    ),
    Property(
        "T45", "the last map learns first",
        "W₂ = b₂ = 0: ∂L/∂E = ∂L/∂W₀ = ∂L/∂b₀ = 0, ∂L/∂W₂ and ∂L/∂b₂ are not",
        "a last map of zeros", _PROJECTION, (_t45,), (control("a last map that is drawn", _t45, weights=None),),
    ),
    Property(
        "T46", "the base is frozen, and labels of −100 do not count",
        "gradients of what is trained alone; L = mean CE over labels ≠ −100",
        "a label is −100 or a class; behind a prompt the virtual tokens' are −100", f"{_LI}; {_LESTER}", (_t46,),
        (control("−100 counted as class 0", _t46, steps=MUTANTS["M133"].make),),
    ),
    Property(
        "T47", "a prompt predicts the first token",
        "PT: m terms for each row, L = mean CE(logits[n − 1 : n + m − 1], x); PX: m − 1, L = mean CE(logits[: m − 1], x[1 :])",
        "a decoder that predicts the next token; every label counts", _NONE, (_t47,),
        (
            Run(
                gradients.first_token_is_predicted, DECODERS, ("prompt",), violated="the first label set to −100",
                steps=MUTANTS["M130"].make,
            ),
            control("a loss that is not shifted", _t47, steps=MUTANTS["M76"].make),
        ),
        "an encoder's loss is of the labels as they stand, and so is that of a decoder behind one, which reads them shifted",
    ),
    Property(
        "T48", "finite differences",
        "(L(θ + h·d) − L(θ − h·d)) / 2h = ⟨∂L/∂θ, d⟩ within 1e-6",
        "smooth activations", "none: the definition", (_t48,),
        (
            Run(
                partial(gradients.finite_differences, kink=True), FAMILIES, ("projected",),
                violated="relu in the projection, at its kink", steps=MUTANTS["M16"].make,
            ),
        ),
    ),
    Property(
        "T49", "Euler's identity",
        "⟨Pv, ∂L/∂Pv⟩ + ⟨v, ∂L/∂v⟩ = ⟨o, G⟩",
        "o linear in the values (T7)", "T7, differentiated", (_t49,),
        (control("a bias on the prefix's values", _t49, steps=wrong.shifted_values),),
    ),
    Property(
        "T50", "without a query attention is uniform",
        "λ(0·q) = nᵢ / (nᵢ + mᵢ): slots and keys of the text that query i sees",
        "no bias", _VASWANI, (_t50,),
        (
            control("a bias on slots and keys (ALiBi, T5)", _t50, BIASED),
            control("queries that are not zero", _t50, larger=1.0),
        ),
    ),
)  # fmt: skip
