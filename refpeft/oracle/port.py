"""How a port is reached: as a program, as a Python object, or as refpeft itself.

Whatever a port does, reaching it ends in a `Reply`: an answer, or one of SKIPPED, ERRORED, CRASHED and TIMEOUT with what is
known about it.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy

from refpeft import __version__
from refpeft.errors import RefpeftError
from refpeft.oracle import questions
from refpeft.oracle.process import ProcessPort
from refpeft.oracle.protocol import (
    VERSION,
    Implementation,
    RunAnswer,
    RunCommand,
    StartAnswer,
    StrictRunAnswer,
)
from refpeft.oracle.questions import METHODS, QUESTIONS, Answer, Arithmetic, Ask
from refpeft.oracle.reply import Port, PortError, Reply, read_abilities, read_reply
from refpeft.oracle.system import standard_output_to_error
from refpeft.transformer.families import FAMILIES


class ObjectPort:
    """A Python object with `start()` and `run(request, inputs)`, found as `module:object`, or at hand (clause PP-8).

    `start()` returns the message of PP-2 as a dictionary. `run` gets the message of PP-3 as a dictionary and the input
    tensors as a dictionary of arrays; it returns a dictionary of arrays, or a message of PP-3 with its `seq`.

    The object shares refpeft's process: an endless loop, `os._exit` or a crash of a library ends the run or holds it up.
    A port that does such things is asked as a program.
    """

    may_differ = True

    def __init__(self, port: Any, *, validate: bool = False) -> None:
        self._answer: type[RunAnswer] = StrictRunAnswer if validate else RunAnswer
        named = isinstance(port, str)
        target: Any = _imported(port) if named else port
        name = port if named else type(port).__name__
        try:
            with standard_output_to_error():
                self._object = target() if isinstance(target, type) else target
                answer = msgspec.json.encode(self._object.start())
        except Exception as error:
            raise PortError(f"'{name}' failed at start(): {error!r}.") from error
        self.abilities = read_abilities(answer, name, strict=validate)

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        """Call `run`; an exception is ERRORED. See `Port.ask`."""
        inputs = {key: numpy.array(value) for key, value in ask.inputs.items()}  # its own to write into
        try:
            with standard_output_to_error():
                result = self._object.run(msgspec.to_builtins(request), inputs)
                if isinstance(result, Mapping) and "seq" not in result:
                    return Reply("ANSWERED", Answer({str(key): _own(value) for key, value in result.items()}))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit and asyncio's CancelledError are no Exceptions
            return Reply("ERRORED", message=f"{type(error).__name__}: {error}", detail=traceback.format_exc())
        if not isinstance(result, Mapping):
            return Reply("ERRORED", message=f"run() returned {type(result).__name__}, not a dictionary")
        try:
            message = msgspec.json.decode(msgspec.json.encode(dict(result)), type=self._answer)
        except (TypeError, ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
            return Reply("ERRORED", message=f"run() returned a message that is not of PP-3: {error}")
        return read_reply(message, request)

    def close(self) -> None:
        """Nothing runs."""


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        with standard_output_to_error():  # standard output is refpeft's: its JSON goes there
            target: Any = importlib.import_module(module)
        for part in filter(None, attribute.split(".")):
            target = getattr(target, part)
    except Exception as error:
        raise PortError(f"Can't import the port '{name}': {error}. Give it as module:object.") from error
    return target


def _own(value: Any) -> Any:
    """A copy: the object may write its next answer into the same memory. What is no array stays as it is."""
    try:
        array = numpy.array(value)
    except (TypeError, ValueError):
        return value
    return array if array.dtype.kind != "O" else value


class ReferencePort:
    """refpeft itself: what `refpeft check` judges unless it is given a port."""

    def __init__(self) -> None:
        self.abilities = StartAnswer(
            version=VERSION,
            implementation=Implementation("refpeft", "python", __version__),
            families=list(FAMILIES),
            methods=list(METHODS),
            questions=list(QUESTIONS),
            profiles=["float32", "float64"],
        )

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        """Answer by the specification; see `Port.ask`."""
        try:
            given = questions.answer(replace(ask, output=Path(request.output)), Arithmetic(request.dtype))
        except RefpeftError as error:
            return Reply("ERRORED", message=f"{type(error).__name__}: {error}", detail=traceback.format_exc())
        return Reply("ANSWERED", given)

    def close(self) -> None:
        """Nothing runs."""


def open_port(command: Sequence[str], timeout: float | None = None, *, validate: bool = False) -> Port:
    """The port that a command line names: nothing is refpeft itself, `module:object` a Python object, else a program.

    Raises:
        PortError: it cannot be reached.
    """
    if not command:
        return ReferencePort()
    first = command[0]
    if len(command) == 1 and ":" in first and shutil.which(first) is None and not Path(first).exists():
        sys.path.insert(0, str(Path.cwd()))
        return ObjectPort(first, validate=validate)
    return ProcessPort(command, timeout, validate=validate)
