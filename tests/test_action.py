"""The GitHub action: its steps are run here, with the environment that GitHub would give them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import need

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


@pytest.mark.skipif(os.name != "posix", reason="a shell")
@pytest.mark.parametrize(
    ("port", "status", "verdict"),
    [("oracle.fake_ports:Honest", 0, "CONFORMS"), ("oracle.fake_ports:KeysForValues", 1, "NONCONFORMING")],
)
def test_it_judges_writes_a_summary_and_ends_with_checks_status(
    tmp_path: Path, port: str, status: int, verdict: str
) -> None:
    binary = tmp_path / "refpeft" / "bin"
    binary.mkdir(parents=True)
    for name, words in (("refpeft", "-m refpeft"), ("python", "")):
        (binary / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (binary / name).chmod(0o755)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "PORT": port,
        "ARGUMENTS": "-k mask/full -k 'prefix_encode/odd-layers'",
    }
    result = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step("check")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == status, result.stderr
    assert f"refpeft: {verdict}" in (tmp_path / "summary").read_text(encoding="utf-8")
    assert (tmp_path / "output").read_text() == f"verdict={verdict}\n"
    kept = {path.name for path in (tmp_path / "refpeft-reports").iterdir()}
    assert kept == {"report.html", "results.json", "junit.xml", "summary.md"}
