"""specs/coverage.md: how many golden cases there are of each family, task, method and level, or why there are none.

python golden/coverage_table.py            write it anew (needs refpeft alone)
python golden/coverage_table.py --check    say whether it is as it would be written
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from refpeft.files import write_atomically
from refpeft.oracle.questions import LEVELS, PREFIX, PROMPT, QUESTIONS
from refpeft.oracle.vectors import Vector, all_vectors
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.families import FAMILIES

PAGE = Path(__file__).resolve().parent.parent / "specs" / "coverage.md"
TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
ADAPTERS = ("prompt", "prefix", "projected")
Key = tuple[str, str, str, str]
"""Family, task, adapter, level."""

NO_CLASS = "a"
ENCODER_LM = "b"
ENCODER_DECODER = "c"
NO_LOSS = "d"
SAME_STEPS = "e"
NO_GENERATION = "f"
NO_PROJECTION = "g"
NOT_TAKEN = "h"
REASONS = {
    NO_CLASS: "HF has no class of this family for the task (`Unrecognized configuration class … for this kind of AutoModel`).",
    ENCODER_LM: "An encoder is no language model: HF runs `BertLMHeadModel` and its like, which look in both directions, and "
    "fails when it generates with a prefix. refpeft refuses (specs/stricter.md).",
    ENCODER_DECODER: "HF fails, or drops the prefix without a word, for an encoder-decoder in this task: `Passing input embeddings is "
    "currently not supported for …`, `… object has no attribute 'cls_layer_name'`, `The size of tensor a … must match the "
    "size of tensor b …`. refpeft refuses, and says so.",
    NO_LOSS: "Features have no loss, and so no gradients and no training.",
    SAME_STEPS: "Training is asked of GPT-2 alone: an optimizer's step does not know whose gradients it is given (TR-1), and those "
    "are asked of every family.",
    NO_GENERATION: "Only language models generate.",
    NO_PROJECTION: "A projection is folded before a forward pass (PX-2), and asked at this level for the family's first task.",
    NOT_TAKEN: "Works in HF and here, and is compared live (`tests/test_live_families.py`); no case of its own, for want of room.",
}
"""Why a cell has no case."""


def adapter_of(vector: Vector) -> str:
    """`prompt`, `prefix` or `projected`; nothing for what both methods share."""
    case = vector.case
    if case.method == PROMPT:
        return "prompt"
    config = case.config or case.arguments.get("config") or {}
    if case.question in ("checkpoint.load", "checkpoint.save") and case.config is None:
        config = _stored_config(vector)
    return ("projected" if config.get("prefix_projection") else "prefix") if case.method == PREFIX else ""


def _stored_config(vector: Vector) -> dict[str, object]:
    import json

    found = vector.adapter_directory
    return json.loads((found / "adapter_config.json").read_bytes()) if found else {}


def key_of(vector: Vector) -> Key | None:
    """Where a case counts; None for what no family has (masks, random draws, rejected configurations)."""
    case = vector.case
    if not (adapter := adapter_of(vector)) and case.question != "attention":
        return None
    family = _family_of(vector)
    config = case.config or case.arguments.get("config") or _stored_config(vector)
    task = str(config.get("task_type") or "CAUSAL_LM")
    return (family, task, adapter or "prefix", QUESTIONS[case.question].level) if family else None


def _family_of(vector: Vector) -> str:
    case = vector.case
    if case.model:
        directory = vector.model_directory
        assert directory
        return ModelConfig.from_pretrained(directory).family
    base = case.arguments.get("base_config") or {}
    named = str(
        (case.config or {}).get("base_model_name_or_path")
        or (case.document and _base_of(case.document))
        or ""
    )
    family = str(base.get("model_type") or (_of_name(named) if named else ""))
    return family if family in FAMILIES else ""


def _base_of(document: dict[str, object]) -> object:
    config = document.get("config")
    return config.get("base_model_name_or_path") if isinstance(config, dict) else ""


def _of_name(name: str) -> str:
    """`gpt-neox-odd` is of gpt_neox: the longest family whose name begins it."""
    plain = name.replace("-", "_").replace("gemma3", "gemma3_text")
    return max((family for family in FAMILIES if plain.startswith(family)), key=len, default="")


def reason(family: str, task: str, adapter: str, level: str) -> str:
    """Why there is no case of a family, task, adapter and level."""
    row = FAMILIES[family]
    if row.kind == "encoder_decoder" and task != "SEQ_2_SEQ_LM":
        return NO_CLASS if task == "CAUSAL_LM" and family == "t5" else ENCODER_DECODER
    if row.kind != "encoder_decoder" and task == "SEQ_2_SEQ_LM":
        return NO_CLASS
    if row.kind == "encoder" and task == "CAUSAL_LM":
        return ENCODER_LM
    if task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS") and task not in row.heads:
        return NO_CLASS
    if level == "generation":
        return NOT_TAKEN if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else NO_GENERATION
    if task == "FEATURE_EXTRACTION" and level in ("gradients", "training"):
        return NO_LOSS
    if level == "training":
        return SAME_STEPS
    return NO_PROJECTION if adapter == "projected" else NOT_TAKEN


def page() -> str:
    """The whole page."""
    counts = Counter(key for vector in all_vectors() if (key := key_of(vector)))
    total = sum(1 for _ in all_vectors())
    lines = [
        "# Coverage",
        "",
        "How many golden cases there are of each family, task type, adapter and level; a letter says why there is none. Written by",
        (
            "`python golden/coverage_table.py`; a test holds it to the vectors. Cases without a family (masks, random draws, "
            f"configurations alone) are not counted; there are {total} cases altogether, {sum(counts.values())} of them here."
        ),
        "",
    ]
    used: set[str] = set()
    for task in TASKS:
        columns = [(adapter, level) for adapter in ADAPTERS for level in LEVELS]
        lines += [
            f"## {task}",
            "",
            "| family | " + " | ".join(f"{a}: {level}" for a, level in columns) + " |",
        ]
        lines.append("|---" * (len(columns) + 1) + "|")
        for family in FAMILIES:
            cells = []
            for adapter, level in columns:
                count = counts[family, task, adapter, level]
                why = "" if count else reason(family, task, adapter, level)
                used |= {why} - {""}
                cells.append(str(count) if count else why)
            lines.append(f"| {family} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["## Why there is none", ""]
    lines += [f"- **{letter}** {REASONS[letter]}" for letter in sorted(used)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    text = page()
    if "--check" in sys.argv[1:]:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print(
            "specs/coverage.md is as it would be written"
            if same
            else "specs/coverage.md is stale: run golden/coverage_table.py"
        )
        return 0 if same else 1
    write_atomically(PAGE, text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
