"""The generated pages of specs/: which code, golden cases, properties, live tests and known mistakes each clause has.

    python tests/traceability.py       writes them anew; half a minute

specs/traceability.md and traceability.json have a row for each clause, specs/properties.md one for each property, T1 to T50. A
golden case or a property counts for a clause only if it fails under at least one mutant of that clause: cases by the kill
matrix, in float32; properties by being run, here, under every mutant whose steps they call. What is empty has a reason.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
from identities.attention_cases import attention_case
from identities.model_cases import DRAWN, model_case
from identities.table import FAMILIES, PROPERTIES, Property, Run

from refpeft.files import write_atomically
from refpeft.oracle.explain import clauses
from refpeft.oracle.kill_matrix import kill_matrix
from refpeft.oracle.mutants import MUTANTS
from refpeft.oracle.vectors import all_vectors
from refpeft.steps import STEPS, Step, definition, replaced

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "specs/traceability.md"
DOCUMENT = ROOT / "specs/traceability.json"
PROPERTIES_PAGE = ROOT / "specs/properties.md"
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
    ("CK", "properties"): "names and layouts of files, no arithmetic; what comes back is T28",
    ("CK", "golden cases"): "compared as documents and tensors of a file; no mutant of this clause",
    ("CK-4", "golden cases"): "11 cases decide M176; they quote CK-3",
    ("CK", "known mistakes"): "a file that is laid out otherwise cannot be read, and no step makes it so",
    ("GN", "properties"): "choices of tokens; T23 and T32 say of generation that padding and a cache change nothing",
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
    ("AT-1", "properties"): "the base model's own arithmetic, which stands on both sides of every identity",
    ("AT-5", "properties"): "the base model's own arithmetic, which stands on both sides of every identity",
    ("AT-6", "golden cases"): "a statement about what no case can show",
    ("AT-6", "known mistakes"): "M69 is listed with PX-4",
    ("AT-6", "live tests"): "proved by T5, over every family",
    ("AT-6", "properties"): "T5 is this clause; it holds under its mutant M69, which is the point",
    ("AT-8", "golden cases"): "33 cases quote it; its steps have no mutant of their own",
    ("AT-8", "properties"): "there is no mutant of it; T5 and BART go through every identity of a model",
    ("AT-8", "known mistakes"): "cross-attention's mistakes are those of attention, in the same steps",
    ("MK-2", "golden cases"): "8 cases quote it; a mask made up of ones changes no number",
    ("MK-2", "known mistakes"): "a mask of another width is a shape",
    ("MK-2", "properties"): "T24 is this clause; there is no mutant of it",
    ("PX-5", "golden cases"): "7 cases quote it; running the network twice is a shape",
    ("PX-5", "properties"): "T28 is this clause; there is no mutant of it",
    ("PX-5", "known mistakes"): "a folded row run through the network again does not fit it",
    ("PX-6", "golden cases"): "13 cases quote it, drawn values among them; the table's draw is PT-4's step",
    ("PX-6", "properties"): "T11 says that zeros are no no-op; there is no mutant of this clause",
    ("PX-6", "known mistakes"): "M79 is listed with PT-4",
    ("PX-7", "golden cases"): "no question of the protocol",
    ("PX-7", "properties"): "T26 gives such rows; there is no mutant of it",
    ("PX-7", "known mistakes"): "a refusal, no arithmetic",
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
    ("TK", "properties"): "heads and inputs of tasks, which stand on both sides of every identity",
    ("TK-2", "golden cases"): "5 cases quote it, of GPT-2; its mutants are of other families, whose cases quote other clauses and decide them",
    ("TK-7", "golden cases"): "14 cases quote it; there is no mutant of it",
    ("TK-7", "known mistakes"): "a linear map at every position; its mistakes are shapes",
    ("TK-9", "golden cases"): "10 cases quote it; there is no mutant of it",
    ("TK-9", "known mistakes"): "hidden states as they are",
}  # fmt: skip


# ---------------------------------------------------------------- what there is


def code_of(label: str) -> list[str]:
    """The steps of a clause; where it has none, the modules that quote it."""
    steps = [step.name for step in sorted(STEPS.values(), key=_place) if step.clause == label]
    return steps or [
        name for name, text in _sources().items() if re.search(rf"(?<![A-Z]){label}(?![0-9])", text)
    ]


def _place(step: Step) -> tuple[str, int, str]:
    """Where a step is defined: the order of the table is that of imports."""
    definition = inspect.unwrap(step.definition)
    return definition.__module__, definition.__code__.co_firstlineno, step.name


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


WITNESSES: dict[str, tuple[tuple[str, str], ...]] = {
    "gating": (("roberta", ""),),
    "share_is_a_sigmoid": (("gemma2", ""), ("falcon, alibi", ""),),
    "text_is_rescaled": (("gemma2", ""), ("falcon, alibi", ""),),
    "bias_lies_in_the_cone": (("gemma2", ""), ("bloom", ""),),
    "slots_may_be_permuted": (("phi, query and key norm", ""), ("llama, llama3", "prefix"),),
    "values_moved_alike": (("qwen3", ""),),
    "affine_in_the_prefix_s_values": (("gemma2", ""), ("t5, gated", ""),),
    "keys_moved_alike": (("gemma3_text", ""),),
    "zeros_shrink": (("gemma2", ""),),
    "limits_without_effect": (("t5, gated", ""), ("falcon, alibi", ""),),
    "copies_are_one_slot": (("opt", ""),),
    "equal_keys_are_one_slot": (("bart, scaled", ""),),
    "blocks_merge": (("gemma2", ""), ("t5, gated", ""),),
    "convex_hull": (("qwen3", ""),),
    "share_grows": (("bert", ""),),
    "first_token": (("falcon, alibi", ""), ("gemma2", ""),),
    "causality": (("opt, narrow, norms after", "prefix"), ("opt, narrow, norms after", "prompt"), ("mistral", "prefix"), ("t5", "prompt"),),
    "grouped_heads": (("qwen3", ""),),
    "rows_apart": (("opt", "prompt"), ("bloom", "prefix"),),
    "right_padding": (("roberta", "prompt"), ("bart, scaled", "prompt"), ("opt, narrow, norms after", "prefix"),),
    "left_padding": (("opt, narrow, norms after", "prompt"), ("bloom", "prompt"), ("roberta", "prefix"),),
    "left_padding_counted": (("opt, narrow, norms after", "prefix"),),
    "left_padding_in_generation": (("opt, narrow, norms after", "prefix"), ("bloom", "prefix"), ("llama, llama3", "prefix"),),
    "hidden_is_deleted": (("gpt2", "prefix"), ("opt, narrow, norms after", "prefix"), ("bloom", "prefix"), ("roberta", "prefix"),),
    "masks_that_mean_the_same": (("opt, narrow, norms after", "prefix"), ("bloom", "prompt"),),
    "prompt_of_real_tokens": (("opt, narrow, norms after", "prompt"), ("bart, scaled", "prompt"),),
    "prefix_of_real_tokens": (("opt", "prefix"), ("gemma2", "prefix"), ("t5", "prefix"),),
    "compilation": (("opt, narrow, norms after", "prefix"), ("gemma2", "prefix"), ("bloom", "prefix"),),
    "fold": (("bert", "projected"),),
    "symmetries_of_the_projection": (("gpt_bigcode", "projected"),),
    "pieces": (("opt", "prompt"), ("gemma2", "prompt"),),
    "generated_with_a_cache": (("mistral", "prefix"), ("falcon, alibi", "prompt"),),
    "prefixes_join": (("bloom", "prefix"), ("gemma2", "prefix"), ("t5", "prefix"),),
    "blind_directions": (("mistral", "prefix"),),
    "layers_are_local": (("t5", "prefix"),),
    "dead_blocks": (("t5", "prefix"),),
    "second_half_of_a_prompt": (("t5", "prompt"),),
    "slots_with_their_columns": (("bloom", "prefix"),),
    "horizon_of_windows": (("mistral", "prefix"), ("bloom", "prefix"),),
    "by_hand": (("falcon, alibi", ""), ("gemma3_text", ""),),
    "keys_sum_to_zero": (("roberta", ""),),
    "values_sum_to_the_output": (("llama, llama3", ""),),
    "losses_weighed_by_labels": (("gpt2", "prompt"), ("gpt2", "prefix"), ("t5", "prefix"),),
    "zeros_learn_alike": (("bart, scaled", "prefix"), ("llama, llama3", "prefix"),),
    "equal_slots_stay_equal": (("opt", "prefix"), ("qwen3", "prefix"),),
    "last_map_learns_first": (("t5", "projected"),),
    "frozen_base": (("opt, narrow, norms after", "prompt"), ("t5", "projected"),),
    "first_token_is_predicted": (("opt", "prompt"),),
    "euler": (("llama, llama3", ""),),
    "uniform_without_a_query": (("opt", ""), ("gemma3_text", ""), ("bert", ""),),
    "finite_differences": (("gpt2", "prompt"), ("gpt2", "prefix"),),
}  # fmt: skip
"""By check, the models and methods (none for one layer) that are enough: of eighteen models, with every method, no other is one on
which it notices a further known mistake. `sum_over_rows` is left out, for it looks between two steps, where no port can be seen."""
SEED = 2
"""Of the witnesses."""


@functools.cache
def noticed() -> dict[str, set[str]]:
    """For each property the mutants under which it fails, on its witnesses."""
    found: dict[str, set[str]] = {row.number: set() for row in PROPERTIES}
    for row in PROPERTIES:
        for run in row.holds:
            for name, method in WITNESSES.get(run.name, ()):
                if (method in run.methods or (not method and not run.methods)) and name in run.on:
                    case = _case(run, name, method)
                    found[row.number] |= set(_noticed_by(run.check, case, found[row.number]))
    return found


def _case(run: Run, name: str, method: str) -> Any:
    if not method:
        return attention_case(name, SEED)
    return model_case(name, method, SEED, run.layers[-1] if run.layers else None)


def _noticed_by(check: Callable[[Any], None], case: Any, already: set[str]) -> Iterator[str]:
    called = set[str]()
    with replaced({name: functools.partial(_noting, called, name) for name in STEPS}):
        check(case)
    for mutant in MUTANTS.values():
        if mutant.id not in already and mutant.make().keys() & called and _fails(check, case, mutant.make()):
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


@functools.cache
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
            "(JG-12) in float32, properties by being run under every mistake that touches what they call, on fixed inputs of a few models.",
            "[properties.md](properties.md) says what the properties are, and what each is run over.",
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
    kills = {number: sorted(found) for number, found in noticed().items()}
    said = {"clauses": rows, "noticed": kills, "properties": properties()}
    return json.dumps(said, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def properties() -> dict[str, str]:
    """Each property's title and statement in one line."""
    return {row.number: f"{row.title}: {row.statement}" for row in PROPERTIES}


# ---------------------------------------------------------------- the page of properties


def properties_page() -> str:
    """The contents of specs/properties.md."""
    of_all = set().union(*noticed().values())
    pairs = {
        (row.number, name) for row in PROPERTIES for run in row.holds for name in run.on if name != DRAWN
    }
    controls = {(row.number, name) for row in PROPERTIES for run in row.fails for name in run.on}
    unnoticing = [number for number, mutants in noticed().items() if not mutants]
    return "\n".join(
        [
            "# Properties: what holds of every prompt and every prefix, without a golden value",
            "",
            f"{len(PROPERTIES)} identities, T1 to T{len(PROPERTIES)}, that follow from the papers, from HF's choices or from arithmetic alone. `tests/identities/` draws inputs",
            "with hypothesis and runs each over every model to which its preconditions apply: the nineteen families of",
            "[families.md](families.md) and the options that wire them otherwise, one layer as the model comes to it or the model whole,",
            "with every method that has the property. Where a precondition is violated, the identity must *fail*, by more than ten thousand",
            "tolerances: its negative control. `python tests/traceability.py` writes this page, and a test compares it.",
            "",
            f"- {len(FAMILIES)} models; {len(pairs)} pairs of an identity and a model that hold, {len(controls)} pairs with a negative control.",
            f"- {len(of_all)} of {len(MUTANTS)} known mistakes are noticed by an identity alone: it fails under the mistake, on fixed inputs of a few",
            "  models. The others change the base model's own arithmetic, heads or types of tokens on both sides of every identity, or",
            "  initial values, AdamW and choices of tokens; golden values decide them.",
            f"- {', '.join(unnoticing[:-1])} and {unnoticing[-1]} notice none: no known mistake violates them.",
            "",
            "Symbols: q, k, v queries, keys and values of the text; Pk, Pv those of the prefix, of n slots; l the scaled logits, s the scale;",
            "A the weights; λᵢ the prefix's share of query i's, Σ_p A_ip; o the output, o⁰ without a prefix; LSE = log Σ exp; x a text of m",
            "tokens, c one of n, ∥ one after the other; base(x), PT(x), PX(x) what a model says without an adapter, with a prompt, with a",
            "prefix; f any of these; W the flat prefix, a row for each slot; E, W₀, b₀, W₂, b₂ the projection's; L the loss, G = ∂L/∂o.",
            "",
            "| | identity | preconditions | from | run over | negative control: fails with | known mistakes noticed |",
            "|---|---|---|---|---|---|---|",
            *(_row_of(row) for row in PROPERTIES),
            "",
            "What is run over all but some models says which: those that are missing are in the negative control, or the identity says nothing",
            "of them:",
            "",
            *(f"- {row.number}: {row.silent}." for row in PROPERTIES if row.silent),
            "",
        ]
    )  # fmt: skip


def _row_of(row: Property) -> str:
    over = {name for run in row.holds for name in run.on}
    controls = "; ".join(dict.fromkeys(f"{run.violated} ({_over(set(run.on))})" for run in row.fails))
    statement = f"**{row.title}**: {row.statement}"
    mutants = [name for name in MUTANTS if name in noticed()[row.number]]
    cells = (
        row.number,
        statement,
        row.preconditions,
        row.paper,
        _over(over),
        controls,
        ", ".join(mutants) or "–",
    )
    return f"| {' | '.join(cells)} |"


def _over(names: set[str]) -> str:
    """How many models, and by name which not, or which, whatever is shorter."""
    over, left = (
        [name for name in FAMILIES if name in names],
        [name for name in FAMILIES if name not in names],
    )
    words = f"{len(over)} models" if len(over) > 1 else "1 model"
    if not left:
        return f"all {len(over)}"
    if len(left) <= len(over):
        return f"{words}: all but {_named(left)}"
    return f"{words}: {_named(over)}"


def _named(names: list[str]) -> str:
    """Families with all of their options by name alone; the others one by one."""
    found = []
    for name in names:
        family = name.partition(",")[0]
        options = [other for other in FAMILIES if other.partition(",")[0] == family]
        if all(option in names for option in options):
            found.append(f"{family} with every option" if len(options) > 1 else family)
        else:
            found.append(name)
    return "; ".join(dict.fromkeys(found))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    write_atomically(PAGE, page().encode())
    write_atomically(DOCUMENT, document().encode())
    write_atomically(PROPERTIES_PAGE, properties_page().encode())
