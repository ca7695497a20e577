"""What a port writes on its standard output and error: read by threads, and never kept without bound."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import IO

LONGEST_LINE = 2**24
"""Bytes: a longer line is no message, whatever follows."""
SHOWN = 200
"""Bytes of a line that messages show."""
CHUNK = 2**16
"""Bytes read at once."""
HEAD, TAIL = 4_000, 20_000
"""Bytes kept of the beginning and the end of standard error; what lies between is counted and dropped."""
HEAD_LINES, TAIL_LINES = 3, 20
"""Lines shown of each."""


class Lines:
    """The lines of a stream, read ahead by no more than one: whoever writes without end waits in its pipe."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.begun = bytearray()
        """What has come of a line whose end has not."""
        self._queue: queue.Queue[bytes | OverflowError | None] = queue.Queue(maxsize=1)
        self._over = False
        self._closed = False
        self._thread = threading.Thread(target=self._pump, args=(stream, LONGEST_LINE), daemon=True)
        self._thread.start()

    def get(self, timeout: float) -> bytes:
        """The next line, its line feed included.

        Raises:
            TimeoutError: none has come in time; `begun` is what has.
            EOFError: the stream has ended, perhaps within a line: `begun`.
            OverflowError: the line is longer than a message may be; the argument is its beginning.
        """
        if self._over:
            raise EOFError
        try:
            line = self._queue.get(timeout=max(0.0, timeout))
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            self._over = True
            raise EOFError
        if isinstance(line, OverflowError):
            raise line
        return line

    def close(self, wait: float) -> bool:
        """Drop what is left; whether the stream has ended, so that it can be closed."""
        self._closed = self._over = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._thread.join(wait)
        return not self._thread.is_alive()

    def _pump(self, stream: IO[bytes], longest: int) -> None:
        begun = self.begun
        with contextlib.suppress(OSError, ValueError):
            while chunk := stream.read1(CHUNK):  # type: ignore[attr-defined]
                searched = len(begun)
                begun += chunk
                while (end := begun.find(b"\n", searched)) >= 0:
                    line = bytes(begun[: end + 1])
                    del begun[: end + 1]
                    searched = 0
                    self._queue.put(line if len(line) <= longest else OverflowError(line[:SHOWN]))
                    if self._closed:
                        return
                if len(begun) > longest:
                    self._queue.put(OverflowError(bytes(begun[:SHOWN])))
                    return  # the port is ended when this line turns out to be no message
        self._queue.put(None)


class Errors:
    """Standard error, of which the beginning and the end are kept; it is read to its end, so that no port waits."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._head, self._tail, self._dropped = bytearray(), bytearray(), 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._pump, args=(stream,), daemon=True)
        self._thread.start()

    def text(self, wait: float) -> str:
        """The last lines, and the first ones if some between are dropped; `wait` bounds how long more may come."""
        self._thread.join(wait)
        with self._lock:
            head, tail, dropped = bytes(self._head), bytes(self._tail), self._dropped
        if not dropped:
            return "\n".join(_lines(head + tail)[-TAIL_LINES:])
        first = _lines(head[: head.rfind(b"\n") + 1] or head)[:HEAD_LINES]
        last = _lines(tail)[-TAIL_LINES:]
        return "\n".join(
            [
                *first,
                f"… ({dropped + len(head) + len(tail)} bytes in all; the last lines:)",
                *last,
            ]
        )

    def close(self, wait: float) -> bool:
        """Whether the stream has ended, so that it can be closed."""
        self._thread.join(wait)
        return not self._thread.is_alive()

    def _pump(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := stream.read1(CHUNK):  # type: ignore[attr-defined]
                with self._lock:
                    room = HEAD - len(self._head)
                    self._head += chunk[:room]
                    self._tail += chunk[room:]
                    excess = max(0, len(self._tail) - TAIL)
                    self._dropped += excess
                    del self._tail[:excess]


def _lines(text: bytes) -> list[str]:
    return text.decode("utf-8", "replace").splitlines()
