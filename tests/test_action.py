"""The GitHub action: its steps are run here, with the environment that GitHub would give them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import need

import refpeft

ACTION = Path(__file__).resolve().parents[1] / ".github" / "actions" / "check" / "action.yml"


def step(name: str) -> str:
    yaml = need("yaml")
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    return next(s["run"] for s in action["runs"]["steps"] if s.get("id") == name)


def test_inputs_reach_the_shell_as_variables_alone() -> None:
    """An expression inside a script would be a place where a caller's words become commands."""
    yaml = need("yaml")
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    assert all("${{" not in s.get("run", "") for s in action["runs"]["steps"])
    assert set(action["inputs"]) == {"port", "arguments", "refpeft", "python-version", "name"}


def run(tmp_path: Path, port: str, arguments: str) -> subprocess.CompletedProcess[str]:
    """The judging step, where it finds programs that are called as refpeft's environment has them."""
    binary = tmp_path / "refpeft" / "bin"
    binary.mkdir(parents=True)
    for name, words in (("refpeft", "-m refpeft"), ("python", "")):
        (binary / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (binary / name).chmod(0o755)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(refpeft.__file__).parents[1]), str(Path(__file__).parent)]),
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "PORT": port,
        "ARGUMENTS": arguments,
    }
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step("check")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(os.name != "posix", reason="a shell")
@pytest.mark.parametrize(
    "hostile", ["a); touch INJECTED; port=(b", "$(touch INJECTED)", "`touch INJECTED`", "x'; touch INJECTED"]
)
def test_no_word_of_the_caller_becomes_a_command(tmp_path: Path, hostile: str) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    assert run(tmp_path / "1", hostile, "-k mask/full").returncode in (2, 3)
    run(tmp_path / "2", "oracle.fake_ports:Honest", f"-k mask/full {hostile}")
    assert list(tmp_path.rglob("INJECTED")) == []


@pytest.mark.skipif(os.name != "posix", reason="a shell")
def test_a_port_that_is_no_command_is_said_so(tmp_path: Path) -> None:
    result = run(tmp_path, "'unbalanced", "")
    assert result.returncode == 2
    assert "::error::The input port is no command and no module:object: ''unbalanced'." in result.stdout


@pytest.mark.skipif(os.name != "posix", reason="a shell")
@pytest.mark.parametrize(
    ("port", "status", "verdict"),
    [("oracle.fake_ports:Honest", 0, "CONFORMS"), ("oracle.fake_ports:KeysForValues", 1, "NONCONFORMING")],
)
def test_it_judges_writes_a_summary_and_ends_with_checks_status(
    tmp_path: Path, port: str, status: int, verdict: str
) -> None:
    result = run(tmp_path, port, "-k mask/full -k 'prefix_encode/odd-layers'")
    assert result.returncode == status, result.stderr
    assert f"refpeft: {verdict}" in (tmp_path / "summary").read_text(encoding="utf-8")
    assert (tmp_path / "output").read_text() == f"verdict={verdict}\n"
    kept = {path.name for path in (tmp_path / "refpeft-reports").iterdir()}
    assert kept == {"report.html", "results.json", "junit.xml", "summary.md"}
