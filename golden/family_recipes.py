"""Recipes of every family beside GPT-2: what each level asks of it, each task type, and each of HF's quirks.

The sizes of a case's batch, texts and adapter are the smallest that differ from one another and from all of its base model's
(clause VF-5), so that no case has to be tuned by hand when a model changes.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace
from typing import Any

from model_table import MODELS
from recipes import Recipe, Text
from sizes import axis_sizes, is_sliding
from transformers import AutoConfig

from refpeft.oracle.lint import equal_axes
from refpeft.oracle.questions import COMMON, PREFIX, PROMPT

FAMILIES: dict[str, tuple[str, ...]] = {
    "opt": ("opt-odd", "opt-even"),
    "gpt_bigcode": ("gpt-bigcode-odd",),
    "bloom": ("bloom-odd", "bloom-even"),
    "falcon": ("falcon-odd", "falcon-even", "falcon-alibi"),
    "gpt_neox": ("gpt-neox-odd", "gpt-neox-even"),
    "phi": ("phi-odd",),
    "llama": ("llama-odd", "llama-even", "llama-linear"),
    "mistral": ("mistral-odd",),
    "qwen2": ("qwen2-odd", "qwen2-even"),
    "qwen3": ("qwen3-odd",),
    "gemma": ("gemma-odd",),
    "gemma2": ("gemma2-odd",),
    "gemma3_text": ("gemma3-odd",),
    "bert": ("bert-odd",),
    "roberta": ("roberta-odd",),
    "electra": ("electra-odd",),
    "t5": ("t5-odd", "t5-even"),
    "bart": ("bart-odd", "bart-even"),
}
"""The tiny models of each family; the first is asked everything, the others what they are about."""

CLAUSES: dict[str, str] = {
    "opt": "PO-4", "gpt_bigcode": "AT-7", "bloom": "PO-5", "falcon": "AT-7", "gpt_neox": "PO-3", "phi": "PO-3 AT-7",
    "llama": "PO-3", "mistral": "MK-4 PO-3", "qwen2": "AT-7 PO-3", "qwen3": "AT-7 PO-3", "gemma": "PT-7 AT-7",
    "gemma2": "AT-7 MK-4 PX-9", "gemma3_text": "PO-3 MK-4 PX-9", "bert": "MK-5 TK-5", "roberta": "PO-4 TK-5",
    "electra": "MK-5 TK-5", "t5": "PO-6 PX-8 AT-8", "bart": "AT-8 PX-8 TK-10",
}  # fmt: skip
"""What a family shows beside what all show."""

GIVEN: dict[tuple[str, str], dict[str, int]] = {
    ("opt-even", PROMPT): {"token_dim": 14},
    ("electra-odd", PROMPT): {"token_dim": 14},
    ("falcon-odd", PREFIX): {"token_dim": 6, "num_attention_heads": 1},
    ("t5-even", PREFIX): {"token_dim": 24},
}
"""Sizes that PEFT reads wrongly in these models' configurations, so that its users have to give them."""

SMALL = (1, 2, 3, 5)
"""How many rows a case may have: the fewest that fit."""
SEVERAL = (2, 3, 5, 7)
"""The same, of cases that are about the batch."""

ENCODERS = ("bert", "roberta", "electra")
BEHIND_ENCODERS = ("t5", "bart")
ALIKE = ("gpt_bigcode", "phi", "mistral", "qwen2", "qwen3", "gemma", "electra")
"""What a prompt goes through here, another family's case shows stage by stage; a prefix is shown in each."""
ADAPTERS = {"prompt": PROMPT, "prefix": PREFIX, "projected": PREFIX}


@dataclass(frozen=True)
class Sizes:
    """Of a case's inputs and adapter."""

    batch: int
    virtual: int
    tokens: int
    hidden: int
    decoder_tokens: int


@functools.cache
def _model_config(model: str) -> Any:
    return AutoConfig.for_model(**MODELS[model].config)


@functools.cache
def fit(
    model: str,
    adapter: str,
    task_type: str,
    batches: tuple[int, ...] = SMALL,
    longest: int = 1,
    *,
    generates: bool = False,
) -> Sizes:
    """The smallest sizes that make all axes differ.

    `longest`: the least number of tokens. `generates`: decoder_tokens are those that are added to a text.
    """
    own, behind = _adapted_sizes(model, adapter, task_type), task_type == "SEQ_2_SEQ_LM"
    others = range(5, 14) if behind or generates else (0,)
    spans = sorted(itertools.product(batches, range(3, 10), range(5, 14), (5, 7, 10, 11), others), key=sum)
    for batch, virtual, tokens, hidden, more in spans:
        dims = {"batch": batch, "virtual": virtual, "tokens": tokens, **own}
        if adapter == "projected":
            dims["encoder_hidden"] = hidden
        elif hidden != 5:
            continue
        if generates:
            before = 1 if behind else tokens
            dims |= {"sequences": batch, "length": before + more, "new_tokens": more}
        else:
            dims |= _text_sizes(model, virtual, tokens, more, prompt=adapter == "prompt", behind=behind)
        if behind and generates:
            dims["encoder_key"] = tokens + (virtual if adapter == "prompt" else 0)
        if behind and adapter == "prompt":
            dims["virtual_rows"] = 2 * virtual
        if tokens >= longest and not list(equal_axes(dims)):
            return Sizes(batch, virtual, tokens, hidden, more)
    raise AssertionError(f"no sizes fit {model} with {adapter}")


def _adapted_sizes(model: str, adapter: str, task_type: str) -> dict[str, int]:
    """The sizes of a base model and of what its adapter makes of them."""
    own = axis_sizes(_model_config(model))
    if task_type not in ("SEQ_CLS", "TOKEN_CLS"):
        del own["labels"]
    width = own.get("embedding", own["hidden"]) if adapter == "prompt" else own["kv_heads"] * own["head_dim"]
    own["token_dim"] = GIVEN.get((model, ADAPTERS[adapter]), {}).get("token_dim") or width
    if adapter != "prompt":
        own["prefix_width"] = 2 * own["layers"] * own["token_dim"]
    return own


def _text_sizes(
    model: str, virtual: int, tokens: int, decoder: int, *, prompt: bool, behind: bool
) -> dict[str, int]:
    """The lengths that queries and keys have."""
    if behind:
        own_key = tokens + virtual if prompt else tokens
        key = decoder if prompt else decoder + virtual
        return {"encoder_key": own_key, "decoder_tokens": decoder, "query": decoder, "key": key}
    both = virtual + tokens
    return {"query": both if prompt else tokens, "key": both} | (
        {} if prompt else _cut(model, virtual, tokens)
    )


def _cut(model: str, virtual: int, tokens: int) -> dict[str, int]:
    config = _model_config(model)
    if not config.model_type.startswith(("gemma2", "gemma3")) or virtual < config.sliding_window:
        return {}
    kept = config.sliding_window - 1
    return {"stored_virtual": kept, "window_key": kept + tokens}


def _family(model: str) -> str:
    return str(MODELS[model].config["model_type"])


def task_of(model: str) -> str:
    """The task type that a family is asked about first."""
    family = _family(model)
    return "SEQ_CLS" if family in ENCODERS else "SEQ_2_SEQ_LM" if family in BEHIND_ENCODERS else "CAUSAL_LM"


TWO_ENDS = "an answer has a beginning and an end, whatever else there are two of"


def _equal(model: str, task_type: str) -> str:
    """QUESTION_ANS always has two labels."""
    others = [size for axis, size in axis_sizes(_model_config(model)).items() if axis != "labels"]
    return TWO_ENDS if task_type == "QUESTION_ANS" and 2 in others else ""


def _labels(task_type: str) -> str:
    return {"SEQ_CLS": "classes", "QUESTION_ANS": "spans", "FEATURE_EXTRACTION": ""}.get(task_type, "all")


def case(
    model: str, adapter: str, question: str, name: str, title: str, clauses: str, *, padding: str = "left",
    task_type: str = "", labels: str | None = None, stages: bool = False, batches: tuple[int, ...] = SMALL,
    arguments: dict[str, Any] | None = None, config: dict[str, Any] | None = None, text: dict[str, Any] | None = None,
    longest: int = 1,
) -> Recipe:  # fmt: skip
    """One case of a model, an adapter (`prompt`, `prefix` or `projected`) and a question."""
    task = task_type or task_of(model)
    sizes = fit(model, adapter, task, batches, longest)
    method = ADAPTERS[adapter]
    own: dict[str, Any] = {
        "num_virtual_tokens": sizes.virtual,
        **GIVEN.get((model, method), {}),
        **(config or {}),
    }
    if adapter == "projected":
        own |= {"prefix_projection": True, "encoder_hidden_size": sizes.hidden}
    given = Text(
        sizes.batch, sizes.tokens, padding, _labels(task) if labels is None else labels,
        decoder_tokens=sizes.decoder_tokens if task == "SEQ_2_SEQ_LM" else 0,
        pads=(task == "SEQ_CLS" and _family(model) not in ENCODERS) or _family(model) == "roberta",
        most_padding=min([Text.most_padding, *(window - 1 for window in windows(model) if window)]),
    )  # fmt: skip
    given = replace(given, **(text or {}))
    asked_of_text = question not in ("prefix.encode", "checkpoint.save", "init")
    return Recipe(
        method, question, f"{model}-{name}", title, clauses, model, own,
        {"batch_size": sizes.batch} if question == "prefix.encode" else dict(arguments or {}),
        text=given if asked_of_text else None, stages=stages, task_type=task, equal_axes=_equal(model, task),
        layers=_shown(model) if stages and question == "forward" else (),
    )  # fmt: skip


_WORDS = {"prompt": "prompt tuning", "prefix": "prefix tuning", "projected": "a projected prefix"}


def _shown(model: str) -> tuple[int, ...]:
    """The first layer of each kind: with and without a window."""
    config = _model_config(model)
    kinds = [is_sliding(config, layer) for layer in range(config.num_hidden_layers)]
    return tuple(sorted({kinds.index(kind) for kind in kinds}))


def _of_family(family: str) -> list[Recipe]:
    """Every level, for both methods and a projection, of a family's first model; of the others, what comes out."""
    first, *others = FAMILIES[family]
    own, recipes, behind = CLAUSES[family], [], {"decoder_ids": family in BEHIND_ENCODERS}
    for adapter, words in _WORDS.items():
        method = {"prompt": "PT-2 PT-3", "prefix": "PX-3 PX-4", "projected": "PX-1 PX-2"}[adapter]
        asked = f"{method} {own}"
        whole = adapter == "prefix" or (adapter == "prompt" and family not in ALIKE)
        name, shown, side = (
            ("stages", "every stage", "left") if whole else ("right-padding", "right padding", "right")
        )
        component = (
            ("inputs", "what the model is given")
            if adapter == "prompt"
            else ("prefix.encode", "keys and values")
        )
        recipes += [
            case(first, adapter, "forward", f"{name}-{adapter}" if whole else f"{adapter}-{name}",
                 f"{family}: {shown}, {words}", asked, padding=side, stages=whole),
            case(first, adapter, component[0], f"{adapter}-alone", f"{family}: {component[1]}, {words}", f"{asked} MK-1"),
            case(first, adapter, "gradients", f"{adapter}-left-padding", f"{family}: gradients, {words}", asked,
                 batches=SEVERAL if adapter == "prompt" else SMALL),
            case(first, adapter, "checkpoint.load", f"load-{adapter}", f"{family}: an adapter that HF wrote, {words}",
                 f"CK-1 CK-3 {own}", padding="", text=behind, labels=""),
        ]  # fmt: skip
    recipes.append(
        case(
            first,
            "prompt",
            "checkpoint.save",
            "save-prompt",
            f"{family}: what a prompt leaves on disk",
            "CK-1 CK-2",
        )
    )
    for model in others:
        title = f"{family}, another wiring"
        recipes += [
            case(
                model,
                "prompt",
                "forward",
                "prompt-left-padding",
                f"{title}: left padding, prompt tuning",
                own,
            ),
            case(
                model,
                "prefix",
                "forward",
                "prefix-left-padding",
                f"{title}: left padding, prefix tuning",
                own,
            ),
            case(
                model,
                "prefix",
                "gradients",
                "prefix-right-padding",
                f"{title}: gradients",
                own,
                padding="right",
            ),
        ]
    return recipes


def _aligned() -> list[Recipe]:
    """Sizes that kernels like, end values alone."""
    models = [model for model in MODELS if model.endswith("-aligned") and not model.startswith("gpt2")]
    both = ("llama-aligned", "bert-aligned", "t5-aligned")
    return [
        case(model, adapter, "forward", adapter, f"sizes that are multiples of 32, {_WORDS[adapter]}",
             f"AT-3 {CLAUSES[_family(model)]}", padding="right", labels="" if _family(model) in ENCODERS else None)
        for model in models
        for adapter in (("prompt", "prefix") if model in both else ("prefix",))
    ]  # fmt: skip


def _attentions() -> list[Recipe]:
    """One attention layer with a prefix, for each way in which attention differs."""
    layers = {
        "llama-odd": 1, "qwen3-odd": 2, "phi-odd": 0, "gemma2-odd": 1, "gpt-bigcode-odd": 1, "opt-odd": 0,
        "gpt-neox-odd": 1, "mistral-odd": 0, "gemma-odd": 2,
    }  # fmt: skip
    return [
        replace(
            case(model, "prefix", "attention", "layer", f"{_family(model)}: one layer with a prefix before left padding",
                 f"AT-1 AT-2 AT-3 AT-4 {CLAUSES[_family(model)]}", labels="", arguments={"layer": layer}, stages=model in ("llama-odd", "gemma2-odd"),
                 text={"pads": False}),
            method=COMMON,
        )
        for model, layer in layers.items()
    ]  # fmt: skip


def _inits() -> list[Recipe]:
    """Where initial values depend on the family: scaled embeddings, two stacks, grouped heads."""
    sample = {"prompt_tuning_init": "SAMPLE_VOCAB"}
    return [
        case("gemma-odd", "prompt", "init", "sample-vocab", "rows of the table, through a module that scales them", "PT-5 PT-7",
             arguments={"seed": 31}, config=sample),
        case("bart-even", "prompt", "init", "sample-vocab", "scaled rows, for two stacks", "PT-5 PT-7 PT-8",
             arguments={"seed": 32}, config=sample),
        case("t5-odd", "prompt", "init", "random", "twice as many rows as virtual tokens", "PT-4 PT-8", arguments={"seed": 33}),
        case("llama-odd", "projected", "init", "projected", "as wide as the key/value heads", "PX-6 CF-4", arguments={"seed": 34}),
        case("bert-odd", "prefix", "init", "prefix", "a head is trained too, and starts as the base model's", "PX-6 CF-9",
             arguments={"seed": 35}),
    ]  # fmt: skip


def _tasks() -> list[Recipe]:
    """Each task type on decoders and encoders, for both methods: heads, losses, pooling, token types."""
    recipes: list[Recipe] = []

    def both(
        model: str, task: str, name: str, title: str, clauses: str, question: str = "forward", **options: Any
    ) -> None:
        for adapter in ("prompt", "prefix"):
            batches = {"SEQ_CLS": SEVERAL, "QUESTION_ANS": SEVERAL[1:]}.get(task, SMALL)
            recipes.append(
                case(
                    model,
                    adapter,
                    question,
                    f"{name}-{adapter}",
                    title,
                    clauses,
                    task_type=task,
                    batches=batches,
                    **options,
                )
            )

    for model in ("gpt2-heads", "llama-odd", "opt-odd", "bloom-odd", "gemma3-odd"):
        both(
            model,
            "SEQ_CLS",
            "sequence",
            "one class for a text, padded on the right",
            "TK-6 CF-9",
            padding="right",
        )
    for model in ("gpt2-heads", "bert-odd", "mistral-odd"):
        both(
            model,
            "SEQ_CLS",
            "sequence-gradients",
            "a head's gradients beside the virtual tokens'",
            "CF-9",
            "gradients",
            padding="right",
        )
    both(
        "llama-linear",
        "SEQ_CLS",
        "regression",
        "one number for a text",
        "TK-5",
        labels="numbers",
        padding="right",
    )
    both("gpt2-heads", "SEQ_CLS", "shares", "a share of each class", "TK-5", labels="shares", padding="right")
    both(
        "bert-odd",
        "SEQ_CLS",
        "token-types",
        "token types, and padding on the right",
        "TK-4 TK-5",
        padding="right",
        text={"token_types": True},
    )
    both(
        "electra-odd",
        "SEQ_CLS",
        "token-types",
        "token types, and padding on the left",
        "TK-4 TK-5",
        padding="left",
        text={"token_types": True},
    )
    both(
        "roberta-odd", "SEQ_CLS", "sequence-no-mask", "no mask", "TK-5 PO-4", padding="", text={"pads": False}
    )
    for model in ("gpt2-heads", "llama-odd", "bert-odd", "roberta-odd", "falcon-alibi"):
        both(model, "TOKEN_CLS", "token", "a class for each position", "TK-7 CF-9", padding="right")
    both(
        "electra-odd",
        "TOKEN_CLS",
        "token-gradients",
        "gradients of a class for each position",
        "TK-7 CF-9",
        "gradients",
    )
    both(
        "bert-odd",
        "TOKEN_CLS",
        "token-types-of-tokens",
        "a class for each position, with token types",
        "TK-4 TK-7",
        padding="right",
        text={"token_types": True},
    )
    for model in ("gpt2-heads", "mistral-odd", "bert-odd", "electra-odd"):
        both(model, "QUESTION_ANS", "span", "where an answer begins and ends", "TK-8 CF-9", padding="right")
    both(
        "bert-odd",
        "QUESTION_ANS",
        "span-outside",
        "an answer that ends behind the text does not count",
        "TK-8",
        labels="spans-outside",
        padding="left",
    )
    both(
        "roberta-odd",
        "QUESTION_ANS",
        "span-token-types",
        "token types are taken and not looked at",
        "TK-4 TK-8",
        padding="right",
        text={"token_types": True},
    )
    for model in ("gpt2-heads", "bert-odd", "roberta-odd", "electra-odd", "gemma-odd"):
        both(
            model,
            "FEATURE_EXTRACTION",
            "features",
            "the last hidden states, and what is pooled",
            "TK-9",
            padding="right",
        )
    both("bert-odd", "SEQ_CLS", "save-head", "a head in the adapter's file", "CK-1 CF-9", "checkpoint.save")
    both(
        "gpt2-heads",
        "QUESTION_ANS",
        "load-head",
        "an adapter with a head that HF wrote",
        "CK-3 CF-9",
        "checkpoint.load",
        padding="",
        labels="",
    )
    return recipes  # fmt: skip


def _quirks() -> list[Recipe]:
    """What nobody would guess, each as small as it can be."""
    behind = {"decoder_ids": True}
    return [
        case("t5-even", "prefix", "gradients", "dead-rows", "an even number of layers: half of the blocks have no gradient", "PX-8",
             padding=""),
        case("t5-even", "prefix", "prefix.encode", "shared-rows", "layers 0 and 1 read the same blocks", "PX-8"),
        case("bart-odd", "prompt", "gradients", "unused-rows", "rows n … 2n − 1 of a prompt have no gradient", "PT-8", padding=""),
        case("t5-odd", "prompt", "forward", "decoder-mask", "the decoder's mask stays as it is", "MK-1 TK-10",
             text={**behind, "decoder_padding": "right"}),
        case("t5-odd", "prefix", "forward", "decoder-mask", "the decoder's mask is extended, the encoder's is not", "MK-1 TK-10",
             text={**behind, "decoder_padding": "left"}),
        case("bart-even", "prefix", "forward", "decoder-ids", "the caller's tokens for the decoder, scaled embeddings", "TK-10 PT-7",
             padding="right", text={**behind, "decoder_padding": "right"}),
        case("mistral-odd", "prefix", "forward", "window-forgets", "the prefix falls out of the window", "MK-4", padding="",
             longest=9),
        case("qwen2-even", "prompt", "forward", "window-forgets", "a window in the second layer alone", "MK-4", padding="",
             longest=9),
        case("opt-odd", "prompt", "forward", "positions-ignored", "the caller's positions are dropped; OPT's count the mask", "PO-1 PO-4",
             text={"positions": "given"}),
        case("llama-odd", "prefix", "forward", "positions-shifted", "the caller's positions are moved on by the prefix", "PO-1 PO-3",
             text={"positions": "cumsum"}),
        case("opt-odd", "prefix", "forward", "positions-given", "the caller's positions are rows of OPT's table", "PO-1 PO-4",
             text={"positions": "given"}),
        case("falcon-alibi", "prefix", "forward", "no-mask-rounded", "without a mask Falcon's distances are bfloat16", "PO-5",
             padding="", longest=9),
        case("bloom-odd", "prompt", "forward", "alibi-full-mask", "distances are counted along the extended mask", "PO-5",
             padding="full"),
        case("roberta-odd", "prompt", "inputs", "padding-counted", "padding is counted where only embeddings are seen", "PO-4",
             padding="right"),
        case("roberta-odd", "prefix", "inputs", "padding-kept", "padding keeps its own position", "PO-4", padding="right"),
    ]  # fmt: skip


def _generations() -> list[Recipe]:
    """Greedy decoding and beam search where caches, positions and masks differ; behind an encoder too."""
    asked = (
        (
            "llama-odd",
            "prefix",
            "greedy-left-padding",
            "grouped heads, turned keys",
            "GN-2 GN-3 PO-3",
            "left",
            1,
        ),
        ("llama-even", "prompt", "greedy", "a prompt in the cache", "GN-3 GN-4", "", 1),
        ("mistral-odd", "prefix", "greedy", "the prefix leaves the window", "GN-3 MK-4", "", 1),
        (
            "mistral-odd",
            "prompt",
            "greedy-left-padding",
            "the prompt leaves the window",
            "GN-3 MK-4",
            "left",
            1,
        ),
        ("opt-odd", "prefix", "greedy-left-padding", "positions count the mask", "GN-2 PO-4", "left", 1),
        (
            "opt-even",
            "prompt",
            "greedy-left-padding",
            "positions count the extended mask",
            "GN-2 PO-4",
            "left",
            1,
        ),
        (
            "bloom-odd",
            "prefix",
            "greedy-left-padding",
            "distances over a mask that grows",
            "GN-3 PO-5",
            "left",
            1,
        ),
        ("falcon-alibi", "prompt", "greedy", "distances in bfloat16", "GN-3 PO-5", "", 1),
        ("falcon-even", "prefix", "beams", "three beams", "GN-6 GN-7", "", 3),
        ("gemma2-odd", "prefix", "greedy", "a cut prefix, softcaps", "GN-3 PX-9", "", 1),
        ("gemma3-odd", "prompt", "greedy-left-padding", "two rotations", "GN-3 PO-3", "left", 1),
        ("qwen3-odd", "prefix", "beams", "three beams behind left padding", "GN-6 GN-7", "left", 3),
        ("gpt-neox-odd", "prompt", "beams", "three beams", "GN-6 GN-7", "", 3),
        ("phi-odd", "prefix", "greedy", "half of each head is turned", "GN-3 PO-3", "", 1),
        (
            "t5-odd",
            "prefix",
            "greedy-left-padding",
            "behind an encoder: the prefix is the decoder's",
            "GN-3 PX-8",
            "left",
            1,
        ),
        ("t5-even", "prompt", "greedy", "behind an encoder: the prompt is the encoder's", "GN-3 PT-8", "", 1),
        ("bart-odd", "prefix", "beams", "three beams of a decoder", "GN-6 GN-7 PX-8", "right", 3),
        ("bart-even", "prompt", "greedy-right-padding", "scaled embeddings", "GN-3 PT-7", "right", 1),
        ("bart-odd", "prefix", "greedy-forced", "the first and the last token are forced", "GN-9", "", 1),
        ("t5-odd", "prompt", "greedy-forced", "the first and the last token are forced", "GN-9", "", 1),
    )
    forced = {"forced_bos_token_id": 7, "forced_eos_token_id": 9}
    recipes = []
    for model, adapter, name, title, clauses, padding, beams in asked:
        sizes = fit(model, adapter, task_of(model), generates=True)
        given: dict[str, Any] = {
            "max_new_tokens": sizes.decoder_tokens,
            "eos_token_id": None,
            "pad_token_id": None,
        }
        own = {"num_virtual_tokens": sizes.virtual, **GIVEN.get((model, ADAPTERS[adapter]), {})}
        recipes.append(
            Recipe(
                ADAPTERS[adapter], "generate", f"{model}-{name}", f"{_family(model)}: {title}", clauses, model, own,
                given | ({"num_beams": beams} if beams > 1 else {}) | (forced if name.endswith("forced") else {}), text=Text(sizes.batch, sizes.tokens, padding),
                task_type=task_of(model),
            )
        )  # fmt: skip
    return recipes


def _resolved() -> list[Recipe]:
    """HF's rule for the sizes, on each family's configuration."""
    recipes = []
    for family, (model, *_) in FAMILIES.items():
        for method in (PROMPT, PREFIX):
            config = {"peft_type": method.upper(), "task_type": task_of(model), "num_virtual_tokens": 6}
            recipes.append(
                Recipe(
                    method, "config.resolve", f"family-{family.replace('_', '-')}", f"{family}: sizes from the base model",
                    "CF-3", arguments={"config": config, "base_config": {**MODELS[model].config}},
                )
            )  # fmt: skip
    return recipes


def windows(model: str) -> list[int | None]:
    """Each layer's window, where HF's cache cuts a prefix to it."""
    config = _model_config(model)
    return [
        config.sliding_window if is_sliding(config, layer) else None
        for layer in range(config.num_hidden_layers)
    ]


FAMILY_RECIPES: tuple[Recipe, ...] = tuple(
    itertools.chain(
        *(_of_family(family) for family in FAMILIES),
        _aligned(),
        _attentions(),
        _inits(),
        _tasks(),
        _quirks(),
        _generations(),
        _resolved(),
    )
)
"""Every case of the families beside GPT-2."""
