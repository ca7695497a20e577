"""Drawn questions: what is written is a golden case, whatever is drawn, and what HF computes by accident is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import ml_dtypes
import numpy
import pytest
from hypothesis import HealthCheck, Phase

from refpeft.oracle.budget import PROFILES
from refpeft.oracle.cases import family_of_model
from refpeft.oracle.drawn import Drawn, complete, discard, is_blind, write
from refpeft.oracle.judge import judge_one
from refpeft.oracle.port import ReferencePort
from refpeft.oracle.vectors import all_vectors
from refpeft.tensors import read_tensors
from refpeft.testing import cases
from refpeft.transformer.families import FAMILIES

GPT2 = {"model_type": "gpt2", "vocab_size": 13, "n_embd": 6, "n_layer": 2, "n_head": 2, "n_positions": 16}
MISTRAL = {
    "model_type": "mistral", "vocab_size": 13, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_hidden_layers": 1, "intermediate_size": 5, "max_position_embeddings": 32, "sliding_window": 2,
}  # fmt: skip


def of(question: str = "forward", **changes: Any) -> Drawn:
    """A question about a small GPT-2."""
    given = {
        "method": "prefix_tuning",
        "task_type": "CAUSAL_LM",
        "model": GPT2,
        "adapter": {"num_virtual_tokens": 3},
        "batch": 2,
        "tokens": 5,
        "seed": 1,
    }
    return Drawn(question, **{**given, **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_a_case_that_refpeft_answers(family: str, tmp_path: Path) -> None:
    """Read anew from its files, it conforms, with floors that are measured."""

    @hypothesis.seed(7)
    @hypothesis.settings(
        max_examples=8,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(cases(families=[family]))
    def check(drawn: Drawn) -> None:
        root = tmp_path / drawn.key
        vector = write(drawn, root)
        complete(vector)
        (stored,) = all_vectors(root)
        assert stored.case == vector.case
        assert stored.truth == "refpeft"
        assert stored.expected.keys() == vector.case.tensors.keys()
        if stored.model_directory is not None:
            assert family_of_model(stored.model_directory) == family
        if not is_blind(vector):
            result = judge_one(ReferencePort(), stored, PROFILES[drawn.profile], tmp_path / "output", 1, None)
            assert result.verdict in ("CONFORMS", "SKIPPED"), result

    check()


def test_the_id_says_what_is_asked(tmp_path: Path) -> None:
    vector = write(of("prefix.encode"), tmp_path)
    assert vector.case.id == f"fuzz/prefix_tuning/prefix_encode/gpt2-{of('prefix.encode').key}"
    assert vector.case.model is None
    assert write(of("mask"), tmp_path).case.id.startswith("fuzz/common/mask/gpt2-")
    assert of(seed=2).key != of().key == of().key


def test_numbers_are_on_the_bfloat16_grid_and_large(tmp_path: Path) -> None:
    vector = write(of(), tmp_path)
    assert vector.model_directory is not None
    given = {**read_tensors(vector.model_directory / "model.safetensors", "it"), **vector.inputs}
    real = [value for value in given.values() if value.dtype == numpy.float32]
    assert len(real) > 20
    for value in real:
        assert (value == value.astype(ml_dtypes.bfloat16).astype(numpy.float32)).all()
    assert 0.3 < numpy.concatenate([value.ravel() for value in real]).std() < 0.5


def test_half_of_the_files_are_in_bfloat16(tmp_path: Path) -> None:
    vector = write(of(half=True), tmp_path)
    assert vector.model_directory is not None
    stored = read_tensors(vector.model_directory / "model.safetensors", "it")
    assert {str(value.dtype) for value in stored.values()} == {"bfloat16"}


def test_some_labels_count(tmp_path: Path) -> None:
    for seed in range(20):
        vector = write(of(inputs={"labels": True}, tokens=2, batch=1, seed=seed), tmp_path)
        assert vector.inputs["labels"][0, -1] != -100
        assert numpy.isfinite(vector.expected["loss"])


def test_padding_never_fills_a_row(tmp_path: Path) -> None:
    sides = {"left": -1, "right": 0, "full": 0}
    for side, kept in sides.items():
        for seed in range(10):
            mask = write(of("mask", inputs={"mask": side}, seed=seed), tmp_path).inputs["attention_mask"]
            assert (mask[:, kept] == 1).all()
            assert side != "full" or mask.all()


def test_a_window_full_of_padding_is_known(tmp_path: Path) -> None:
    """Seed 0 pads the second row with more tokens than the window has, and its last padding predicts a label."""
    asked = of(model=MISTRAL, inputs={"mask": "left", "labels": True}, tokens=6)
    blind = [
        is_blind(write(Drawn(**{**vars(asked), "seed": seed}), tmp_path / str(seed))) for seed in range(12)
    ]
    assert any(blind)
    assert not all(blind)
    for seed, found in enumerate(blind):
        unmasked = Drawn(**{**vars(asked), "seed": seed, "inputs": {"labels": True}})
        assert not is_blind(write(unmasked, tmp_path / "unmasked")), found


def test_what_is_discarded_is_gone(tmp_path: Path) -> None:
    vector = write(of(), tmp_path)
    discard(vector)
    assert not list(all_vectors(tmp_path))
    assert not list((tmp_path / "models").iterdir())


def test_scaled_embeddings_are_no_copies(tmp_path: Path) -> None:
    bart = {"model_type": "bart", "vocab_size": 13, "d_model": 12, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 3, "decoder_ffn_dim": 3, "max_position_embeddings": 16}  # fmt: skip
    for scaled, kinds in ((False, ("exact", "elementary")), (True, ("elementary", "composite"))):
        asked = of(
            method="prompt_tuning",
            task_type="SEQ_2_SEQ_LM",
            model={**bart, "scale_embedding": scaled},
            decoder_tokens=3,
        )
        tensors = write(asked, tmp_path / str(scaled)).case.tensors
        assert (tensors["inputs.embeddings"].kind, tensors["encoder.embeddings"].kind) == kinds
