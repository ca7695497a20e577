"""What is fuzzed: one function for each loader of files that others write.

A target gets the bytes of one file or message and uses the loader as refpeft does. What the loader refuses with an error of
refpeft's own is good; so is what it accepts and what then proves sound. Anything else is a find: another exception leaves
the target, or an assertion of it fails.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import ml_dtypes
import msgspec
import numpy
from fuzz.mutations import mutated_json, mutated_safetensors

from refpeft import checkpoint
from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.errors import LONGEST_MESSAGE, RefpeftError
from refpeft.fill_in import fill_in
from refpeft.oracle import floors, history
from refpeft.oracle.budget import PROFILES
from refpeft.oracle.cases import ask_of, in_order
from refpeft.oracle.compare import Difference
from refpeft.oracle.documents import compare_document, read_adapter
from refpeft.oracle.judge import Selection, compare_answer, summarise
from refpeft.oracle.lint import lint
from refpeft.oracle.port import ReferencePort
from refpeft.oracle.protocol import RunCommand
from refpeft.oracle.questions import Answer
from refpeft.oracle.reply import PortError, Reply, read_abilities, read_answer, read_reply
from refpeft.oracle.run import judge
from refpeft.oracle.vectors import Vector, all_vectors, golden_directory, read_vector
from refpeft.sharded import INDEX_FILE, map_model
from refpeft.tensors import read_tensors
from refpeft.tokenizer import token_ids
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.weights import load_base_model

MODEL = "gpt2-odd"
STRICTER = (
    *(
        "twice",
        "not printable",
        "10 MB is the most",
        "the dtype",
        "which is none",
        "no array can have",
        "BOOL",
    ),
    *("nothing else", "has the number", "Exceeds the limit"),
)
"""What refpeft refuses in a safetensors file that the safetensors library reads, in words of the messages."""


@dataclass(frozen=True)
class Target:
    """A loader, files that it accepts, and how a hostile file is made of one."""

    name: str
    run: Callable[[bytes], bool]
    """Use the loader; whether it accepted the bytes."""
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, Random], bytes]
    slow: bool = False
    """Each input takes a tenth of a second or more."""


@functools.cache
def place() -> Path:
    """A directory for the files, in memory where the system has such a place; gone when the program ends."""
    memory = Path("/dev/shm")  # noqa: S108
    directory = tempfile.TemporaryDirectory(prefix="refpeft-fuzz-", dir=memory if memory.is_dir() else None)
    _KEPT.append(directory)
    return Path(directory.name)


_KEPT: list[Any] = []


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Errors of refpeft's own are answers, if they say something and not too much."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except RefpeftError as error:
        if not 10 < len(str(error)) <= LONGEST_MESSAGE:
            raise AssertionError(f"a message of {len(str(error))} characters") from error
        raise _RefusedError from None


class _RefusedError(Exception):
    """The loader refused the bytes in its own words."""


def contract(run: Callable[[bytes], None]) -> Callable[[bytes], bool]:
    @functools.wraps(run)
    def tried(data: bytes) -> bool:
        try:
            with own_errors():
                run(data)
        except _RefusedError:
            return False
        return True

    return tried


def file_with(name: str, data: bytes) -> Path:
    path = place() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def of_json(data: bytes, random: Random) -> bytes:
    return mutated_json(json.loads(data), random)


# ---------------------------------------------------------------- seeds


@functools.cache
def vectors() -> list[Vector]:
    return list(all_vectors())


def one(question: str, **wanted: Any) -> Vector:
    return next(
        v
        for v in vectors()
        if v.case.question == question and all(getattr(v.case, k) == value for k, value in wanted.items())
    )


def model_file(name: str) -> bytes:
    return (golden_directory() / "models" / MODEL / name).read_bytes()


def adapter_files(name: str) -> list[bytes]:
    return [v.adapter_directory.joinpath(name).read_bytes() for v in vectors() if v.adapter_directory]


@functools.cache
def small_tensors() -> bytes:
    """A file with a tensor of every kind that can be read."""
    from refpeft.tensors import write_tensors

    names = ("float64", "float32", "float16", "int64", "int32", "uint8", "bool")
    tensors = {name: numpy.arange(6).reshape(2, 3).astype(name) for name in names}
    half = numpy.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    tensors.update(one=numpy.array(2.5), none=numpy.zeros((0, 4)), bfloat16=half)
    path = place() / "seed.safetensors"
    write_tensors(path, tensors, metadata={"format": "pt"})
    return path.read_bytes()


# ---------------------------------------------------------------- the specification's files


@contract
def safetensors(data: bytes) -> None:
    """What is read is what the safetensors library reads, and nothing else is refused than what STRICTER says."""
    from safetensors import SafetensorError, deserialize

    try:
        theirs = {name: entry for name, entry in deserialize(data) if entry}
    except SafetensorError:
        theirs = None
    try:
        tensors = read_tensors(file_with("a.safetensors", data), "the thing")
    except RefpeftError as error:
        if theirs is not None and not any(words in str(error) for words in STRICTER):
            raise AssertionError(f"the safetensors library reads it: {error}") from error
        raise
    assert theirs is not None, "refpeft reads what the safetensors library refuses"
    assert tensors.keys() == theirs.keys()
    for name, tensor in tensors.items():
        assert list(tensor.shape) == list(theirs[name]["shape"])
        assert tensor.tobytes() == bytes(theirs[name]["data"])
    assert sum(tensor.nbytes for tensor in tensors.values()) <= len(data)


@contract
def adapter_weights(data: bytes) -> None:
    directory = place() / "adapter"
    if not directory.is_dir():
        file_with("adapter/adapter_config.json", adapter_files("adapter_config.json")[0])
    file_with("adapter/adapter_model.safetensors", data)
    config, tensors = checkpoint.load(directory)
    assert all(numpy.isfinite(tensor).all() for tensor in tensors.values())
    assert {tensor.ndim for name, tensor in tensors.items() if name == checkpoint.TENSOR} == {2}
    assert config.peft_type


@contract
def adapter_config(data: bytes) -> None:
    path = file_with("adapter_config.json", data)
    config = PromptLearningConfig.from_pretrained(path.parent)
    assert type(config).from_dict(json.loads(config.to_json())) == config
    filled = fill_in(config, json.loads(model_file("config.json")))
    assert fill_in(filled, json.loads(model_file("config.json"))) == filled


@contract
def model_config(data: bytes) -> None:
    path = file_with("model/config.json", data)
    config = ModelConfig.from_pretrained(path.parent)
    assert config.head_dim * config.num_attention_heads == config.hidden_size
    assert repr(config)
    for adapter in (PrefixTuningConfig(), PromptTuningConfig()):
        with contextlib.suppress(RefpeftError):
            assert fill_in(adapter, config.hf).num_layers


@contract
def base_config(data: bytes) -> None:
    """With real weights: a configuration that does not fit them is found out before anything is made by its sizes."""
    directory = place() / "base"
    if not directory.is_dir():
        file_with("base/model.safetensors", model_file("model.safetensors"))
    file_with("base/config.json", data)
    base = load_base_model(directory)
    assert base.config.vocab_size == base.parameters["head.weight"].shape[0]


@contract
def base_weights(data: bytes) -> None:
    directory = place() / "weights"
    if not directory.is_dir():
        file_with("weights/config.json", model_file("config.json"))
    file_with("weights/model.safetensors", data)
    base = load_base_model(directory)
    assert all(numpy.isfinite(parameter).all() for parameter in base.parameters.values())


@functools.cache
def sharded() -> tuple[bytes, dict[str, bytes]]:
    """The index of a model in two shards, which lie in `place()`, and each tensor's bytes."""
    from refpeft.tensors import write_tensors

    tensors = read_tensors(file_with("whole.safetensors", model_file("model.safetensors")), "the model")
    halves = {f"model-{i + 1}.safetensors": sorted(tensors)[i::2] for i in range(2)}
    (place() / "sharded").mkdir()
    for shard, names in halves.items():
        write_tensors(place() / "sharded" / shard, {name: tensors[name] for name in names})
    weight_map = {name: shard for shard, names in halves.items() for name in names}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    return json.dumps(index).encode(), {name: tensor.tobytes() for name, tensor in tensors.items()}


@contract
def base_index(data: bytes) -> None:
    """The shards are good; what is read with any index is all that they hold, or nothing."""
    _, expected = sharded()
    tensors, path = map_model(file_with(f"sharded/{INDEX_FILE}", data).parent)
    assert path.name == INDEX_FILE
    assert {name: tensor.tobytes() for name, tensor in tensors.items()} == expected


@contract
def tokenizer(data: bytes) -> None:
    path = file_with("tokenizer.json", data)
    assert all(identifier >= 0 for identifier in token_ids(path, "a b c hello", seconds=20))


# ---------------------------------------------------------------- the oracle's files


@functools.cache
def golden(suite: str, target: str = "case") -> Path:
    """A golden directory with one case of the question `suite`, to be damaged by one target."""
    vector, root = one(suite), place() / f"golden-{target}-{suite}"
    shutil.copytree(vector.directory, root / "vectors" / vector.case.id)
    if vector.model_directory:
        shutil.copytree(vector.model_directory, root / "models" / str(vector.case.model))
    (root / "manifest.json").write_text("{}", encoding="utf-8")
    (root / "floors.json").write_text('{"format": 2, "cases": {}}', encoding="utf-8")
    return root


def judged(root: Path) -> None:
    """Ask refpeft itself, as `refpeft check --golden` does."""
    with tempfile.TemporaryDirectory(dir=place()) as work:
        failures = Path(work) / "failures"
        selected = Selection(in_order(all_vectors(root)), [PROFILES["float64"]])
        port = ReferencePort()
        results = summarise(
            port, selected, list(judge(port, selected, Path(work) / "answers", failures, fail_fast=False))
        )
        msgspec.json.encode(results)
        assert {path.name for path in Path(work).iterdir()} <= {"failures", "answers"}


def case_of(suite: str) -> Target:
    """case.json of one question, damaged and then judged."""

    @contract
    def case(data: bytes) -> None:
        root = golden(suite)
        directory = root / "vectors" / one(suite).case.id
        (directory / "case.json").write_bytes(data)
        vector = read_vector(directory)
        in_order([vector])
        ask_of(vector)
        judged(root)

    def seed() -> list[bytes]:
        return [(one(suite).directory / "case.json").read_bytes()]

    return Target(f"case-{suite}", case, seed, of_json)


@contract
def expected(data: bytes) -> None:
    """expected.safetensors of a case, damaged and then judged."""
    root = golden("prefix.encode", "expected")
    (root / "vectors" / one("prefix.encode").case.id / "expected.safetensors").write_bytes(data)
    judged(root)


@contract
def stored_floors(data: bytes) -> None:
    file_with("floors/floors.json", data)
    floors._stored.cache_clear()
    try:
        for case, entry in floors._stored(place() / "floors").items():
            assert isinstance(case, str)
            assert isinstance(entry.digest, str)
    finally:
        floors._stored.cache_clear()


@contract
def manifest(data: bytes) -> None:
    (golden("mask", "manifest") / "manifest.json").write_bytes(data)
    assert lint(golden("mask", "manifest")), "one case is no complete set"


@contract
def last_failed(data: bytes) -> None:
    file_with(f"state/{history.FILE}", data)
    try:
        assert all(isinstance(case, str) for case in history.failed_before(place() / "state"))
    except LookupError as error:
        raise PortError(str(error)) from None  # the module's own way to say so


# ---------------------------------------------------------------- a port's messages and files


@contract
def start_answer(data: bytes) -> None:
    for strict in (False, True):
        abilities = read_abilities(data, "port", strict=strict)
        assert abilities.implementation.name.isprintable() or set(abilities.implementation.name) & set("\n\t")


@functools.cache
def asked(question: str) -> tuple[Vector, RunCommand]:
    vector, output = one(question), place() / f"answer-{question}"
    output.mkdir()
    request = RunCommand(1, vector.case.id, question, "common", "float64", None, None, {}, None, None, [], str(output))  # fmt: skip
    return vector, request


def verdict_on(reply: Reply, vector: Vector) -> None:
    """Judged, and written as JSON, as it would be."""
    verdict, differences = compare_answer(vector, ask_of(vector), PROFILES["float64"], reply)
    assert (verdict == "CONFORMS") == all(d.ok for d in differences) or reply.status != "ANSWERED"
    msgspec.json.encode(differences)
    for difference in differences:
        assert all(c.isprintable() or c in "\n\t" for c in difference.reason + difference.name)


@contract
def run_answer(data: bytes) -> None:
    for strict in (True, False):
        message = read_answer(data, strict=strict)
        vector, request = asked("config.resolve")
        reply = read_reply(message, request)
        assert reply.message or reply.status in ("ANSWERED", "SKIPPED", "ERRORED")
        verdict_on(reply, vector)
        if reply.answer.document is not None:
            found: Difference = compare_document({"rejected": True, "message": "no"}, reply.answer.document)
            msgspec.json.encode(found)


@contract
def answer_tensors(data: bytes) -> None:
    vector, request = asked("mask")
    Path(request.output, "a.safetensors").write_bytes(data)
    verdict_on(read_reply(read_answer(b'{"seq": 1, "tensors": "a.safetensors"}'), request), vector)


def written_adapter(name: str) -> Callable[[bytes], bool]:
    @contract
    def run(data: bytes) -> None:
        vector, _ = asked("checkpoint.save")
        directory = place() / f"written-{name}"
        if not directory.is_dir():
            for other in ("adapter_config.json", "adapter_model.safetensors"):
                file_with(f"written-{name}/{other}", adapter_files(other)[0])
        file_with(f"written-{name}/{name}", data)
        answer, problems = read_adapter(Answer(adapter=directory))
        msgspec.json.encode(problems)
        verdict_on(Reply("ANSWERED", answer), vector)

    return run


def answers() -> list[bytes]:
    said = [
        {"seq": 1, "document": {"config": one("config.resolve").case.document}},
        {"seq": 1, "document": one("config.resolve").case.document},
        {"seq": 1, "tensors": "a.safetensors"},
        {"seq": 1, "adapter": "adapter"},
        {"seq": 1, "skipped": {"message": "no", "issue_url": "https://example.org"}},
        {"seq": 1, "errored": {"message": "no", "traceback": "line 1"}},
    ]
    return [json.dumps(message).encode() for message in said]


def abilities() -> list[bytes]:
    return [msgspec.json.encode(ReferencePort().abilities)]


def stored() -> list[bytes]:
    floor = [0.5, 0.5]
    entry = {"digest": "0123456789abcdef", "profiles": {"float32": {"logits": floor, "loss": floor}}}
    return [json.dumps({"format": 2, "cases": {"a/b": entry, "c/d": entry}}).encode()]


def tiny_manifest() -> list[bytes]:
    return [json.dumps({"format": 1, "dialect": "peft-0.21.2", "files": {"models/a": "0" * 64}}).encode()]


TARGETS = {
    target.name: target
    for target in (
        Target("safetensors", safetensors, lambda: [small_tensors()], mutated_safetensors),
        Target(
            "adapter-weights",
            adapter_weights,
            lambda: adapter_files("adapter_model.safetensors")[:1],
            mutated_safetensors,
        ),
        Target("adapter-config", adapter_config, lambda: adapter_files("adapter_config.json"), of_json),
        Target("model-config", model_config, lambda: [model_file("config.json")], of_json),
        Target("base-config", base_config, lambda: [model_file("config.json")], of_json),
        Target("base-weights", base_weights, lambda: [model_file("model.safetensors")], mutated_safetensors),
        Target("base-index", base_index, lambda: [sharded()[0]], of_json),
        Target("tokenizer", tokenizer, lambda: [model_file("tokenizer.json")], of_json, slow=True),
        case_of("mask"),
        case_of("random"),
        case_of("prefix.encode"),
        case_of("config.resolve"),
        Target(
            "expected",
            expected,
            lambda: [(one("prefix.encode").directory / "expected.safetensors").read_bytes()],
            mutated_safetensors,
        ),
        Target("floors", stored_floors, stored, of_json),
        Target("manifest", manifest, tiny_manifest, of_json),
        Target("last-failed", last_failed, lambda: [b'["a/b", "c/d"]'], of_json),
        Target("start-answer", start_answer, abilities, of_json),
        Target("run-answer", run_answer, answers, of_json),
        Target(
            "answer-tensors",
            answer_tensors,
            lambda: [(one("mask").directory / "expected.safetensors").read_bytes()],
            mutated_safetensors,
        ),
        Target(
            "written-config",
            written_adapter("adapter_config.json"),
            lambda: adapter_files("adapter_config.json"),
            of_json,
        ),
        Target(
            "written-weights",
            written_adapter("adapter_model.safetensors"),
            lambda: adapter_files("adapter_model.safetensors")[:1],
            mutated_safetensors,
        ),
    )
}
"""Every target by name."""
