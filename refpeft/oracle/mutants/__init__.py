"""Known mistakes: each a row of one table, which the kill matrix, the diagnosis and the study of tolerances read.

A mutant replaces steps of the specification (`refpeft.steps.replaced`); it computes nothing of its own beside them.
"""

from __future__ import annotations

from refpeft.oracle.mutants import (
    attention,
    files,
    generation,
    heads,
    inputs,
    losses,
    masks,
    networks,
    prefix,
    training,
    turned,
)
from refpeft.oracle.mutants.mutant import Mutant, Steps

_TABLES = (prefix, inputs, masks, attention, turned, networks, heads, losses, training, generation, files)
MUTANTS: dict[str, Mutant] = {mutant.id: mutant for table in _TABLES for mutant in table.MUTANTS}
"""Every mutant by id, in the order of computation."""

__all__ = ["MUTANTS", "Mutant", "Steps"]
