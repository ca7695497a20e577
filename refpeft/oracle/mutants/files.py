"""Mistakes in writing and reading adapters (CK-1, CK-4)."""

from __future__ import annotations

from typing import Any

from refpeft import arrays as np
from refpeft.oracle.mutants.mutant import Mutant, Steps, each, mutant


@mutant(
    "M175", "the adapter is written in half precision", clause="CK-1",
    why="saved in the dtype of the base model, or to save room",
)  # fmt: skip
def written_in_half() -> Steps:
    """Rounded to float16."""

    def rounded(original: Any, *arguments: Any) -> Any:
        table = original(*arguments)
        return np.cast_to(np.cast_to(table, "float16"), table.dtype)

    return each(("checkpoint.table",), rounded)


@mutant(
    "M176", "heads in the adapter's file are not loaded", clause="CK-4",
    why="only `prompt_embeddings` is looked for, and the base model has a head of its own",
)  # fmt: skip
def heads_not_loaded() -> Steps:
    """The base model's own."""
    return {"checkpoint.head": lambda stored, own: own}


MUTANTS: tuple[Mutant, ...] = (written_in_half, heads_not_loaded)
