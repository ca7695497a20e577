"""The table of coverage: what is counted, the reasons, and that the page is that of the vectors."""

from __future__ import annotations

import pytest
from coverage_table import ADAPTERS, PAGE, REASONS, TASKS, key_of, page, reason

from refpeft.oracle.questions import LEVELS
from refpeft.oracle.vectors import all_vectors
from refpeft.transformer.families import FAMILIES


def test_the_page_is_that_of_the_vectors() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run golden/coverage_table.py"


def test_every_case_of_a_family_is_counted_once() -> None:
    keys = {vector.case.id: key_of(vector) for vector in all_vectors()}
    assert keys["peft-0.21.2/prefix_tuning/gradients/projected"] == (
        "gpt2",
        "CAUSAL_LM",
        "projected",
        "gradients",
    )
    assert keys["peft-0.21.2/prompt_tuning/checkpoint/bert-odd-save-prompt"] == (
        "bert",
        "SEQ_CLS",
        "prompt",
        "checkpoint",
    )
    assert keys["peft-0.21.2/common/random/normal-16"] is None
    families = {family for key in keys.values() if key for family in key[:1]}
    assert families == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_hole_has_a_reason(family: str) -> None:
    for task in TASKS:
        for adapter in ADAPTERS:
            assert {reason(family, task, adapter, level) for level in LEVELS} <= set(REASONS)


def test_each_family_is_asked_at_every_level_that_needs_its_own_arithmetic() -> None:
    counts = {key_of(vector) for vector in all_vectors()}
    first = {"encoder": "SEQ_CLS", "encoder_decoder": "SEQ_2_SEQ_LM", "decoder": "CAUSAL_LM"}
    for family, row in FAMILIES.items():
        for adapter in ADAPTERS:
            for level in ("components", "model", "gradients", "checkpoint"):
                assert (family, first[row.kind], adapter, level) in counts, (family, adapter, level)
