"""How a port is reached: as a process that speaks JSON lines (specs/protocol.md), or as a Python object.

Whatever a port does, reaching it ends in a `Reply`: an answer, or one of SKIPPED, ERRORED, CRASHED and TIMEOUT with what is
known about it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy

from refpeft import __version__
from refpeft.errors import RefpeftError
from refpeft.oracle import questions
from refpeft.oracle.protocol import (
    VERSION,
    Implementation,
    RunAnswer,
    RunCommand,
    StartAnswer,
    StartCommand,
    StopCommand,
    StrictRunAnswer,
    StrictStartAnswer,
)
from refpeft.oracle.questions import METHODS, QUESTIONS, Answer, Arithmetic, Ask
from refpeft.oracle.reply import Port, PortError, Reply, read_reply

# ---------------------------------------------------------------- a process


class ProcessPort:
    """A program that speaks the protocol on its standard input and output. It is started anew after it fails."""

    def __init__(self, command: Sequence[str], timeout: float = 60.0, *, validate: bool = False) -> None:
        self.command = list(command)
        self.timeout = timeout
        self.validate = validate
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._pumping: threading.Thread | None = None
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        try:
            self.abilities = self._start()
        except PortError:
            self._release()
            self._stderr.close()
            raise

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        """Send the question and read the answer; see `Port.ask`."""
        if self._process is None or self._process.poll() is not None:
            try:
                self._start()
            except PortError as error:
                return Reply("CRASHED", message=f"could not be started again: {error}")
        sent = self._send(request)
        line = self._receive(self.timeout) if sent else None
        if line == b"":
            self._kill()
            return Reply("TIMEOUT", message=f"no answer within {self.timeout:g} s", detail=self._errors())
        if line is None:
            return Reply("CRASHED", message=f"the port {self._ending()}", detail=self._errors())
        try:
            message = msgspec.json.decode(line, type=StrictRunAnswer if self.validate else RunAnswer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._kill()
            shown = line.decode("utf-8", "replace").strip()[:200]
            why = f"{error}" if line.lstrip().startswith(b"{") else "not a JSON object"
            return Reply(
                "ERRORED", message=f"not an answer of the protocol ({why}): {shown!r}", detail=self._errors()
            )
        if message.seq != request.seq:
            self._kill()  # two lines for one question: what else is on its way belongs to no question
        return read_reply(message, request)

    def close(self) -> None:
        """Ask the port to stop; kill it if it does not."""
        if self._process is not None and self._process.poll() is None:
            self._send(StopCommand())
            with contextlib.suppress(OSError):
                if self._process.stdin:
                    self._process.stdin.close()
            try:
                self._process.wait(min(5, self.timeout))
            except subprocess.TimeoutExpired:
                self._kill()
        self._release()
        self._stderr.close()

    def _start(self) -> StartAnswer:
        program = shlex.join(self.command)
        self._release()
        self._stderr.seek(0)
        self._stderr.truncate()
        self._lines = queue.Queue()
        try:
            self._process = subprocess.Popen(  # noqa: S603  (running the port is what the user asked for)
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=os.name == "posix",
            )
        except OSError as error:
            raise PortError(
                f"Can't run `{program}`: {error.strerror or error}. Give the port's command after --, for example "
                "`refpeft check -- ./my_port`."
            ) from error
        self._pumping = threading.Thread(
            target=self._pump, args=(self._process.stdout, self._lines), daemon=True
        )
        self._pumping.start()
        line = self._receive(max(self.timeout, 120.0)) if self._send(StartCommand(VERSION)) else None
        if not line:
            why = f"it {self._ending()}" if line is None else "it did not answer in time"
            self._kill()
            raise PortError(f"`{program}` did not answer `start`: {why}.{_indented(self._errors())}")
        return _abilities(line, program, strict=self.validate)

    @staticmethod
    def _pump(stream: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in stream:
                lines.put(line)
        lines.put(None)

    def _send(self, command: Any) -> bool:
        assert self._process is not None  # noqa: S101
        assert self._process.stdin is not None  # noqa: S101
        try:
            self._process.stdin.write(msgspec.json.encode(command) + b"\n")
            self._process.stdin.flush()
        except OSError:
            return False
        return True

    def _receive(self, timeout: float) -> bytes | None:
        """The next line; None if the port has ended, b"" if nothing came in time."""
        try:
            return self._lines.get(timeout=timeout)
        except queue.Empty:
            return b""

    def _ending(self) -> str:
        assert self._process is not None  # noqa: S101
        try:
            status = self._process.wait(min(5, self.timeout))
        except subprocess.TimeoutExpired:
            self._kill()
            return "closed its standard output"
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-status).name}"
        return f"exited with status {status}"

    def _kill(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()

    def _release(self) -> None:
        """Close what is left of a process that has ended."""
        if self._process is None:
            return
        self._kill()
        if self._pumping is not None:
            self._pumping.join(1)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    stream.close()

    def _errors(self) -> str:
        self._stderr.seek(0)
        return "\n".join(self._stderr.read()[-20_000:].decode("utf-8", "replace").splitlines()[-20:])


def _indented(text: str) -> str:
    return "\n  " + text.replace("\n", "\n  ") if text else ""


def _abilities(line: bytes, program: str, *, strict: bool = False) -> StartAnswer:
    """A port's answer to `start`, checked.

    Raises:
        PortError: it is not one, or speaks another version.
    """
    try:
        abilities = msgspec.json.decode(line, type=StrictStartAnswer if strict else StartAnswer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        shown = line.decode("utf-8", "replace").strip()[:200]
        raise PortError(
            f"`{program}` answered `start` with {shown!r}, which is not what PP-2 says: {error}."
        ) from error
    if abilities.version != VERSION:
        raise PortError(
            f"`{program}` speaks version {abilities.version} of the protocol; this refpeft speaks {VERSION}."
        )
    unknown = sorted(set(abilities.questions) - set(QUESTIONS)) + sorted(
        set(abilities.methods) - set(METHODS)
    )
    if unknown:
        raise PortError(
            f"`{program}` says it can do {', '.join(unknown)}, which do not exist. Questions: {', '.join(QUESTIONS)}; "
            f"methods: {', '.join(METHODS)}."
        )
    return abilities


# ---------------------------------------------------------------- a Python object


class ObjectPort:
    """A Python object with `start()` and `run(request, inputs)`, found as `module:object`.

    `start()` returns the message of PP-2 as a dictionary. `run` gets the message of PP-3 as a dictionary and the input
    tensors as a dictionary of arrays; it returns a dictionary of arrays, or a message of PP-3.
    """

    def __init__(self, name: str, *, validate: bool = False) -> None:
        self._answer: type[RunAnswer] = StrictRunAnswer if validate else RunAnswer
        module, _, attribute = name.partition(":")
        try:
            target: Any = importlib.import_module(module)
            for part in filter(None, attribute.split(".")):
                target = getattr(target, part)
        except Exception as error:
            raise PortError(f"Can't import the port '{name}': {error}. Give it as module:object.") from error
        try:
            self._object = target() if isinstance(target, type) else target
            answer = msgspec.json.encode(self._object.start())
        except Exception as error:
            raise PortError(f"'{name}' failed at start(): {error!r}.") from error
        self.abilities = _abilities(answer, name, strict=validate)

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        """Call `run`; an exception is ERRORED. See `Port.ask`."""
        inputs = {key: numpy.array(value) for key, value in ask.inputs.items()}  # its own to write into
        try:
            result = self._object.run(msgspec.to_builtins(request), inputs)
        except (Exception, SystemExit) as error:
            return Reply("ERRORED", message=f"{type(error).__name__}: {error}", detail=traceback.format_exc())
        if not isinstance(result, Mapping):
            return Reply("ERRORED", message=f"run() returned {type(result).__name__}, not a dictionary")
        if "seq" in result:
            try:
                message = msgspec.json.decode(msgspec.json.encode(dict(result)), type=self._answer)
            except (TypeError, ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
                return Reply("ERRORED", message=f"run() returned a message that is not of PP-3: {error}")
            return read_reply(message, request)
        return Reply("ANSWERED", Answer({str(key): value for key, value in result.items()}))

    def close(self) -> None:
        """Nothing runs."""


class ReferencePort:
    """refpeft itself: what `refpeft check` judges unless it is given a port."""

    def __init__(self) -> None:
        self.abilities = StartAnswer(
            version=VERSION,
            implementation=Implementation("refpeft", "python", __version__),
            families=["gpt2"],
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


def open_port(command: Sequence[str], timeout: float = 60.0, *, validate: bool = False) -> Port:
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
