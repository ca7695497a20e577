"""A port on the workers of a Dask cluster: each starts it once, and answers what it is handed, one question at a time.

Judging stays here: a worker only asks. So a question whose worker ends is asked again elsewhere, none is lost, and none is
judged twice. refpeft, the port and your own model must be in the same place on each worker.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy

from refpeft import __version__
from refpeft.oracle.port import open_port
from refpeft.oracle.protocol import RunCommand, StartAnswer
from refpeft.oracle.questions import Answer, Ask
from refpeft.oracle.reply import Port, PortError, Reply
from refpeft.oracle.vectors import golden_directory

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECTING = 10
"""Seconds in which a scheduler must answer."""
ADAPTER = "adapter"


@dataclass(frozen=True)
class Program:
    """What a worker has to start."""

    command: tuple[str, ...]
    timeout: float | None = None
    validate: bool = False


class ClusterPort:
    """A port that is asked on a cluster, from as many threads as there are workers."""

    may_differ = True

    def __init__(
        self, command: Sequence[str], address: str, timeout: float | None, *, validate: bool
    ) -> None:
        """Connect, and ask one worker what the port can do.

        Raises:
            PortError: Dask is not installed, nobody answers at the address, there are no workers, their refpeft is another,
                or they cannot reach the port.
        """
        self._program = Program(tuple(command), timeout, validate)
        self._client = _client(address)
        try:
            self.workers, self.abilities = self._reached(address)
        except BaseException:
            self._client.close()
            raise

    def _reached(self, address: str) -> tuple[int, StartAnswer]:
        """How many questions can be asked at a time, and what the port can do."""
        workers = sum(self._client.nthreads().values())
        if not workers:
            raise PortError(
                f"The Dask scheduler at '{address}' has no workers. Start some: dask worker {address}"
            )
        here = (__version__, str(golden_directory()))
        for worker, there in self._client.run(_installed).items():
            if there != here:
                raise PortError(
                    f"The worker {worker} has refpeft {there[0]} with golden vectors in '{there[1]}'; here it is {here[0]} in "
                    f"'{here[1]}'. Install the same refpeft in the same place on each worker."
                )
        abilities: StartAnswer | str = self._client.submit(_abilities, self._program, pure=False).result()
        if isinstance(abilities, str):
            raise PortError(f"A worker of the cluster: {abilities}")
        return workers, abilities

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        """Ask on the next worker that is free; see `Port.ask`."""
        from distributed import KilledWorker

        try:
            task = self._client.submit(_answer, self._program, ask, request, pure=False)
            answered: tuple[Reply, dict[str, bytes]] = task.result()
        except KilledWorker as error:
            return Reply("CRASHED", message=f"the workers that were asked have ended: {error}")
        reply, files = answered
        for name, contents in files.items():
            path = Path(request.output) / ADAPTER / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents)
        if files:
            return replace(reply, answer=replace(reply.answer, adapter=Path(request.output) / ADAPTER))
        return reply

    def each(self, function: Callable[[Port, Item], Result], items: Sequence[Item]) -> list[Result]:
        """The function of a worker's own port and of each item, side by side; it stands in a module, so that workers find it."""
        tasks = [self._client.submit(_called, self._program, function, item, pure=False) for item in items]
        return [task.result() for task in tasks]

    def close(self) -> None:
        """End the port on every worker, and the connection."""
        try:
            self._client.run(_close, self._program)
        finally:
            self._client.close()


def _client(address: str) -> Any:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise PortError("--scheduler needs Dask: pip install 'refpeft[dask]'.") from None
    try:
        return distributed.Client(address, timeout=CONNECTING, set_as_default=False)
    except (OSError, ValueError) as error:
        raise PortError(f"No Dask scheduler answers at '{address}': {error}.") from None


# ---------------------------------------------------------------- on a worker

_PORTS: dict[Program, Port] = {}
_ONE_AT_A_TIME = threading.RLock()


def _installed() -> tuple[str, str]:
    return __version__, str(golden_directory())


def _port(program: Program) -> Port:
    if program not in _PORTS:
        _PORTS[program] = open_port(program.command, program.timeout, validate=program.validate)
    return _PORTS[program]


def _abilities(program: Program) -> StartAnswer | str:
    """What the port can do; or, in words, why it cannot be reached."""
    with _ONE_AT_A_TIME:
        try:
            return _port(program).abilities
        except PortError as error:
            return str(error)


def _answer(program: Program, ask: Ask, request: RunCommand) -> tuple[Reply, dict[str, bytes]]:
    """The reply, its tensors in memory, and the files of an adapter that the port wrote."""
    with _ONE_AT_A_TIME:
        directory = Path(tempfile.mkdtemp(prefix="refpeft-"))
        try:
            port = _port(program)
            reply = port.ask(ask, msgspec.structs.replace(request, output=str(directory)))
            adapter = reply.answer.adapter
            files = _files(adapter) if adapter is not None else {}
            tensors = {name: numpy.array(value) for name, value in reply.answer.tensors.items()}
            return replace(reply, answer=Answer(tensors, reply.answer.document)), files
        except PortError as error:
            return Reply("CRASHED", message=f"could not be started on this worker: {error}"), {}
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _files(adapter: Path) -> dict[str, bytes]:
    """An adapter's own two files and whatever lies beside them, links aside."""
    return {
        path.relative_to(adapter).as_posix(): path.read_bytes()
        for path in sorted(adapter.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def _called(program: Program, function: Callable[[Port, Item], Result], item: Item) -> Result:
    with _ONE_AT_A_TIME:
        return function(_port(program), item)


def _close(program: Program) -> None:
    with _ONE_AT_A_TIME:
        port = _PORTS.pop(program, None)
        if port is not None:
            port.close()
