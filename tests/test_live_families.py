"""refpeft against the real HF peft, in true float64, family by family, over everything that a round can draw (live_rounds.py)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import support
from hypothesis import given, note, settings
from hypothesis import strategies as st
from support import need

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]
torch, peft = need("torch"), need("peft")

from live_families import FAMILIES, tasks_of  # noqa: E402
from live_rounds import compare, main, rounds  # noqa: E402

import refpeft  # noqa: E402

TOLERANCE = 1e-12
"""True float64 on both sides: rounding alone, some 1e-15 per operation, over a few hundred operations in sequence."""
ROUNDS = 50 if os.environ.get("REFPEFT_HYPOTHESIS") == "deep" else 4
"""Of each family; one takes half a second of one core."""


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=ROUNDS, deadline=None, print_blob=True)
@given(data=st.data())
def test_agrees_with_hf_peft(family: str, data: st.DataObject) -> None:
    """Outputs, loss and gradients to 1e-12; names, counts, files and initial values as `compare` says."""
    what = data.draw(rounds(family))
    note(f"round: {what}")
    with tempfile.TemporaryDirectory() as directory:
        errors = compare(what, Path(directory))
    assert max(errors) < TOLERANCE, errors


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tasks_of_a_family_are_those_that_hf_has_a_class_for(family: str) -> None:
    assert sorted(support.tasks_of(family)) == sorted(tasks_of(family))


def test_every_family_is_compared() -> None:
    assert set(FAMILIES) == set(refpeft.transformer.families.FAMILIES)


def test_the_comparison_sees_a_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keys and values exchanged in refpeft: outputs and gradients differ, the initial values do not."""
    what = plain_round()
    assert max(compare(what, tmp_path / "right")) < TOLERANCE
    monkeypatch.setattr(refpeft.prefix_encoder, "value_row", lambda layer, layers: 2 * layer)
    errors = compare(what, tmp_path / "wrong")
    assert errors.outputs > 1e-3
    assert errors.gradients > 1e-3


def plain_round() -> Any:
    """A plain prefix on a plain GPT-2."""
    from live_rounds import Round

    config = {
        "model_type": "gpt2",
        "vocab_size": 20,
        "n_embd": 8,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 16,
    }
    return Round(
        seed=1, config=config, own_head=False, task_type="CAUSAL_LM", method="prefix", adapter={"num_virtual_tokens": 3},
        perturbed=True, batch=2, tokens=5, decoder_tokens=1, inputs={"mask": "left", "mask_format": "int64"},
    )  # fmt: skip


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["live_rounds.py", "--rounds", "2", "gpt2"])
    main()
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["family", "rounds", "outputs", "loss", "gradients"]
    name, number, *errors = row.split()
    assert (name, number) == ("gpt2", "2")
    assert all(float(error) < TOLERANCE for error in errors)
