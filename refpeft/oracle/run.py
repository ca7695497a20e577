"""A whole run: every question asked of a port, some of them twice, several at a time if wanted; verdicts in order.

Clauses JG-7 and JG-10; specs/judging.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from refpeft.oracle.answer_files import discard
from refpeft.oracle.cases import can_answer
from refpeft.oracle.documents import read_adapter
from refpeft.oracle.evidence import Evidence
from refpeft.oracle.files_port import FilesPort
from refpeft.oracle.handed_out import HandedOut
from refpeft.oracle.judge import ONE_AT_A_TIME, Asked, CaseResult, Selection, ask_one, finish
from refpeft.oracle.repeat import compare_answers, ended_differently, may_differ
from refpeft.oracle.reply import Port
from refpeft.oracle.side_by_side import in_turn
from refpeft.oracle.validity import Validity

PATIENCE = 3
"""After so many time-outs in a row a port is taken to hang always."""


def judge(
    port: Port,
    selection: Selection,
    work: Path,
    failures: Path | None,
    *,
    fail_fast: bool = False,
    jobs: int = 1,
    evidence: Evidence | None = None,
) -> Iterator[CaseResult]:
    """Ask every question of the selection that the port can answer, in each profile; yield verdicts as they come.

    Args:
        port: What is asked.
        selection: The cases and profiles.
        work: An empty directory for the port's answers.
        failures: Where to write a directory for each failure, or None.
        fail_fast: Stop at the first verdict that is not CONFORMS or SKIPPED.
        jobs: How many questions are asked at a time; the port must bear that (`Fleet`).
        evidence: Is given each answer, for a diagnosis afterwards.

    After `PATIENCE` time-outs in a row nothing more is asked. Some questions are asked twice (JG-10).
    """
    planned = [(v, p) for v in selection.vectors for p in selection.profiles if can_answer(port.abilities, v)]
    handed_out, silent = HandedOut(), 0
    repeated: set[tuple[str, str]] | None = set() if may_differ(port) else None
    export = port.directory if isinstance(port, FilesPort) else None

    def first(place: int) -> Asked:
        vector, profile = planned[place]
        asked = ask_one(port, vector, profile, work / str(place + 1), place + 1, handed_out)
        return once_more(place, asked) if repeated is not None and asked.doubtful else asked

    def once_more(place: int, asked: Asked) -> Asked:
        seq = len(planned) + place + 1
        again = ask_one(port, asked.vector, asked.profile, work / str(seq), seq, handed_out, localise=False)
        with ONE_AT_A_TIME:
            return compared_twice(asked, again)

    with closing(in_turn(first, range(len(planned)), jobs, getattr(port, "kill", port.close))) as asking:
        for place, asked in enumerate(asking):
            kind = (asked.vector.case.question, asked.profile.name)
            if repeated is not None and asked.reply.status == "ANSWERED" and kind not in repeated:
                repeated.add(kind)
                asked = asked if asked.again else once_more(place, asked)
            if evidence is not None:
                evidence.take(asked)
            result = finish(asked, failures, export)
            if evidence is not None:
                result = evidence.illustrated(asked, result)
            for seq in (place + 1, len(planned) + place + 1):
                discard(work / str(seq))
            yield result
            silent = silent + 1 if asked.silent else 0
            if silent == PATIENCE or (fail_fast and result.verdict not in ("CONFORMS", "SKIPPED")):
                return


def compared_twice(asked: Asked, again: Asked) -> Asked:
    """A question asked a second time: NONDETERMINISTIC unless both answers are one answer (JG-10)."""
    silent = again.silent or asked.silent
    ended = ended_differently(asked.reply, again.reply)
    if ended:
        detail = asked.reply.detail or again.reply.detail
        reply = replace(asked.reply, message=ended, detail=detail)
        return replace(
            asked, reply=reply, verdict="NONDETERMINISTIC", first=None, again="different", silent=silent
        )
    if asked.reply.status != "ANSWERED":
        return replace(asked, again="same", silent=silent)
    answers = (asked.reply.answer, again.reply.answer)
    if asked.vector.case.question == "checkpoint.save":
        answers = (read_adapter(answers[0])[0], read_adapter(answers[1])[0])
    result, found = compare_answers(
        asked.vector.case.tensors, (asked.differences, again.differences), answers, Validity.of(asked.ask)
    )
    if found is not None:
        return replace(asked, verdict="NONDETERMINISTIC", first=found, again="different")
    return replace(asked, again=result)
