"""The files that a port answers with, and where: nothing a port leaves there may hang, crash or flood refpeft."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from refpeft.errors import CheckpointError
from refpeft.oracle.system import open_regular
from refpeft.tensors import LazyTensors, read_tensors

LARGEST = 2**30
"""Bytes of one file that are read at most."""
LARGE = 2**26
"""Bytes of an answer's tensors beyond which they are not read all at once."""


def read_answer_tensors(path: Path, what: str) -> Mapping[str, NDArray[Any]]:
    """Every tensor of a safetensors file by name; `what` says in messages what the file is ("the port's answer").

    Those of a large file are read one by one when they are compared.

    Raises:
        CheckpointError: it is missing, no regular file, too large, truncated or damaged.
    """
    return (LazyTensors if require_plain(path, what) > LARGE else read_tensors)(path, what)


def require_plain(path: Path, what: str) -> int:
    """Refuse what is no regular file of at most `LARGEST` bytes; how many it has.

    Raises:
        CheckpointError: it is missing, something else, unreadable, or larger.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise CheckpointError(f"Can't find '{path.name}' at '{path.parent}', which holds {what}.") from None
    except OSError as error:
        raise CheckpointError(f"Can't read '{path}', which holds {what}: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"'{path}' {error}; write {what} there as a plain file.") from error
    if size > LARGEST:
        raise CheckpointError(
            f"'{path}' holds {size} bytes; refpeft reads at most {LARGEST} of {what}. Answer fewer stages."
        )
    return size


def fresh_directory(path: Path) -> None:
    """Make an empty directory, whatever a port has left in its place."""
    discard(path)
    parent = path.parent  # if it is missing, another thread may be making it
    if parent.is_symlink() or (parent.exists() and not parent.is_dir()):
        discard(parent)
    path.mkdir(parents=True)


def discard(path: Path) -> None:
    """Remove a file, a link, or a directory with all that is in it; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return
        path.chmod(stat.S_IRWXU)
        for directory, names, _ in os.walk(path):  # top down: what was closed is opened before it is entered
            for inner in (Path(directory, name) for name in names):
                if not inner.is_symlink():
                    inner.chmod(stat.S_IRWXU)
        shutil.rmtree(path, ignore_errors=True)


def copy_plain_files(source: Path, target: Path) -> None:
    """Copy the regular files of a directory that a port wrote, each of at most `LARGEST` bytes; nothing else."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        with contextlib.suppress(CheckpointError):
            require_plain(path, "the port's answer")
            shutil.copyfile(path, target / path.name)
