"""What a tensor's name says: the step whose result it is, and the clause that it is about."""

from __future__ import annotations

import functools
import re

import refpeft.oracle.questions  # noqa: F401  (whatever can be asked: its steps are in the table)
from refpeft.steps import STEPS, Step

_VARIABLES = {
    "{stack}": "(?:encoder|decoder)",
    "{layer}": "[0-9]+",
    "{step}": "[0-9]+",
    "{parameter}": r"(?:prompt_encoder|base_model)\..+",
    "{which}": "(?:decoder_)?",
    "{attention}": "(?:cross_)?attention",
}
"""What the variables of a stage's name stand for."""


@functools.lru_cache(maxsize=4096)
def step_of(stage: str) -> Step | None:
    """The step whose result a stage is; None for parameters, gradients and draws."""
    for entry in STEPS.values():
        pattern = re.escape(entry.stage)
        for variable, values in _VARIABLES.items():
            pattern = pattern.replace(re.escape(variable), values)
        if entry.stage and re.fullmatch(pattern, stage):
            return entry
    return None


_CLAUSES = (
    (r"draws\..*", "PT-4"),
    (r"((parameters|gradients|trained)\.)?base_model\..*", "CF-9"),
    (r"parameters\..*transform.*", "PX-6"),
    (r"parameters\..*", "PT-4"),
    (r"gradients\..*transform.*", "PX-2"),
    (r"gradients\..*", "PT-2"),
    (r"prompt_embeddings", "CK-1"),
    (r"training\.learning_rates", "TR-2"),
    (r"training\.losses", "TR-5"),
    (r"training\.gradient_norms", "TR-3"),
    (r"trained\..*", "TR-1"),
)
"""The clauses of tensors that are no stage."""


def clause_of(tensor: str) -> str:
    """The label of the clause that a tensor is about, or nothing."""
    step = step_of(tensor)
    return step.clause if step else next((c for pattern, c in _CLAUSES if re.fullmatch(pattern, tensor)), "")


def is_known(tensor: str) -> bool:
    """Whether the name is one that an answer can have."""
    return bool(clause_of(tensor))
