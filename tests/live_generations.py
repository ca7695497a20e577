"""One generation of the live comparison: everything drawn, refpeft and HF peft asked, and the answers compared.

    python tests/live_generations.py --rounds 50            # a table of the largest differences, family by family
    python tests/live_generations.py --rounds 500 --seed 7 llama t5

`compare` asserts that the same tokens come out and returns how far logits or scores are apart.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import numpy
from hypothesis import strategies as st
from live_families import (
    ENCODER_DECODERS,
    ENCODERS,
    FAMILIES,
    Draw,
    draw_config,
    load_hf,
    sometimes,
    write_base,
)
from live_rounds import PREFIX, PROJECTED, PROMPT, Round, configurations, draw_adapter, make_mask, trained
from support import need, relative_error
from true_float64 import as_float64, true_float64

import refpeft
from refpeft.generation import KEEPS_CACHE, GenerateOutput

torch = need("torch")
peft = need("peft")

WRITERS = tuple(family for family in FAMILIES if family not in ENCODERS)
"""The families that generate."""
NOTHING = -1e8
"""Scores below this stand for beams that there are not: which of several such is returned is a tie of −1e9s."""
DEFAULT = 20
"""How many tokens HF adds where nobody says how many."""


@dataclass(frozen=True)
class Generation:
    """Everything that a generation depends on."""

    model: Round
    """The base model, the adapter, and the text's shape."""
    mask: str | None
    """Which entries of it are padding; None without a mask."""
    mask_format: str
    inferred: bool
    """Whether padding is written into the text, and the mask kept back."""
    disabled: bool
    """Whether the base model generates, within `disable_adapter`."""
    options: dict[str, Any]

    @property
    def encoded(self) -> bool:
        return self.model.family in ENCODER_DECODERS


# ---------------------------------------------------------------- drawing


@st.composite
def generations(draw: Any, family: str) -> Generation:
    """A generation by a model of the family."""
    method = draw(st.sampled_from([PROMPT, PREFIX, PROJECTED]))
    virtual, batch, tokens = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    new = draw(st.integers(1, 7) | st.just(DEFAULT))
    task_type = "SEQ_2_SEQ_LM" if family in ENCODER_DECODERS else "CAUSAL_LM"
    needed = virtual + tokens + new * (new + 1) // 2
    config = draw_config(draw, family, needed, task_type)
    if not config.get("tie_word_embeddings", True) and draw(st.booleans()):
        config.pop("tie_word_embeddings")
    options = {**_lengths(draw, new, 1 if family in ENCODER_DECODERS else tokens), **_tokens(draw, config)}
    options |= sometimes(draw, min_new_tokens=st.integers(0, 4))
    if draw(st.booleans()):
        options |= _beams(draw)
    if config.get("sliding_window") == 1:
        config["sliding_window"] = 2  # HF's cache cannot: test_live_generation.py
    tall = config.get("num_decoder_layers", 0) > config.get("num_layers", 0)
    if tall and method == PROMPT:
        config["num_decoder_layers"] = config["num_layers"]  # nor of more layers than T5's encoder has
    if new == 1 or not (method != PROMPT and _fails_without_cache(config)):
        options |= sometimes(draw, use_cache=st.booleans())
    model = Round(
        seed=draw(st.integers(0, 2**32 - 1)), config=config, own_head=False, task_type=task_type, method=method,
        adapter=draw_adapter(draw, config, task_type, method, virtual), perturbed=draw(st.booleans()),
        batch=batch, tokens=tokens, decoder_tokens=1, inputs={},
    )  # fmt: skip
    mask = draw(st.none() | st.sampled_from(["full", "left", "right", "holes"]))
    mask_format = draw(st.sampled_from(["int64", "bool", "float32", "float64"]))
    disabled = draw(st.integers(0, 5)) == 0 and not tall and (task_type, method) != ("SEQ_2_SEQ_LM", PROMPT)
    return Generation(model, mask, mask_format, draw(st.booleans()), disabled, options)


def _fails_without_cache(config: dict[str, Any]) -> bool:
    alibi = config["model_type"] == "bloom" or config.get("alibi")
    return config["model_type"] in KEEPS_CACHE and not alibi


def _lengths(draw: Draw, new: int, tokens: int) -> dict[str, Any]:
    if new == DEFAULT:
        return {}
    return draw(st.sampled_from([{"max_new_tokens": new}, {"max_length": tokens + new}]))


def _tokens(draw: Draw, config: dict[str, Any]) -> dict[str, Any]:
    """Tokens that end, fill and begin. HF's defaults stand in a file that refpeft does not read: everything is said."""
    token = st.integers(0, config["vocab_size"] - 1)
    several = st.lists(token, min_size=1, max_size=2, unique=True)
    found: dict[str, Any] = {
        "eos_token_id": draw(st.none() | token | several),
        "pad_token_id": draw(st.none() | token),
        "forced_eos_token_id": draw(st.none() | st.none() | token),
        "forced_bos_token_id": draw(st.none() | st.none() | token),
    }
    if config["model_type"] in ENCODER_DECODERS:
        found |= sometimes(draw, decoder_start_token_id=token)
    return found


def _beams(draw: Draw) -> dict[str, Any]:
    beams = draw(st.integers(2, 4))
    return {
        "num_beams": beams,
        **sometimes(
            draw,
            num_return_sequences=st.integers(1, beams),
            length_penalty=st.sampled_from([1.0, 0.0, -1.0, 2.0]),
            early_stopping=st.sampled_from([True, False, "never"]),
        ),
    }


def make_text(what: Generation) -> dict[str, numpy.ndarray]:
    """Token ids, and perhaps a mask."""
    random, model = numpy.random.default_rng(what.model.seed), what.model
    shape, pad = (model.batch, model.tokens), what.options["pad_token_id"]
    ids = random.integers(0, model.config["vocab_size"], shape)
    if what.mask is None:
        return {"input_ids": ids}
    mask = make_mask(random, shape, what.mask)
    if what.inferred and pad is not None:
        return {"input_ids": numpy.where(mask == 1, ids, pad)}
    return {"input_ids": ids, "attention_mask": mask.astype(what.mask_format)}


# ---------------------------------------------------------------- comparing


def both_sides(what: Round, directory: Path) -> tuple[refpeft.PeftModel, Any]:
    """Refpeft's and HF's adapted model, with the same parameters, in float64."""
    path = write_base(what.config, what.task_type, what.seed, directory / "base")
    hf_config, config = configurations(what)
    torch.manual_seed(what.seed)
    theirs = peft.get_peft_model(load_hf(path, what.task_type), hf_config)
    ours = refpeft.get_peft_model(refpeft.load_base_model(path), config, seed=what.seed)
    parameters, generator = trained(theirs), torch.Generator().manual_seed(what.seed)
    with torch.no_grad():
        for parameter in parameters.values() if what.perturbed else ():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    theirs = as_float64(theirs)
    ours.load_trainable_parameters({name: value.detach().numpy() for name, value in parameters.items()})
    return ours, theirs


def ask_hf(model: Any, text: dict[str, numpy.ndarray], options: dict[str, Any]) -> Any:
    """HF's answer in true float64."""
    with true_float64(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(
            **{name: torch.tensor(value) for name, value in text.items()},
            do_sample=False, return_dict_in_generate=True, output_logits=True, output_scores=True, **options,
        )  # fmt: skip


def ask_refpeft(model: refpeft.PeftModel, text: dict[str, Any], options: dict[str, Any]) -> GenerateOutput:
    """Refpeft's answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # right padding is among what is tried
        output = model.generate(**text, return_dict_in_generate=True, **options)
    assert isinstance(output, GenerateOutput)
    return output


def compare(what: Generation, directory: Path) -> float:
    """Ask both sides in a fresh directory: the same sequences, and how far logits or scores are apart."""
    ours, theirs = both_sides(what.model, directory)
    text = make_text(what)
    with ours.disable_adapter() if what.disabled else nullcontext():
        output = ask_refpeft(ours, text, what.options)
    with theirs.disable_adapter() if what.disabled else nullcontext():
        expected = ask_hf(theirs, text, what.options)
    sequences = expected.sequences.numpy()
    if what.options.get("num_beams", 1) == 1:
        assert output.sequences.tolist() == sequences.tolist()
        return relative_error(output.logits, torch.stack(expected.logits, dim=1).numpy())
    scores = expected.sequences_scores.numpy()
    assert output.sequences_scores is not None
    found = scores > NOTHING
    if found.all():
        assert output.sequences.shape == sequences.shape
    length = min(sequences.shape[1], output.sequences.shape[1])
    assert output.sequences[found, :length].tolist() == sequences[found, :length].tolist()
    return relative_error(output.sequences_scores[found], scores[found])


# ---------------------------------------------------------------- the table


def measure(family: str, number: int, seed: int) -> float:
    """The largest difference of so many generations."""
    worst = [0.0]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=number, deadline=None, database=None, derandomize=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(what=generations(family))
    def run(what: Generation) -> None:
        hypothesis.note(f"generation: {what}")
        with tempfile.TemporaryDirectory() as directory:
            worst.append(compare(what, Path(directory)))

    run()
    return max(worst)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help=f"of {', '.join(WRITERS)}; all without any")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{'family':14}{'rounds':>7}{'error':>10}")
    for family in options.families or WRITERS:
        print(
            f"{family:14}{options.rounds:7}{measure(family, options.rounds, options.seed):10.1e}", flush=True
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
