"""Every loader on hostile files: each seed is accepted, each odd value of each key is not a crash, and mutants neither."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fuzz import run
from fuzz.mutations import ODD, every_odd_value, joined, mutated_json, split
from fuzz.targets import TARGETS, Target, contract
from hypothesis import given
from hypothesis import strategies as st
from support import need

from refpeft.errors import RefpeftError

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="needs /dev/shm or the like, and limits of memory"
)
FAST = [name for name, target in TARGETS.items() if not target.slow]
GRID = ("adapter-config", "model-config", "base-index", "floors", "last-failed", "start-answer", "run-answer")
"""Targets whose loaders are quick enough for every odd value of every key."""


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_accepted(name: str) -> None:
    assert all(TARGETS[name].run(seed) for seed in TARGETS[name].seeds())


@pytest.mark.parametrize("name", FAST)
@given(seed=st.integers(0, 2**32))
def test_mutants(name: str, seed: int) -> None:
    target, random = TARGETS[name], Random(seed)
    target.run(target.mutate(random.choice(target.seeds()), random))


@pytest.mark.parametrize("name", FAST)
@given(data=st.binary(max_size=200))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


@pytest.mark.parametrize("name", GRID)
def test_every_odd_value_of_every_key(name: str) -> None:
    document = json.loads(TARGETS[name].seeds()[0])
    keys = document if isinstance(document, dict) else {"a": 1}
    for data in every_odd_value(dict(list(keys.items())[:8])):
        TARGETS[name].run(data)


@pytest.mark.parametrize("odd", [odd for odd in ODD if len(odd) < 100])
def test_tokenizers_with_odd_models(odd: bytes) -> None:
    document = json.loads(TARGETS["tokenizer"].seeds()[0])
    marked = json.dumps({**document, "model": "HERE"}).encode()
    if ODD.index(odd) % 4 == 0:  # a process for each
        TARGETS["tokenizer"].run(marked.replace(b'"HERE"', odd))


# ---------------------------------------------------------------- the tests of the tests


def test_mutants_are_named_by_their_seed_and_differ() -> None:
    seed = TARGETS["adapter-config"].seeds()[0]
    mutants = [mutated_json(json.loads(seed), Random(i)) for i in range(50)]
    assert mutants == [mutated_json(json.loads(seed), Random(i)) for i in range(50)]
    assert len(set(mutants)) > 40


def test_a_header_is_taken_apart_and_put_together() -> None:
    seed = TARGETS["safetensors"].seeds()[0]
    header, data = split(seed)
    assert split(joined(json.dumps(header).encode(), data)) == (header, data)


@pytest.mark.parametrize(
    ("raised", "leaves"),
    [
        (RefpeftError("a message of some length"), None),
        (RefpeftError("short"), AssertionError),
        (KeyError("x"), KeyError),
        (RecursionError(), RecursionError),
    ],
)
def test_only_own_errors_that_say_something_are_answers(raised: Exception, leaves: Any) -> None:
    @contract
    def target(_: bytes) -> None:
        raise raised

    if leaves is None:
        assert target(b"") is False
    else:
        with pytest.raises(leaves):
            target(b"")


def broken(data: bytes) -> bool:
    """A loader with a mistake that the seed does not show."""
    return bool(json.loads(data)["a"]) or True


def test_a_find_is_written_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target("broken", broken, lambda: [b'{"a": 1}'], lambda data, random: b"{}")
    monkeypatch.setitem(TARGETS, "broken", target)
    options = [
        "--one",
        "--engine",
        "structural",
        "--target",
        "broken",
        "--runs",
        "9",
        "--finds",
        str(tmp_path),
    ]
    assert run.main(options) == 1
    said = capsys.readouterr().err
    assert "KeyError: 'a'" in said
    assert said.endswith("tried 2\n")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("broken-1-2", b"{}")]


def command(*options: str) -> str:
    process = subprocess.run(
        [sys.executable, run.__file__, *options], capture_output=True, text=True, check=False, timeout=300
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_the_command_in_limited_memory(tmp_path: Path) -> None:
    options = ("--engine", "structural", "--runs", "600", "--finds", str(tmp_path), "--seed", "3")
    said = command(*options, "--target", "safetensors", "--target", "model-config", "--target", "run-answer")
    lines = said.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["safetensors", "200", "inputs"],
        ["model-config", "200", "inputs"],
        ["run-answer", "200", "inputs"],
        ["all", "600", "inputs"],
    ]
    assert lines[-1].endswith("engine structural, seed 3")


def test_the_command_with_atheris(tmp_path: Path) -> None:
    need("atheris")
    said = command("--runs", "300", "--target", "floors", "--finds", str(tmp_path))
    assert int(said.split()[1].replace(",", "")) >= 300
