"""The shipped vectors break no rule, and each rule finds the fault it is there for."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from refpeft.oracle import lint as module
from refpeft.oracle.lint import lint, signature
from refpeft.oracle.vectors import DIALECT, FORMAT, all_vectors, golden_directory, read_vector
from refpeft.tensors import read_tensors, write_tensors

MODEL = "models/gpt2-even"
FORWARD = f"vectors/{DIALECT}/prefix_tuning/forward/left-padding"
GRADIENTS = f"vectors/{DIALECT}/prefix_tuning/gradients/right-padding"
CONFIG = f"vectors/{DIALECT}/prompt_tuning/config/minimal"
SQUARE = f"vectors/{DIALECT}/prefix_tuning/prefix_encode/projected-square"
MASK = f"vectors/{DIALECT}/common/mask/left-padding"
STAGES = f"vectors/{DIALECT}/prompt_tuning/inputs/left-padding"
SPAN = f"vectors/{DIALECT}/prefix_tuning/forward/mistral-odd-span-prefix"
COPIED = (MODEL, FORWARD, GRADIENTS, CONFIG, SQUARE, MASK, STAGES)
FEW = ("there are 6 different cases", "1 of 6 cases have equal axes")
"""What is wrong with a copy of so few vectors."""


def test_the_shipped_vectors_have_no_problems() -> None:
    assert lint(golden_directory()) == []


def test_the_shipped_vectors_are_many_different_questions() -> None:
    vectors = list(all_vectors())
    assert len({signature(vector) for vector in vectors}) == len(vectors) >= 50
    assert {vector.case.method for vector in vectors} == {"prompt_tuning", "prefix_tuning", "common"}
    assert {vector.case.question for vector in vectors} == set(module.QUESTIONS)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of one model and a few vectors, with a manifest of its own."""
    for name in COPIED:
        shutil.copytree(golden_directory() / name, tmp_path / name)
    _write_manifest(tmp_path)
    return tmp_path


def _write_manifest(golden: Path) -> None:
    paths = [path for path in golden.rglob("*") if path.is_file() and path.name != "manifest.json"]
    files = {p.relative_to(golden).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    document = {"format": FORMAT, "dialect": DIALECT, "files": files}
    (golden / "manifest.json").write_text(json.dumps(document))


def _problems(golden: Path) -> list[str]:
    return [problem for problem in lint(golden) if not problem.startswith(FEW)]


def _edit_case(golden: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    path = golden / name / "case.json"
    case = json.loads(path.read_text())
    edit(case)
    path.write_text(json.dumps(case))
    _write_manifest(golden)


def _edit_tensors(golden: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    path = golden / name
    tensors = dict(read_tensors(path, "a golden vector"))
    edit(tensors)
    write_tensors(path, tensors)
    _write_manifest(golden)


def test_the_copy_has_no_problems(golden: Path) -> None:
    assert _problems(golden) == []


@pytest.mark.parametrize(
    ("name", "edit", "expected"),
    [
        (FORWARD, lambda case: case.update(id="another"), "its id is 'another', not its place"),
        (FORWARD, lambda case: case.update(id="another"), "its id is not peft-0.21.2/prefix_tuning/<suite>"),
        (FORWARD, lambda case: case.update(format=2), "has format 2; this refpeft reads format 1"),
        (FORWARD, lambda case: case.update(invented=1), "is not a case of format 1"),
        (FORWARD, lambda case: case.update(question="fly"), "there is no question 'fly'"),
        (FORWARD, lambda case: case.update(method="common"), "is not for the method 'common'"),
        (FORWARD, lambda case: case.update(clauses=[]), "its clauses are []"),
        (FORWARD, lambda case: case.update(clauses=["PX 1"]), "its clauses are ['PX 1']"),
        (FORWARD, lambda case: case.update(title="A sentence."), "its title is not one phrase"),
        (FORWARD, lambda case: case["versions"].pop("torch"), "its versions are of peft, transformers"),
        (FORWARD, lambda case: case.update(document={}), "a document is missing, or there is one"),
        (CONFIG, lambda case: case.update(document=None), "a document is missing, or there is one"),
        (FORWARD, lambda case: case["dims"].update(depth=99), "an axis 'depth', which is not in specs/notation.md"),
        (FORWARD, lambda case: case["dims"].update(vocab=54), "its axes ['batch', 'query', 'vocab'] have the sizes"),
        (FORWARD, lambda case: case["dims"].update(layers=8), "the axes tokens and layers have the same size"),
        (MASK, lambda case: case["dims"].update(virtual=7), "the axes virtual and tokens have the same size"),
        (SQUARE, lambda case: case.update(equal_axes=""), "token_dim and encoder_hidden have the same size"),
        (FORWARD, lambda case: case.update(equal_axes="a reason"), "says why axes have the same size, but none have"),
        (FORWARD, lambda case: case["tensors"].pop("loss"), "loss is stored, but not described in case.json"),
        (FORWARD, lambda case: case["tensors"].pop("loss"), "the required tensor loss is missing"),
        (FORWARD, lambda case: case.update(config=None), "cannot be read or answered"),
        (GRADIENTS, lambda case: _reverse(case), "a gradient stands before a stage"),
        (STAGES, lambda case: _reverse(case), "its stages are not in the order of computation"),
        (
            FORWARD,
            lambda case: case["config"].update(base_model_name_or_path="/home/me/gpt2"),
            "has a path of a machine: '/home/me/gpt2'",
        ),
        (
            FORWARD,
            lambda case: case["config"].update(base_model_name_or_path="C:\\models\\gpt2"),
            "has a path of a machine: 'C:\\\\models\\\\gpt2'",
        ),
    ],
)  # fmt: skip
def test_a_fault_in_a_case_is_found(
    golden: Path, name: str, edit: Callable[[dict[str, Any]], object], expected: str
) -> None:
    _edit_case(golden, name, edit)
    assert any(expected in problem for problem in _problems(golden)), _problems(golden)


def _reverse(case: dict[str, Any]) -> None:
    case["tensors"] = dict(reversed(list(case["tensors"].items())))


def _set(name: str, index: Any, value: float) -> Callable[[dict[str, Any]], None]:
    def edit(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name][index] = value

    return edit


def _cast(name: str, dtype: str) -> Callable[[dict[str, Any]], None]:
    def edit(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name].astype(dtype)

    return edit


TABLE = "parameters.prompt_encoder.embedding.weight"
WEIGHTS, INPUTS, EXPECTED = "model.safetensors", "inputs.safetensors", "expected.safetensors"


@pytest.mark.parametrize(
    ("name", "edit", "expected"),
    [
        (f"{MODEL}/{WEIGHTS}", _set("transformer.wpe.weight", (0, 0), 0.1), "wpe.weight is not on the bfloat16 grid"),
        (f"{MODEL}/{WEIGHTS}", _set("transformer.wpe.weight", (0, 0), 0.0), "transformer.wpe.weight has zeros"),
        (f"{MODEL}/{WEIGHTS}", _cast("transformer.wpe.weight", "float16"), "is float16, not float32"),
        (f"{FORWARD}/{INPUTS}", _set(TABLE, (0, 0), 0.1), f"the input {TABLE} is not on the bfloat16 grid"),
        (f"{FORWARD}/{INPUTS}", _set(TABLE, (0, 0), 0.0), f"the input {TABLE} has zeros"),
        (f"{FORWARD}/{INPUTS}", _set(TABLE, (0, 0), numpy.inf), f"the input {TABLE} is not finite"),
        (f"{FORWARD}/{INPUTS}", _cast(TABLE, "float64"), "inputs are float32, int64 or bool"),
        (f"{FORWARD}/{INPUTS}", _set("labels", (1, 0), 5), "a masked position has a label"),
        (f"{FORWARD}/{EXPECTED}", _cast("logits", "float32"), "logits is float32"),
        (f"{FORWARD}/{EXPECTED}", _set("logits", (0, 0, 0), numpy.nan), "logits is not finite"),
        (f"{FORWARD}/{EXPECTED}", lambda tensors: tensors.pop("loss"), "loss is not stored"),
        (f"{FORWARD}/{EXPECTED}", lambda tensors: tensors.update(extra=numpy.ones(2)), "extra is stored, but not"),
        (f"{MASK}/{EXPECTED}", lambda tensors: tensors.clear(), "inputs.attention_mask is not stored"),
    ],
)  # fmt: skip
def test_a_fault_in_a_tensor_is_found(
    golden: Path, name: str, edit: Callable[[dict[str, Any]], object], expected: str
) -> None:
    _edit_tensors(golden, name, edit)
    assert any(expected in problem for problem in _problems(golden)), _problems(golden)


def test_a_position_that_counts_and_sees_no_key_is_found(golden: Path) -> None:
    """As many padding positions as the window is wide (4); the last of them is where an answer may begin."""
    for name in ("models/mistral-odd", SPAN):
        shutil.copytree(golden_directory() / name, golden / name)

    def pad_more(tensors: dict[str, Any]) -> None:
        tensors["attention_mask"] = tensors["attention_mask"].copy()
        tensors["attention_mask"][3, 4:] = 0

    _edit_tensors(golden, f"{SPAN}/{INPUTS}", pad_more)
    place = SPAN.removeprefix("vectors/")
    assert f"{place}: decoder.sliding_visible: query 7 of row 3 counts, and sees no key" in _problems(golden)


def test_an_answer_to_another_question_is_found(golden: Path) -> None:
    extra = {"kind": "composite", "axes": ["batch"]}
    _edit_case(golden, FORWARD, lambda case: case["tensors"].update(invented=extra))
    assert any("invented is no answer to the question 'forward'" in problem for problem in _problems(golden))


def test_a_changed_file_a_stray_one_and_a_missing_one_are_found(golden: Path) -> None:
    (golden / FORWARD / "notes.txt").write_text("a stray file")
    (golden / MASK / "case.json").unlink()
    with (golden / CONFIG / "case.json").open("a") as file:
        file.write("\n")
    problems = _problems(golden)
    assert f"{FORWARD}/notes.txt is not in manifest.json" in problems
    assert f"{MASK}/case.json is in manifest.json, but there is no such file" in problems
    assert f"{CONFIG}/case.json is not the file that manifest.json has the hash of" in problems


def test_a_manifest_of_another_format_is_found(golden: Path) -> None:
    manifest = json.loads((golden / "manifest.json").read_text())
    (golden / "manifest.json").write_text(json.dumps({**manifest, "dialect": "peft-0.1"}))
    assert _problems(golden) == ["manifest.json is of format 1 and dialect peft-0.1"]


@pytest.mark.parametrize(
    "contents", ["{", "[]", "5", '{"files": []}', '{"files": 5}', '{"files": "x"}', "[" * 100_000]
)
def test_a_broken_manifest_is_found(golden: Path, contents: str) -> None:
    (golden / "manifest.json").write_text(contents)
    assert any(problem.startswith("manifest.json cannot be read") for problem in lint(golden))


@pytest.mark.parametrize("contents", ["{", "[" * 100_000])
def test_broken_json_beside_a_model_is_found(golden: Path, contents: str) -> None:
    (golden / MODEL / "config.json").write_text(contents)
    _write_manifest(golden)
    assert f"{MODEL}/config.json is not JSON" in _problems(golden)


def test_a_case_that_asks_the_same_with_another_seed_is_found(golden: Path) -> None:
    shutil.copytree(golden / FORWARD, golden / f"{FORWARD}-again")
    other = read_vector(golden / FORWARD).case.id
    _edit_case(golden, f"{FORWARD}-again", lambda case: case.update(id=f"{case['id']}-again", seed=5))
    assert f"{other}-again asks the same as {other}" in _problems(golden)


def test_too_few_cases_too_many_equal_axes_and_too_much_are_found(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAXIMUM_EQUAL", 0.1)
    monkeypatch.setattr(module, "MAXIMUM_BYTES", 1000)
    problems = lint(golden)
    assert "there are 6 different cases; at least 50 are needed" in problems
    assert "1 of 6 cases have equal axes; at most 10% may" in problems
    assert any("at most 1000 are allowed" in problem for problem in problems)


def test_a_case_about_zeros_has_zeros() -> None:
    """Two had none for a while, and a port that drops a prefix of zeros passed."""
    directory = golden_directory() / f"vectors/{DIALECT}/prefix_tuning/forward/zero-init"
    vector = read_vector(directory)
    assert list(module._inputs(vector, "")) == []
    vector.__dict__["inputs"] = {**vector.inputs, TABLE: numpy.ones_like(vector.inputs[TABLE])}
    assert list(module._inputs(vector, "")) == ["its init_weights is zero, but none of its parameters is"]


def test_a_close_choice_of_a_generation_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = read_vector(golden_directory() / f"vectors/{DIALECT}/prefix_tuning/generate/greedy")
    assert list(module._decided(vector, "")) == []
    monkeypatch.setattr(module, "CLEAR", 10**6)
    (problem,) = module._decided(vector, "")
    assert problem.startswith("its closest choice is won by 0.096, which is not 1000000 times the budget, ")
