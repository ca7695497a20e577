"""The configurations of the two methods: `PromptTuningConfig` and `PrefixTuningConfig`.

What is specified here (clauses CF-1 to CF-7): the fields, which values are allowed, how the sizes are taken
from the base model's configuration, and the form of `adapter_config.json`. It follows HF peft 0.21.2:
`peft/config.py`, `peft/tuners/prompt_tuning/config.py`, `peft/tuners/prefix_tuning/config.py` and
`_prepare_prompt_learning_config` in `peft/utils/other.py`. Where they and this module disagree, HF is right,
except for the stricter points, each marked "Stricter" below: there HF silently accepts what it then ignores,
or fails on much later.

How others differ: HF's configurations are mutable, and HF writes the sizes it finds into the object that the
caller passed. A second model built from that object then gets the sizes of the first. Here a configuration
never changes; `fill_in` returns a new one.
"""

import copy
import enum
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Final

from refpeft.errors import ConfigError
from refpeft.files import read_json_object, write_atomically
from refpeft.rules import BOOLEAN, DICTIONARY, SHALLOW, SIZE, STRING, STRINGS, Rule, is_integer

PEFT_VERSION: Final = "0.21.2"
"""The version of HF peft that is specified, and that is written as `peft_version`."""

CONFIG_NAME: Final = "adapter_config.json"
"""The file name that HF gives a configuration (peft 0.21.2, `peft/utils/constants.py`)."""

TASK_TYPES: Final = (
    "SEQ_CLS",
    "SEQ_2_SEQ_LM",
    "CAUSAL_LM",
    "TOKEN_CLS",
    "QUESTION_ANS",
    "FEATURE_EXTRACTION",
)
"""The values of `task_type`, in HF's order (`TaskType` in `peft/utils/peft_types.py`)."""

PROMPT_TUNING_INITS: Final = ("TEXT", "SAMPLE_VOCAB", "RANDOM")
"""The values of `prompt_tuning_init`, in HF's order (`PromptTuningInit`)."""

_RULES = {
    "auto_mapping": DICTIONARY.or_none(),
    "peft_version": STRING,
    "base_model_name_or_path": STRING.or_none(),
    "revision": STRING.or_none(),
    "inference_mode": BOOLEAN,
    "num_virtual_tokens": Rule(f"{SIZE.expected} (left out: 20)", SIZE.accepts),
    "token_dim": SIZE.or_none(),
    "num_transformer_submodules": SIZE.or_none(),
    "num_attention_heads": SIZE.or_none(),
    "num_layers": SIZE.or_none(),
    "modules_to_save": STRINGS.or_none(),
    "prompt_tuning_init": Rule(
        f"one of {', '.join(PROMPT_TUNING_INITS)}", lambda value: value in PROMPT_TUNING_INITS
    ),
    "prompt_tuning_init_text": STRING.or_none(),
    "tokenizer_name_or_path": STRING.or_none(),
    "tokenizer_kwargs": DICTIONARY.or_none(),
    "init_weights": Rule("'zero' or None", lambda value: value is None or value == "zero"),
    "encoder_hidden_size": SIZE.or_none(),
    "prefix_projection": BOOLEAN,
}


@dataclass(frozen=True)
class PromptLearningConfig(ABC):
    """What both methods have in common; only its subclasses can be made.

    Fields, order and defaults are HF's (CF-1), but for `num_virtual_tokens`. A configuration never changes:
    use `dataclasses.replace` for one that differs in a field, and `fill_in` for one with the sizes of a base
    model. Lists and dictionaries passed in are copied.

    Validation (CF-2) checks first what HF checks, in HF's order and words, and then the stricter points:
    every value has the type that its JSON field has, and every size is from 1 to 2**31.

    Source: `PeftConfigMixin`, `PeftConfig`, `PromptLearningConfig` in peft 0.21.2, `peft/config.py`.

    Raises:
        ConfigError: a value is not allowed; the message names the field, the value, and what is expected.

    How others differ: HF checks hardly any value. It accepts `num_virtual_tokens=None` and fails with a
    TypeError when the model is built, takes -1 (a RuntimeError of torch then) and 0 (an adapter that does
    nothing).
    """

    task_type: str | None = None
    """One of `TASK_TYPES`, or None. HF's `get_peft_model` refuses None (KeyError), and its bare `PeftModel`
    then never injects the prompt; the configuration alone accepts it."""

    peft_type: str | None = None
    """`"PROMPT_TUNING"` or `"PREFIX_TUNING"`, set by the class; as in HF, a value passed is overwritten."""

    auto_mapping: dict[str, Any] | None = None
    """The class and library of a base model that has no `task_type`; written by HF, kept as it is."""

    peft_version: str | None = None
    """The version of peft that wrote this configuration; None becomes `PEFT_VERSION`."""

    base_model_name_or_path: str | None = None
    """Where the base model came from."""

    revision: str | None = None
    """The revision of the base model."""

    inference_mode: bool = False
    """Whether the adapter is for inference only. HF's `PeftModel.save_pretrained` writes true."""

    num_virtual_tokens: int = 20
    """How many virtual tokens are learned, at least 1. Stricter: HF's default is None, which fails later."""

    token_dim: int | None = None
    """The width of one virtual token: the base model's hidden size; for prefix tuning on a model with fewer
    key/value heads than query heads, kv_heads · head_dim."""

    num_transformer_submodules: int | None = None
    """2 for an encoder-decoder (`SEQ_2_SEQ_LM`), else 1."""

    num_attention_heads: int | None = None
    """The base model's attention heads; for prefix tuning, its key/value heads."""

    num_layers: int | None = None
    """The base model's layers."""

    modules_to_save: list[str] | None = None
    """Names of further modules that are trained and saved whole, such as a classification head."""

    METHOD: ClassVar[str]
    """The `peft_type` of the class."""

    __no_type_check__: ClassVar[bool] = True
    """The class itself refuses wrong types, with its own message; the tests' beartype leaves that to it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _own(getattr(self, field.name)))
        object.__setattr__(self, "peft_type", self.METHOD)
        if self.peft_version is None:
            object.__setattr__(self, "peft_version", PEFT_VERSION)
        if self.task_type is not None and self.task_type not in TASK_TYPES:
            raise ConfigError(
                f"Invalid task type: '{self.task_type}'. Must be one of the following task types: "
                f"{', '.join(TASK_TYPES)}."
            )
        self._check_as_hf()
        if is_integer(self.num_virtual_tokens) and self.num_virtual_tokens < 1:
            raise ConfigError(f"num_virtual_tokens must be at least 1, not {self.num_virtual_tokens}.")
        for field in fields(self):
            if field.name in _RULES:
                _RULES[field.name].check(field.name, getattr(self, field.name))

    @abstractmethod
    def _check_as_hf(self) -> None:
        """What HF checks in the class of one method, in HF's order and words (CF-2)."""

    @property
    def is_prompt_learning(self) -> bool:
        """True: both methods learn virtual tokens (HF's `PromptLearningConfig.is_prompt_learning`)."""
        return True

    @property
    def total_virtual_tokens(self) -> int:
        """Rows of the embedding of virtual tokens: num_virtual_tokens · num_transformer_submodules (CF-7).

        Source: `PromptEmbedding.__init__` in peft 0.21.2, `peft/tuners/prompt_tuning/model.py`. HF's
        `PrefixEncoder` has num_virtual_tokens rows, however many submodules there are.

        Raises:
            ConfigError: num_transformer_submodules is not known yet.
        """
        (submodules,) = self.known("total_virtual_tokens", "num_transformer_submodules")
        return self.num_virtual_tokens * submodules

    def to_dict(self) -> dict[str, Any]:
        """All fields, in their order, as plain values that share nothing with this configuration (CF-5)."""
        return asdict(self)

    def to_json(self) -> str:
        """The text of `adapter_config.json`, byte for byte HF's (CF-5): sorted keys, no newline at the end.

        Source: `PeftConfigMixin.save_pretrained` in peft 0.21.2, `peft/config.py`.

        Raises:
            ConfigError: `tokenizer_kwargs` or `auto_mapping` holds something that JSON cannot express.
        """
        try:
            return json.dumps(self.to_dict(), indent=2, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"This {type(self).__name__} cannot be written as JSON: {error}.") from error

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `adapter_config.json` into `directory`, which is made if need be, in one piece (CF-5).

        Source: `PeftConfigMixin.save_pretrained`. How others differ: HF overwrites the file in place, so that
        a reader, or a crash, can meet half of it; and raises an AssertionError where this raises a
        ConfigError.

        Raises:
            ConfigError: `directory` is a file, or the configuration cannot be written as JSON.
            OSError: the file system refuses.
        """
        directory = Path(directory)
        if directory.is_file():
            raise ConfigError(f"Provided path ({directory}) should be a directory, not a file")
        data = self.to_json().encode("utf-8")
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / CONFIG_NAME, data)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PromptLearningConfig":
        """The configuration that the contents of an `adapter_config.json` stand for (CF-6).

        `peft_type` decides the class, whichever class this is called on; without it, that class is taken.
        Keys that this version does not know are ignored with HF's UserWarning, if `peft_type` is there; so is
        `runtime_config`.

        Source: `PeftConfigMixin.from_peft_type` and `from_json_file` in peft 0.21.2, `peft/config.py`.

        Raises:
            ConfigError: an unknown `peft_type`; no `peft_type`, and either unknown keys or no class to take;
                or a value that is not allowed (CF-2). HF raises KeyError, TypeError, or nothing.
        """
        values = dict(values)
        if "runtime_config" in values:
            del values["runtime_config"]
            warnings.warn(
                "The configuration file contains a `runtime_config` key. This is ignored. Runtime "
                "configurations are only valid at runtime.",
                UserWarning,
                stacklevel=2,
            )
        target = _class_for(values, cls)
        known = {field.name for field in fields(target)}
        unknown = sorted(str(key) for key in values if key not in known)
        if unknown and "peft_type" not in values:
            raise _without_peft_type(cls, f"Its keys {unknown} are not known.")
        if unknown:
            warnings.warn(
                f"Unexpected keyword arguments {unknown} for class {target.__name__}, these are ignored. "
                "This probably means that you're loading a configuration file that was saved using a higher "
                "version of the library and additional parameters have been introduced since. It is highly "
                "recommended to upgrade the PEFT version before continuing (e.g. by running `pip install -U "
                "peft`).",
                UserWarning,
                stacklevel=2,
            )
        return target(**{key: value for key, value in values.items() if key in known})

    @classmethod
    def from_json_file(cls, path: str | Path) -> "PromptLearningConfig":
        """`from_dict` of the JSON file at `path` (CF-6).

        Raises:
            ConfigError: the file is missing, too large, not UTF-8, not JSON, not an object; or as
                `from_dict`.
        """
        return cls.from_dict(read_json_object(Path(path), "the adapter's configuration"))

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "PromptLearningConfig":
        """`from_json_file` of the `adapter_config.json` in `directory` (CF-6).

        Source: `PeftConfigMixin.from_pretrained`. How others differ: HF goes on to look for a missing
        directory on the Hub; refpeft reads local files only.

        Raises:
            ConfigError: as `from_json_file`.
        """
        return cls.from_json_file(Path(directory) / CONFIG_NAME)

    def known(self, purpose: str, *names: str) -> list[int]:
        """The sizes of these names; `purpose`: what needs them, for the message.

        Raises:
            ConfigError: one is not known.
        """
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ConfigError(
                f"{purpose} needs {' and '.join(names)}, but {' and '.join(missing)} is not known. "
                "Pass it to the configuration, or take it from the base model with fill_in."
            )
        return [getattr(self, name) for name in names]


@dataclass(frozen=True)
class PromptTuningConfig(PromptLearningConfig):
    """Prompt Tuning: learned embeddings stand before the embedded input.

    The fields of `PromptLearningConfig` come first, then these (CF-1).

    Source: `PromptTuningConfig` in peft 0.21.2, `peft/tuners/prompt_tuning/config.py`.

    Raises:
        ConfigError: as `PromptLearningConfig`; or `TEXT` lacks its text or tokenizer; or `tokenizer_kwargs`
            without `TEXT`.

    How others differ: HF takes any other `prompt_tuning_init`, such as "text", and silently does as for
    "RANDOM". Here that is an error.
    """

    prompt_tuning_init: str = "RANDOM"
    """One of `PROMPT_TUNING_INITS`: a text's embeddings, those of tokens drawn at random, or N(0, 1)."""

    prompt_tuning_init_text: str | None = None
    """The text for `TEXT`."""

    tokenizer_name_or_path: str | None = None
    """The tokenizer for `TEXT`."""

    tokenizer_kwargs: dict[str, Any] | None = None
    """Further arguments for the tokenizer; only with `TEXT` (an empty dictionary is accepted always)."""

    METHOD: ClassVar[str] = "PROMPT_TUNING"

    def _check_as_hf(self) -> None:
        is_text = self.prompt_tuning_init == "TEXT"
        if is_text and not self.tokenizer_name_or_path:
            raise ConfigError(
                "When prompt_tuning_init='TEXT', "
                f"tokenizer_name_or_path can't be {self.tokenizer_name_or_path}."
            )
        if is_text and self.prompt_tuning_init_text is None:
            raise ConfigError("When prompt_tuning_init='TEXT', prompt_tuning_init_text can't be None.")
        if self.tokenizer_kwargs and not is_text:
            raise ConfigError("tokenizer_kwargs only valid when using prompt_tuning_init='TEXT'.")


@dataclass(frozen=True)
class PrefixTuningConfig(PromptLearningConfig):
    """Prefix Tuning: learned keys and values stand before those of every attention layer.

    The fields of `PromptLearningConfig` come first, then these (CF-1).

    Source: `PrefixTuningConfig` in peft 0.21.2, `peft/tuners/prefix_tuning/config.py`.

    Raises:
        ConfigError: as `PromptLearningConfig`.

    How others differ: HF takes any other `init_weights`, such as "ones", and silently does as for None. Here
    that is an error. Li and Liang (2021) reparametrise by default with the two-layer network; in HF it is an
    option that is off.
    """

    init_weights: str | None = None
    """`"zero"`: keys and values start at zero (which is not "no prefix": they still take part in the
    softmax); None: drawn from N(0, 1)."""

    encoder_hidden_size: int | None = None
    """The width of the hidden layer of the reparametrisation; None: `token_dim` (CF-4)."""

    prefix_projection: bool = False
    """Whether the virtual tokens pass through the two-layer reparametrisation."""

    METHOD: ClassVar[str] = "PREFIX_TUNING"

    def _check_as_hf(self) -> None:
        """HF checks nothing more."""

    def required_encoder_hidden_size(self) -> int:
        """`encoder_hidden_size` if given, else `token_dim` (CF-4).

        `token_dim` is that of the filled-in configuration, so on a model with grouped key/value heads the
        smaller one.

        Source: the last step of `_prepare_prompt_learning_config` in peft 0.21.2, `peft/utils/other.py`.

        Raises:
            ConfigError: neither is known.
        """
        size = self.token_dim if self.encoder_hidden_size is None else self.encoder_hidden_size
        if size is None:
            raise ConfigError(
                "encoder_hidden_size required: it is not given, and token_dim, its default, is not known. "
                "Pass one of them to the configuration, or take token_dim from the base model with fill_in."
            )
        return size

    @property
    def prefix_embedding_dim(self) -> int:
        """The numbers per virtual token, a key and a value in each layer: num_layers · 2 · token_dim (CF-7).

        Source: `PrefixEncoder.__init__` in peft 0.21.2, `peft/tuners/prefix_tuning/model.py`.

        Raises:
            ConfigError: num_layers or token_dim is not known yet.
        """
        layers, token_dim = self.known("prefix_embedding_dim", "num_layers", "token_dim")
        return layers * 2 * token_dim

    @property
    def head_dim(self) -> int:
        """The width of one key or value: token_dim / num_attention_heads (CF-7).

        Source: `PeftModel.get_prompt` in peft 0.21.2, `peft/peft_model.py`. How others differ: HF divides
        with `//` and, if a rest remains, fails later in `view` with a RuntimeError.

        Raises:
            ConfigError: token_dim or num_attention_heads is not known yet, or the one does not divide the
                other.
        """
        token_dim, heads = self.known("head_dim", "token_dim", "num_attention_heads")
        if token_dim % heads:
            raise ConfigError(
                f"token_dim must be divisible by num_attention_heads, but {token_dim} is not divisible by "
                f"{heads}. token_dim is num_attention_heads · head_dim of the base model's keys and values."
            )
        return token_dim // heads


_CLASSES: dict[str, type[PromptLearningConfig]] = {
    method.METHOD: method for method in (PromptTuningConfig, PrefixTuningConfig)
}


def _own(value: Any) -> Any:
    """A plain value of its own: str enums (HF's `TaskType`) become strings, tuples and sets lists."""
    if isinstance(value, enum.Enum) and isinstance(value, str):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, tuple):
        return list(value)
    if not isinstance(value, list | dict):
        return value
    SHALLOW.check("A value of the configuration", value)
    return copy.deepcopy(value)


def _class_for(values: Mapping[str, Any], cls: type[PromptLearningConfig]) -> type[PromptLearningConfig]:
    if "peft_type" not in values:
        if cls is PromptLearningConfig:
            raise _without_peft_type(cls, "Without it the class is not known.")
        return cls
    peft_type = _own(values["peft_type"])
    if not isinstance(peft_type, str) or peft_type not in _CLASSES:
        raise ConfigError(f"Unknown peft_type {peft_type!r}: refpeft supports {' and '.join(_CLASSES)}.")
    return _CLASSES[peft_type]


def _without_peft_type(cls: type[PromptLearningConfig], why: str) -> ConfigError:
    return ConfigError(
        f"The {cls.__name__} config that is trying to be loaded is missing required keys: {{'peft_type'}}. "
        f'{why} Add "peft_type": one of {", ".join(_CLASSES)}.'
    )
