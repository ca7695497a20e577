"""What asking a port ends in: a `Reply`, whatever the port did, and how one is read from the port's message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from refpeft.checkpoint import WEIGHTS_FILE
from refpeft.config import CONFIG_NAME, TASK_TYPES
from refpeft.errors import RefpeftError
from refpeft.oracle.answer_files import read_answer_tensors
from refpeft.oracle.protocol import (
    VERSION,
    RunAnswer,
    RunCommand,
    StartAnswer,
    StrictRunAnswer,
    StrictStartAnswer,
)
from refpeft.oracle.questions import METHODS, QUESTIONS, Answer, Ask

STRAY = "not a JSON object; standard output belongs to the protocol (PP-1), print to standard error"
Status = Literal["ANSWERED", "SKIPPED", "ERRORED", "CRASHED", "TIMEOUT"]


LONGEST_WORDS = 20_000
"""Characters of a port's message that are kept."""
LONGEST_NAME = 100
"""And of its name, language and version."""


class PortError(RefpeftError):
    """The port could not be started, or does not say what it can do."""


@dataclass(frozen=True)
class Reply:
    """What came of one question."""

    status: Status
    answer: Answer = field(default_factory=Answer)
    message: str = ""
    """For people: why there is no answer."""
    detail: str = ""
    """A traceback, the last lines of standard error, an address."""
    breach: bool = field(default=False, compare=False)
    """The answer was outside the protocol: asking again would say nothing new."""

    def __post_init__(self) -> None:
        for name in ("message", "detail"):
            object.__setattr__(self, name, printable(getattr(self, name)))


def printable(text: str) -> str:
    """A port's words without what would steer a terminal: control characters become `?`; at most `LONGEST_WORDS`."""
    if len(text) > LONGEST_WORDS:
        half = LONGEST_WORDS // 2
        text = f"{text[:half]} … ({len(text)} characters in all) … {text[-half:]}"
    return "".join(c if c in "\n\t" or c.isprintable() else "?" for c in text)


@runtime_checkable
class Port(Protocol):
    """Anything that can be asked.

    A port that may answer the same question in two ways has an attribute `may_differ` that is true: it is asked some
    questions twice (clause JG-10). refpeft itself and files written beforehand have none.
    """

    abilities: StartAnswer

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        """One question: as the protocol's message, and with its tensors read."""

    def close(self) -> None:
        """End the port, if it is something that runs."""


def read_answer(line: bytes, *, strict: bool = False) -> RunAnswer:
    """A port's answer to `run`: the message, checked.

    Raises:
        PortError: it is not one.
    """
    try:
        return msgspec.json.decode(line, type=StrictRunAnswer if strict else RunAnswer)
    except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
        shown = line.decode("utf-8", "replace").strip()[:200]
        why = f"{error}" if line.lstrip().startswith(b"{") else STRAY
        raise PortError(f"not an answer of the protocol ({why}): {shown!r}") from error


def read_reply(message: RunAnswer, request: RunCommand) -> Reply:
    """The answer that a message names, read from the output directory."""
    if message.seq != request.seq:
        return Reply(
            "ERRORED",
            message=f"answered question {message.seq} when asked question {request.seq}: one line for each question, "
            "with its seq (PP-1)",
            breach=True,
        )
    if message.skipped is not None:
        return Reply("SKIPPED", message=message.skipped.message, detail=message.skipped.issue_url or "")
    if message.errored is not None:
        return Reply("ERRORED", message=message.errored.message, detail=message.errored.traceback or "")
    output = Path(request.output)
    tensors: Mapping[str, Any] = {}
    adapter = None
    try:
        if message.tensors is not None:
            tensors = read_answer_tensors(_inside(output, message.tensors), "the port's answer")
        if message.adapter is not None:
            adapter = _inside(output, message.adapter)
            for name in (CONFIG_NAME, WEIGHTS_FILE):
                _inside(output, f"{message.adapter}/{name}")
    except (OSError, ValueError, RuntimeError) as error:  # also names that no file can have
        return Reply("ERRORED", message=str(error))
    if message.tensors is None and message.document is None and adapter is None:
        return Reply("ERRORED", message="the answer has none of tensors, document, adapter, skipped, errored")
    return Reply("ANSWERED", Answer(tensors, message.document, adapter))


def _inside(directory: Path, name: str) -> Path:
    directory = directory.parent.resolve() / directory.name  # itself it may no longer be what it was
    path = (directory / name).resolve()
    if not path.is_relative_to(directory) or path == directory:
        raise PortError(
            f"the answer names '{name}', which is not inside the output directory; answer with a path relative to "
            "`output`, such as 'answer.safetensors'"
        )
    return path


def read_abilities(line: bytes, program: str, *, strict: bool = False) -> StartAnswer:
    """A port's answer to `start`, checked.

    Raises:
        PortError: it is not one, or speaks another version.
    """
    try:
        abilities = msgspec.json.decode(line, type=StrictStartAnswer if strict else StartAnswer)
    except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
        shown = line.decode("utf-8", "replace").strip()[:200]
        raise PortError(
            f"`{program}` answered `start` with {shown!r}, which is not what PP-2 says: {error}."
        ) from error
    if abilities.version != VERSION:
        raise PortError(
            f"`{program}` speaks version {abilities.version} of the protocol; this refpeft speaks {VERSION}."
        )
    unknown = [
        name
        for said, there in (
            (abilities.questions, QUESTIONS), (abilities.methods, METHODS), (abilities.tasks, TASK_TYPES),
        )
        for name in sorted(set(said) - set(there))
    ]  # fmt: skip
    if unknown:
        raise PortError(
            f"`{program}` says it can do {', '.join(unknown)}, which do not exist. Questions: {', '.join(QUESTIONS)}; "
            f"methods: {', '.join(METHODS)}; tasks: {', '.join(TASK_TYPES)}."
        )
    said = abilities.implementation
    plain = {name: printable(getattr(said, name))[:LONGEST_NAME] for name in ("name", "language", "version")}
    return msgspec.structs.replace(abilities, implementation=msgspec.structs.replace(said, **plain))
