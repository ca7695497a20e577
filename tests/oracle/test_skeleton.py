"""The beginnings of ports: they speak the protocol, answer `mask` rightly, and skip the rest with a clause to read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
from safetensors.numpy import save_file
from support import need

from refpeft.cli.files import LANGUAGES as OFFERED
from refpeft.errors import RefpeftError
from refpeft.oracle.cases import can_answer
from refpeft.oracle.clauses import clauses
from refpeft.oracle.port import ReferencePort
from refpeft.oracle.questions import QUESTIONS
from refpeft.oracle.skeleton import LANGUAGES, SKELETONS, write_skeleton
from refpeft.oracle.vectors import all_vectors
from refpeft.tensors import read_tensors

COMMANDS: dict[str, Callable[[], list[str]]] = {
    "python": lambda: [sys.executable, "port.py"],
    "javascript": lambda: [need("node"), "port.mjs"],
}
"""Those that run here; the others need compilers and packages."""
SOURCES = {
    "python": "port.py",
    "javascript": "port.mjs",
    "rust": "src/main.rs",
    "elixir": "lib/my_port.ex",
}
BREAK = {
    "python": ("ones = np.ones(", "ones = np.zeros("),
    "javascript": ("data.fill(1,", "data.fill(0,"),
    "rust": ("R::from_f64(1.0)", "R::from_f64(0.0)"),
    "elixir": ("Nx.tensor(1,", "Nx.tensor(0,"),
}
"""What their READMEs say to change, to see them fail."""


def not_yet(language: str) -> list[tuple[str, str]]:
    """The questions that a skeleton says it does not answer yet, with the clause to read."""
    text = (SKELETONS / language / SOURCES[language]).read_text(encoding="utf-8")
    return re.findall(r'"([a-z.]+)"(?::|,) "([A-Z]{2}-\d+)"', text)


def refpeft(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "refpeft", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------- all of them, as files


def test_the_languages_are_those_that_there_are() -> None:
    assert OFFERED == LANGUAGES
    assert {path.name for path in SKELETONS.iterdir() if path.name != "__pycache__"} == {*LANGUAGES, "common"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_question_is_answered_or_skipped_with_a_clause(language: str) -> None:
    """A question that is new belongs into the table of every skeleton, and into skeletons/common/NEXT.md."""
    pairs = not_yet(language)
    assert {"mask", *(question for question, _ in pairs)} == set(QUESTIONS)
    assert len(pairs) == len(QUESTIONS) - 1
    assert pairs == not_yet("python"), "the same in every language"
    assert {clause for _, clause in pairs} <= set(clauses())


def test_what_to_write_next_lists_every_question_in_that_order() -> None:
    text = (SKELETONS / "common/NEXT.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ \| `([a-z.]+)` \|.*\|(.*)\|$", text, re.MULTILINE)
    assert [question for question, _ in rows] == ["mask", *(question for question, _ in not_yet("python"))]
    for (_, read), (_, clause) in zip(rows[1:], not_yet("python"), strict=True):
        assert f"`refpeft explain {clause}`" in read
    assert set(re.findall(r"[A-Z]{2}-\d+", text)) <= set(clauses())


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_is_whole(language: str, tmp_path: Path) -> None:
    write_skeleton(tmp_path / "port", language)
    written = {p.relative_to(tmp_path / "port").as_posix() for p in (tmp_path / "port").rglob("*") if p.is_file()}  # fmt: skip
    assert {"README.md", "NEXT.md", ".gitignore", ".github/workflows/conformance.yml", SOURCES[language]} <= written  # fmt: skip
    readme = (tmp_path / "port/README.md").read_text(encoding="utf-8")
    workflow = (tmp_path / "port/.github/workflows/conformance.yml").read_text(encoding="utf-8")
    check = re.search(r"refpeft check -- (.*?)  ", readme)
    assert check
    assert f"refpeft smoke -- {check[1]} " in readme
    assert f"- run: refpeft check --format pretty -- {check[1]}\n" in workflow
    assert '- run: pip install "./$REFPEFT"' in workflow
    assert "REFPEFT: vendor/refpeft  # a checkout of refpeft, which is not published as a package: a git submodule, say\n" in workflow  # fmt: skip
    assert "submodules: true\n" in workflow
    assert "from a checkout below `vendor/refpeft`: put one there" in readme
    old, new = BREAK[language]
    assert (tmp_path / "port" / SOURCES[language]).read_text(encoding="utf-8").count(old) == 1
    assert old.split("= ")[-1].rstrip("(").removeprefix("data.") in readme
    assert new.split("= ")[-1].rstrip("(").removeprefix("data.") in readme
    assert not re.search(r"\t|[ ]+$", readme, re.MULTILINE)


def test_what_python_leaves_among_the_templates_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SKELETONS, tmp_path / "skeletons")
    (tmp_path / "skeletons/python/__pycache__").mkdir(exist_ok=True)
    (tmp_path / "skeletons/python/__pycache__/port.pyc").touch()
    monkeypatch.setattr("refpeft.oracle.skeleton.SKELETONS", tmp_path / "skeletons")
    write_skeleton(tmp_path / "port", "python")
    assert not (tmp_path / "port/__pycache__").exists()
    assert (tmp_path / "port/port.py").is_file()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "port.py").write_text("mine")
    with pytest.raises(RefpeftError) as caught:
        write_skeleton(tmp_path, "python")
    assert str(caught.value) == (
        f"'{tmp_path}' exists and is not an empty directory; nothing was written. Give the name of a new directory, or "
        "remove this one first."
    )
    with pytest.raises(RefpeftError) as caught:
        write_skeleton(tmp_path / "port.py", "python")
    assert str(caught.value) == f"'{tmp_path / 'port.py'}' is a file; nothing was written. Give the name of a new directory."  # fmt: skip
    with pytest.raises(RefpeftError) as caught:
        write_skeleton(tmp_path / "port.py/x", "python")
    assert str(caught.value) == f"Can't write the port to '{tmp_path / 'port.py/x'}': Not a directory. Choose another place."  # fmt: skip
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("port.py", "mine")]


# ---------------------------------------------------------------- those that run here


@pytest.mark.parametrize("language", COMMANDS)
def test_a_port_from_the_first_verdict_to_the_first_failure(language: str, tmp_path: Path) -> None:
    """As the README says, through the command line."""
    command = COMMANDS[language]()
    made = refpeft(tmp_path, "init", language)
    assert (made.returncode, made.stdout) == (0, f"A port in {language} in 'my-port'; 'my-port/README.md' says how to run and judge it.\n")  # fmt: skip
    port = tmp_path / "my-port"

    smoke = refpeft(port, "smoke", "--format", "pretty", "--", *command)
    assert smoke.returncode == 0, smoke.stdout
    assert "✓ mask (common): 1 tensor\n" in smoke.stdout

    check = refpeft(port, "check", "--validate", "--", *command)
    assert (check.returncode, check.stderr) == (0, "")
    results = json.loads(check.stdout)
    masks = 2 * sum(vector.case.question == "mask" for vector in all_vectors())
    abilities = msgspec.structs.replace(ReferencePort().abilities, families=["gpt2"], tasks=["CAUSAL_LM"])
    everything = 2 * sum(can_answer(abilities, vector) for vector in all_vectors())
    assert results["summary"]["counts"] == {"CONFORMS": masks, "SKIPPED": everything - masks}
    others = len(list(all_vectors())) - everything // 2  # of families that it does not say it knows
    assert (results["summary"]["not_asked"], results["summary"]["partial"]) == (others, False)
    clause_of = dict(not_yet(language))
    for case in results["cases"]:
        if case["question"] == "mask":
            assert case["verdict"] == "CONFORMS"
        else:
            question = case["question"]
            said = f"{question} is not written yet: read `refpeft explain {clause_of[question]}`, then write it in "
            assert (case["verdict"], case["message"]) == ("SKIPPED", said + SOURCES[language])

    source = port / SOURCES[language]
    source.write_text(source.read_text(encoding="utf-8").replace(*BREAK[language]), encoding="utf-8")
    broken = refpeft(port, "check", "-k", "mask", "--", *command)
    assert broken.returncode == 1
    failed = [case for case in json.loads(broken.stdout)["cases"] if case["verdict"] != "SKIPPED"]
    assert len(failed) == masks
    assert {(case["verdict"], case["first"]["name"]) for case in failed} == {("NONCONFORMING", "inputs.attention_mask")}  # fmt: skip


def conversation(language: str, port: Path, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """What a port answers to each message, until `stop`."""
    text = "".join(json.dumps(m, ensure_ascii=False) + "\n" for m in [*messages, {"cmd": "stop"}])
    given = subprocess.run(COMMANDS[language](), cwd=port, input=text.encode(), capture_output=True, check=True)  # fmt: skip
    assert given.stdout.endswith(b"\n")
    return [json.loads(line) for line in given.stdout.removesuffix(b"\n").split(b"\n")]


@pytest.mark.parametrize("language", COMMANDS)
def test_the_protocol_when_something_goes_wrong(language: str, tmp_path: Path) -> None:
    write_skeleton(tmp_path / "port", language)
    run = {"cmd": "run", "seq": 1, "question": "mask", "dtype": "float32", "output": str(tmp_path)}
    run |= {"case": "a\u2028b", "arguments": {"batch_size": 2, "num_virtual_tokens": 3}, "inputs": None}
    broken, dance, nameless, unknown, good = conversation(
        language,
        tmp_path / "port",
        {**run, "inputs": str(tmp_path / "none.safetensors")},
        {"cmd": "dance", "seq": 5},
        {"cmd": "dance"},
        {**run, "seq": 6, "question": "nonsense"},
        {**run, "seq": 7},
    )
    assert set(broken) == {"seq", "errored"}
    assert broken["seq"] == 1
    assert set(broken["errored"]) == {"message", "traceback"}
    assert "none.safetensors" in broken["errored"]["message"]
    assert SOURCES[language] in broken["errored"]["traceback"]
    assert dance == {"seq": 5, "errored": {"message": "unknown command dance"}}
    assert nameless == {"seq": -1, "errored": {"message": "unknown command dance"}}
    said = f"nonsense is not written yet: read `refpeft explain PP-4`, then write it in {SOURCES[language]}"
    assert unknown == {"seq": 6, "skipped": {"message": said}}
    assert good == {"seq": 7, "tensors": "answer.safetensors"}
    (mask,) = read_tensors(tmp_path / "answer.safetensors", "the answer").values()
    assert (mask.dtype, mask.tolist()) == (numpy.float32, [[1, 1, 1], [1, 1, 1]])


@pytest.mark.parametrize("language", COMMANDS)
def test_what_a_port_prints_elsewhere_does_not_come_between(language: str, tmp_path: Path) -> None:
    write_skeleton(tmp_path / "port", language)
    source = tmp_path / "port" / SOURCES[language]
    head, said = {"python": ("def mask(request):\n", "    print('a word')\n"), "javascript": ("function mask(request) {\n", "  console.log('a word');\n")}[language]  # fmt: skip
    text = source.read_text(encoding="utf-8")
    assert text.count(head) == 1
    source.write_text(text.replace(head, head + said), encoding="utf-8")
    run = {
        "cmd": "run",
        "seq": 1,
        "question": "mask",
        "dtype": "float64",
        "output": str(tmp_path),
        "inputs": None,
    }
    run |= {"arguments": {"batch_size": 1, "num_virtual_tokens": 2}}
    assert conversation(language, tmp_path / "port", run) == [{"seq": 1, "tensors": "answer.safetensors"}]


def test_the_javascript_reader_and_writer(tmp_path: Path) -> None:
    """Every type that inputs and models have, and the two that answers have."""
    node = need("node")
    write_skeleton(tmp_path / "port", "javascript")
    numbers = [[1.5, -2.25, 0.0], [1e-7, 65504.0, -0.125]]
    tensors = {name: numpy.array(numbers, dtype=name) for name in ("float64", "float32", "float16")}
    tensors |= {name: numpy.array([[-3, 2], [1, 0]], dtype=name) for name in ("int64", "int32")}
    tensors |= {"uint8": numpy.array([255, 0], "uint8"), "bool": numpy.array([True, False]), "single": numpy.array(3.5)}  # fmt: skip
    save_file(tensors, tmp_path / "in.safetensors", metadata={"format": "pt"})
    script = f"""
        import {{ readSafetensors, writeSafetensors }} from {json.dumps(str(tmp_path / "port/safetensors.mjs"))};
        writeSafetensors("64.safetensors", readSafetensors("in.safetensors", Float64Array));
        writeSafetensors("32.safetensors", readSafetensors("in.safetensors", Float32Array));
    """
    subprocess.run([node, "--input-type=module", "-e", script], cwd=tmp_path, check=True)
    wide, narrow = (read_tensors(tmp_path / f"{bits}.safetensors", "the answer") for bits in (64, 32))
    assert set(wide) == set(narrow) == set(tensors)
    for name, tensor in tensors.items():
        assert (wide[name].dtype, wide[name].shape) == (numpy.float64, tensor.shape)
        assert wide[name].tolist() == tensor.astype("float64").tolist()
        assert narrow[name].dtype == (numpy.float32 if tensor.dtype.kind == "f" else numpy.float64)
        assert narrow[name].tolist() == tensor.astype(narrow[name].dtype).tolist()
