"""What a clause has, in words: where its code is, which golden cases show its mistakes best, its properties, its mistakes.

The names are those of specs/traceability.json; lines of code and margins are looked up.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from refpeft.oracle.clauses import COLUMNS, Traced, hanging, traceability
from refpeft.oracle.kill_matrix import DECIDED, kill_matrix
from refpeft.oracle.mutants import MUTANTS
from refpeft.oracle.questions import QUESTIONS
from refpeft.oracle.vectors import golden_directory
from refpeft.steps import STEPS, Step

PACKAGE = Path(__file__).resolve().parent.parent


def what_it_has(label: str) -> str:
    """Everything that a clause has, and why a column is empty; nothing for a clause that no table knows.

    Raises:
        LookupError: specs/traceability.json is not installed.
    """
    row = traceability().clauses.get(label)
    if row is None:
        return ""
    sections = {
        "code": _code,
        "golden cases": _golden_cases,
        "properties": _properties,
        "live tests": _live_tests,
        "known mistakes": _known_mistakes,
    }
    lines = [line for name in COLUMNS if row.column(name) for line in ("", *sections[name](label, row))]
    return "\n".join([*lines, *_empty(row)]).lstrip("\n")


def _empty(row: Traced) -> Iterator[str]:
    """The columns without anything, those of one reason together."""
    columns = dict[str, list[str]]()
    for name in COLUMNS:
        if name in row.why_empty:
            columns.setdefault(row.why_empty[name], []).append(name)
    for reason, names in columns.items():
        yield ""
        yield hanging(f"no {', '.join(names)}: {reason}", "  ")


# ---------------------------------------------------------------- code


def _code(label: str, row: Traced) -> Iterator[str]:
    """Its steps with file, line and function, and HF's; where it has none, whatever quotes it."""
    steps = [STEPS[name] for name in row.code if name in STEPS]
    yield f"code, below {_directory()}:" if _directory() else "code:"
    if not steps:
        quoting = [place for name in row.code for place in _quoting(PACKAGE / name, label)]
        yield from _table(quoting)
        return
    yield from _table([(step.name, *place_of(step)) for step in steps])
    yield "in HF:"
    for source in dict.fromkeys(step.source for step in steps if step.source):
        yield hanging(f"  {source}", "    ")


def _directory() -> str:
    """What the paths of code are below, if that is not where one stands."""
    return "" if Path.cwd() == PACKAGE.parent else str(PACKAGE.parent)


def place_of(step: Step) -> tuple[str, str]:
    """Where a step's definition begins, as editors take it, and the function's name."""
    code = inspect.unwrap(step.definition).__code__
    return f"{_below(Path(code.co_filename))}:{code.co_firstlineno}", code.co_name


def _below(path: Path) -> str:
    return path.resolve().relative_to(PACKAGE.parent).as_posix()


def _quoting(path: Path, label: str) -> list[tuple[str, str]]:
    """The places of a module that quote a clause: one for each function or class, the innermost that has the quotation."""
    text = path.read_text(encoding="utf-8")
    tree, found = ast.parse(text), dict[str, int]()
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(rf"(?<![A-Z]){label}(?![0-9])", line):
            found.setdefault(".".join(_around(tree, number)), number)
    return [(f"{_below(path)}:{number}", name or "the module") for name, number in found.items()]


def _around(node: ast.AST, line: int) -> Iterator[str]:
    """The names of the classes and functions around a line, from outside."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt) and child.lineno <= line <= (child.end_lineno or child.lineno):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                yield child.name
            yield from _around(child, line)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


# ---------------------------------------------------------------- golden cases


def _golden_cases(_: str, row: Traced) -> Iterator[str]:
    """Of each question the case that shows most, and how to ask for these."""
    shown = best_cases(row.golden_cases, row.known_mistakes)
    yield f"golden cases: {len(row.golden_cases)} show a mistake of this clause; of each question the one that shows most:"
    short = {case.partition("/")[2]: mistakes for case, mistakes in shown.items()}
    yield from _table([(case, " ".join(mistakes)) for case, mistakes in short.items()])
    yield " \\\n    ".join(["  refpeft check", *(f"-k {case}" for case in short), "-- PORT"])


class _Case(msgspec.Struct):
    question: str
    model: str | None


def best_cases(cases: Sequence[str], mistakes: Sequence[str]) -> dict[str, list[str]]:
    """Of each question, in the order of asking, the case that decides most mistakes in float32, with those mistakes.

    Of equals it is one of GPT-2, which most ports begin with, if there is one; of these the one whose smallest margin is
    largest in bfloat16, where margins are not cut off (JG-12).
    """
    matrix, directory = kill_matrix(golden_directory()), golden_directory() / "vectors"
    best = dict[str, tuple[tuple[int, bool, float], str, list[str]]]()
    for case in cases:
        about = msgspec.json.decode((directory / case / "case.json").read_bytes(), type=_Case)
        decided = [name for name in mistakes if matrix.margin(case, name, "float32") >= DECIDED]
        margin = min((matrix.margin(case, name, "bfloat16") for name in decided), default=0.0)
        worth = len(decided), about.model is None or about.model.startswith("gpt2-"), margin
        if about.question not in best or worth > best[about.question][0]:
            best[about.question] = worth, case, decided
    return {best[q][1]: best[q][2] for q in QUESTIONS if q in best}


# ---------------------------------------------------------------- properties, live tests, mistakes


def _properties(_: str, row: Traced) -> Iterator[str]:
    yield "properties that fail under a mistake of this clause, without any value of HF's:"
    yield from named({number: traceability().properties[number] for number in row.properties})


def _live_tests(_: str, row: Traced) -> Iterator[str]:
    yield "live tests, against HF peft itself:"
    yield from (f"  tests/{name}" for name in row.live_tests)


def _known_mistakes(_: str, row: Traced) -> Iterator[str]:
    yield "known mistakes:"
    yield from named({name: MUTANTS[name].title for name in row.known_mistakes})
    also = f", refpeft explain {row.properties[0]}" if row.properties else ""
    yield f"  → refpeft explain {row.known_mistakes[0]}{also}"


def named(rows: Mapping[str, str]) -> Iterator[str]:
    """Names, and beside them what they mean."""
    width = max(map(len, rows)) + 2
    for name, meaning in rows.items():
        yield hanging(f"  {name.ljust(width)}{meaning}", " " * (width + 2))
