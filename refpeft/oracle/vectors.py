"""The golden-vector format: where vectors are, how a case is read, and what every vector must satisfy (specs/vectors.md).

golden/manifest.json                                        SHA-256 of every file
golden/models/<name>/                                       plain HF directories
golden/vectors/<dialect>/<method>/<suite>/<case>/case.json  what is asked, and what is known about the answer
                                                inputs.safetensors  expected.safetensors  adapter/
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from numpy.typing import NDArray

from refpeft.errors import RefpeftError
from refpeft.files import MAXIMUM_JSON_BYTES
from refpeft.rules import MAXIMUM_DEPTH, is_shallow
from refpeft.tensors import read_tensors

FORMAT = 1
"""The version of the format; another one is refused."""
DIALECT = "peft-0.21.2"
"""Whose behaviour the vectors record: HF peft 0.21.2 with transformers 5.23.0."""

PLAIN_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
"""What an id or another path in case.json looks like: it leads downwards, and means nothing to a shell or a terminal."""
OWN = "own/"
"""How the ids of questions about a user's own model begin; they are asked by `refpeft check --base`."""
DRAWN = "fuzz/"
"""How the ids of questions begin that `refpeft fuzz` draws."""
LONGEST_NAME = 200
"""Characters of an id, and of a title."""
LARGEST_FILE = 2**28
"""Bytes of one file of a case; all that refpeft ships have together a twentieth of that."""
LARGEST_ANSWER = 2**24
"""Numbers that a case may ask for; refpeft's own ask for thousands."""
SIZES = (
    "batch_size",
    "num_virtual_tokens",
    "rows",
    "columns",
    "inputs",
    "outputs",
    "shape",
    "token_dim",
    "encoder_hidden_size",
    "num_layers",
)
"""What says in a case's arguments and configuration how large an answer is."""

Kind = Literal["exact", "elementary", "composite", "drawn", "tokens"]
"""How far apart two right answers may be (clause JG-2)."""


class VectorError(RefpeftError):
    """A golden vector is missing, damaged, or not of this format."""


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is known about one expected tensor."""

    kind: Kind
    """How it is compared."""
    axes: list[str]
    """The names of its axes (specs/notation.md)."""
    float32_distance: float | None = None
    """How far HF's own float32 run is from its float64 run, as a normwise relative error."""


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One question to a port, and HF's answer: the contents of case.json."""

    format: int
    """`FORMAT`."""
    id: str
    """Immutable; equals the path below golden/vectors."""
    title: str
    """One line for people."""
    question: str
    """A name in `refpeft.oracle.questions.QUESTIONS`."""
    method: str
    """`prompt_tuning`, `prefix_tuning`, or `common` for what both share."""
    clauses: list[str]
    """The clauses of specs/ that the case bears on."""
    model: str | None
    """A directory below golden/models, or None."""
    config: dict[str, Any] | None
    """The adapter's configuration, filled in, as HF writes it; or None."""
    arguments: dict[str, Any]
    """What else the question needs; see the page of the protocol."""
    dims: dict[str, int]
    """The size of each axis."""
    equal_axes: str
    """Why two axes have the same size; empty if none have."""
    seed: int | None
    """What the inputs were drawn from."""
    versions: dict[str, str]
    """The versions of torch, transformers and peft that answered."""
    tensors: dict[str, Tensor]
    """The expected tensors in topological order: no tensor depends on a later one."""
    document: dict[str, Any] | None
    """The expected JSON answer, or None."""


@dataclass(frozen=True)
class Vector:
    """A case and the files beside it, read when they are first needed."""

    case: Case
    directory: Path

    @property
    def truth(self) -> Literal["HF", "refpeft"]:
        """Whose values are expected: refpeft's own where nothing but refpeft answered."""
        return "refpeft" if set(self.case.versions) == {"refpeft"} else "HF"

    @functools.cached_property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """The tensors that the port is given."""
        path = self.directory / "inputs.safetensors"
        return read_tensors(path, "the inputs of a golden vector") if path.is_file() else {}

    @functools.cached_property
    def expected(self) -> dict[str, NDArray[Any]]:
        """HF's answer, in true float64."""
        path = self.directory / "expected.safetensors"
        return read_tensors(path, "HF's answer") if path.is_file() else {}

    @functools.cached_property
    def digest(self) -> str:
        """A hash of everything that the case says: what derived files refer to it by."""
        return digest_of(self.directory)

    @property
    def model_directory(self) -> Path | None:
        """Where the case's base model is."""
        return golden_directory(self.directory) / "models" / self.case.model if self.case.model else None

    @property
    def adapter_directory(self) -> Path | None:
        """The adapter that HF wrote, if the case has one."""
        path = self.directory / "adapter"
        return path if path.is_dir() else None


def digest_of(directory: Path) -> str:
    """A hash of the names and contents of all files in a directory."""
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        digest.update(path.relative_to(directory).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def golden_directory(below: Path | None = None) -> Path:
    """The directory with manifest.json: above `below`, or inside the installed package, or in the checkout.

    Raises:
        VectorError: there is none.
    """
    package = Path(__file__).resolve().parent.parent
    candidates = [*below.resolve().parents] if below else [package / "golden", package.parent / "golden"]
    for candidate in candidates:
        if (candidate / "manifest.json").is_file():
            return candidate
    raise VectorError(
        f"No golden vectors found: looked for manifest.json in {', '.join(str(c) for c in candidates[:4])}. "
        "Reinstall refpeft, or run from a complete checkout."
    )


def read_vector(directory: Path) -> Vector:
    """The case in a directory.

    Raises:
        VectorError: case.json is missing, broken, of another format, or names what lies outside its directory.
    """
    path = directory / "case.json"
    if not path.is_file():
        raise VectorError(f"'{directory}' is not a case: it has no case.json.")
    try:
        if path.stat().st_size > MAXIMUM_JSON_BYTES:
            raise ValueError("it is larger than 10 MB")  # noqa: TRY301
        case = msgspec.json.decode(path.read_bytes(), type=Case)
    except (OSError, ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
        raise VectorError(f"'{path}' is not a case of format {FORMAT}: {error}.") from error
    if case.format != FORMAT:
        raise VectorError(f"'{path}' has format {case.format}; this refpeft reads format {FORMAT}.")
    if not all(map(is_shallow, (case.arguments, case.config, case.document))):
        raise VectorError(f"'{path}' is nested more than {MAXIMUM_DEPTH} deep.")
    if case.id.startswith(OWN):
        raise VectorError(
            f"'{path}' is of a failure on your own model, which is not copied there: it is no golden vector. Ask again "
            "with the command in that failure's README.txt."
        )
    for problem in _problems(case):
        raise VectorError(f"'{path}' {problem}.")
    return Vector(case, directory)


def _problems(case: Case) -> Iterator[str]:
    """What makes it dangerous to ask a case, in words."""
    for name, value in (
        ("id", case.id),
        ("model", case.model),
        ("arguments.tokenizer", case.arguments.get("tokenizer")),
    ):
        if value is not None and not (
            isinstance(value, str) and len(value) <= LONGEST_NAME and PLAIN_PATH.fullmatch(value)
        ):
            yield f"has the {name} {_shown(value)}, which is not a path downwards of letters, digits and '_.-/'"
    if len(case.title) > LONGEST_NAME or not case.title.isprintable():
        yield f"has the title {_shown(case.title)}, which is too long or not printable"
    asked = max(_numbers(case.arguments), _numbers(case.config))
    if asked > LARGEST_ANSWER:
        yield f"asks for more than {LARGEST_ANSWER} numbers"


def _numbers(value: Any) -> int:
    """How many numbers the sizes in arguments or a configuration, multiplied, ask for."""
    if isinstance(value, list):
        return max(map(_numbers, value), default=0)
    if not isinstance(value, dict):
        return 0
    sizes = [value[name] for name in SIZES if name in value]
    flat = [size for entry in sizes for size in (entry if isinstance(entry, list) else [entry])]
    own = math.prod(abs(size) for size in flat if isinstance(size, int) and size)
    return max([own, *(_numbers(inner) for inner in value.values())])


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def all_vectors(golden: Path | None = None) -> Iterator[Vector]:
    """Every vector, in the order of ids.

    Raises:
        VectorError: a case is damaged; or `golden` is given and has links that lead out of it, pipes, or huge files.
    """
    if golden is not None:
        _require_harmless(golden)
    root = (golden or golden_directory()) / "vectors"
    for path in sorted(root.rglob("case.json")):
        yield read_vector(path.parent)


def _require_harmless(golden: Path) -> None:
    """Refuse what a directory from elsewhere must not have: it is read whole, and copied into failures' directories."""
    root = golden.resolve()
    paths = [
        golden / name for name in ("manifest.json", "floors.json", "kill_matrix.json", "models", "vectors")
    ]
    for where, directories, files in [found for top in paths[3:] for found in os.walk(top)]:
        paths += [Path(where, name) for name in (*directories, *files)]
    for path in paths:
        try:
            inside = not path.is_symlink() or path.resolve(strict=True).is_relative_to(root)
        except (OSError, RuntimeError):  # leads nowhere, or in a circle
            inside = False
        if not inside:
            raise VectorError(f"'{path}' is a link that leads out of '{golden}'. Copy what it points to.")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise VectorError(f"'{path}' is neither a file nor a directory. Remove it.")
        if path.is_file() and path.is_relative_to(golden / "vectors") and path.stat().st_size > LARGEST_FILE:
            raise VectorError(
                f"'{path}' has {path.stat().st_size} bytes; a case's files have at most {LARGEST_FILE}."
            )


def matches(case_id: str, pattern: str) -> bool:
    """Whether an id matches a pattern: a glob over the whole id, or a part of it."""
    return fnmatch.fnmatchcase(case_id, pattern) or pattern in case_id
