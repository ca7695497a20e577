"""A whole model of any family with a prompt or a prefix, inputs for it, and real tokens to put before them.

"What it says" is the family's: logits of decoders, the last hidden states of encoders, the decoder's logits of encoder-decoders.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import MODELS, relative_error, tiny_adapter, tiny_base, tiny_model

from refpeft import language_model, prefix_encoder
from refpeft.peft_model import PeftModel
from refpeft.prefix_encoder import EMBEDDING
from refpeft.transformer import stack
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.stack import Given
from refpeft.transformer.weights import BaseModel, word_embeddings

Numbers = NDArray[Any]

DRAWN = "drawn sizes"
"""A GPT-2 whose sizes are all drawn independently."""
EPSILON = float(numpy.finfo(numpy.float64).eps)
NOTICEABLE = 1e-6
"""What is said to differ, differs by more than this, relatively: ten digits above rounding."""
VIRTUAL, TEXT, DECODED = 4, 7, 6
TASKS = {"decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION", "encoder_decoder": "SEQ_2_SEQ_LM"}
WITH_LOSS = {**TASKS, "encoder": "TOKEN_CLS"}


@dataclass(frozen=True)
class ModelCase:
    """One base model, one method, and inputs."""

    base: BaseModel
    method: str
    """A key of `support.METHODS`."""
    text: Numbers  # (batch, tokens)
    mask: Numbers | None
    seed: int
    virtual: int = VIRTUAL
    slack: float = 1.0
    """By what tolerances are multiplied: negative controls fail by a margin."""

    @property
    def config(self) -> ModelConfig:
        return self.base.config

    @property
    def kind(self) -> str:
        return self.config.kind

    @property
    def layers(self) -> int:
        """How many have a prefix."""
        return self.config.stack("decoder").num_layers

    @property
    def batch(self) -> int:
        return len(self.text)

    @property
    def tokens(self) -> int:
        return int(self.text.shape[1])

    @cached_property
    def front(self) -> Numbers:
        """The real tokens c, (virtual,)."""
        return self.ids(self.virtual)

    @cached_property
    def decoded(self) -> Numbers:
        """What a decoder behind an encoder reads."""
        return self.ids(self.batch, DECODED)

    def random(self) -> numpy.random.Generator:
        return numpy.random.default_rng([self.seed, 5])

    def ids(self, *shape: int) -> Numbers:
        """Real tokens, none of which is a special one."""
        return numpy.random.default_rng([self.seed, *shape]).integers(3, self.config.vocab_size, shape)

    def ones(self) -> Numbers:
        return numpy.ones_like(self.text) if self.mask is None else self.mask

    def unmasked(self) -> ModelCase:
        return replace(self, mask=None)

    def behind(self, front: Numbers | None = None) -> tuple[Numbers, Numbers | None]:
        """C ∥ x, and the mask over both."""
        before = numpy.broadcast_to(self.front if front is None else front, (self.batch, self.virtual))
        mask = None if self.mask is None else numpy.concatenate([numpy.ones_like(before), self.mask], axis=1)
        return numpy.concatenate([before, self.text], axis=1), mask

    # ---------------------------------------------------------------- the adapted model

    def model(self, method: str = "", task: str = "", **fields: Any) -> PeftModel:
        """A new adapter, of the case's own method if none is named."""
        fields = {"num_virtual_tokens": self.virtual, **fields}
        return tiny_adapter(
            self.base, method or self.method, task or TASKS[self.kind], self.seed % 2**31, **fields
        )

    def with_loss(self, method: str = "", **fields: Any) -> PeftModel:
        """The same for a task that has a loss."""
        return self.model(method, WITH_LOSS[self.kind], **fields)

    def says(self, model: PeftModel, ids: Any = None, mask: Any = None, **inputs: Any) -> Numbers:
        """What the adapted model says at each position; of the case's own text and mask, unless other ids are given."""
        if ids is None:
            ids, mask = self.text, self.mask if mask is None else mask
        if self.kind == "encoder_decoder":
            inputs.setdefault("decoder_input_ids", self.decoded[: len(ids)])
        output = model(input_ids=ids, attention_mask=mask, **inputs)
        return numpy.asarray(output.last_hidden_state if output.logits is None else output.logits)

    def question(self, model: PeftModel) -> dict[str, Any]:
        """Inputs and labels for a loss; some are −100, in the last row at least one, and not equally many in each row."""
        random, prompt = self.random(), self.virtual if self.method == "prompt" else 0
        classes, shape = self.config.vocab_size, self.text.shape
        if self.kind == "encoder":
            classes, shape = self.config.num_labels, (self.batch, self.tokens + prompt)
        elif self.kind == "encoder_decoder":
            shape = self.decoded.shape
        labels, hidden = random.integers(0, classes, shape), random.random(shape) < 0.3
        hidden[0], hidden[-1, -2], hidden[:, -1] = False, True, False
        labels = numpy.where(hidden, -100, labels)
        return {"input_ids": self.text, "attention_mask": self.mask, "labels": labels}

    # ---------------------------------------------------------------- the base model

    def embed(self, ids: Numbers) -> Numbers:
        """Embeddings without positions, through the module."""
        return numpy.asarray(word_embeddings(self.base, ids))

    def base_says(
        self, ids: Numbers, mask: Any = None, decoded: Any = None, positions: Any = None
    ) -> Numbers:
        """What the base says without any adapter."""
        base, p, config = self.base, self.base.parameters, self.base.config
        mask = None if mask is None else mask.astype("float32")
        embeds, given = word_embeddings(base, ids), Given(positions, input_ids=ids)
        if self.kind != "encoder_decoder":
            hidden = stack.forward(p, config, embeds, mask, None, given).hidden
            return numpy.asarray(
                hidden if self.kind == "encoder" else language_model.logits({}, base, hidden)
            )
        encoded = self.encode(ids, mask)
        read = self.decoded[: len(ids)] if decoded is None else decoded
        hidden, _ = self.decode(read, None, encoded, mask, 0)
        return numpy.asarray(language_model.logits({}, base, hidden))

    def encode(self, ids: Numbers, mask: Any = None) -> Numbers:
        """The last hidden states of the base's encoder."""
        parameters = stack.stack_parameters(self.base.parameters, "encoder")
        config, embeds = self.config.stack("encoder"), word_embeddings(self.base, ids)
        return numpy.asarray(stack.forward(parameters, config, embeds, mask, name="encoder").hidden)

    def decode(
        self, ids: Numbers, past: Any, encoded: Numbers, encoder_mask: Any, length: int
    ) -> tuple[Numbers, Any]:
        """A decoder behind an encoder, on `ids` behind a cache of `length` positions: hidden states, and its cache."""
        given = Given(past=length, encoded=encoded, encoder_mask=encoder_mask)
        parameters = stack.stack_parameters(self.base.parameters, "decoder")
        own, embeds = self.config.stack("decoder"), word_embeddings(self.base, ids)
        decoded = stack.forward(parameters, own, embeds, None, past, given, "decoder")
        return numpy.asarray(decoded.hidden), decoded.past_key_values

    def cache_of(self, embeds: Numbers, past: Any = None) -> Any:
        """The base's cache after one sequence of embeddings, (1, tokens, ·)."""
        base = self.base
        return stack.forward(base.parameters, base.config, embeds, None, past, Given()).past_key_values

    def blocks(self, layer: int, layers: int) -> tuple[int, int]:
        """Where a layer's keys and values are among the 2·layers blocks of a row; behind an encoder 4·layer mod 2·layers (PX-8)."""
        start = 4 * layer % (2 * layers) if self.kind == "encoder_decoder" else 2 * layer
        return start, start + 1

    def flat(self, past: Any) -> Numbers:
        """A cache as rows of a prefix's table."""
        own = numpy.asarray(prefix_encoder.flatten(past))
        blocks = own.reshape(len(own), 2 * len(past), -1)
        layers = self.config.num_layers  # an encoder-decoder's rows are as long as the encoder is deep
        rows = numpy.zeros((len(own), 2 * layers, blocks.shape[-1]))
        for layer in range(len(past)):
            rows[:, self.blocks(layer, layers)] = blocks[:, 2 * layer : 2 * layer + 2]
        return rows.reshape(len(own), -1)

    def tolerance(self) -> float:
        """Of ‖given − expected‖ / ‖expected‖ for what is said.

        A layer is a chain of two norms and five maps over `hidden`, one of which is `width` long, one over `inner`, one over
        `head_dim` and one over the keys; each adds at most its length times u on either side, so length · 2u = length ·
        EPSILON. That they never all add up leaves room for what the norms and softmaxes amplify on weights of standard
        deviation 0.4.
        """
        config = self.config
        width = config.num_attention_heads * config.head_dim
        keys = self.virtual + self.tokens + (DECODED if self.kind == "encoder_decoder" else 0)
        length = 6 * config.hidden_size + width + config.intermediate_size + config.head_dim + keys
        stacks = 2 if self.kind == "encoder_decoder" else 1
        return self.slack * EPSILON * stacks * config.num_layers * length

    def assert_near(self, given: Any, expected: Any, times: float = 1.0) -> None:
        assert relative_error(given, expected) <= times * self.tolerance()

    def assert_far(self, given: Any, expected: Any) -> None:
        assert relative_error(given, expected) > NOTICEABLE


def with_rows(model: PeftModel, rows: Numbers) -> PeftModel:
    """The model with another table of virtual tokens."""
    model.load_trainable_parameters({**model.trainable_parameters(), EMBEDDING: rows})
    return model


def as_it_runs(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step with what takes its place now, for what takes its place next: so that a known mistake in it stays."""
    context = copy_context()
    return lambda *args, **kwargs: context.run(step, *args, **kwargs)


# ---------------------------------------------------------------- of a family


def model_case(name: str, method: str, seed: int, layers: int | None = None) -> ModelCase:
    """A model of `support.MODELS`; two texts, with up to two tokens of padding on one side, full, or without a mask.

    `layers`: instead of the tiny model's own number of them.
    """
    family, changes = MODELS[name]
    base = tiny_model(family, seed, **changes, **_layers(family, layers))
    random = numpy.random.default_rng([seed, 7])
    text = random.integers(3, base.config.vocab_size, (2, TEXT))
    padding = random.integers(0, 3, (2, 1))
    right = (numpy.arange(TEXT) < TEXT - padding).astype(int)
    mask = (None, numpy.ones_like(text), right, right[:, ::-1].copy())[(seed + 2) % 4]
    return ModelCase(base, method, text, mask, seed)


def _layers(family: str, layers: int | None) -> dict[str, Any]:
    if layers is None:
        return {}
    keys = {"gpt2": ("n_layer",), "gpt_bigcode": ("n_layer",), "t5": ("num_layers", "num_decoder_layers")}
    keys["bart"] = ("encoder_layers", "decoder_layers")
    return dict.fromkeys(keys.get(family, ("num_hidden_layers",)), layers)


# ---------------------------------------------------------------- drawn


def drawn_case(
    *, batch: int, kv_heads: int, group: int, head_dim: int, layers: int, inner: int, vocab: int, virtual: int, tokens: int,
    padding: str, method: str, seed: int, **options: Any,
) -> ModelCase:  # fmt: skip
    random, heads = numpy.random.default_rng(seed), kv_heads * group
    text = random.integers(3, vocab, (batch, tokens))
    hidden = random.integers(0, tokens, (batch, 1)) if padding != "full" else numpy.zeros((batch, 1), int)
    right = (numpy.arange(tokens) < tokens - hidden).astype(numpy.int64)
    base = tiny_base(
        seed=seed, n_embd=heads * head_dim, n_head=heads, n_layer=layers, n_inner=inner, vocab_size=vocab,
        n_positions=virtual + tokens + 5, **options,
    )  # fmt: skip
    mask = {"none": None, "left": right[:, ::-1].copy()}.get(padding, right)
    return ModelCase(_grouped(base, kv_heads), method, text, mask, seed, virtual)


def _grouped(base: BaseModel, kv_heads: int) -> BaseModel:
    """A GPT-2 with fewer key/value heads than heads, which HF has not, so that H ≠ heads in every layout."""
    hf = {**base.config.hf, "num_key_value_heads": kv_heads}
    config = replace(base.config, num_key_value_heads=kv_heads, hf=hf)
    rows = kv_heads * config.head_dim
    parameters = {
        name: value[:rows] if ".attention.key." in name or ".attention.value." in name else value
        for name, value in base.parameters.items()
    }
    return BaseModel(config, parameters)


SIZES = {
    "batch": st.integers(1, 3),
    "kv_heads": st.integers(1, 3),
    "group": st.integers(1, 2),
    "head_dim": st.integers(2, 6),
    "layers": st.integers(1, 2),
    "inner": st.integers(3, 9),
    "vocab": st.integers(11, 17),
    "virtual": st.integers(2, 4),
    "tokens": st.integers(2, 5),
    "padding": st.sampled_from(["none", "full", "left", "right"]),
    "seed": st.integers(0, 2**31),
    "activation_function": st.sampled_from(["gelu_new", "silu", "tanh"]),
    "scale_attn_by_inverse_layer_idx": st.booleans(),
    "tie_word_embeddings": st.booleans(),
}


def model_cases(
    name: str, method: str, layers: int | None = None
) -> st.SearchStrategy[Callable[[], ModelCase]]:
    """What makes a family's model, or a GPT-2 of hidden ≥ 6: a norm of fewer numbers is nearly singular.

    The model is made in the test, not in the strategy, because beartype uses Python's `random`.
    """
    if name != DRAWN:
        return st.integers(0, 999).map(lambda seed: partial(model_case, name, method, seed, layers))
    wide = st.fixed_dictionaries(SIZES).filter(lambda s: s["kv_heads"] * s["group"] * s["head_dim"] >= 6)
    return wide.map(lambda sizes: partial(drawn_case, method=method, **sizes))
