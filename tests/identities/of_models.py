"""Identities of whole models: T5, and T19 to T38. What they say stands in `table.py`.

Notation as in `of_attention.py`; c real tokens, x the text behind them, n virtual tokens, m tokens; base(·) what the frozen base
says; W the flat prefix, a row for each slot. T25 to T27 need no other implementation: each compares refpeft with itself on inputs
that must mean the same.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy
import pytest
from identities.model_cases import ModelCase, as_it_runs, with_rows

from refpeft import attention, checkpoint, language_model, masks, peft_model, positions
from refpeft.peft_model import PeftModel
from refpeft.prefix_encoder import EMBEDDING, FIRST_BIAS, FIRST_WEIGHT, SECOND_BIAS, SECOND_WEIGHT
from refpeft.steps import recording, replaced
from refpeft.transformer import stack
from refpeft.transformer.stack import Given
from refpeft.transformer.weights import TOKENS

Numbers = Any
NEW = 3
"""Tokens that are generated."""

# ---------------------------------------------------------------- order, causality, batches


def slots_may_be_permuted(case: ModelCase) -> None:
    """T5: the virtual tokens turned round by one, at the last positions, which are no virtual token's."""
    first, turned = case.model(), case.model()
    rows, n = turned.trainable_parameters()[EMBEDDING], case.virtual
    with_rows(turned, numpy.concatenate([numpy.roll(rows[:n], 1, axis=0), rows[n:]]))
    spoken = case.says(turned), case.says(first)
    case.assert_near(*(x[:, -case.tokens :] for x in spoken))


def causality(case: ModelCase) -> None:
    """T19: another token j, and another virtual token."""
    model, random, behind = case.model(), case.random(), case.kind == "encoder_decoder"
    ids = case.decoded if behind else case.text
    j = int(random.integers(1, ids.shape[1]))
    other = ids.copy()
    other[:, j] = 3 + (ids[:, j] - 2) % (case.config.vocab_size - 3)
    given = {"input_ids": case.text, "attention_mask": case.mask}
    named = "decoder_input_ids" if behind else "input_ids"
    outputs = [model(**{**given, named: x}) for x in (ids, other)]
    said = [x.last_hidden_state if case.kind == "encoder" else x.logits for x in outputs]
    before = said[0].shape[1] - ids.shape[1] + j
    numpy.testing.assert_array_equal(said[1][:, :before], said[0][:, :before])
    assert (numpy.abs(said[1] - said[0])[:, before].max(axis=-1) > 0).all()  # the token itself
    for pairs in zip(*(output.past_key_values for output in outputs), strict=True):
        for states, others in zip(*pairs, strict=True):
            n = states.shape[2] - ids.shape[1]  # what comes before the text
            numpy.testing.assert_array_equal(states[:, :, :n], others[:, :, :n])
    rows = numpy.array(model.trainable_parameters()[EMBEDDING])
    rows[case.virtual - 1] += 1.0 + random.random(rows.shape[1])
    moved = case.says(with_rows(model, rows))
    assert (numpy.abs(moved - said[0])[:, -ids.shape[1]].max(axis=-1) > 0).all()  # the first token too


def rows_apart(case: ModelCase) -> None:
    """T21."""
    model, whole = case.model(), case.says(case.model())
    for b in range(case.batch):
        mask = None if case.mask is None else case.mask[b : b + 1]
        inputs = {"decoder_input_ids": case.decoded[b : b + 1]} if case.kind == "encoder_decoder" else {}
        case.assert_near(case.says(model, case.text[b : b + 1], mask, **inputs)[0], whole[b])


# ---------------------------------------------------------------- padding and masks


def padded(case: ModelCase, side: str) -> tuple[Numbers, Numbers]:
    """The text, unmasked, with two tokens of padding on one side, and its mask."""
    pad = case.config.pad_token_id
    filler = numpy.full((case.batch, 2), 0 if pad is None else pad)
    parts = [(filler, numpy.zeros_like(filler)), (case.text, numpy.ones_like(case.text))]
    ids, mask = zip(*(parts if side == "left" else parts[::-1]), strict=True)
    return numpy.concatenate(ids, axis=1), numpy.concatenate(mask, axis=1)


def _padding(case: ModelCase, side: str, mask: Numbers, **inputs: Any) -> None:
    """With the padding, and without; at the text's own positions, unless a decoder behind an encoder says it all."""
    model, (ids, _) = case.model(), padded(case, side)
    alone, beside = (
        case.says(model, x, own, **more)
        for x, own, more in ((case.text, numpy.ones_like(case.text), {}), (ids, mask, inputs))
    )
    if case.kind != "encoder_decoder":
        alone = alone[:, -case.tokens :]
        end = beside.shape[1] - (2 if side == "right" else 0)
        beside = beside[:, end - case.tokens : end]
    case.assert_near(beside, alone)


def right_padding(case: ModelCase, *, mask_at_the_end: bool = True) -> None:
    """T22."""
    mask = padded(case, "right")[1]
    _padding(case, "right", mask if mask_at_the_end else mask[:, ::-1].copy())


def left_padding(case: ModelCase) -> None:
    """T23."""
    _padding(case, "left", padded(case, "left")[1])


def left_padding_counted(case: ModelCase) -> None:
    """T23 with the positions that the mask counts, given by the caller; of RoBERTa as rows of its table."""
    mask = padded(case, "left")[1]
    positions = numpy.maximum(numpy.cumsum(mask, axis=1) - 1, 0)
    if case.config.position_rule == "tokens":
        positions = numpy.where(mask == 1, positions + 1, 0) + int(case.config.pad_token_id or 0)
    _padding(case, "left", mask, position_ids=positions)


def given_positions_are_dropped(case: ModelCase) -> None:
    """T23 of a prompt: positions from the caller change nothing, with a warning."""
    ids, mask = padded(case, "left")
    model, expected = case.model(), case.says(case.model(), ids, mask)
    positions = numpy.maximum(numpy.cumsum(mask, axis=1) - 1, 0)
    with pytest.warns(UserWarning, match="Position ids are not supported"):
        given = case.says(model, ids, mask, position_ids=positions)
    numpy.testing.assert_array_equal(given, expected)


def masks_that_mean_the_same(case: ModelCase, *, ones: bool = True) -> None:
    """T24: no mask, and ones. `ones`: else the last token of each text is hidden."""
    model, mask = case.model(), numpy.ones(case.text.shape, bool)
    mask[:, 0] = ones
    case.assert_near(case.says(model, case.text, mask), case.says(model, case.text))


def hidden_is_deleted(case: ModelCase) -> None:
    """T24: a 0 for token j, and the text without it, the others at their positions."""
    model, j = case.model(), int(case.random().integers(1, case.tokens - 1))
    kept, mask = numpy.delete(numpy.arange(case.tokens), j), numpy.ones(case.text.shape, bool)
    mask[:, j] = False
    positions = numpy.broadcast_to(kept, (case.batch, case.tokens - 1))
    if case.config.position_rule == "tokens":
        positions = positions + int(case.config.pad_token_id or 0) + 1
    counted = case.config.position_rule == "mask" or case.config.positions == "alibi"  # by the mask
    counted |= case.kind == "encoder_decoder"  # by distances, or the caller gives none
    inputs = {} if counted else {"position_ids": positions}
    deleted = case.says(model, case.text[:, kept], numpy.ones((case.batch, case.tokens - 1), bool), **inputs)
    whole = case.says(model, case.text, mask)
    if case.kind != "encoder_decoder":
        whole = numpy.delete(whole, whole.shape[1] - case.tokens + j, axis=1)
    case.assert_near(whole, deleted)


# ---------------------------------------------------------------- real tokens as virtual ones


def prompt_of_real_tokens(case: ModelCase, *, scaled: bool = True) -> None:
    """T25, all n + m rows. `scaled`: as the module that scales embeddings hands them over; here by NumPy alone."""
    rows = numpy.asarray(case.base.parameters[TOKENS])[case.front]
    rows = rows * case.config.embedding_scale if scaled else rows
    if case.kind == "encoder_decoder":
        rows = numpy.concatenate([rows, rows[::-1]])  # whose second half is not used
    model = with_rows(case.model("prompt"), rows)
    case.assert_near(case.says(model), case.base_says(*case.behind()))


def prefix_of_real_tokens(case: ModelCase) -> None:
    """T26. Behind an encoder the cache is the decoder's, and depends on the text through cross-attention: one text."""
    model, n = case.model("prefix"), case.virtual
    if case.kind != "encoder_decoder":
        flat = case.flat(case.cache_of(case.embed(case.front[None])))
        case.assert_near(case.says(with_rows(model, flat)), case.base_says(*case.behind())[:, n:])
        return
    flat, text, mask = _decoder_cache(case, [case.front])
    decoded = case.decoded[:1]
    given = case.says(with_rows(model, flat), text, mask, decoder_input_ids=decoded)
    read = numpy.concatenate([case.front[None], decoded], axis=1)
    case.assert_near(given, case.base_says(text, mask, decoded=read)[:, n:])


def _decoder_cache(case: ModelCase, pieces: list[Numbers]) -> tuple[Numbers, Numbers, Numbers | None]:
    """A prefix of what a decoder behind an encoder keeps of real tokens, a piece after another; the text, and its mask."""
    text, mask = case.text[:1], None if case.mask is None else case.mask[:1]
    seen = None if mask is None else mask.astype("float32")
    encoded, past, length = case.encode(text, seen), None, 0
    for piece in pieces:
        _, past = case.decode(piece[None], past, encoded, seen, length)
        length += len(piece)
    return case.flat(past), text, mask


def compilation(case: ModelCase) -> None:
    """T27."""
    prompt = case.model("prompt")
    flat = case.flat(case.cache_of(numpy.asarray(prompt.get_prompt(1))))
    compiled = case.says(with_rows(case.model("prefix"), flat))
    case.assert_near(compiled, case.says(prompt)[:, case.virtual :])


def prefixes_join(case: ModelCase, *, in_sight: bool = True) -> None:
    """T33: W = [W₁ ; W₂], the caches of c₁, and of c₂ with c₁ in sight (or not)."""
    first, second = case.front[: case.virtual // 2], case.front[case.virtual // 2 :]
    model, n = case.model("prefix"), case.virtual
    if case.kind == "encoder_decoder":
        flat, text, mask = _decoder_cache(case, [first, second])
        if not in_sight:
            flat = numpy.concatenate([_decoder_cache(case, [part])[0] for part in (first, second)])
        decoded = case.decoded[:1]
        read = numpy.concatenate([case.front[None], decoded], axis=1)
        given = case.says(with_rows(model, flat), text, mask, decoder_input_ids=decoded)
        case.assert_near(given, case.base_says(text, mask, decoded=read)[:, n:])
        return
    before = case.cache_of(case.embed(first[None]))
    after = case.cache_of(case.embed(second[None]), before if in_sight else None)
    joined = case.flat(after) if in_sight else numpy.concatenate([case.flat(before), case.flat(after)])
    numpy.testing.assert_array_equal(joined[: len(first)], case.flat(before))
    case.assert_near(case.says(with_rows(model, joined)), case.base_says(*case.behind())[:, n:])


# ---------------------------------------------------------------- the projection


def _folded(p: dict[str, Numbers], activation: Any = numpy.tanh) -> Numbers:
    hidden = activation(p[EMBEDDING] @ p[FIRST_WEIGHT].T + p[FIRST_BIAS])
    return numpy.asarray(hidden @ p[SECOND_WEIGHT].T + p[SECOND_BIAS])


def fold(case: ModelCase, *, activation: Any = numpy.tanh) -> None:
    """T28: the flat prefix, what an adapter's file holds, and what is said after saving and loading, to the bit.

    Where a head is trained too, it has moved from the base model's, and is saved and loaded as well. W₀ is square, which is W₀ᵀ's
    shape too.
    """
    model = case.with_loss("projected", encoder_hidden_size=case.model("prefix").config.token_dim)
    p = model.trainable_parameters()
    heads = {name: 2 * value for name, value in p.items() if not name.startswith("prompt_encoder.")}
    model.load_trainable_parameters({**p, **heads})
    saved, folded = checkpoint.prompt_embeddings(p, model.config), _folded(p, activation)
    case.assert_near(saved, folded)
    expected, flat = case.says(model), case.with_loss("prefix")
    flat.load_trainable_parameters({EMBEDDING: folded, **heads})
    case.assert_near(case.says(flat), expected)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        loaded = PeftModel.from_pretrained(case.base, directory)
    numpy.testing.assert_array_equal(loaded.parameters()[EMBEDDING], saved)
    numpy.testing.assert_array_equal(case.says(loaded), expected)


def symmetries_of_the_projection(case: ModelCase, *, sign: float = -1.0, outer: float = -1.0) -> None:
    """T29: hidden units in another order; and W₀, b₀ times `sign` with W₂ times `outer`."""
    model, turned, negated = (case.model("projected") for _ in range(3))
    p, expected = model.trainable_parameters(), case.says(model)
    order = case.random().permutation(len(p[FIRST_BIAS]))
    other = {FIRST_WEIGHT: p[FIRST_WEIGHT][order], FIRST_BIAS: p[FIRST_BIAS][order]}
    turned.load_trainable_parameters({**p, **other, SECOND_WEIGHT: p[SECOND_WEIGHT][:, order]})
    case.assert_near(case.says(turned), expected)
    other = {FIRST_WEIGHT: sign * p[FIRST_WEIGHT], FIRST_BIAS: sign * p[FIRST_BIAS]}
    negated.load_trainable_parameters({**p, **other, SECOND_WEIGHT: outer * p[SECOND_WEIGHT]})
    case.assert_near(case.says(negated), expected)


def zeros_are_a_prefix(case: ModelCase, *, seen: bool = True) -> None:
    """T30. `seen`: else the slots are hidden from every query, and zeros are no different from the base after all."""
    case = replace(case, mask=None)  # so that every query sees something
    model = case.model("projected", init_weights="zero")
    pairs = model.get_prompt(case.batch)
    assert all((numpy.asarray(states) == 0).all() for pair in pairs for states in pair)
    said = case.says(model) if seen else _unseen(case, model)
    if seen:
        flat = case.model("prefix")
        case.assert_near(case.says(with_rows(flat, 0 * flat.trainable_parameters()[EMBEDDING])), said)
    case.assert_far(said, _unseen(case, case.model("prefix")))


def _unseen(case: ModelCase, model: PeftModel) -> Numbers:
    """What is said if no query sees a slot: the base, at the positions that the text has behind a prefix."""

    def hiding(step: Any) -> Any:
        own = as_it_runs(step)

        def visible(mask: Any, batch: int, queries: int, *rest: Any, **more: Any) -> Any:
            seen = own(mask, batch, queries, *rest, **more)
            return seen & (numpy.arange(seen.shape[-1]) >= seen.shape[-1] - queries)

        return visible

    steps = {
        "decoder.visible": masks.causal_visibility,
        "decoder.sliding_visible": masks.sliding_visibility,
        "encoder.visible": masks.bidirectional_visibility,
    }
    with replaced({name: hiding(step) for name, step in steps.items()}):
        return case.says(model)


def no_virtual_tokens(case: ModelCase, *, virtual: int = 0) -> None:
    """T31: a table of no rows (a configuration asks for at least one; the functions do not), and the base, to the bit."""
    model = case.model()
    parameters = model.trainable_parameters()
    first = {**parameters, EMBEDDING: parameters[EMBEDDING][:virtual]}
    config = copy.copy(model.config)
    object.__setattr__(config, "num_virtual_tokens", virtual)
    mask = None if case.mask is None else case.mask.astype("float32")
    inputs = {"decoder_input_ids": case.decoded} if case.kind == "encoder_decoder" else {}
    output = peft_model.forward(first, case.base, config, case.text, mask, **inputs)
    said = output.last_hidden_state if case.kind == "encoder" else output.logits
    said = numpy.asarray(said)
    if case.kind != "encoder_decoder":
        said = said[:, -case.tokens :]
    numpy.testing.assert_array_equal(said, case.base_says(case.text, case.mask))


# ---------------------------------------------------------------- pieces, layers


def pieces(case: ModelCase) -> None:
    """T32: the text a piece at a time behind the cache of what came before, and that cache; a second call; the given cache."""
    model, random, behind = case.model(), case.random(), case.kind == "encoder_decoder"
    ids = case.decoded if behind else case.text
    inputs = {"decoder_input_ids": ids} if behind else {}
    whole, expected = model(input_ids=case.text, attention_mask=case.mask, **inputs), case.says(model)
    numpy.testing.assert_array_equal(
        whole.last_hidden_state if whole.logits is None else whole.logits, expected
    )
    spoken, cache, start = _before_the_text(case, model)
    given, kept = cache, [numpy.array(states) for pair in cache or () for states in pair]
    inner = sorted(random.choice(ids.shape[1] - 1, min(2, ids.shape[1] - 1), replace=False).tolist())
    for low, high in pairwise([0, *(cut + 1 for cut in inner), ids.shape[1]]):
        if behind:
            encoded, mask = whole.encoder_last_hidden_state, _whole_mask(case, case.method == "prompt")
            hidden, cache = case.decode(ids[:, low:high], cache, numpy.asarray(encoded), mask, start + low)
        else:
            mask = _whole_mask(case)
            seen = None if mask is None else mask[:, : case.virtual + high]
            where = Given(past=start + low, input_ids=ids[:, low:high])
            hidden, cache = stack.forward(
                case.base.parameters, case.config, case.embed(ids[:, low:high]), seen, cache, where
            )
        spoken.append(_spoken(case, hidden))
    case.assert_near(numpy.concatenate(spoken, axis=1), expected)
    for pairs in zip(cache, whole.past_key_values, strict=True):
        for states, others in zip(*pairs, strict=True):
            case.assert_near(states, others)
    for states, before in zip((x for pair in given or () for x in pair), kept, strict=True):
        numpy.testing.assert_array_equal(states, before)


def _whole_mask(case: ModelCase, virtual: bool = True) -> Numbers | None:
    """The mask over virtual tokens and text."""
    if case.mask is None:
        return None
    return masks.extend_attention_mask(case.mask, case.virtual if virtual else 0)


def _before_the_text(case: ModelCase, model: PeftModel) -> tuple[list[Numbers], Any, int]:
    """What is said at the virtual tokens, the cache behind them, and how many positions it holds."""
    prompt, n = model.get_prompt(case.batch), case.virtual
    if case.method != "prompt":
        return [], prompt, n
    if case.kind == "encoder_decoder":
        return [], None, 0
    mask = _whole_mask(case)
    seen = None if mask is None else mask[:, :n]
    decoded = stack.forward(case.base.parameters, case.config, numpy.asarray(prompt), seen, None, Given())
    return [_spoken(case, decoded.hidden)], decoded.past_key_values, n


def generated_with_a_cache(case: ModelCase) -> None:
    """T32: tokens chosen greedily behind the cache, and the logits of each, are those of a forward pass over all before it."""
    model, behind, ids = case.model(), case.kind == "encoder_decoder", case.text
    sequences, logits_of = _generated(model, ids)
    for step, logits in enumerate(numpy.swapaxes(logits_of, 0, 1), start=sequences.shape[1] - NEW):
        before = sequences[:, :step]
        inputs = {"decoder_input_ids": before} if behind else {}
        expected = case.says(model, ids if behind else before, **inputs)[:, -1]
        case.assert_near(logits, expected)
        numpy.testing.assert_array_equal(sequences[:, step], expected.argmax(axis=-1))


def left_padding_in_generation(case: ModelCase) -> None:
    """T23: in `generate`, where positions come from the mask."""
    model, (ids, mask) = case.model(), padded(case, "left")
    alone, beside = _generated(model, case.text), _generated(model, ids, attention_mask=mask)
    numpy.testing.assert_array_equal(beside[0][:, -NEW:], alone[0][:, -NEW:])
    case.assert_near(beside[1], alone[1])


def _generated(model: PeftModel, ids: Numbers, **options: Any) -> tuple[Numbers, Numbers]:
    """What is written greedily, and the logits of each new token: (batch, new, vocab)."""
    options |= {"eos_token_id": None, "forced_bos_token_id": None, "forced_eos_token_id": None}
    output: Any = model.generate(ids, max_new_tokens=NEW, return_dict_in_generate=True, **options)
    return numpy.asarray(output.sequences), numpy.asarray(output.logits)


def _spoken(case: ModelCase, hidden: Any) -> Numbers:
    if case.kind == "encoder":
        return numpy.asarray(hidden)
    return numpy.asarray(language_model.logits({}, case.base, hidden))


def layers_are_local(case: ModelCase, *, of_layer: int = -1) -> None:
    """T34: block (l, ·) of W changed: what comes out of layers before l stays, to the bit; that of l does not.

    `of_layer`: whose output is said to stay, counted from l.
    """
    model, random = case.model("prefix"), case.random()
    layers = model.config.num_layers or 1
    rows = numpy.array(model.trainable_parameters()[EMBEDDING])
    first = _layer_outputs(case, model)
    for block in range(2 * layers):
        users = [layer for layer in range(case.layers) if block in case.blocks(layer, layers)]
        changed = rows.reshape(case.virtual, 2 * layers, -1).copy()
        changed[:, block] += 1.0 + random.random(changed[:, block].shape)
        second = _layer_outputs(case, with_rows(case.model("prefix"), changed.reshape(rows.shape)))
        own = min(users, default=case.layers)
        for layer in range(min(own + of_layer + 1, case.layers)):
            numpy.testing.assert_array_equal(second[layer], first[layer])
        if users:
            assert (second[own] != first[own]).any()


def _layer_outputs(case: ModelCase, model: PeftModel) -> list[Numbers]:
    name = "encoder" if case.kind == "encoder" else "decoder"
    with recording() as stages:
        case.says(model)
    return [numpy.asarray(stages[f"{name}.layers.{layer}.output"]) for layer in range(case.layers)]


def blind_directions(case: ModelCase, *, across: bool = True) -> None:
    """T34: the last layer's keys moved at right angles to every query change nothing (or along one: something).

    One text of one token, so that there is such a direction: head_dim > group.
    """
    case = replace(case, text=case.text[:1, :1], mask=None)
    model, queries, own = case.model("prefix"), list[Numbers](), as_it_runs(attention.scores)

    def scores(query: Any, keys: Any, *rest: Any, **options: Any) -> Any:
        if keys.shape[2] > query.shape[2]:  # there is a prefix
            queries.append(query)
        return own(query, keys, *rest, **options)

    inputs = {"decoder_input_ids": case.decoded[:1, :1]} if case.kind == "encoder_decoder" else {}
    with replaced({"attention.scores": scores}):
        expected = case.says(model, case.text, **inputs)
    layers = model.config.num_layers or 1
    rows = numpy.array(model.trainable_parameters()[EMBEDDING])
    kv_heads = model.config.num_attention_heads or 1
    heads = queries[-1][0, :, 0].reshape(kv_heads, -1, queries[-1].shape[-1])  # (kv_heads, group, head_dim)
    block = case.blocks(case.layers - 1, layers)[0]
    moved = rows.reshape(case.virtual, 2 * layers, kv_heads, -1)
    for head, group in enumerate(heads):
        basis = numpy.linalg.qr(group.T, mode="complete")[0]
        moved[:, block, head] += 3.0 * (basis[:, -1] if across else group[0])
    given = case.says(with_rows(model, moved.reshape(rows.shape)), case.text, **inputs)
    case.assert_near(given, expected)


# ---------------------------------------------------------------- dead blocks behind an encoder, biases, windows


def dead_blocks(case: ModelCase) -> None:
    """T35: layer l reads blocks 4·l and 4·l + 1 mod 2·layers; the others have no gradient; the encoder sees no prefix."""
    model = case.with_loss("prefix")
    layers = model.config.num_layers or 1
    _, gradients = model.value_and_grad(**case.question(model))
    blocks = numpy.abs(gradients[EMBEDDING].reshape(case.virtual, 2 * layers, -1)).max(axis=(0, 2))
    used = {4 * layer % (2 * layers) + part for layer in range(layers) for part in (0, 1)}
    assert {block for block in range(2 * layers) if blocks[block] > 0} == used
    past = model.get_prompt(1)
    for layer in range(layers // 2 if layers % 2 == 0 else 0):  # these two share their prefix
        for own, other in zip(past[layer], past[layer + layers // 2], strict=True):
            numpy.testing.assert_array_equal(own, other)
    other_model = with_rows(case.with_loss("prefix"), 2 * model.trainable_parameters()[EMBEDDING])
    inputs = {"input_ids": case.text, "attention_mask": case.mask, "decoder_input_ids": case.decoded}
    encoded = [numpy.asarray(m(**inputs).encoder_last_hidden_state) for m in (model, other_model)]
    numpy.testing.assert_array_equal(encoded[0], encoded[1])


def second_half_of_a_prompt(case: ModelCase) -> None:
    """T36: rows n … 2n − 1 are stored and trained, with a gradient of zero and without effect."""
    model, n = case.with_loss("prompt"), case.virtual
    question, rows = case.question(model), model.trainable_parameters()[EMBEDDING]
    loss, gradients = model.value_and_grad(**question)
    half = len(rows) // 2
    assert (gradients[EMBEDDING][half:] == 0).all()
    assert (numpy.abs(gradients[EMBEDDING][:half]).max(axis=1) > 0).all()
    assert rows.shape == (2 * n, case.config.hidden_size)
    other = with_rows(case.with_loss("prompt"), numpy.concatenate([rows[:n], 3 * rows[n:]]))
    assert other(**question).loss == loss


def slots_with_their_columns(case: ModelCase, *, columns: bool = True) -> None:
    """T37: the slots of a prefix turned round, and with them the columns of the bias that are theirs."""
    first, turned, n = case.model("prefix"), case.model("prefix"), case.virtual
    with_rows(turned, turned.trainable_parameters()[EMBEDDING][::-1])

    def turning(step: Any) -> Any:
        own = as_it_runs(step)

        def bias(*args: Any, **kwargs: Any) -> Any:
            value = own(*args, **kwargs)
            if value.shape[1] == value.shape[2]:
                return value  # that of T5's encoder, which has no slots
            return numpy.concatenate([value[..., :n][..., ::-1], value[..., n:]], axis=-1)

        return bias

    steps = {"decoder.alibi": positions.alibi, "decoder.relative_bias": positions.relative_bias}
    expected = case.says(first, mask=case.ones())
    with replaced({name: turning(step) for name, step in steps.items()} if columns else {}):
        case.assert_near(case.says(turned, mask=case.ones()), expected)


def moved_by(case: ModelCase, slot: int) -> Numbers:
    """How much what each query says moves when one slot of the prefix does, in all layers: (query,)."""
    first, moved = case.model("prefix"), case.model("prefix")
    rows = numpy.array(moved.trainable_parameters()[EMBEDDING])
    rows[slot] += 1.0 + case.random().random(rows.shape[1])
    difference = case.says(with_rows(moved, rows), case.text) - case.says(first, case.text)
    return numpy.asarray(numpy.abs(difference).max(axis=(0, 2)))


def horizon_of_windows(case: ModelCase, *, window: int | None = None) -> None:
    """T38: query i, at position n + i, feels slot p as far as n + i − p ≤ Σ (window − 1), and not beyond, to the bit.

    A slot that the first query does not see, n − p > window − 1, is felt by nobody, for slots do not see one another: whatever the
    layers. A layer without a window ends the horizon. `window`: said of layers that have none.
    """
    windows = [case.config.window(layer) or window for layer in range(case.config.num_layers)]
    reaches = [case.virtual + case.tokens if own is None else own - 1 for own in windows]
    reach, direct = sum(reaches), max(reaches)
    for slot in range(case.virtual):
        moved, distance = moved_by(case, slot), case.virtual + numpy.arange(case.tokens) - slot
        near = (distance <= reach) & (case.virtual - slot <= direct)
        assert (moved[~near] == 0).all()
        assert (moved[near] > 0).all()
