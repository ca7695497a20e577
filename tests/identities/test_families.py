"""Identities of whole models of every family: T5, T22, T23, T25, T26, T27, T32, T37 and T38, and where they fail.

Notation as in `test_model.py`: c real tokens, x the text behind them, n virtual tokens; base(·) what the frozen base says. An
identity holds on a family if its preconditions do; on the others it fails by a margin that is written down here, so that a
mistake that makes it hold is noticed as well. What "says" means is the family's: logits of decoders, the last hidden states
of encoders, the decoder's logits of encoder-decoders.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy
import pytest
from support import METHODS, MODELS, VIRTUAL, relative_error, tiny_adapter, tiny_model

from refpeft import language_model, masks, prefix_encoder
from refpeft.peft_model import PeftModel
from refpeft.prefix_encoder import EMBEDDING
from refpeft.steps import definition, replaced
from refpeft.transformer import stack
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.stack import Given
from refpeft.transformer.weights import BaseModel, word_embeddings

Numbers = Any
EPSILON = float(numpy.finfo(numpy.float64).eps)
NOTICEABLE = 1e-6
"""What is said to differ, differs by more than this, relatively: ten digits above rounding."""
TEXT, DECODED = 7, 6
TASKS = {"decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION", "encoder_decoder": "SEQ_2_SEQ_LM"}


@dataclass(frozen=True)
class Case:
    """One model, one method, and inputs drawn from a seed."""

    name: str
    method: str
    seed: int
    layers: int | None = None
    """Instead of the tiny model's own number of them."""

    @cached_property
    def base(self) -> BaseModel:
        family, changes = MODELS[self.name]
        changes = {**changes, **self._layers(family)}
        return tiny_model(family, self.seed, **changes)

    def _layers(self, family: str) -> dict[str, Any]:
        if self.layers is None:
            return {}
        keys = {"gpt2": ("n_layer",), "gpt_bigcode": ("n_layer",), "t5": ("num_layers", "num_decoder_layers")}
        keys["bart"] = ("encoder_layers", "decoder_layers")
        return dict.fromkeys(keys.get(family, ("num_hidden_layers",)), self.layers)

    @property
    def config(self) -> ModelConfig:
        return self.base.config

    @property
    def kind(self) -> str:
        return self.config.kind

    def model(self, method: str = "", **fields: Any) -> PeftModel:
        return tiny_adapter(self.base, method or self.method, TASKS[self.kind], self.seed, **fields)

    def random(self) -> numpy.random.Generator:
        return numpy.random.default_rng([self.seed, 5])

    def ids(self, *shape: int) -> Numbers:
        return numpy.random.default_rng([self.seed, *shape]).integers(3, self.config.vocab_size, shape)

    @property
    def text(self) -> Numbers:
        return self.ids(2, TEXT)

    @property
    def front(self) -> Numbers:
        """The real tokens c, (virtual,)."""
        return self.ids(VIRTUAL)

    @property
    def decoded(self) -> Numbers:
        """What a decoder behind an encoder reads."""
        return self.ids(2, DECODED)

    def behind(self) -> Numbers:
        """C ∥ x."""
        return numpy.concatenate([numpy.broadcast_to(self.front, (2, VIRTUAL)), self.text], axis=1)

    def tolerance(self) -> float:
        """Of ‖given − expected‖ / ‖expected‖: see `strategies.ModelCase.tolerance`; one of the maps is `width` long here."""
        config = self.config
        width = config.num_attention_heads * config.head_dim
        keys = VIRTUAL + TEXT + DECODED
        length = 6 * config.hidden_size + width + config.intermediate_size + config.head_dim + keys
        stacks = 2 if self.kind == "encoder_decoder" else 1
        return EPSILON * stacks * config.num_layers * length


def says(case: Case, model: PeftModel, ids: Numbers, mask: Numbers | None = None, **inputs: Any) -> Numbers:
    """What the adapted model says at each position."""
    if case.kind == "encoder_decoder":
        inputs.setdefault("decoder_input_ids", case.decoded)
    output = model(input_ids=ids, attention_mask=mask, **inputs)
    return numpy.asarray(output.last_hidden_state if case.kind == "encoder" else output.logits)


def base_says(
    case: Case, ids: Numbers, mask: Numbers | None = None, decoded: Numbers | None = None
) -> Numbers:
    """What the base says without any adapter."""
    base, p, config = case.base, case.base.parameters, case.base.config
    mask = None if mask is None else mask.astype("float32")
    embeds, given = word_embeddings(base, ids), Given(input_ids=ids)
    if case.kind != "encoder_decoder":
        hidden = stack.forward(p, config, embeds, mask, None, given).hidden
        return numpy.asarray(hidden if case.kind == "encoder" else language_model.logits({}, base, hidden))
    encoded = stack.forward(
        stack.stack_parameters(p, "encoder"), config.stack("encoder"), embeds, mask, name="encoder"
    ).hidden
    read = case.decoded if decoded is None else decoded
    return numpy.asarray(language_model.logits({}, base, decode(case, read, None, encoded, mask, 0)[0]))


def decode(
    case: Case, ids: Numbers, past: Any, encoded: Numbers, encoder_mask: Numbers | None, length: int
) -> tuple[Numbers, Any]:
    """A decoder behind an encoder, on `ids` behind a cache of `length` positions."""
    base = case.base
    given = Given(past=length, encoded=encoded, encoder_mask=encoder_mask)
    parameters, own = stack.stack_parameters(base.parameters, "decoder"), base.config.stack("decoder")
    return stack.forward(parameters, own, word_embeddings(base, ids), None, past, given, "decoder")


def cache_of(case: Case, embeds: Numbers) -> Any:
    """The base's cache after one sequence of embeddings, (1, virtual, ·)."""
    base = case.base
    return stack.forward(base.parameters, base.config, embeds, None, None, Given()).past_key_values


def with_rows(model: PeftModel, rows: Numbers) -> PeftModel:
    model.load_trainable_parameters({EMBEDDING: rows})
    return model


# ---------------------------------------------------------------- real tokens as virtual ones


def prompt_of_real_tokens(case: Case) -> float:
    """T25: says(x | prompt = embed(c)) against base(c ∥ x); what the prompt is not put before is untouched."""
    rows = numpy.asarray(word_embeddings(case.base, case.front[None]))[0]
    if case.kind == "encoder_decoder":
        rows = numpy.concatenate([rows, rows[::-1]])  # whose second half is not used
    mask = numpy.ones((2, TEXT), int)
    mask[1, -2:] = 0
    model = with_rows(case.model("prompt"), rows)
    expected = base_says(
        case, case.behind(), numpy.concatenate([numpy.ones((2, VIRTUAL), int), mask], axis=1)
    )
    return relative_error(says(case, model, case.text, mask), expected)


def prefix_of_real_tokens(case: Case) -> float:
    """T26: says(x | prefix = the base's own cache of c) against base(c ∥ x)[n:]."""
    model = case.model("prefix")
    if case.kind != "encoder_decoder":
        past = cache_of(case, numpy.asarray(word_embeddings(case.base, case.front[None])))
        expected = base_says(case, case.behind())[:, VIRTUAL:]
        return relative_error(says(case, with_rows(model, prefix_encoder.flatten(past)), case.text), expected)
    # behind an encoder the cache is the decoder's, and depends on the text through cross-attention: one text
    text, front = case.text[:1], case.front[None]
    encoded = model(input_ids=text, decoder_input_ids=front).encoder_last_hidden_state
    past = decode(case, front, None, encoded, None, 0)[1]
    flat = numpy.zeros_like(model.trainable_parameters()[EMBEDDING])
    layers = model.config.num_layers or 0
    own = prefix_encoder.flatten(past)
    width = own.shape[1] // (2 * len(past))
    for layer in range(len(past)):  # HF's blocks 4·l mod 2·layers (PX-8)
        block = 4 * layer % (2 * layers) * width
        flat[:, block : block + 2 * width] = own[:, 2 * layer * width : 2 * (layer + 1) * width]
    decoded = case.decoded[:1]
    given = says(case, with_rows(model, flat), text, decoder_input_ids=decoded)
    expected = base_says(case, text, decoded=numpy.concatenate([front, decoded], axis=1))[:, VIRTUAL:]
    return relative_error(given, expected)


def compilation(case: Case) -> float:
    """T27: the cache of any soft prompt as a prefix, against the soft prompt itself."""
    prompt = case.model("prompt")
    flat = prefix_encoder.flatten(cache_of(case, numpy.asarray(prompt.get_prompt(1))))
    compiled = says(case, with_rows(case.model("prefix"), flat), case.text)
    return relative_error(compiled, says(case, prompt, case.text)[:, VIRTUAL:])


# ---------------------------------------------------------------- order, padding, pieces


def order(case: Case) -> float:
    """T5: the virtual tokens turned round by one, against those in order; at the last position that is no virtual token's."""
    first, turned = case.model(), case.model()
    parameters = turned.trainable_parameters()
    rows = parameters[EMBEDDING]
    if case.kind == "encoder_decoder" and case.method == "prompt":
        rows = numpy.concatenate([numpy.roll(rows[:VIRTUAL], 1, axis=0), rows[VIRTUAL:]])
    else:
        rows = numpy.roll(rows, 1, axis=0)
    turned.load_trainable_parameters({**parameters, EMBEDDING: rows})
    return relative_error(says(case, turned, case.text)[:, -TEXT:], says(case, first, case.text)[:, -TEXT:])


def padded(case: Case, side: str) -> tuple[Numbers, Numbers]:
    """The text with two tokens of padding on one side, and its mask."""
    pad = numpy.full((2, 2), case.config.pad_token_id)
    parts = [(pad, numpy.zeros_like(pad)), (case.text, numpy.ones_like(case.text))]
    ids, mask = zip(*(parts if side == "left" else parts[::-1]), strict=True)
    return numpy.concatenate(ids, axis=1), numpy.concatenate(mask, axis=1)


def _of_the_text(case: Case, spoken: Numbers, side: str) -> Numbers:
    """At the text's own positions: without virtual tokens and padding. Behind an encoder the decoder says it all."""
    if case.kind == "encoder_decoder":
        return spoken
    return spoken[:, -TEXT:] if side == "left" else spoken[:, spoken.shape[1] - TEXT - 2 : -2]


def padding(case: Case, side: str, **inputs: Any) -> float:
    """T22 and T23: says(x with padding, mask) against says(x, ones)."""
    model, (ids, mask) = case.model(), padded(case, side)
    alone = says(case, model, case.text, numpy.ones_like(case.text))
    alone = alone if case.kind == "encoder_decoder" else alone[:, -TEXT:]
    return relative_error(_of_the_text(case, says(case, model, ids, mask, **inputs), side), alone)


def right_padding(case: Case) -> float:
    """T22."""
    return padding(case, "right")


def left_padding(case: Case) -> float:
    """T23."""
    return padding(case, "left")


def counted_positions(case: Case) -> float:
    """T23 with position_ids = cumsum(mask) − 1, which a prefix takes."""
    _, mask = padded(case, "left")
    return padding(case, "left", position_ids=numpy.maximum(numpy.cumsum(mask, axis=1) - 1, 0))


def pieces(case: Case) -> float:
    """T32: the text fed a piece at a time behind the cache of what came before, against the whole."""
    model, random = case.model(), case.random()
    if case.kind == "encoder_decoder":
        whole = model(input_ids=case.text, decoder_input_ids=case.decoded)
        encoded, ids, cache, start = whole.encoder_last_hidden_state, case.decoded, None, 0
        if case.method != "prompt":
            cache, start = model.get_prompt(2), VIRTUAL
    else:
        whole, ids = model(input_ids=case.text, attention_mask=padded(case, "right")[1][:, :TEXT]), case.text
        encoded, cache, start = None, model.get_prompt(2), VIRTUAL
    spoken, base = [], case.base
    if case.kind != "encoder_decoder" and case.method == "prompt":
        decoded = stack.forward(base.parameters, base.config, numpy.asarray(cache), None, None, Given())
        spoken, cache = [language_model.logits({}, base, decoded.hidden)], decoded.past_key_values
    inner = sorted(random.choice(ids.shape[1] - 1, 2, replace=False).tolist())
    cuts = [0, *(cut + 1 for cut in inner), ids.shape[1]]
    for low, high in pairwise(cuts):
        if encoded is not None:
            hidden, cache = decode(case, ids[:, low:high], cache, encoded, None, start + low)
        else:
            mask = masks.extend_attention_mask(numpy.ones((2, high), int), VIRTUAL)
            given = Given(past=start + low)
            embeds = word_embeddings(base, ids[:, low:high])
            hidden, cache = stack.forward(base.parameters, base.config, embeds, mask, cache, given)
        spoken.append(language_model.logits({}, base, hidden))
    return relative_error(numpy.concatenate(spoken, axis=1), whole.logits)


# ---------------------------------------------------------------- slots with positions, and windows


def reversed_bias(case: Case) -> float:
    """T37: the slots of a prefix turned round, and with them the columns of the bias that are theirs."""
    first, turned = case.model("prefix"), case.model("prefix")
    rows = turned.trainable_parameters()[EMBEDDING][::-1]
    turned.load_trainable_parameters({EMBEDDING: rows})
    expected = says(case, first, case.text, numpy.ones_like(case.text))

    def with_columns(name: str) -> Any:
        def bias(*args: Any, **kwargs: Any) -> Any:
            value = definition(name)(*args, **kwargs)
            if name == "decoder.relative_bias" and value.shape[1] == value.shape[2]:
                return value  # the encoder's, which has no slots
            return numpy.concatenate([value[..., :VIRTUAL][..., ::-1], value[..., VIRTUAL:]], axis=-1)

        return bias

    with replaced({name: with_columns(name) for name in ("decoder.alibi", "decoder.relative_bias")}):
        given = says(case, turned, case.text, numpy.ones_like(case.text))
    return relative_error(given, expected)


def moved_by(case: Case, slot: int) -> Numbers:
    """How much each query's logits move when one slot of the prefix does, in all layers: (query,)."""
    first, moved = case.model("prefix"), case.model("prefix")
    rows = numpy.array(moved.trainable_parameters()[EMBEDDING])
    rows[slot] += 1.0 + case.random().random(rows.shape[1])
    moved.load_trainable_parameters({EMBEDDING: rows})
    difference = says(case, moved, case.text) - says(case, first, case.text)
    return numpy.abs(difference).max(axis=(0, 2))


# ---------------------------------------------------------------- where each holds, and by how much it fails elsewhere

DECODERS = [name for name in MODELS if Case(name, "", 0).kind == "decoder"]
ENCODERS = [name for name in MODELS if Case(name, "", 0).kind == "encoder"]
BEHIND = [name for name in MODELS if Case(name, "", 0).kind == "encoder_decoder"]
BIASED = ("bloom", "bloom, from the norm", "falcon, alibi", "t5", "t5, gated")
WINDOWED = ("mistral", "qwen2", "gemma2", "gemma3_text")
COUNTED = ("opt", "opt, narrow, norms after", "opt, plain", "bloom", "bloom, from the norm", "falcon, alibi")
"""Whose positions come from the mask."""


def margin(name: str) -> float:
    """By how much an identity that does not hold fails at least: norms after each sum leave less of a difference."""
    return 1e-4 if name in ENCODERS or name.startswith("bart") else 1e-2


def holds(check: Any, case: Case) -> None:
    assert check(case) <= case.tolerance()


def fails(check: Any, case: Case, by: float) -> None:
    assert check(case) > by > NOTICEABLE


SEEDS = pytest.mark.parametrize("seed", [0, 1])


@SEEDS
@pytest.mark.parametrize("name", MODELS)
def test_t25_a_prompt_of_real_tokens(name: str, seed: int) -> None:
    """Pre: none of the family: embeddings through the module, types 0, and in RoBERTa no padding within."""
    holds(prompt_of_real_tokens, Case(name, "prompt", seed))


@SEEDS
@pytest.mark.parametrize("name", [*DECODERS, *BEHIND])
def test_t26_a_prefix_of_real_tokens(name: str, seed: int) -> None:
    """Pre: causal, so that c does not see x. Windows and cut prefixes hide what no query could see."""
    holds(prefix_of_real_tokens, Case(name, "prefix", seed))


@SEEDS
@pytest.mark.parametrize("name", DECODERS)
def test_t27_compilation(name: str, seed: int) -> None:
    """Pre: causal; the prompt and the prefix in one stack."""
    holds(compilation, Case(name, "prefix", seed))


@SEEDS
@pytest.mark.parametrize("check", [prefix_of_real_tokens, compilation])
@pytest.mark.parametrize("name", ENCODERS)
def test_t26_and_t27_fail_where_virtual_tokens_see_the_text(name: str, check: Any, seed: int) -> None:
    """But for the first layer, whose keys and values are made of embeddings alone: with one layer both hold."""
    fails(check, Case(name, "prefix", seed), by=1e-3)
    holds(check, Case(name, "prefix", seed, layers=1))


@SEEDS
@pytest.mark.parametrize("method", ["prefix", "projected"])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in (*BIASED, *WINDOWED)])
def test_t05_the_slots_of_a_prefix_have_no_order(name: str, method: str, seed: int) -> None:
    """Pre: keys have no positions but those that are in them: a table's, or a rotation's."""
    holds(order, Case(name, method, seed))


@SEEDS
@pytest.mark.parametrize("name", [*BIASED, *WINDOWED])
def test_t05_fails_where_a_slot_has_a_place(name: str, seed: int) -> None:
    """ALiBi's slopes and T5's distances count the slots; windows let go of the first."""
    fails(order, Case(name, "prefix", seed), by=1e-2)


@SEEDS
@pytest.mark.parametrize("name", MODELS)
def test_t05_fails_for_a_prompt(name: str, seed: int) -> None:
    """Its rows are tokens, which have positions, of whatever kind, in every family."""
    fails(order, Case(name, "prompt", seed), by=margin(name))


@SEEDS
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_t22_right_padding(name: str, method: str, seed: int) -> None:
    """Pre: none."""
    holds(right_padding, Case(name, method, seed))


@SEEDS
@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("name", MODELS)
def test_t23_left_padding(name: str, method: str, seed: int) -> None:
    """It does nothing where positions come from the mask, or from ids (RoBERTa) or distances (T5) that a prefix does not move."""
    case = Case(name, method, seed)
    distances = method == "prefix" and name in ("roberta", "t5", "t5, gated")
    if name in COUNTED or distances:
        holds(left_padding, case)
    else:
        fails(left_padding, case, by=margin(name))


@SEEDS
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_t23_left_padding_with_counted_positions(name: str, seed: int) -> None:
    """Behind a prefix position_ids = cumsum(mask) − 1 make up for it.

    A window counts the padding nevertheless, and RoBERTa's position_ids are rows of its table, from pad_token_id + 1.
    """
    case = Case(name, "prefix", seed)
    if name in WINDOWED or name == "roberta":
        fails(counted_positions, case, by=1e-2)
    else:
        holds(counted_positions, case)


@SEEDS
def test_t23_left_padding_with_roberta_s_positions(seed: int) -> None:
    case = Case("roberta", "prefix", seed)
    _, mask = padded(case, "left")
    assert case.config.pad_token_id == 1
    rows = numpy.where(mask == 1, numpy.cumsum(mask, axis=1) + 1, 1)
    assert padding(case, "left", position_ids=rows) <= case.tolerance()


@SEEDS
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*DECODERS, *BEHIND])
def test_t32_a_piece_at_a_time(name: str, method: str, seed: int) -> None:
    """Pre: causal. A cut prefix counts whole: positions go on from n."""
    holds(pieces, Case(name, method, seed))


@SEEDS
@pytest.mark.parametrize("name", BIASED)
def test_t37_slots_with_their_columns(name: str, seed: int) -> None:
    """The bias is all that a slot's place does: turned round with it, a prefix says the same."""
    holds(reversed_bias, Case(name, "prefix", seed))


# ---------------------------------------------------------------- windows

WINDOW = 4


@SEEDS
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_t38_the_horizon_of_windows(layers: int, seed: int) -> None:
    """Query i, at position n + i, feels slot p as far as n + i − p ≤ layers · (window − 1), and not beyond, to the bit.

    A slot that the first query does not see, n − p > window − 1, is felt by nobody: slots do not see one another.
    """
    case = Case("mistral", "prefix", seed, layers=layers)
    for slot in range(VIRTUAL):
        moved = moved_by(case, slot)
        near = VIRTUAL + numpy.arange(TEXT) - slot <= layers * (WINDOW - 1)
        near &= VIRTUAL - slot <= WINDOW - 1
        assert (moved[~near] == 0).all()
        assert (moved[near] > 0).all()
    assert (moved_by(case, 0) == 0).all()  # n > window − 1


@SEEDS
@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_t38_a_layer_that_sees_everything_ends_the_horizon(name: str, seed: int) -> None:
    """Layers by turns: with the second, every query feels every slot; the first alone is a window."""
    for slot in range(VIRTUAL):
        near = VIRTUAL + numpy.arange(TEXT) - slot <= WINDOW - 1
        moved = moved_by(Case(name, "prefix", seed, layers=1), slot)
        assert (moved[~near] == 0).all()
        assert (moved[near] > 0).all()
        assert (moved_by(Case(name, "prefix", seed, layers=2), slot) > 0).all()


@SEEDS
@pytest.mark.parametrize("name", [name for name in DECODERS if name not in WINDOWED])
def test_t38_without_windows_every_query_feels_every_slot(name: str, seed: int) -> None:
    for slot in range(VIRTUAL):
        assert (moved_by(Case(name, "prefix", seed, layers=1), slot) > 0).all()


# ---------------------------------------------------------------- what is dead behind an encoder


@SEEDS
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_t35_blocks_of_a_prefix_behind_an_encoder(family: str, layers: int, seed: int) -> None:
    """Layer l reads blocks 4·l and 4·l + 1 mod 2·layers; of an even number of layers the other blocks are dead."""
    case = Case(family, "prefix", seed, layers=layers)
    model = case.model()
    _, gradients = model.value_and_grad(input_ids=case.text, labels=case.decoded)
    blocks = numpy.abs(gradients[EMBEDDING].reshape(VIRTUAL, 2 * layers, -1)).max(axis=(0, 2))
    used = {4 * layer % (2 * layers) + part for layer in range(layers) for part in (0, 1)}
    assert {block for block in range(2 * layers) if blocks[block] > 0} == used
    assert len(used) == (2 * layers if layers % 2 else layers)
    past = model.get_prompt(1)
    for layer in range(layers // 2 if layers % 2 == 0 else 0):  # these two share their prefix
        for own, other in zip(past[layer], past[layer + layers // 2], strict=True):
            numpy.testing.assert_array_equal(own, other)
    encoded = [
        numpy.asarray(m(input_ids=case.text, decoder_input_ids=case.decoded).encoder_last_hidden_state)
        for m in (model, with_rows(case.model(), 2 * model.trainable_parameters()[EMBEDDING]))
    ]
    numpy.testing.assert_array_equal(encoded[0], encoded[1])


@SEEDS
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_t36_the_second_half_of_a_prompt_behind_an_encoder(family: str, seed: int) -> None:
    """Stored and trained, with a gradient of zero: only the first n rows stand before the encoder's text."""
    model = Case(family, "prompt", seed).model()
    case = Case(family, "prompt", seed)
    rows = model.trainable_parameters()[EMBEDDING]
    assert rows.shape == (2 * VIRTUAL, 15)
    loss, gradients = model.value_and_grad(input_ids=case.text, labels=case.decoded)
    assert (gradients[EMBEDDING][VIRTUAL:] == 0).all()
    assert (numpy.abs(gradients[EMBEDDING][:VIRTUAL]).max(axis=1) > 0).all()
    other = numpy.concatenate([rows[:VIRTUAL], 3 * rows[VIRTUAL:]])
    assert with_rows(case.model(), other)(input_ids=case.text, labels=case.decoded).loss == loss
