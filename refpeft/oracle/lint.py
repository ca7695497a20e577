"""What every golden vector must satisfy (specs/vectors.md, VF-1 to VF-8): `lint` says in words what does not.

Each rule is a small function: of one vector, or of the whole directory. They find slips in making vectors; whether HF's
answers are right is not theirs to say.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy
from numpy.typing import NDArray

from refpeft.errors import RefpeftError
from refpeft.oracle.budget import PROFILES
from refpeft.oracle.cases import ask_of
from refpeft.oracle.floors import floors
from refpeft.oracle.names import step_of
from refpeft.oracle.questions import LEVELS, PARAMETERS, QUESTIONS, TOKENS, answer, is_required
from refpeft.oracle.tokens import Decisions
from refpeft.oracle.validity import blind_positions
from refpeft.oracle.vectors import DIALECT, FORMAT, Vector, VectorError, read_vector
from refpeft.tensors import read_tensors

Rule: TypeAlias = Callable[[Vector, str], Iterator[str]]
"""What a rule finds in a vector at a place below golden/vectors."""

MAXIMUM_BYTES = 15_000_000
"""Models and vectors together."""
MINIMUM_SIGNATURES = 50
"""So many different things have to be asked."""
MAXIMUM_EQUAL = 0.2
"""The part of the cases that may have axes of equal size."""

AXES = frozenset(
    (
        "batch", "tokens", "virtual", "query", "key", "heads",
        "kv_heads", "head_dim", "width", "hidden", "intermediate", "token_dim",
        "encoder_hidden", "prefix_width", "layers", "vocab", "positions", "text",
        "steps", "micro_batches",
        "sequences", "length", "new_tokens",
        "embedding", "labels", "encoder_key", "decoder_tokens", "virtual_rows", "stored_virtual", "window_key",
    )
)  # fmt: skip
"""The axis alphabet (specs/notation.md)."""
DRAW_AXIS = re.compile(r"(rows|columns|inputs|outputs|values)_(\d+)")
"""An axis of the i-th random draw."""
SAME = {
    "sequences": ("batch",),
    "kv_heads": ("heads",),
    "width": ("hidden",),
    "token_dim": ("hidden", "embedding", "width", "head_dim"),
    "query": ("tokens", "key", "decoder_tokens"),
    "key": ("decoder_tokens",),
    "encoder_key": ("tokens",),
}
"""Axes that are another axis by definition (clause VF-5)."""

CLEAR = 20
"""A golden generation's closest choice must be won by so many budgets of float32."""

OFF_GRID = "/full-float32-parameters"
"""The cases whose parameters leave the bfloat16 grid on purpose: rounding them to half precision shows."""
CLAUSE = re.compile(r"(PT|PX|AT|MK|PO|TK|TR|GN|CK|CF|AD)-[1-9][0-9]*")
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
MACHINE_PATH = re.compile(r"(/|~/|file://|[A-Za-z]:\\)\w[\w.-]*[/\\]|\.\./")
WITH_DOCUMENT = ("config.resolve", "checkpoint.save")
"""Questions whose answer has a JSON document."""


def lint(golden: Path) -> list[str]:
    """Every problem of the vectors in a directory `golden`, in words; empty if there are none."""
    problems = [problem for rule in (_manifest, _models, _size, _paths) for problem in rule(golden)]
    vectors = []
    for path in sorted((golden / "vectors").rglob("case.json")):
        try:
            vectors.append(read_vector(path.parent))
        except VectorError as error:
            problems.append(str(error))
    for vector in vectors:
        place = vector.directory.relative_to(golden / "vectors").as_posix()
        problems += [f"{place}: {problem}" for rule in RULES for problem in _applied(rule, vector, place)]
    return problems + list(_together(vectors))


def _applied(rule: Rule, vector: Vector, place: str) -> Iterator[str]:
    """What a rule finds; that it cannot read the vector is a problem too."""
    try:
        yield from rule(vector, place)
    except (RefpeftError, LookupError, TypeError, ValueError) as error:
        yield f"cannot be read or answered: {error}"


def _manifest(golden: Path) -> Iterator[str]:
    """VF-7: the hash of every file that the package carries, and of no other."""
    try:
        stored = json.loads((golden / "manifest.json").read_bytes())
        files: dict[str, str] = {**stored["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        yield f"manifest.json cannot be read: {error!r}"
        return
    if (stored.get("format"), stored.get("dialect")) != (FORMAT, DIALECT):
        yield f"manifest.json is of format {stored.get('format')} and dialect {stored.get('dialect')}"
    paths = [
        path for folder in ("models", "vectors") for path in (golden / folder).rglob("*") if path.is_file()
    ]
    paths += [path for path in (golden / "floors.json", golden / "kill_matrix.json") if path.is_file()]
    actual = {p.relative_to(golden).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    for name in sorted(files.keys() | actual.keys()):
        if name not in files:
            yield f"{name} is not in manifest.json"
        elif name not in actual:
            yield f"{name} is in manifest.json, but there is no such file"
        elif files[name] != actual[name]:
            yield f"{name} is not the file that manifest.json has the hash of"


def _models(golden: Path) -> Iterator[str]:
    """VF-4 for the base models, some of whose files are in bfloat16 itself."""
    for path in sorted((golden / "models").rglob("model.safetensors")):
        for name, tensor in read_tensors(path, "a base model's weights").items():
            for problem in _off_grid(
                tensor.astype(numpy.float32) if str(tensor.dtype) == "bfloat16" else tensor
            ):
                yield f"{path.relative_to(golden).as_posix()}: {name} {problem}"
            if not tensor.all():
                yield f"{path.relative_to(golden).as_posix()}: {name} has zeros"


def _size(golden: Path) -> Iterator[str]:
    """VF-7: not too much for a package, which carries no generator."""
    carried = [path for top in ("models", "vectors") for path in (golden / top).rglob("*")] + list(
        golden.glob("*.json")
    )
    size = sum(path.stat().st_size for path in carried if path.is_file())
    if size > MAXIMUM_BYTES:
        yield f"all files together have {size} bytes; at most {MAXIMUM_BYTES} are allowed"


def _paths(golden: Path) -> Iterator[str]:
    """No file tells of the machine that it was made on."""
    for path in sorted((golden / top for top in ("models", "vectors")), key=str):
        for file in sorted(path.rglob("*.json")):
            try:
                texts = list(_strings(json.loads(file.read_bytes())))
            except (ValueError, RecursionError):
                yield f"{file.relative_to(golden).as_posix()} is not JSON"
                continue
            for text in texts:
                if MACHINE_PATH.match(text):
                    yield f"{file.relative_to(golden).as_posix()} has a path of a machine: {text!r}"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _identity(vector: Vector, place: str) -> Iterator[str]:
    """VF-1, VF-2: the id is the place; the question exists and is asked of the method; clauses are labels."""
    case = vector.case
    if case.id != place:
        yield f"its id is {case.id!r}, not its place"
    parts = case.id.split("/")
    if len(parts) != 4 or parts[:2] != [DIALECT, case.method] or not NAME.fullmatch(parts[-1]):
        yield f"its id is not {DIALECT}/{case.method}/<suite>/<case-in-kebab-case>"
    question = QUESTIONS.get(case.question)
    if question is None:
        yield f"there is no question {case.question!r}; there are {', '.join(QUESTIONS)}"
    elif case.method not in question.methods:
        yield f"the question {case.question!r} is not for the method {case.method!r}"
    elif question.level not in LEVELS:
        yield f"the question {case.question!r} has no level"
    if not case.clauses or not all(CLAUSE.fullmatch(clause) for clause in case.clauses):
        yield f"its clauses are {case.clauses}, not labels of specs/"
    if not case.title or case.title.endswith("."):
        yield "its title is not one phrase without a full stop"
    if set(case.versions) != {"torch", "transformers", "peft"}:
        yield f"its versions are of {', '.join(sorted(case.versions))}"
    if (case.document is not None) != (case.question in WITH_DOCUMENT):
        yield "a document is missing, or there is one to a question without"


def _dims(vector: Vector, place: str) -> Iterator[str]:
    """VF-5: axes of the alphabet, with the sizes of `dims`, all different unless the case says why."""
    case = vector.case
    known = {axis for axis in case.dims if axis in AXES or DRAW_AXIS.fullmatch(axis)}
    for axis in sorted(case.dims.keys() - known):
        yield f"its dims have an axis {axis!r}, which is not in specs/notation.md"
    for name, tensor in case.tensors.items():
        expected = [case.dims.get(axis) for axis in tensor.axes]
        shape = list(vector.expected[name].shape) if name in vector.expected else expected
        if expected != shape:
            yield f"{name} has shape {shape}; its axes {tensor.axes} have the sizes {expected}"
    equal = list(equal_axes(case.dims))
    if equal and not case.equal_axes:
        yield f"the axes {', '.join(equal)} have the same size, and equal_axes does not say why"
    if case.equal_axes and not equal:
        yield "equal_axes says why axes have the same size, but none have"


def equal_axes(dims: Mapping[str, int]) -> Iterator[str]:
    """Pairs of different axes that have the same size."""
    seen: dict[tuple[str, int], str] = {}
    for axis, size in dims.items():
        same = SAME.get(axis, ()) if axis != "key" or "virtual" in dims else ()
        if any(dims.get(other) == size for other in same) or (axis == "key" and "virtual" not in dims):
            continue
        draw = DRAW_AXIS.fullmatch(axis)
        other = seen.setdefault((draw[2] if draw else "", size), axis)
        if other != axis:
            yield f"{other} and {axis}"


def _inputs(vector: Vector, place: str) -> Iterator[str]:
    """VF-4: real inputs on the bfloat16 grid, finite, without zeros unless the case is about zeros; padding unlabelled."""
    exempt = vector.case.id.endswith(OFF_GRID)
    zeros = vector.case.config is not None and vector.case.config.get("init_weights") == "zero"
    for name, tensor in vector.inputs.items():
        if str(tensor.dtype) not in ("float32", "int64", "bool"):
            yield f"the input {name} is {tensor.dtype}; inputs are float32, int64 or bool"
        if tensor.dtype.kind == "f":
            for problem in _off_grid(tensor, exempt=exempt and name.startswith(PARAMETERS)):
                yield f"the input {name} {problem}"
            if not tensor.all() and not zeros:
                yield f"the input {name} has zeros"
    given = [tensor for name, tensor in vector.inputs.items() if name.startswith(PARAMETERS)]
    if zeros and given and all(tensor.all() for tensor in given):
        yield "its init_weights is zero, but none of its parameters is"
    mask, labels = vector.inputs.get("attention_mask"), vector.inputs.get("labels")
    if (
        mask is not None
        and labels is not None
        and labels.shape == mask.shape
        and (labels[mask == 0] != -100).any()
    ):
        yield "a masked position has a label"


def _off_grid(tensor: NDArray[Any], *, exempt: bool = False) -> Iterator[str]:
    if tensor.dtype != numpy.float32:
        yield f"is {tensor.dtype}, not float32"
    elif not numpy.isfinite(tensor).all():
        yield "is not finite"
    elif exempt == (not (numpy.ascontiguousarray(tensor).view(numpy.uint32) & 0xFFFF).any()):
        yield (
            "is on the bfloat16 grid, which its case is about leaving"
            if exempt
            else "is not on the bfloat16 grid"
        )


def _expected(vector: Vector, place: str) -> Iterator[str]:
    """VF-2, VF-3: the tensors that case.json describes, in float64, int64 or bool, and finite."""
    described, stored = set(vector.case.tensors), set(vector.expected)
    for name in sorted(described ^ stored):
        yield f"{name} is {'not stored' if name in described else 'stored, but not described in case.json'}"
    for name, tensor in vector.expected.items():
        if str(tensor.dtype) not in ("float64", "int64", "bool"):
            yield f"{name} is {tensor.dtype}; expected values are float64, int64 or bool"
        if not numpy.isfinite(tensor).all():
            yield f"{name} is not finite"


def _answered(vector: Vector, place: str) -> Iterator[str]:
    """VF-2: every required tensor is there, and no tensor depends on a later one, by refpeft's order of recording.

    JG-1: what counts sees a key.
    """
    ask = ask_of(vector)
    with numpy.errstate(all="ignore"):  # inputs that are not finite are another rule's
        computed = answer(ask).tensors
    answered = list(computed)
    names = list(vector.case.tensors)
    for name in answered:
        if is_required(vector.case.question, name) and name not in names:
            yield f"the required tensor {name} is missing"
    for name in names:
        if name not in answered:
            yield f"{name} is no answer to the question {vector.case.question!r}"
    stages = [name for name in names if step_of(name)]
    if stages != [name for name in answered if name in stages]:
        yield "its stages are not in the order of computation"
    if names[: len(stages)] != stages:
        yield "a gradient stands before a stage that it depends on"
    for name, row, query in blind_positions(ask, computed):
        yield f"{name}: query {query} of row {row} counts, and sees no key"


def _decided(vector: Vector, place: str) -> Iterator[str]:
    """JG-9: every choice of a generation is won by far more than rounding in float32 could turn."""
    if vector.case.question != "generate":
        return
    profile = PROFILES["float32"]
    decisions = Decisions.of(ask_of(vector), floors(vector, profile)[TOKENS], profile)
    closest = float(decisions.gaps.min())
    if closest < CLEAR * decisions.allowed:
        yield f"its closest choice is won by {closest:.2g}, which is not {CLEAR} times the budget, {decisions.allowed:.2g}"


RULES: tuple[Rule, ...] = (_identity, _dims, _inputs, _expected, _answered, _decided)
"""The rules about one vector."""


def _together(vectors: list[Vector]) -> Iterator[str]:
    """VF-5 and VF-8 for all vectors: few equal axes, enough different questions, none twice."""
    declared = sum(bool(vector.case.equal_axes) for vector in vectors)
    if declared > MAXIMUM_EQUAL * len(vectors):
        yield f"{declared} of {len(vectors)} cases have equal axes; at most {MAXIMUM_EQUAL:.0%} may"
    signatures: dict[bytes, str] = {}
    for vector in vectors:
        other = signatures.setdefault(signature(vector), vector.case.id)
        if other != vector.case.id:
            yield f"{vector.case.id} asks the same as {other}"
    if len(signatures) < MINIMUM_SIGNATURES:
        yield f"there are {len(signatures)} different cases; at least {MINIMUM_SIGNATURES} are needed"


def signature(vector: Vector) -> bytes:
    """What makes a case another case: question, family, configuration and padding; not seeds or sizes of the text."""
    case = vector.case
    adapter = vector.adapter_directory
    parts = {
        "question": [case.question, case.method, case.model],
        "config": case.config,
        "adapter": json.loads((adapter / "adapter_config.json").read_bytes()) if adapter else None,
        "arguments": {name: value for name, value in case.arguments.items() if name != "seed"},
        "inputs": sorted(name for name in vector.inputs if not name.startswith(PARAMETERS)),
        "padding": [_padding(vector.inputs.get(name)) for name in ("attention_mask", "visible")],
        "labels": _labels(vector.inputs.get("labels")),
        "one row": case.dims.get("batch") == 1,
    }
    return msgspec.json.encode(parts, order="deterministic")


def _labels(labels: NDArray[Any] | None) -> str:
    """`class` or `real` for labels of a whole text; for labels of positions, on which side some are left out."""
    if labels is not None and (labels.ndim == 1 or labels.dtype.kind == "f"):
        return f"{'real' if labels.dtype.kind == 'f' else 'class'} {labels.ndim}"
    return _padding(labels)


def _padding(mask: NDArray[Any] | None) -> str:
    """On which side something is masked: `none`, `full`, `left`, `right` or `mixed`."""
    if mask is None:
        return "none"
    last = mask[:, -1] if mask.ndim == 3 else mask  # visibility: that of the last query
    seen = last != -100 if (last < 0).any() else last != 0
    if seen.all():
        return "full"
    first, final = bool(seen[:, 0].all()), bool(seen[:, -1].all())
    return {(False, True): "left", (True, False): "right"}.get((first, final), "mixed")
