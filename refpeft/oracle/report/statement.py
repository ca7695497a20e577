"""A statement as Markdown, for a port's own README."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from refpeft.oracle.mutants import MUTANTS
from refpeft.oracle.report.looks import counted
from refpeft.oracle.report.markdown import code, fenced
from refpeft.oracle.statement import Statement

SHOWN = 50
"""Failing cases that are listed; the JSON has them all."""


def markdown(statement: Statement) -> str:
    """The whole of it."""
    return "\n".join(_parts(statement)).rstrip() + "\n"


def _parts(statement: Statement) -> Iterator[str]:
    port = statement.implementation
    conforms = "conforms" if statement.verdict == "CONFORMS" else "does not conform in everything"
    conforms += ", but for expected failures," if conforms == "conforms" and statement.failing else ""
    exact = "; float64-exact" if statement.float64_exact else ""
    yield (
        f"{code(f'{port.name} {port.version}')} ({code(port.language)}) {conforms} to HF peft as recorded in "
        f"{code(statement.dialect)}{exact}. Judged on {code(statement.date)} by refpeft {code(statement.refpeft)}.\n"
    )
    yield "| level | format | conforms | skipped |\n|---|---|---:|---:|"
    for each in statement.levels:
        yield f"| {code(each.level)} | {code(each.profile)} | {each.conforms}/{each.decided} | {each.skipped} |"
    yield f"\n{counted(statement.not_asked, 'golden case')} not asked: beyond what the port says it can do.\n"
    if statement.failing:
        yield f"{counted(len(statement.failing), 'case')} failing:\n"
        for fails in statement.failing[:SHOWN]:
            why = f": {code(fails.expected)}" if fails.expected else ""
            yield f"- {code(fails.case)} {code(fails.verdict)}{why}"
        yield f"- … and {len(statement.failing) - SHOWN} more\n" if len(statement.failing) > SHOWN else ""
    if statement.blind_spots:
        yield "Known mistakes that no case could have shown in these formats:\n"
        for name in statement.blind_spots:
            yield f"- {code(name)} {MUTANTS[name].title if name in MUTANTS else ''}".rstrip()
        yield ""
    yield f"Golden vectors: manifest {code(f'sha256:{statement.golden}')}.\n"
    yield f"To repeat it:\n\n{fenced(shlex.join(statement.command))}\n"
