"""`ModelConfig`: what a frozen base model looks like, read from its HF checkpoint's `config.json` (CF-8).

Each HF family has its own key names and defaults: they are columns of the table of families, so that the rest of
refpeft sees one set of names and one set of choices. It follows transformers 5.23.0, `models/*/configuration_*.py` (names,
defaults), `configuration_utils.py` (aliases, `dtype`, `num_labels`) and `models/*/modeling_*.py` (the checks of the heads);
where they and this module disagree, HF is right, except that every size has to be from 1 to 2**31, and a norm's
epsilon at least 0, which HF does not check.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from refpeft.config import CONFIG_NAME
from refpeft.errors import ConfigError
from refpeft.files import read_json_object
from refpeft.rules import DICTIONARY, SHALLOW, SIZE, STRING, Rule, is_integer
from refpeft.transformer.columns import Family, Kind, Row
from refpeft.transformer.families import FAMILIES
from refpeft.transformer.rotary import Rotary

Stack = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class ModelConfig:
    """The base model, in one set of names and choices for all families (CF-8).

    Made by `from_dict` and `from_pretrained`, which check the values. A choice's default is a plain decoder's.

    Source: `*Config` in transformers 5.23.0.

    How others differ: HF keeps each family's own names and maps the common ones to them by `attribute_map`;
    if a file has both (`n_embd` and `hidden_size`), the common one wins, here too.
    """

    family: str
    """The row of the table of families: HF's `model_type`."""

    vocab_size: int
    """Rows of the token embedding."""

    hidden_size: int
    """The width of the stream of hidden states."""

    num_layers: int
    """The number of blocks; of an encoder-decoder, the encoder's."""

    num_attention_heads: int
    """Heads of the queries."""

    num_key_value_heads: int
    """Heads of the keys and values in the cache; equal to `num_attention_heads` unless they are grouped."""

    head_dim: int
    """The width of one head."""

    intermediate_size: int
    """The width of the hidden layer of the feed-forward network."""

    max_position_embeddings: int | None = None
    """The longest sequence, virtual tokens of a prefix included: rows of the table of positions, if there is one."""

    kind: Kind = "decoder"
    """Which stacks there are."""

    activation: str = "relu"
    """HF's name of the activation of the feed-forward network."""

    gated: bool = False
    """Whether the activated half is multiplied by another linear map of the same input."""

    norm: str = "layer_norm"
    """Which norm: a key of `refpeft.ops.NORMS`."""

    norm_epsilon: float = 1e-5
    """What is added to the variance in a norm."""

    norm_affine: bool = True
    """Whether norms have weights (OPT may do without)."""

    norm_order: Literal["before", "after", "around"] = "before"
    """Where norms stand: before attention and network (GPT-2, LLaMA), after each residual sum (BERT), or before and after
    both, inside the residual connection (Gemma-2)."""

    parallel: bool = False
    """Whether attention and network read the layer's input side by side (GPT-NeoX, Falcon, Phi)."""

    shared_norm: bool = False
    """parallel: whether both read the same norm."""

    residual_from_norm: bool = False
    """Whether the residual connections start at the norms' results (BLOOM's option)."""

    final_norm: bool = True
    """Whether a norm stands after the last layer."""

    positions: Literal["learned", "rotary", "alibi", "relative"] = "learned"
    """How positions enter: rows of a table are added to the embeddings; queries and keys are turned; a slope of the distance
    is added to scores (BLOOM); a learned number for each bucket of distances is (T5)."""

    position_rule: Literal["sequence", "mask", "tokens"] = "sequence"
    """learned: counted along the sequence; along the mask (OPT); along the tokens that are no padding (RoBERTa)."""

    position_offset: int = 0
    """learned: the row of position 0 (OPT and BART: 2)."""

    rotary: tuple[Rotary, ...] | None = None
    """rotary: of each layer."""

    relative_buckets: int = 0
    """relative: rows of the table of buckets."""

    relative_distance: int = 0
    """relative: the distance from which on all are one bucket."""

    alibi_times: float = 1.0
    """alibi: by what HF multiplies the slopes beside (Falcon adds them twice, scaled; BLOOM once)."""

    alibi_bfloat16: bool = False
    """alibi: whether the slopes are rounded to bfloat16 (Falcon)."""

    sliding_windows: tuple[int | None, ...] | None = None
    """How many keys each layer's queries see at most, or None for all of them; None if no layer has a window."""

    cuts_prefix: bool = False
    """Whether HF cuts a prefix to the window − 1 last virtual tokens in layers with a window (Gemma-2, Gemma-3)."""

    attention_scale: float = 1.0
    """By what the products of queries and keys are multiplied: 1/√head_dim in most families."""

    scale_attention_by_inverse_layer: bool = False
    """Whether scores are divided by the layer's number, from 1, too (GPT-2's `scale_attn_by_inverse_layer_idx`)."""

    attention_softcap: float | None = None
    """Gemma-2: scores s become c · tanh(s/c)."""

    query_key_norm: bool = False
    """Whether a norm stands after the projections to queries and keys, head by head."""

    attention_bias: bool = True
    """Whether queries, keys and values have biases."""

    output_bias: bool = True
    """Whether attention's output map has a bias."""

    mlp_bias: bool = True
    """Whether the feed-forward network has biases."""

    stored_key_value_heads: int | None = None
    """Key/value heads in the checkpoint, where they are repeated *before* the cache (Falcon's new architecture)."""

    embedding_size: int | None = None
    """The width of the token table, if it is not hidden_size (OPT, ELECTRA): a linear map stands between."""

    projects_output: bool = False
    """Whether the last hidden states go back through a linear map to embedding_size (OPT)."""

    embedding_scale: float = 1.0
    """By what the rows of the token table are multiplied (Gemma, BART: √hidden_size)."""

    embedding_norm: bool = False
    """Whether a norm follows the embeddings."""

    token_types: int = 0
    """Rows of the table of token types; 0 if there is none."""

    pooler: bool = False
    """Whether the first position goes through a dense map and tanh (BERT)."""

    decoder_layers: int | None = None
    """Encoder-decoder: the decoder's blocks."""

    decoder_attention_heads: int | None = None
    """Encoder-decoder: the decoder's heads, if they are not the encoder's."""

    decoder_intermediate_size: int | None = None
    """Encoder-decoder: the width in the decoder's network, if it is not the encoder's."""

    decoder_start_token_id: int | None = None
    """Encoder-decoder: the token that the decoder starts from."""

    head_bias: bool = False
    """Whether the language-model head has a bias."""

    logits_scale: float = 1.0
    """By what the hidden states are multiplied before the head (T5: hidden_size^(−1/2))."""

    logits_softcap: float | None = None
    """Gemma-2: logits l become c · tanh(l/c)."""

    num_labels: int = 2
    """How many classes the heads of classification have."""

    problem_type: str | None = None
    """SEQ_CLS: which loss; inferred from the labels if it is None."""

    tie_word_embeddings: bool = True
    """Whether the language-model head is the token embedding."""

    pad_token_id: int | None = None
    """The padding token."""

    bos_token_id: int | None = None
    """The first token of a text."""

    eos_token_id: int | list[int] | None = None
    """The token, or tokens, that end a text."""

    dtype: str | None = None
    """The number format of the checkpoint in torch's words (`"bfloat16"`), if the file says it."""

    name_or_path: str = ""
    """Where the model came from: what HF writes into an adapter as `base_model_name_or_path`."""

    hf: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    """The `config.json`, completed with the defaults of HF's configuration class and with
    `num_hidden_layers`: what `refpeft.fill_in.fill_in` needs to find what HF finds."""

    @property
    def embedding_width(self) -> int:
        """The width of the token table, which is that of virtual tokens of a prompt."""
        return self.embedding_size or self.hidden_size

    @property
    def output_width(self) -> int:
        """The width of what heads read."""
        return self.embedding_width if self.projects_output else self.hidden_size

    @property
    def position_limit(self) -> int | None:
        """How many positions a sequence may have, virtual tokens included; None if there is no table to run out of."""
        if self.positions != "learned" or self.max_position_embeddings is None:
            return None
        taken = (self.pad_token_id or 0) + 1 if self.position_rule == "tokens" else 0
        return self.max_position_embeddings - taken

    @property
    def position_rows(self) -> int:
        """Rows of the table of positions."""
        return (self.max_position_embeddings or 0) + self.position_offset

    def window(self, layer: int) -> int | None:
        """How many keys a layer's queries see at most; None for all."""
        return self.sliding_windows[layer] if self.sliding_windows else None

    def stack(self, name: Stack) -> "ModelConfig":
        """What one stack of an encoder-decoder looks like: its own layers, heads and widths. Another model's is itself."""
        if self.kind != "encoder_decoder" or name == "encoder":
            return self
        heads = self.decoder_attention_heads or self.num_attention_heads
        if heads == self.num_attention_heads:
            own: dict[str, Any] = {}
        else:
            dimension = self.hidden_size // heads
            own = {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": dimension}
            own["attention_scale"] = dimension**-0.5
        inner = self.decoder_intermediate_size or self.intermediate_size
        return replace(
            self, num_layers=self.decoder_layers or self.num_layers, intermediate_size=inner, **own
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The base model that the contents of an HF `config.json` describe (CF-8).

        Missing keys take the defaults of HF's configuration class; unknown keys are kept in `hf` and
        otherwise ignored, as in HF.

        Raises:
            ConfigError: no or an unknown `model_type`; an adapter's configuration; a value of the wrong type
                or range; a hidden size that the heads do not divide; or an option of HF's that refpeft does
                not implement.
        """
        SHALLOW.check("The base model's configuration", values)
        family = _family(values)
        _refuse_unsupported(family, values)
        read = {row.name: _read(row, values) for row in family.rows}
        layers, labels = read["num_layers"], _num_labels(family, values)
        defaults = {
            row.keys[-1]: row.default for row in family.rows if not any(key in values for key in row.keys)
        }
        aliased = {row.keys[-1]: read[row.name] for row in family.rows if values.keys() & set(row.keys[:-1])}
        derived = family.derive(read)
        known = {entry.name for entry in fields(cls)}
        assert derived.keys() <= known, f"{family.model_type}: {derived.keys() - known} are no fields"  # noqa: S101
        config = cls(
            family=values["model_type"],
            **{"kind": family.kind, **derived},
            num_labels=labels,
            problem_type=_problem_type(values, labels),
            decoder_start_token_id=_start_token(family, values),
            dtype=_dtype(values),
            name_or_path=_name_or_path(values),
        )
        completed = {**defaults, **copy.deepcopy(dict(values)), **aliased, "num_hidden_layers": layers}
        return replace(config, hf=_with_heads(family, completed, config))

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "ModelConfig":
        """`from_dict` of the `config.json` in `directory`, which becomes `name_or_path` as given (CF-8).

        Source: `PreTrainedConfig.from_pretrained` in transformers 5.23.0, without the Hub.

        Raises:
            ConfigError: `directory` is missing, or is an adapter; the file is missing, too large, not UTF-8,
                not JSON, not an object; or as `from_dict`.
        """
        path = Path(directory) / "config.json"
        if not path.exists() and (path.parent / CONFIG_NAME).exists():
            raise ConfigError(
                f"'{directory}' is an adapter, not a base model: it has {CONFIG_NAME} but no config.json. "
                "Give the directory of the base model, which that file names as base_model_name_or_path."
            )
        values = read_json_object(path, "the base model's configuration")
        return replace(cls.from_dict(values), name_or_path=str(directory))


def _family(values: Mapping[str, Any]) -> Family:
    supported = ", ".join(FAMILIES)
    if "peft_type" in values:
        raise ConfigError(
            f"This is the configuration of an adapter (peft_type {values['peft_type']!r}), "
            "not of a base model."
        )
    if "model_type" not in values:
        raise ConfigError(
            "The base model's configuration has no model_type, which says how to read it. "
            f"Supported: {supported}."
        )
    model_type = values["model_type"]
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(f"Unknown model_type {model_type!r} of the base model. Supported: {supported}.")
    return FAMILIES[model_type]


def _refuse_unsupported(family: Family, values: Mapping[str, Any]) -> None:
    for key, reason in family.unsupported.items():
        if values.get(key):
            raise ConfigError(f"{key} of the base model is not supported: {reason}.")


def _read(row: Row, values: Mapping[str, Any]) -> Any:
    for key in row.keys:
        if key in values:
            row.rule.check(f"{key} of the base model", values[key])
            return copy.deepcopy(values[key])
    return row.default


def _with_heads(family: Family, completed: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """What HF's classes compute when they are made, and `fill_in` reads: the key/value heads and their width."""
    keys = {key for row in family.rows for key in row.keys}
    if "num_key_value_heads" in keys or family.model_type == "gpt_bigcode":
        completed["num_key_value_heads"] = config.num_key_value_heads
    if "head_dim" in keys and "num_key_value_heads" in keys:
        completed["head_dim"] = config.head_dim
    return completed


def _num_labels(family: Family, values: Mapping[str, Any]) -> int:
    """The number of `id2label`, or `num_labels`; 2 without either, and BART's 3."""
    labels = values.get("id2label")
    if labels is not None:
        DICTIONARY.check("id2label of the base model", labels)
    count = len(labels) if labels else values.get("num_labels", 3 if family.model_type == "bart" else 2)
    SIZE.check("num_labels of the base model", count)
    return int(count)


def _problem_type(values: Mapping[str, Any], labels: int) -> str | None:
    kinds = ("regression", "single_label_classification", "multi_label_classification")
    given = values.get("problem_type")
    if given is not None and given not in kinds:
        raise ConfigError(f"problem_type of the base model must be one of {', '.join(kinds)}, not {given!r}.")
    if given == "single_label_classification" and labels == 1:
        raise ConfigError(
            '`problem_type="single_label_classification"` requires `num_labels > 1`. For binary classification use '
            '`num_labels=2`, or use `problem_type="regression"` for a single-output regression head.'
        )
    return given


def _start_token(family: Family, values: Mapping[str, Any]) -> int | None:
    """What a decoder behind an encoder starts from; BART's has a default."""
    if family.kind != "encoder_decoder":
        return None
    token = values.get("decoder_start_token_id", 2 if family.model_type == "bart" else None)
    if token is not None:
        Rule("a token id", lambda value: is_integer(value) and value >= 0).check(
            "decoder_start_token_id of the base model", token
        )
    return None if token is None else int(token)


def _dtype(values: Mapping[str, Any]) -> str | None:
    """`dtype`, or the older `torch_dtype` where that is missing or null."""
    key = "torch_dtype" if values.get("dtype") is None else "dtype"
    dtype = values.get(key)
    STRING.or_none().check(f"{key} of the base model", dtype)
    return None if dtype is None else str(dtype)


def _name_or_path(values: Mapping[str, Any]) -> str:
    """`_name_or_path`, which transformers 4 wrote, or `name_or_path`, or nothing."""
    name = values.get("_name_or_path", values.get("name_or_path"))
    return "" if name is None else str(name)
