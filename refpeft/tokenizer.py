"""A text's token ids by a tokenizer.json, computed in a process of its own.

A tokenizer.json is a program: rules that replace text can double it forty times over, regular expressions can run for
years, and the tokenizers library (0.23, in Rust) ends the whole process where memory runs out. So the library is called in
another process, with limits, and whatever happens there is an error here. A start takes about a tenth of a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from refpeft.errors import ConfigError

SECONDS = 60.0
"""How long the process may take; the largest tokenizers in use load in two."""
MEMORY_BYTES = 4 * 2**30
"""How much memory it may address, where the system can limit that."""
MOST_TOKENS = 2**20
"""A text for virtual tokens has dozens of them."""


def token_ids(file: Path, text: str, seconds: float = SECONDS, *, max_length: int | None = None) -> list[int]:
    """The ids of `text`, special tokens included, without the padding and truncation that the file asks for.

    `max_length`: cut the text so that there are no more, as HF's `truncation=True` does.

    Raises:
        ConfigError: the tokenizers library cannot read the file, or fails, or takes longer or needs more memory than
            any tokenizer does.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"The text for {file} holds half of a surrogate pair at character {error.start}, which no text has."
        ) from None
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    quiet = {"RUST_BACKTRACE": "0", "TOKENIZERS_PARALLELISM": "false", "PYTHONIOENCODING": "utf-8"}
    try:
        process = subprocess.run(  # noqa: S603  (this very module, below)
            [sys.executable, "-P", "-m", "refpeft.tokenizer", str(file.absolute()), str(max_length or "")],
            input=json.dumps(text).encode(),
            capture_output=True,
            env={**os.environ, **quiet, "PYTHONPATH": path},
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{file} took longer than {seconds:g} s for the text, and was stopped. Is it a tokenizer?"
        ) from None
    if process.returncode != 0:
        raise ConfigError(
            f"{file} ended the tokenizers library ({_ending(process.returncode, process.stderr)}). The file is damaged, "
            "or made to do harm."
        )
    said = json.loads(process.stdout)
    if "error" in said:
        raise ConfigError(
            f"{file} is not a tokenizer.json that the tokenizers library can read: {said['error']}"
        )
    ids: list[int] = said["ids"]
    return ids


def _ending(status: int, errors: bytes) -> str:
    """How the process ended, and its last words."""
    how = f"status {status}"
    if status < 0:
        with contextlib.suppress(ValueError):
            how = signal.Signals(-status).name
    lines = [line for line in errors[-2000:].decode("utf-8", "replace").splitlines() if line.strip()]
    words = next((line for line in lines if "memory allocation" in line), lines[-1] if lines else "")
    return f"{how}: {words[:200]}" if words else how


def _limit_memory() -> None:
    """Less memory than the machine has, and no core file, where the system knows such limits."""
    try:
        import resource
    except ImportError:  # not POSIX
        return
    for name, most in (("RLIMIT_AS", MEMORY_BYTES), ("RLIMIT_CORE", 0)):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (most, most))


def _main(file: str, max_length: str = "") -> None:
    """What the process does: the text in JSON on standard input, the ids or what went wrong on standard output."""
    _limit_memory()
    from tokenizers import Tokenizer

    text = json.load(sys.stdin)
    try:
        tokenizer = Tokenizer.from_file(file)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if max_length:
            tokenizer.enable_truncation(int(max_length))
        ids = tokenizer.encode(text).ids
        said = (
            {"ids": ids} if len(ids) <= MOST_TOKENS else {"error": f"it makes {len(ids)} tokens of the text"}
        )
    except BaseException as error:  # a panic in Rust is none of Exceptions
        said = {"error": str(error)[:500]}
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
