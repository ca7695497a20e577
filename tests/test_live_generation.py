"""refpeft against the real HF peft, in true float64: what is generated, family by family (live_generations.py)."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
import support
from hypothesis import given, note, settings
from hypothesis import strategies as st
from support import need, relative_error

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]
torch, peft = need("torch"), need("peft")

from live_families import ENCODER_DECODERS  # noqa: E402
from live_generations import (  # noqa: E402
    WRITERS,
    Generation,
    ask_hf,
    ask_refpeft,
    both_sides,
    compare,
    generations,
    make_text,
)
from live_rounds import PREFIX, PROMPT, Round, sizes_that_hf_misses  # noqa: E402

from refpeft import generation  # noqa: E402
from refpeft.errors import InputError  # noqa: E402

TOLERANCE = 1e-12
"""True float64 on both sides: rounding alone, some 1e-15 per operation, over a few hundred operations in sequence."""
ROUNDS = 30 if os.environ.get("REFPEFT_HYPOTHESIS") == "deep" else 3
"""Of each family: half a second each."""
ENDLESS: dict[str, Any] = {
    "eos_token_id": None, "pad_token_id": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
}  # fmt: skip
WIRINGS = {name: what for name, what in support.MODELS.items() if what[0] in WRITERS}
FAILING = {
    "gpt_bigcode", "gpt_bigcode, many keys", "opt", "opt, narrow, norms after", "opt, plain", "gpt_neox",
    "gpt_neox, one after the other", "falcon", "falcon, grouped", "falcon, grouped, one norm", "llama", "llama, llama3",
    "llama, linear", "gemma2", "gemma3_text", "phi", "phi, query and key norm",
}  # fmt: skip
"""Where use_cache=False fails beside a prefix."""


@pytest.mark.parametrize("family", WRITERS)
@settings(max_examples=ROUNDS, deadline=None, print_blob=True)
@given(data=st.data())
def test_generates_as_hf_peft(family: str, data: st.DataObject) -> None:
    """The same tokens; logits and scores to 1e-12. Masks of all kinds, given or to be inferred; beams; forced tokens."""
    what = data.draw(generations(family))
    note(f"generation: {what}")
    with tempfile.TemporaryDirectory() as directory:
        assert compare(what, Path(directory)) < TOLERANCE


def model(name: str, method: str, **changes: Any) -> Round:
    """A round with a tiny model of `support.MODELS`, left as its seed draws it."""
    family, options = WIRINGS[name]
    config = support.tiny_values(family, **{**options, **changes})
    config.pop("num_labels", None)
    return Round(
        seed=5, config=config, own_head=False, method=method,
        task_type="SEQ_2_SEQ_LM" if family in ENCODER_DECODERS else "CAUSAL_LM",
        adapter={"num_virtual_tokens": 3, **sizes_that_hf_misses(config, method)},
        perturbed=True, batch=2, tokens=5, decoder_tokens=1, inputs={},
    )  # fmt: skip


def padded(what: Round, **options: Any) -> Generation:
    return Generation(what, "left", "int64", False, False, {**ENDLESS, "max_new_tokens": 4, **options})


@pytest.mark.parametrize("method", [PROMPT, PREFIX])
@pytest.mark.parametrize("name", WIRINGS)
def test_without_a_cache_as_hf(name: str, method: str, tmp_path: Path) -> None:
    """What HF answers, or fails at, and then only beside a prefix and with more than one new token."""
    what = padded(model(name, method), use_cache=False)
    if method == PROMPT or name not in FAILING:
        assert compare(what, tmp_path / "whole") < TOLERANCE
        return
    ours, theirs = both_sides(what.model, tmp_path / "whole")
    text = make_text(what)
    with pytest.raises(RuntimeError):
        ask_hf(theirs, text, what.options)
    with pytest.raises(InputError, match="use_cache=False beside a prefix fails in HF"):
        ask_refpeft(ours, text, what.options)
    assert compare(padded(what.model, use_cache=False, max_new_tokens=1), tmp_path / "one") < TOLERANCE


def test_every_wiring_is_compared_without_a_cache() -> None:
    assert set(WIRINGS) >= {*FAILING, *WRITERS}


@pytest.mark.parametrize("name", ["mistral", "qwen2", "gemma2", "gemma3_text"])
def test_hfs_cache_forgets_a_window_of_one_token(name: str, tmp_path: Path) -> None:
    """Later steps see everything in such layers, or fail. Without a cache it is right; beside Mistral's prefix too."""
    model_ = model(name, PROMPT, sliding_window=1)
    assert compare(padded(model_, use_cache=False), tmp_path / "uncached") < TOLERANCE
    assert compare(padded(model_, max_new_tokens=1), tmp_path / "first") < TOLERANCE
    what = padded(model_)
    ours, theirs = both_sides(model_, tmp_path / "cached")
    expected = ask_hf(theirs, make_text(what), what.options)
    right = ask_refpeft(ours, make_text(what), {**what.options, "use_cache": False})
    assert right.logits is not None
    assert relative_error(right.logits[:, 1], expected.logits[1].numpy()) > 1e-3
    with pytest.raises(InputError, match="sliding_window of 1"):
        ask_refpeft(ours, make_text(what), what.options)
    if name in ("mistral", "qwen2"):
        assert compare(padded(model(name, PREFIX, sliding_window=1)), tmp_path / "prefix") < TOLERANCE


@pytest.mark.parametrize("beams", [1, 2])
def test_hfs_cache_for_t5_has_as_many_layers_as_the_encoder(beams: int, tmp_path: Path) -> None:
    """With more in the decoder it fails at once; not beside a prefix, which is a cache, nor without a cache."""
    tall = {"num_layers": 1, "num_decoder_layers": 2}
    assert compare(padded(model("t5", PREFIX, **tall), num_beams=beams), tmp_path / "prefix") < TOLERANCE
    what = padded(model("t5", PROMPT, **tall), num_beams=beams, max_new_tokens=1)
    uncached = padded(what.model, num_beams=beams, use_cache=False)
    assert compare(uncached, tmp_path / "uncached") < TOLERANCE
    ours, theirs = both_sides(what.model, tmp_path / "cached")
    with pytest.raises(IndexError):
        ask_hf(theirs, make_text(what), what.options)
    with pytest.raises(InputError, match="2 decoder layers and 1 encoder layers"):
        ask_refpeft(ours, make_text(what), what.options)


# ---------------------------------------------------------------- defaults


def without_defaults(what: Round, directory: Path) -> tuple[Any, Any]:
    """Both sides, HF's without the generation_config.json that refpeft does not read."""
    ours, theirs = both_sides(what, directory)
    import transformers

    (directory / "base" / "generation_config.json").unlink()
    theirs.get_base_model().generation_config = transformers.GenerationConfig.from_pretrained(
        directory / "base", "config.json", _from_model_config=True
    )
    return ours, theirs


@pytest.mark.parametrize(
    "changes",
    [
        {"forced_eos_token_id": 7, "eos_token_id": 7, "decoder_start_token_id": 5, "pad_token_id": 1},
        {"forced_eos_token_id": 7, "eos_token_id": [7, 9], "decoder_start_token_id": 5, "pad_token_id": 1},
        {"forced_bos_token_id": 11, "eos_token_id": 7, "decoder_start_token_id": 5, "pad_token_id": 1},
        {"decoder_start_token_id": None, "bos_token_id": 4, "eos_token_id": 7, "pad_token_id": 1},
    ],
    ids=["end", "ends", "beginning", "start"],
)
@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("beams", [1, 3])
def test_the_tokens_of_config_json_are_used(
    name: str, changes: dict[str, Any], beams: int, tmp_path: Path
) -> None:
    what = model(name, PREFIX, **changes)
    ours, theirs = without_defaults(what, tmp_path)
    text = make_text(padded(what))
    options = {"max_new_tokens": 4, "num_beams": beams}
    expected, output = ask_hf(theirs, text, options), ask_refpeft(ours, text, options)
    assert output.sequences.tolist() == expected.sequences.tolist()
    start = changes["decoder_start_token_id"]
    assert (output.sequences[:, 0] == (4 if start is None else start)).all()


def test_without_a_token_to_begin_with_both_fail(tmp_path: Path) -> None:
    what = model("t5", PREFIX, decoder_start_token_id=None)
    ours, theirs = without_defaults(what, tmp_path)
    text = make_text(padded(what))
    with pytest.raises(ValueError, match="`decoder_start_token_id` or `bos_token_id` has to be defined"):
        ask_hf(theirs, text, {"max_new_tokens": 4})
    with pytest.raises(InputError, match="neither decoder_start_token_id nor bos_token_id"):
        ask_refpeft(ours, text, {"max_new_tokens": 4})


@pytest.mark.parametrize("name", WRITERS)
def test_the_default_length_is_hfs(name: str, tmp_path: Path) -> None:
    """Twenty tokens, or as far as max_position_embeddings, if config.json has it."""
    what = padded(model(name, PROMPT))
    options = {key: value for key, value in what.options.items() if key != "max_new_tokens"}
    ours, theirs = both_sides(what.model, tmp_path)
    text = make_text(what)
    expected, output = ask_hf(theirs, text, options), ask_refpeft(ours, text, options)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert relative_error(output.logits, torch.stack(expected.logits, dim=1).numpy()) < TOLERANCE


# ---------------------------------------------------------------- the comparison itself


@pytest.mark.parametrize(
    ("name", "step", "wrong"),
    [
        ("t5", "generation.decoder_start", lambda batch, token: numpy.full((batch, 1), 1)),
        ("bart", "generation.fed_tokens", lambda ids, behind, cache: ids[:, -1:] if behind else ids),
        ("mistral", "generation.step_position_ids", lambda ids, queries, virtual, prefix: None),
        ("bloom", "generation.step_attention_mask", lambda mask, virtual: None),
    ],
)
def test_the_comparison_sees_a_mistake(name: str, step: str, wrong: Any, tmp_path: Path) -> None:
    """It is right as it is, and a wrong step makes it fail."""
    from refpeft.steps import replaced

    what = padded(model(name, PREFIX), **({"use_cache": False} if name == "bart" else {}))
    assert compare(what, tmp_path / "right") < TOLERANCE
    with replaced({step: wrong}):
        try:
            apart = compare(what, tmp_path / "wrong")
        except AssertionError:
            return
    assert apart > 1e-6


def test_hf_warns_of_right_padding_where_refpeft_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a decoder alone; behind an encoder, padding may stand on either side."""
    import transformers

    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.enable_propagation()
    try:
        for name, expected in (("llama", True), ("t5", False)):
            ours, theirs = both_sides(model(name, PREFIX), tmp_path / name)
            text = {
                "input_ids": numpy.full((2, 4), 5),
                "attention_mask": numpy.array([[1] * 4, [1, 1, 1, 0]]),
            }
            options = {**ENDLESS, "pad_token_id": 1, "max_new_tokens": 1}
            caplog.clear()
            ask_hf(theirs, text, options)
            assert ("right-padding was detected" in caplog.text) == expected
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                ours.generate(**text, **options)
            assert any("right-padding was detected" in str(warning.message) for warning in caught) == expected
    finally:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_propagation()


def test_the_family_names_are_those_of_the_table() -> None:
    assert set(WRITERS) > generation.KEEPS_CACHE
