"""specs/traceability.md and .json: for each clause its code, golden cases, properties, live tests and known mistakes.

    python tests/traceability.py       writes them anew; half a minute

A golden case or a property counts for a clause only if it fails under at least one mutant of that clause: cases by the kill
matrix, in float32; properties by being run, here, under every mutant whose steps they call. What is empty has a reason.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
from identities import test_attention, test_gradients, test_model
from identities.test_mutants import attention_only, whole

from refpeft.files import write_atomically
from refpeft.oracle.explain import clauses
from refpeft.oracle.kill_matrix import kill_matrix
from refpeft.oracle.mutants import MUTANTS
from refpeft.oracle.vectors import all_vectors
from refpeft.steps import STEPS, definition, replaced

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "specs/traceability.md"
DOCUMENT = ROOT / "specs/traceability.json"
COLUMNS = ("code", "golden cases", "properties", "live tests", "known mistakes")
SHOWN = 6

AGREES = "test_live.py::test_agrees_with_hf_peft"
FAMILY = "test_live_families.py::test_agrees_with_hf_peft"
GENERATES = "test_live_generation.py::test_generates_as_hf_peft"
OPERATIONS = "test_live_adapters.py::test_sequences_of_operations"
TRAINS = "test_live_training.py::test_fifty_steps_as_hf_peft"
REFUSES = "test_live_refusals.py::test_refpeft_refuses_where_hf_raises"


def _quirk(name: str) -> str:
    return f"test_live_quirks.py::test_{name}"


LIVE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("PT-1", "PT-2", "PT-3", "PX-1", "PX-2", "PX-3", "PX-4", "MK-1", "MK-2", "MK-3"), (AGREES, FAMILY)),
    **dict.fromkeys(("AT-1", "AT-2", "AT-3", "AT-4", "AT-5", "PO-1", "PO-2", "TK-1", "TK-2", "TK-3"), (AGREES, FAMILY)),
    **dict.fromkeys(("AT-7", "AT-8", "PO-3", "PO-4", "PO-6", "MK-5", "TK-7", "TK-9", "TK-10", "CF-9"), (FAMILY,)),
    **dict.fromkeys(("GN-1", "GN-2", "GN-3", "GN-4", "GN-5", "GN-6", "GN-7", "GN-8", "GN-9"), (GENERATES,)),
    **dict.fromkeys(("AD-1", "AD-2", "AD-3", "AD-4", "AD-5", "AD-6", "AD-7"), (OPERATIONS,)),
    **dict.fromkeys(("TR-1", "TR-2", "TR-3", "TR-5", "TR-6"), (TRAINS,)),
    **dict.fromkeys(("CK-1", "CK-2", "CK-3", "CF-5", "PX-5", "PX-6", "PT-4"), (AGREES, FAMILY)),
    "CK-4": (FAMILY,),
    **dict.fromkeys(("CF-2", "PX-7"), (REFUSES,)),
    "PT-7": (_quirk("a_prompt_is_not_scaled_but_starts_from_scaled_rows"),),
    "PT-8": (_quirk("the_second_half_of_a_prompt_before_an_encoder_is_never_used"),),
    "PX-8": (_quirk("half_of_a_prefix_behind_an_encoder_is_dead_if_layers_are_even"),),
    "PX-9": (_quirk("gemma_s_cache_keeps_the_end_of_a_prefix"), _quirk("mistral_s_cache_keeps_a_whole_prefix")),
    "MK-4": (_quirk("a_prefix_falls_out_of_a_window"), FAMILY),
    "PO-5": (_quirk("falcon_adds_its_bias_twice_in_eager_attention"), FAMILY),
    "TK-4": (_quirk("types_of_tokens_are_used_by_two_tasks_alone"),),
    "TK-5": (_quirk("an_encoder_s_classifier_looks_at_the_first_virtual_token"),),
    "TK-6": (_quirk("a_prompt_makes_a_decoder_s_classifier_look_at_padding"),),
    "TK-8": (_quirk("answers_are_looked_for_where_the_virtual_tokens_stand"),),
    "CF-3": (_quirk("grouped_heads_overwrite_what_the_caller_gives"),),
    "GN-10": ("test_live_generation.py::test_without_a_cache_as_hf",),
    "AD-8": ("test_live_adapters.py::test_counts",),
    "AD-9": ("test_live_adapters.py::test_a_prefix_from_a_cache_of_a_decoder_behind_an_encoder",),
    "AD-10": ("test_live_adapters.py::test_a_prefix_from_a_text",),
    "AD-11": ("test_live_adapters.py::test_composing_as_hf_composes_cartridges",),
}  # fmt: skip
"""Tests against the real HF peft, by what they compare; those of families draw every choice of the family."""

REASONS: dict[tuple[str, str], str] = {}
"""Why a cell is empty, by the clause, or by its prefix for all of a page, and the column."""
for _prefix, _what in (
    ("JG", "about judging, which HF does not do; `tests/oracle` holds it, with wrong answers of its own"),
    ("PP", "about messages; `tests/oracle` and the ports of `tests/ports` hold it"),
    ("VF", "about the vectors' format; lint and `tests/oracle/test_vectors.py` hold it"),
):
    REASONS |= {(_prefix, column): _what for column in COLUMNS}
REASONS |= {
    ("AD", "golden cases"): "no question of the protocol is about several adapters",
    ("AD", "properties"): "bookkeeping of adapters, no arithmetic; drawn sequences of operations are compared live",
    ("AD", "known mistakes"): "no step makes these choices, so that no mutant can replace one",
    ("CF", "golden cases"): "configurations are compared as documents, whole; a mutant replaces steps",
    ("CF", "properties"): "no arithmetic; tests/test_config.py compares messages and files whole",
    ("CF", "live tests"): "golden documents are HF's own; nothing is computed that could differ on other inputs",
    ("CF", "known mistakes"): "fields and sizes are no steps; wrong ones change shapes, which every comparison names",
    ("CK", "properties"): "files; writing and reading back is T28, for the fold of PX-5",
    ("CK", "golden cases"): "compared as documents and tensors of a file; no mutant of this clause",
    ("CK-4", "golden cases"): "11 cases decide M176; they quote CK-3",
    ("CK", "known mistakes"): "a file that is laid out otherwise cannot be read, and no step makes it so",
    ("GN", "properties"): "choices of tokens; T32 says of steps of generation only that a cache changes nothing",
    ("GN-10", "golden cases"): "a refusal of HF's wiring, seen live",
    ("GN-10", "known mistakes"): "what HF does there is itself the exception; nobody was seen to differ",
    ("TR", "properties"): "AdamW and schedules are compared with HF's states step by step",
    ("TR-4", "live tests"): "golden recipes accumulate; the fifty live steps do not",
    ("TR-5", "golden cases"): "the loss of a step, which TK-3's cases decide",
    ("TR-5", "known mistakes"): "those of TK-1 and TK-3",
    ("TR-6", "golden cases"): "trained names are part of every gradient question's answer; no mutant of this clause",
    ("TR-6", "known mistakes"): "a parameter too many or too few changes the names of the answer",
    ("TR-6", "code"): "what is trained are the parameters that the clauses of prompts, prefixes and heads name",
    ("TR-7", "golden cases"): "HF's Trainer is not recorded; a run cut and resumed equals one that was not, bit by bit",
    ("TR-7", "known mistakes"): "refpeft's own checkpoints, no part of what a port answers",
    ("TR-7", "live tests"): "refpeft's own checkpoints",
    ("TR-8", "golden cases"): "a statement about all of them",
    ("TR-8", "known mistakes"): "a statement about tolerances",
    ("TR-8", "live tests"): "tests/oracle/test_training_calibration.py measures it",
    ("AT-1", "properties"): "the identities take queries, keys and values as given",
    ("AT-5", "properties"): "the identities hold for any network behind attention",
    ("AT-6", "golden cases"): "a statement about what no case can show",
    ("AT-6", "known mistakes"): "M69 is listed with PX-4",
    ("AT-6", "live tests"): "proved by T5, over every family",
    ("AT-6", "properties"): "T5 is this clause; it holds under its mutant M69, which is the point",
    ("AT-8", "golden cases"): "33 cases quote it; its steps have no mutant of their own",
    ("AT-8", "properties"): "the identities here are of one stack; tests/identities/test_families.py has two",
    ("AT-8", "known mistakes"): "cross-attention's mistakes are those of attention, in the same steps",
    ("MK-2", "golden cases"): "8 cases quote it; a mask made up of ones changes no number",
    ("MK-2", "known mistakes"): "a mask of another width is a shape",
    ("MK-2", "properties"): "T24 is this clause; there is no mutant of it",
    ("MK-4", "properties"): "T38, in tests/identities/test_families.py",
    ("MK-5", "properties"): "of encoders, in tests/identities/test_families.py",
    ("PO-3", "properties"): "T26 and T27 of rotary families, in tests/identities/test_families.py",
    ("PO-4", "properties"): "of OPT and RoBERTa, in tests/identities/test_families.py",
    ("PO-5", "properties"): "T37, in tests/identities/test_families.py",
    ("PO-6", "properties"): "T37, in tests/identities/test_families.py",
    ("PX-5", "golden cases"): "7 cases quote it; running the network twice is a shape",
    ("PX-5", "properties"): "T28 is this clause; there is no mutant of it",
    ("PX-5", "known mistakes"): "a folded row run through the network again does not fit it",
    ("PX-6", "golden cases"): "13 cases quote it, drawn values among them; the table's draw is PT-4's step",
    ("PX-6", "properties"): "T11 says that zeros are no no-op; there is no mutant of this clause",
    ("PX-6", "known mistakes"): "M79 is listed with PT-4",
    ("PX-7", "golden cases"): "no question of the protocol",
    ("PX-7", "properties"): "T26 goes through it",
    ("PX-7", "known mistakes"): "a refusal, no arithmetic",
    ("PX-8", "properties"): "T35, in tests/identities/test_families.py",
    ("PX-9", "golden cases"): "28 cases quote it; what is cut could not be seen, so that its mutant is a shape",
    ("PX-9", "properties"): "T38 says that no query sees what is cut",
    ("PX-9", "known mistakes"): "a prefix that is cut otherwise is a shape",
    ("PT-1", "golden cases"): "names and shapes are part of every answer",
    ("PT-1", "properties"): "a shape",
    ("PT-1", "known mistakes"): "n rows before an encoder are a shape",
    ("PT-4", "properties"): "initial values; no identity is about them",
    ("PT-5", "properties"): "choices of ids",
    ("PT-5", "live tests"): "golden cases are HF's own draws and tokenizers",
    ("PT-6", "golden cases"): "7 cases quote it; the scale is PT-7's mutant",
    ("PT-6", "properties"): "initial values; no identity is about them",
    ("PT-6", "known mistakes"): "M29 and M77 are listed with PT-7",
    ("PT-6", "live tests"): "golden cases are HF's own tables",
    ("PT-7", "properties"): "T25 of Gemma, in tests/identities/test_families.py",
    ("PT-8", "properties"): "T36, in tests/identities/test_families.py",
    ("TK", "properties"): "heads and inputs of tasks; the identities are of a language model",
    ("TK-2", "golden cases"): "5 cases quote it, of GPT-2; its mutants are of other families, whose cases quote other clauses and decide them",
    ("TK-7", "golden cases"): "14 cases quote it; there is no mutant of it",
    ("TK-7", "known mistakes"): "a linear map at every position; its mistakes are shapes",
    ("TK-9", "golden cases"): "10 cases quote it; there is no mutant of it",
    ("TK-9", "known mistakes"): "hidden states as they are",
}  # fmt: skip


# ---------------------------------------------------------------- what there is


def code_of(label: str) -> list[str]:
    """The steps of a clause; where it has none, the modules that quote it."""
    steps = [step.name for step in STEPS.values() if step.clause == label]
    return steps or [
        name for name, text in _sources().items() if re.search(rf"(?<![A-Z]){label}(?![0-9])", text)
    ]


@functools.cache
def _sources() -> dict[str, str]:
    package = ROOT / "refpeft"
    files = [path for path in sorted(package.rglob("*.py")) if "skeletons" not in path.parts]
    return {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in files}


def mutants_of(label: str) -> list[str]:
    """The known mistakes of a clause."""
    return [mutant.id for mutant in MUTANTS.values() if mutant.clause == label]


def cases_of(label: str) -> list[str]:
    """The golden cases that quote a clause and decide a mutant of it."""
    quoting = [case for case, quoted in _clauses_of_cases().items() if label in quoted]
    deciding = {
        case for name in mutants_of(label) for case in kill_matrix().deciding(name, "float32", quoting)
    }
    return [case for case in quoting if case in deciding]


@functools.cache
def _clauses_of_cases() -> dict[str, list[str]]:
    return {vector.case.id: list(vector.case.clauses) for vector in all_vectors()}


@functools.cache
def noticed() -> dict[str, set[str]]:
    """For each property the mutants under which it fails."""
    found: dict[str, set[str]] = {}
    inputs = {
        "attention": attention_only,
        **{m: functools.partial(whole, m) for m in ("prefix", "prompt", "projected")},
    }
    for name, check in _checks():
        number = f"T{int(name[7:9])}"
        for make in inputs.values():
            found.setdefault(number, set()).update(_noticed_by(check, make))
    return found


def _checks() -> Iterator[tuple[str, Callable[[Any], None]]]:
    for module in (test_attention, test_gradients, test_model):
        for name in dir(module):
            if name.startswith("check_t"):
                yield name, getattr(module, name)


def _noticed_by(check: Callable[[Any], None], make: Callable[[], Any]) -> Iterator[str]:
    case, called = make(), set[str]()
    try:
        with replaced({name: functools.partial(_noting, called, name) for name in STEPS}):
            check(case)
    except (AttributeError, TypeError):  # inputs of another kind than the property's
        return
    for mutant in MUTANTS.values():
        if mutant.make().keys() & called and _fails(check, case, mutant.make()):
            yield mutant.id


def _noting(called: set[str], name: str, *args: Any, **kwargs: Any) -> Any:
    called.add(name)
    return definition(name)(*args, **kwargs)


def _fails(check: Callable[[Any], None], case: Any, steps: Any) -> bool:
    """Whether the identity is violated; what cannot be computed at all does not count."""
    with warnings.catch_warnings(), numpy.errstate(all="ignore"), replaced(steps):
        warnings.simplefilter("ignore")
        try:
            check(case)
        except AssertionError:
            return True
        except Exception:
            return False
    return False


def properties_of(label: str) -> list[str]:
    """The properties that fail under a mutant of a clause."""
    own = set(mutants_of(label))
    return sorted((number for number, killed in noticed().items() if own & killed), key=lambda t: int(t[1:]))


def row(label: str) -> dict[str, list[str]]:
    """What a clause has, by column."""
    found = (
        code_of(label),
        cases_of(label),
        properties_of(label),
        list(LIVE.get(label, ())),
        mutants_of(label),
    )
    return dict(zip(COLUMNS, found, strict=True))


def reason(label: str, column: str) -> str | None:
    """Why a cell is empty: the clause's own reason, or that of its prefix."""
    return REASONS.get((label, column)) or REASONS.get((label[:2], column))


# ---------------------------------------------------------------- the page


def page() -> str:
    """The contents of specs/traceability.md."""
    labels = sorted(clauses(), key=lambda label: (label[:2], int(label[3:])))
    rows = {label: row(label) for label in labels}
    notes: dict[str, int] = {}
    lines = []
    for label, found in rows.items():
        cells = []
        for column in COLUMNS:
            if found[column]:
                cells.append(_cell(column, found[column]))
            else:
                why = reason(label, column) or "NO REASON"
                cells.append(f"({notes.setdefault(why, len(notes) + 1)})")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    whole_rows = sum(all(found.values()) for found in rows.values())
    killed = set().union(*noticed().values())
    return "\n".join(
        [
            "# Which code, cases, properties, live tests and mistakes each clause has",
            "",
            "`python tests/traceability.py` writes this page, and a test compares it; a cell that is empty has a reason, below. A golden",
            "case or a property counts for a clause only if it *fails* under a known mistake of that clause: cases by the kill matrix",
            "(JG-12) in float32, properties by being run under every mistake that touches what they call (GPT-2, fixed inputs; the",
            "hypothesis tests of `tests/identities/` draw theirs, over every family). Numbers of properties are those of `tests/identities/`.",
            "",
            f"{len(rows)} clauses, {whole_rows} of them with all five. {len(killed)} of {len(MUTANTS)} known mistakes are noticed by a property alone,",
            "without any value of HF's.",
            "",
            f"| clause | {' | '.join(COLUMNS)} |",
            f"|---|{'---|' * len(COLUMNS)}",
            *lines,
            "",
            "## Why a cell is empty",
            "",
            *(f"{number}. {why}" for why, number in notes.items()),
            "",
        ]
    )  # fmt: skip


def _cell(column: str, found: list[str]) -> str:
    if column == "golden cases":
        return str(len(found))
    shown = [f"`{name.split('::')[-1]}`" if column in ("code", "live tests") else name for name in found]
    if column == "live tests":
        shown = [
            f"`{name.split('.py::test_')[0]}`: {name.split('::test_')[1].replace('_', ' ')}" for name in found
        ]
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")


# ---------------------------------------------------------------- the document


def document() -> str:
    """The contents of specs/traceability.json, which `refpeft explain` reads: the page's rows, whole."""
    rows = {}
    for label in clauses():
        found = row(label)
        empty = {column: reason(label, column) for column in COLUMNS if not found[column]}
        rows[label] = {**found, "why empty": empty}
    said = {"clauses": rows, "properties": properties()}
    return json.dumps(said, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def properties() -> dict[str, str]:
    """Each property's title and statement in one line."""
    found: dict[str, str] = {}
    for name, check in _checks():
        summary = (check.__doc__ or "").split("\n\n")[0].split(" Pre: ")[0].split(" Kills ")[0]
        title = name[10:].replace("_", " ")
        found.setdefault(f"T{int(name[7:9])}", f"{title}: {' '.join(summary.split())}")
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    write_atomically(PAGE, page().encode())
    write_atomically(DOCUMENT, document().encode())
