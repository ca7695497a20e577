"""One real program for each way to misbehave: its own verdict and message, the next question answered, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
from oracle.fake_ports import START, command
from oracle.test_process import ANSWERED, ASK, FINE, ended, gone, request

from refpeft.oracle import answer_files, process, streams, system
from refpeft.oracle.process import ProcessPort
from refpeft.oracle.reply import Reply
from refpeft.tensors import write_tensors

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, links, process groups")
TELL = ["say", {"tensors": "a"}]
LINUX = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
QUICK = 0.3


def asked(tmp_path: Path, *steps: list[Any], timeout: float = 20.0, **script: Any) -> Reply:
    """What comes of one question; the next one is answered, and every process that ran is gone."""
    pids = tmp_path / "pids"
    start = [["note", str(pids)], *script.pop("start", [["say", START]])]
    port = ProcessPort(command(start, q1=list(steps), rest=FINE, **script), timeout)
    try:
        given = port.ask(ASK, request(tmp_path / "1", 1))
        assert port.ask(ASK, request(tmp_path / "2", 2)) == ANSWERED, "the run goes on"
    finally:
        port.close()
        gone(pids)
    return given


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([["exit", 3]], "the port exited with status 3"),
        ([["exit", 137]], "the port exited with status 137, which is how a shell reports SIGKILL (not by refpeft: if not by you, then by the system, most often because memory ran out)"),
        ([["signal", "SIGKILL"]], "the port was ended by SIGKILL (not by refpeft: if not by you, then by the system, most often because memory ran out)"),
        ([["signal", "SIGSEGV"]], "the port was ended by SIGSEGV (a segmentation fault: it used memory that is not its own)"),
        ([["signal", "SIGABRT"]], "the port was ended by SIGABRT (it ended itself: a failed assertion, or no memory)"),
        ([["signal", "SIGUSR1"]], "the port was ended by SIGUSR1"),
        ([["flood", '{"seq": 1, "docu', 1], ["exit", 0]], """the port exited with status 0 in the middle of a line, after 16 bytes: '{"seq": 1, "docu'"""),
        ([["flood", '{"seq": 1, "document": {}}', 1], ["exit", 0]], """the port exited with status 0 in the middle of a line, after 26 bytes: '{"seq": 1, "document": {}}'"""),
    ],
)  # fmt: skip
def test_ends(tmp_path: Path, steps: list[Any], message: str) -> None:
    given = asked(tmp_path, ["errors", "last words\n", 1], *steps)
    assert given == Reply("CRASHED", message=message, detail="last words")
    assert len((tmp_path / "pids").read_text(encoding="utf-8").split()) == 2, "it was not asked again"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (["close"], "the port closed its standard output while it runs: it must stay open until `stop` (PP-1)"),
        (["wait", 60], "no answer within 0.3 s (--timeout allows more); does the port flush standard output after each line (PP-1)?"),
        (["flood", '{"seq": 1', 1], """no answer within 0.3 s, only a line without an end: '{"seq": 1'; end each message with a line feed and flush standard output (PP-1)"""),
    ],
)  # fmt: skip
def test_is_silent(tmp_path: Path, step: list[Any], message: str) -> None:
    given = asked(tmp_path, ["ignore", "SIGTERM"], step, ["hang"], timeout=QUICK)
    assert given == Reply("CRASHED" if step == ["close"] else "TIMEOUT", message=message)


def test_closes_its_input(tmp_path: Path) -> None:
    """Noticed at the next question."""
    pids = tmp_path / "pids"
    script = command([["note", str(pids)], ["say", START]], q1=[*FINE, ["close input"]], rest=FINE)
    port = ProcessPort(script, QUICK)
    first = port.ask(ASK, request(tmp_path / "1", 1))
    time.sleep(0.05)  # until the input is closed
    others = [port.ask(ASK, request(tmp_path / str(seq), seq)) for seq in (2, 3)]
    port.close()
    gone(pids)
    message = "the port closed its standard input while it runs: it must read commands until `stop` (PP-1)"
    assert [first, *others] == [ANSWERED, Reply("CRASHED", message=message), ANSWERED]


def test_does_not_read(tmp_path: Path) -> None:
    """More than a pipe holds is not waited for."""
    pids = tmp_path / "pids"
    port = ProcessPort(command([["note", str(pids)], ["say", START], ["hang"]]), QUICK)
    long = request(tmp_path / "1", 1)
    long.arguments["draws"] = ["x" * 1000] * 1000
    given = port.ask(ASK, long)
    port.close()
    gone(pids)
    assert given == Reply(
        "TIMEOUT",
        message="did not read the question within 0.3 s; read standard input line by line (PP-1)",
    )


def test_an_answer_that_comes_too_late_is_nobodys(tmp_path: Path) -> None:
    late = ["wait", QUICK + 0.1]
    given = asked(tmp_path, late, ["say", {"seq": 2, "document": {"late": True}}], timeout=QUICK)
    assert given.status == "TIMEOUT"


def test_ends_with_status_0_after_each_answer(tmp_path: Path) -> None:
    """It is started anew: one question for each process is a way to live."""
    pids = tmp_path / "pids"
    port = ProcessPort(command([["note", str(pids)], ["say", START]], rest=[*FINE, ["exit", 0]]))
    assert [port.ask(ASK, request(tmp_path / str(seq), seq)) for seq in range(1, 6)] == [ANSWERED] * 5
    port.close()
    gone(pids)


@pytest.mark.parametrize("later", [False, True])
def test_crashes_after_its_answer(tmp_path: Path, later: bool) -> None:
    """Noticed at the next question, whenever it comes."""
    port = ProcessPort(command(q1=[*FINE, ["exit", 3]], rest=FINE))
    first = port.ask(ASK, request(tmp_path / "1", 1))
    if later:
        assert port._process is not None
        port._process.wait(5)
    given = [first, *(port.ask(ASK, request(tmp_path / str(seq), seq)) for seq in (2, 3))]
    port.close()
    assert given == [ANSWERED, Reply("CRASHED", message="the port exited with status 3"), ANSWERED]


def test_starts_too_slowly_the_second_time(tmp_path: Path) -> None:
    """A time-out like any other, so that three in a row end the run."""
    once = tmp_path / "once"
    script = command([["bytes", str(once), ""], ["say", START]], q1=[["exit", 1]])
    port = ProcessPort(script)
    assert port.ask(ASK, request(tmp_path / "1", 1)).status == "CRASHED"
    port.command, port.start_timeout = command([["hang"]]), QUICK
    given = port.ask(ASK, request(tmp_path / "2", 2))
    port.close()
    assert given.status == "TIMEOUT"
    assert given.message.startswith("could not be started again: `")
    assert given.message.endswith("` did not answer `start`: it did not answer in time.")


def test_answers_start_twice(tmp_path: Path) -> None:
    port = ProcessPort(command([["say", START], ["say", START]], rest=FINE))
    given = port.ask(ASK, request(tmp_path / "1", 1))
    port.close()
    said = json.dumps(START)[:200]
    assert given == Reply(
        "ERRORED",
        message=f"not an answer of the protocol (a second answer to `start`; each command has one answer (PP-1)): {said!r}",
    )
    assert given.breach


# ---------------------------------------------------------------- floods


@contextlib.contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """What refpeft allocates meanwhile."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes * 1e6, f"{peak / 1e6:.1f} MB"


def test_one_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LONGEST_LINE", 1_000_000)
    with at_most(4):
        given = asked(tmp_path, ["forever", '{"seq": 1, ', 1000])
    shown = ('{"seq": 1, ' * 20)[:200]
    assert given == Reply(
        "ERRORED",
        message="not an answer of the protocol (its line has no end: a message is one line of at most 16 MiB (PP-3)): "
        f"{shown!r}",
    )


def test_lines_without_end(tmp_path: Path) -> None:
    """They wait in the pipe: the port, not refpeft, pays for them."""
    pids = tmp_path / "pids"
    script = command(
        [["note", str(pids)], ["say", START]], q1=[*FINE, ["forever", "progress\n", 1000]], rest=FINE
    )
    with at_most(2):
        port = ProcessPort(script)
        given = [port.ask(ASK, request(tmp_path / str(seq), seq)) for seq in (1, 2, 3)]
        port.close()
    gone(pids)
    message = f"not an answer of the protocol ({process.STRAY}): 'progress'"
    assert given == [ANSWERED, Reply("ERRORED", message=message), ANSWERED]


def test_standard_error_without_end(tmp_path: Path) -> None:
    """The beginning and the end are kept, in memory; nothing is written to the disk."""
    with at_most(2):
        given = asked(
            tmp_path,
            ["errors", "the first error\n", 1],
            ["errors", "again\n", 5_000_000],
            ["errors", "the end\n", 1],
            ["exit", 1],
        )
    assert given.status == "CRASHED"
    assert given.detail.splitlines() == [
        *("the first error", "again", "again"),
        "… (30000024 bytes in all; the last lines:)",
        *["again"] * 19,
        "the end",
    ]


def test_a_message_without_end(tmp_path: Path) -> None:
    given = asked(tmp_path, ["error of", 1_000_000])
    assert given.status == "ERRORED"
    assert given.message == f"{'x' * 10_000} … (1000000 characters in all) … {'x' * 10_000}"


# ---------------------------------------------------------------- files


def damaged(tmp_path: Path, why: str) -> str:
    path = (tmp_path / "1/a").resolve()
    return f"'{path}' {why}"


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (["fifo", "a"], "is a FIFO, not a file; write the port's answer there as a plain file."),
        (["mkdir", "a"], "is a directory, not a file; write the port's answer there as a plain file."),
        (["sparse", "a", 10**10], "holds 10000000000 bytes; refpeft reads at most 1073741824 of the port's answer. Answer fewer stages."),
    ],
)  # fmt: skip
def test_what_is_no_answer_file(tmp_path: Path, step: list[Any], why: str) -> None:
    with at_most(2):
        given = asked(tmp_path, step, TELL)
    assert given == Reply("ERRORED", message=damaged(tmp_path, why))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can make devices")
def test_a_device(tmp_path: Path) -> None:
    given = asked(tmp_path, ["device", "a"], TELL)
    if given.status == "CRASHED":
        pytest.skip("devices cannot be made here")
    why = "is a device, not a file; write the port's answer there as a plain file."
    assert given == Reply("ERRORED", message=damaged(tmp_path, why))


def test_a_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    header = json.dumps({"logits": {"dtype": "F64", "shape": [1250000000], "data_offsets": [0, 10**10]}})
    claimed = struct.pack("<Q", len(header)).decode("latin-1") + header
    with at_most(2):
        given = asked(tmp_path, ["bytes", "a", claimed], TELL)
    assert given.status == "ERRORED"
    assert given.message.startswith(damaged(tmp_path, "cannot be read as safetensors ("))


def test_twenty_thousand_tensors(tmp_path: Path) -> None:
    names = {
        f"x{i}": {"dtype": "F32", "shape": [], "data_offsets": [4 * i, 4 * i + 4]} for i in range(20_000)
    }
    header = json.dumps(names).encode()
    source = tmp_path / "source"
    source.write_bytes(struct.pack("<Q", len(header)) + header + bytes(80_000))
    given = asked(tmp_path, ["copy", "a", str(source)], TELL)
    assert (given.status, len(given.answer.tensors)) == ("ANSWERED", 20_000)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", ".", "b/../../secret", "link"])
def test_a_path_elsewhere(tmp_path: Path, name: str) -> None:
    write_tensors(tmp_path / "secret", {"x": numpy.zeros(1)})
    given = asked(tmp_path, ["link", "link", str(tmp_path / "secret")], ["say", {"tensors": name}])
    assert given == Reply(
        "ERRORED",
        message=f"the answer names '{name}', which is not inside the output directory; answer with a path relative to "
        "`output`, such as 'answer.safetensors'",
    )


def test_its_directory_replaced_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    write_tensors(tmp_path / "elsewhere/a", {"x": numpy.zeros(1)})
    given = asked(tmp_path, ["replace output", str(tmp_path / "elsewhere")], TELL)
    assert given.status == "ERRORED"
    assert given.message.startswith("the answer names 'a', which is not inside the output directory;")


def test_an_answer_that_is_not_there(tmp_path: Path) -> None:
    given = asked(tmp_path, TELL)
    where = (tmp_path / "1").resolve()
    assert given == Reply("ERRORED", message=f"Can't find 'a' at '{where}', which holds the port's answer.")


def test_whatever_stands_in_its_place_a_directory_is_made(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "kept").touch()
    (tmp_path / "work").mkdir()
    link, full, file = (tmp_path / "work" / name for name in ("link", "full", "file"))
    link.symlink_to(target)
    (full / "closed/deep").mkdir(parents=True)
    (full / "closed").chmod(0)
    os.mkfifo(full / "pipe")
    file.touch()
    for path in (link, full, file, tmp_path / "work/new"):
        answer_files.fresh_directory(path)
        assert path.is_dir()
        assert not path.is_symlink()
        assert list(path.iterdir()) == []
    assert (target / "kept").exists()
    answer_files.discard(tmp_path / "work")
    (tmp_path / "work").symlink_to(target)
    answer_files.fresh_directory(tmp_path / "work/1")
    assert not (tmp_path / "work").is_symlink()
    answer_files.discard(tmp_path / "work")
    (tmp_path / "work").touch()
    answer_files.fresh_directory(tmp_path / "work/1")
    assert (tmp_path / "work/1").is_dir()


def test_directories_of_several_questions_are_made_at_a_time(tmp_path: Path) -> None:
    """Whichever comes first makes the one that they stand in, and none takes it away from the others."""
    together = threading.Barrier(4, timeout=30)

    def make(number: int) -> None:
        for turn in range(300):
            together.wait()
            answer_files.fresh_directory(tmp_path / str(turn) / str(number))

    with ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(make, number) for number in range(4)]:
            one.result()
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")}
    assert made == {f"{turn}/{number}" for turn in range(300) for number in range(4)}


# ---------------------------------------------------------------- what it starts


def until_ended(pid: Path) -> None:
    deadline = time.monotonic() + 5
    while not ended(int(pid.read_text(encoding="utf-8"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@LINUX
@pytest.mark.parametrize("end", [[["exit", 3]], [["raw", "garbage", 1]], FINE])
def test_a_daemon_does_not_outlive_it(tmp_path: Path, end: list[Any]) -> None:
    """A session of its own, its parent gone, standard output kept open: found by its environment."""
    pid = tmp_path / "daemon"
    port = ProcessPort(command(q1=[["daemon", str(pid)], *end], rest=FINE))
    first, second = (port.ask(ASK, request(tmp_path / str(seq), seq)) for seq in (1, 2))
    port.close()
    until_ended(pid)
    assert first.status == {"exit": "CRASHED", "raw": "ERRORED"}.get(end[0][0], "ANSWERED")
    assert second == ANSWERED
    assert port.strays == [int(pid.read_text(encoding="utf-8"))]


@LINUX
def test_only_what_bears_the_mark_is_ended(tmp_path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    port = ProcessPort(command(q1=[["exit", 1]], rest=FINE))
    port.ask(ASK, request(tmp_path / "1", 1))
    port.close()
    assert bystander.poll() is None
    bystander.communicate(b"\n")
    assert port.strays == []


def test_children_are_found_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on other systems, with `ps`."""
    here = system._parents()
    monkeypatch.setattr(system, "PROC", tmp_path / "nowhere")
    there = system._parents()
    assert there[os.getpid()] == here[os.getpid()] == os.getppid()
    assert os.getpid() in system._descendants(os.getppid())
    monkeypatch.setattr(system.shutil, "which", lambda _: str(tmp_path / "no-ps"))
    assert system._parents() == {}
    assert system._descendants(os.getpid()) == set()


def test_a_system_without_process_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The port alone is ended."""
    monkeypatch.setattr(system, "POSIX", False)
    given = asked(tmp_path, ["hang"], timeout=QUICK)
    assert given.status == "TIMEOUT"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0, "exited with status 0"),
        (128, "exited with status 128"),
        (139, "exited with status 139, which is how a shell reports SIGSEGV (a segmentation fault: it used memory that is not its own)"),
        (-signal.SIGTERM, "was ended by SIGTERM"),
        (-200, "was ended by signal 200"),
    ],
)  # fmt: skip
def test_how_it_ended_in_words(status: int, said: str) -> None:
    assert system.ending(status) == said


def test_changing_its_working_directory_changes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_tensors(source, {"x": numpy.zeros(1)})
    given = asked(tmp_path, ["chdir", "/"], ["copy", "a", str(source)], TELL)
    assert given.status == "ANSWERED"


def test_what_c_prints_goes_to_standard_error_too() -> None:
    code = (
        "import ctypes, os, sys\n"
        "from refpeft.oracle.system import standard_output_to_error\n"
        "print('first', flush=True)\n"
        "with standard_output_to_error():\n"
        "    print('python')\n"
        "    ctypes.CDLL(None).printf(b'c\\n')\n"
        "    os.write(1, b'descriptor\\n')\n"
        "print('last')\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": ""}
    )  # fmt: skip
    assert said.stdout == "first\nlast\n"
    assert sorted(said.stderr.split()) == ["c", "descriptor", "python"]
