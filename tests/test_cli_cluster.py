"""`--scheduler`: cases and searches on the workers of a Dask cluster, with the verdicts that there are without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import need

need("distributed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Dask's, of sockets when a cluster ends
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT, TESTS = Path(__file__).resolve().parents[1], Path(__file__).resolve().parent
ASKED = ("-k", "common/mask", "-k", "encode/odd*", "-k", "forward/left-padding", "-k", "checkpoint/save")
TIMES = ("seconds", "command", "again", "reproduce")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from distributed import LocalCluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(TESTS)]))
        with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as local:
            yield local


def refpeft(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])}
    return subprocess.run(
        [sys.executable, "-m", "refpeft", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def verdicts(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Every result, without what differs from run to run."""
    assert result.stdout, result.stderr
    return [
        {key: value for key, value in case.items() if key not in TIMES}
        for case in json.loads(result.stdout)["cases"]
    ]


@pytest.mark.parametrize("port", ["Honest", "KeysForValues"])
def test_cases_get_the_verdicts_that_they_get_here(cluster: Any, tmp_path: Path, port: str) -> None:
    here = refpeft(tmp_path, "check", *ASKED, f"oracle.fake_ports:{port}")
    there = refpeft(
        tmp_path, "check", "--scheduler", cluster.scheduler_address, *ASKED, f"oracle.fake_ports:{port}"
    )
    assert there.returncode == here.returncode
    assert verdicts(there) == verdicts(here)
    assert len(verdicts(here)) > 8
    assert json.loads(there.stdout)["diagnosis"] == json.loads(here.stdout)["diagnosis"]


def test_a_search_finds_and_shrinks_there(cluster: Any, tmp_path: Path) -> None:
    result = refpeft(
        tmp_path,
        *("fuzz", "--scheduler", cluster.scheduler_address, "--seed", "1", "--question", "prefix.encode"),
        *("--family", "gpt2", "--max-examples", "60", "oracle.fake_ports:KeysForValues"),
    )
    assert result.returncode == 1, result.stderr
    document = json.loads(result.stdout)
    smallest = document["example"]
    assert [smallest[name] for name in ("layers", "heads", "virtual", "batch")] == [1, 1, 1, 1]
    assert [finding["mutants"] for finding in document["found"]["diagnosis"]] == [["M174"]]
    honest = refpeft(
        tmp_path / "..",
        *("fuzz", "--scheduler", cluster.scheduler_address, "--seed", "1", "--family", "gpt2"),
        *("--max-examples", "40", "oracle.fake_ports:Honest"),
    )
    assert honest.returncode == 0, honest.stderr
    assert json.loads(honest.stdout)["examples"] > 20


def test_a_worker_that_is_killed_loses_nothing_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two is killed once some cases are answered; the questions it had are asked of the other."""
    from distributed import LocalCluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(TESTS)]))
    pattern = ("-k", "*prefix_tuning/prefix_encode/*")
    here = verdicts(refpeft(tmp_path, "check", *pattern, "oracle.fake_ports:Honest"))
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as local:
        victim = next(iter(local.workers.values()))
        killed = threading.Event()

        def kill() -> None:
            before = len(local.scheduler.tasks)
            while len(local.scheduler.transition_log) < before + 60:  # some questions are done
                time.sleep(0.01)
            os.kill(victim.process.process.pid, signal.SIGKILL)
            killed.set()

        killing = threading.Thread(target=kill)
        killing.start()
        there = refpeft(
            tmp_path, "check", "--scheduler", local.scheduler_address, *pattern, "oracle.fake_ports:Honest"
        )
        killing.join(60)
    assert killed.is_set()
    assert verdicts(there) == here
    assert len(here) == len({case["case"] for case in here}) > 40


@pytest.mark.parametrize(
    ("address", "port", "message"),
    [
        (
            "tcp://127.0.0.1:1",
            "oracle.fake_ports:Honest",
            "Error: No Dask scheduler answers at 'tcp://127.0.0.1:1'",
        ),
        ("", "no_such:port", "Error: A worker of the cluster: Can't import the port 'no_such:port'"),
    ],
)
def test_what_cannot_be_reached_is_said(
    cluster: Any, tmp_path: Path, address: str, port: str, message: str
) -> None:
    result = refpeft(tmp_path, "check", "--scheduler", address or cluster.scheduler_address, port)
    assert result.returncode == 3
    assert result.stderr.splitlines()[-1].startswith(message)
