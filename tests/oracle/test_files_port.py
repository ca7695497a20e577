"""Answers that lie beside exported requests are judged as those of any other port, whatever lies there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
from support import EVERY_CASE

from refpeft import __version__
from refpeft.oracle import questions
from refpeft.oracle.budget import PROFILES, Profile
from refpeft.oracle.cases import in_order
from refpeft.oracle.export import ExportError, write_export
from refpeft.oracle.files_port import LARGEST_ANSWER, UNANSWERED, FilesPort
from refpeft.oracle.judge import CaseResult, Results, Selection, summarise
from refpeft.oracle.port import ReferencePort
from refpeft.oracle.questions import Answer, Arithmetic, Ask
from refpeft.oracle.reply import Port, Reply
from refpeft.oracle.run import judge
from refpeft.oracle.vectors import Vector, all_vectors, matches, read_vector
from refpeft.tensors import read_tensors, write_tensors

BOTH = [PROFILES["float32"], PROFILES["float64"]]
MASK = "peft-0.21.2/common/mask/left-padding"
OPTIONAL = ("attention_mask", "labels", "position_ids")
PLACE = "questions/common/mask/left-padding/float32"


def answer_all(directory: Path, change: Callable[[str, Answer], Answer] = lambda _, answer: answer) -> None:
    """Answer every request of an export as a port would: from what lies there alone, and by refpeft's own answers."""
    for path in sorted(directory.rglob("request.json")):
        request, here = json.loads(path.read_text(encoding="utf-8")), path.parent
        inputs = read_tensors(here / request["inputs"], "inputs") if request["inputs"] else {}
        arguments = dict(request["arguments"])
        if "tokenizer" in arguments:
            arguments["tokenizer"] = str(here / arguments["tokenizer"])
        paths = {key: here / request[key] if request[key] else None for key in ("model", "adapter", "output")}
        given = {key: request[key] for key in ("question", "method", "config")}
        ask = Ask(**given, arguments=arguments, inputs=inputs, **paths)
        answer = change(request["case"], questions.answer(ask, Arithmetic(request["dtype"])))
        if answer.document is not None:
            (here / "answer.json").write_text(json.dumps({"document": answer.document}), encoding="utf-8")
        elif answer.adapter is not None:
            (here / "answer.json").write_text(json.dumps({"adapter": "adapter"}), encoding="utf-8")
        else:
            tensors = {name: numpy.asarray(tensor) for name, tensor in answer.tensors.items()}
            write_tensors(here / "answer.safetensors", tensors)


def judged(
    port: Port,
    work: Path,
    pattern: str = "",
    profiles: Sequence[Profile] = BOTH,
    among: Sequence[Vector] = (),
) -> Results:
    vectors = among or in_order(all_vectors())
    selection = Selection([v for v in vectors if matches(v.case.id, pattern)], profiles)
    return summarise(port, selection, list(judge(port, selection, work, None)))


def of_every_kind() -> list[Vector]:
    """Every case if REFPEFT_CASES says so; else the first of each question, method and set of files."""
    vectors = in_order(all_vectors())
    if EVERY_CASE:
        return vectors
    kinds = {
        (
            case.question,
            case.method,
            "tokenizer" in case.arguments,
            *(name in v.inputs for name in OPTIONAL),
        ): v
        for v in reversed(vectors)
        for case in [v.case]
    }
    chosen = {v.case.id for v in kinds.values()}
    return [v for v in vectors if v.case.id in chosen]


def alike(results: Results) -> Any:
    """What two runs must have in common: everything but what the port is called and how long it took."""
    cases = [msgspec.structs.replace(case, seconds=0.0, detail="") for case in results.cases]
    return msgspec.to_builtins(msgspec.structs.replace(results, implementation=None, cases=cases))  # type: ignore[arg-type]


# ---------------------------------------------------------------- the same as a process


def test_refpeft_answers_in_files_and_is_judged_as_itself(tmp_path: Path) -> None:
    """In both profiles."""
    vectors = of_every_kind()
    assert {v.case.question for v in vectors} == set(questions.QUESTIONS)
    write_export(tmp_path / "export", vectors, BOTH)
    answer_all(tmp_path / "export")
    port = FilesPort(tmp_path / "export")
    assert isinstance(port, Port)
    assert (port.complete, port.unanswered()) == (len(vectors) == len(list(all_vectors())), 0)
    assert [v.case.id for v in port.vectors] == [v.case.id for v in vectors]
    by_files = judged(port, tmp_path / "1", among=vectors)
    by_itself = judged(ReferencePort(), tmp_path / "2", among=vectors)
    assert alike(by_files) == alike(by_itself)
    assert by_files.summary.verdict == "CONFORMS"
    assert by_files.summary.float64_exact
    assert by_files.summary.asked == by_files.summary.counts["CONFORMS"] == 2 * len(vectors)
    assert not by_files.summary.partial
    port.close()


class Corrupted(ReferencePort):
    """refpeft with one number changed in one tensor."""

    def __init__(self, tensor: str) -> None:
        super().__init__()
        self.tensor = tensor

    def change(self, _: str, answer: Answer) -> Answer:
        """The answer with that tensor's first number one too large."""
        if self.tensor not in answer.tensors:
            return answer
        wrong = numpy.array(answer.tensors[self.tensor])
        wrong[(0,) * wrong.ndim] += 1
        return Answer({**answer.tensors, self.tensor: wrong})

    def ask(self, ask: Ask, request: Any) -> Reply:
        """As refpeft, changed."""
        reply = super().ask(ask, request)
        return Reply(reply.status, self.change(request.case, reply.answer))


@pytest.mark.parametrize(
    ("tensor", "pattern"),
    [
        ("inputs.attention_mask", "mask/"),
        ("prefix.layers.1.value", "prefix_encode/odd-layers"),
        ("decoder.layers.0.attention.scores", "prefix_tuning/forward/stages-right-padding"),
        ("logits", "prompt_tuning/forward/some-labels"),
        ("gradients.prompt_encoder.embedding.weight", "prompt_tuning/gradients/left-padding"),
    ],
)
def test_the_same_first_difference_as_a_port_that_answers_so(
    tmp_path: Path, tensor: str, pattern: str
) -> None:
    corrupted = Corrupted(tensor)
    vectors = [v for v in in_order(all_vectors()) if matches(v.case.id, pattern)]
    write_export(tmp_path / "export", vectors, BOTH[:1])
    answer_all(tmp_path / "export", corrupted.change)
    by_files = judged(FilesPort(tmp_path / "export"), tmp_path / "1", pattern, BOTH[:1])
    assert alike(by_files) == alike(judged(corrupted, tmp_path / "2", pattern, BOTH[:1]))
    assert {case.first.name for case in by_files.cases if case.first} == {tensor}
    assert by_files.summary.verdict == "NONCONFORMING"


def test_one_answer_in_float64_serves_both_its_profiles(tmp_path: Path) -> None:
    vectors = [v for v in all_vectors() if v.case.id == MASK]
    profiles = [profile for profile in PROFILES.values() if not profile.simulated]
    index = write_export(tmp_path / "export", vectors, profiles)
    assert [len(case.requests) for case in index.cases] == [2]
    answer_all(tmp_path / "export")
    port = FilesPort(tmp_path / "export", name="\x1bmine", language="fortran")
    selection = Selection(port.vectors, port.profiles)
    results = summarise(port, selection, list(judge(port, selection, tmp_path / "work", None)))
    assert [(c.profile, c.verdict) for c in results.cases] == [(p.name, "CONFORMS") for p in profiles]
    said = results.implementation
    assert (said.name, said.language, said.version) == ("?mine", "fortran", "")


# ---------------------------------------------------------------- what may lie there


@pytest.fixture
def export(tmp_path: Path) -> Path:
    write_export(tmp_path / "export", [v for v in all_vectors() if "/mask/" in v.case.id], BOTH[:1])
    return tmp_path / "export"


def verdict(export: Path, work: Path) -> CaseResult:
    """On the one question."""
    port = FilesPort(export)
    selection = Selection([v for v in port.vectors if v.case.id == MASK], BOTH[:1])
    (result,) = judge(port, selection, work, work.parent / "failures")
    return result


def test_nothing_is_answered(export: Path, tmp_path: Path) -> None:
    assert FilesPort(export).unanswered() == 4
    result = verdict(export, tmp_path / "work")
    assert (result.verdict, result.message, result.detail) == ("SKIPPED", UNANSWERED, PLACE)
    shutil.rmtree(export / PLACE)
    assert verdict(export, tmp_path / "again").verdict == "SKIPPED"
    assert FilesPort(export).unanswered() == 4


@pytest.mark.parametrize(
    ("message", "status", "said"),
    [
        ({"skipped": {"message": "no masks yet"}}, "SKIPPED", "no masks yet"),
        ({"errored": {"message": "boom", "traceback": "here"}}, "ERRORED", "boom"),
        ({"seq": 9000, "skipped": {"message": "the number is not looked at"}}, "SKIPPED", "the number is not looked at"),
        ({"seq": None, "mood": 1, "skipped": {"message": "nor what else"}}, "SKIPPED", "nor what else"),
        ({}, "ERRORED", "the answer has none of tensors, document, adapter, skipped, errored"),
        ([1], "ERRORED", f"the answer in '{PLACE}' cannot be used: answer.json must hold a JSON object, not a list"),
        ({"tensors": 5}, "ERRORED", f"the answer in '{PLACE}' cannot be used: answer.json is not an answer of the protocol (Expected `str | null`, got `int` - at `$.tensors`)"),
        ({"tensors": "none.safetensors"}, "ERRORED", f"the answer in '{PLACE}' cannot be used: there is no file 'none.safetensors'"),
        ({"tensors": "../../../../../../x.safetensors"}, "ERRORED", f"the answer in '{PLACE}' cannot be used: '../../../../../../x.safetensors' leads out of the directory of its request"),
        ({"tensors": "a\0b"}, "ERRORED", f"the answer in '{PLACE}' cannot be used: embedded null byte"),
        ({"tensors": "request.json"}, "ERRORED", None),
    ],
)  # fmt: skip
def test_a_message_in_a_file(export: Path, tmp_path: Path, message: Any, status: str, said: str) -> None:
    (export / PLACE / "answer.json").write_text(json.dumps(message), encoding="utf-8")
    result = verdict(export, tmp_path / "work")
    assert result.verdict == status
    assert result.message == said if said else "cannot be read as safetensors" in result.message


def test_tensors_that_a_message_names(export: Path, tmp_path: Path) -> None:
    """And an answer.safetensors that it does not name is not looked at."""
    answer_all(export)
    (export / PLACE / "answer.safetensors").rename(export / PLACE / "mine.safetensors")
    (export / PLACE / "answer.safetensors").write_bytes(b"nonsense")
    (export / PLACE / "answer.json").write_text('{"tensors": "mine.safetensors"}')
    assert verdict(export, tmp_path / "work").verdict == "CONFORMS"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b"\xff",
            "answer.json is not an answer of the protocol (JSON is malformed: invalid character (byte 0))",
        ),
        (b"", "answer.json is not an answer of the protocol (Input data was truncated)"),
        (b"[" * 100_000, "answer.json is not an answer of the protocol ("),
        (b" " * (2**24 + 1), "'answer.json' has 16777217 bytes; more than 16777216 are not read"),
    ],
)
def test_a_message_that_is_none(export: Path, tmp_path: Path, data: bytes, said: str) -> None:
    (export / PLACE / "answer.json").write_bytes(data)
    result = verdict(export, tmp_path / "work")
    assert result.verdict == "ERRORED"
    assert said in result.message


def truncated(path: Path) -> None:
    path.write_bytes((path.parent / "good.safetensors").read_bytes()[:-1])


def lying(path: Path) -> None:
    header = b'{"inputs.attention_mask":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(LARGEST_ANSWER + 1)  # of which the file system keeps nothing


def outside(path: Path) -> None:
    good = path.parent / "good.safetensors"
    path.symlink_to(shutil.move(good, path.parent.parent / "elsewhere.safetensors"))


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end, contextlib.chdir(path.parent):
        end.bind(path.name)  # a socket's path must be short


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncated, "cannot be read as safetensors"),
    "a header that lies": (lying, "cannot be read as safetensors"),
    "empty": (lambda path: path.touch(), "cannot be read as safetensors"),
    "huge": (huge, f"'answer.safetensors' has {LARGEST_ANSWER + 1} bytes; more than {LARGEST_ANSWER} are not read"),
    "a directory": (lambda path: path.mkdir(), "'answer.safetensors' is a directory, not a file"),
    "a named pipe": (os.mkfifo, "'answer.safetensors' is a named pipe, not a file"),
    "a socket": (a_socket, "'answer.safetensors' is a socket, not a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "'answer.safetensors' leads out of the directory of its request"),
    "a link out": (outside, "'answer.safetensors' leads out of the directory of its request"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "there is no file 'answer.safetensors'"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "(Symlink loop|symbolic links)"),
    "a link to the request": (lambda path: path.symlink_to("request.json"), "cannot be read as safetensors"),
}  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_answer_gets_a_verdict(export: Path, tmp_path: Path, what: str) -> None:
    """And a directory that says what happened; the other answers are judged all the same."""
    answer_all(export)
    (export / PLACE / "answer.safetensors").rename(export / PLACE / "good.safetensors")
    make, said = HOSTILE[what]
    make(export / PLACE / "answer.safetensors")
    result = verdict(export, tmp_path / "work")
    assert (result.verdict, result.first) == ("ERRORED", None)
    pattern = said if said.startswith("(") else re.escape(said)
    assert re.search(pattern, result.message)
    assert result.reproduce is not None
    assert result.message in Path(result.reproduce, "README.txt").read_text(encoding="utf-8")
    port = FilesPort(export)
    selection = Selection(port.vectors, BOTH[:1])
    found = [case.verdict for case in judge(port, selection, tmp_path / "all", None)]
    assert sorted(found) == ["CONFORMS"] * 3 + ["ERRORED"]


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_a_message_that_is_a_pipe_is_not_opened(export: Path, tmp_path: Path) -> None:
    os.mkfifo(export / PLACE / "answer.json")
    result = verdict(export, tmp_path / "work")
    assert (result.verdict, result.message) == (
        "ERRORED",
        f"the answer in '{PLACE}' cannot be used: 'answer.json' is a named pipe, not a file",
    )


def test_a_request_that_leads_elsewhere(export: Path, tmp_path: Path) -> None:
    answer_all(export)
    shutil.move(export / PLACE, tmp_path / "elsewhere")
    (export / PLACE).symlink_to(tmp_path / "elsewhere")
    result = verdict(export, tmp_path / "work")
    assert (result.verdict, result.message) == ("ERRORED", f"'{PLACE}' leads out of '{export}'")


def test_an_adapter_that_leads_elsewhere(tmp_path: Path) -> None:
    save = [v for v in all_vectors() if v.case.id.endswith("prefix_tuning/checkpoint/save")]
    write_export(tmp_path / "export", save, BOTH[:1])
    answer_all(tmp_path / "export")
    place = tmp_path / "export/questions/prefix_tuning/checkpoint/save/float32"
    shutil.move(place / "adapter/adapter_model.safetensors", tmp_path / "x.safetensors")
    (place / "adapter/adapter_model.safetensors").symlink_to(tmp_path / "x.safetensors")
    port = FilesPort(tmp_path / "export")
    (result,) = judge(port, Selection(save, BOTH[:1]), tmp_path / "work", None)
    assert result.verdict == "ERRORED"
    assert result.message.startswith(
        "the answer names 'adapter/adapter_model.safetensors', which is not inside"
    )


# ---------------------------------------------------------------- what is no export of these vectors


def refused(directory: Path, golden: Path | None = None) -> str:
    with pytest.raises(ExportError) as caught:
        FilesPort(directory, golden)
    return str(caught.value)


def changed(export: Path, **members: Any) -> None:
    path = export / "export.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


ANEW = (
    f"Export the questions anew and let the port answer again; or judge with what they were exported with: refpeft "
    f"{__version__} (this is {__version__}), and --golden DIRECTORY if it was given then."
)


def no_export(directory: Path, why: str) -> str:
    return (
        f"'{directory}' is not a directory of exported questions: {why}. Give one that `refpeft export DIRECTORY` "
        "wrote."
    )


def test_what_is_no_export(tmp_path: Path, export: Path) -> None:
    assert refused(tmp_path / "none") == no_export(tmp_path / "none", "there is no file 'export.json'")
    assert refused(tmp_path) == no_export(tmp_path, "there is no file 'export.json'")
    (export / "export.json").write_text("{")
    assert refused(export) == no_export(export, "export.json: Input data was truncated")
    (export / "export.json").write_text("{}")
    assert refused(export) == no_export(export, "export.json: Object missing required field `format`")


def test_another_format_or_dialect(export: Path) -> None:
    changed(export, format=2)
    assert (
        refused(export)
        == f"'{export.resolve() / 'export.json'}' has format 2; this refpeft reads format 1. {ANEW}"
    )
    changed(export, format=1, dialect="peft-1.0")
    assert refused(export) == f"'{export}' asks about peft-1.0; this refpeft judges peft-0.21.2. {ANEW}"
    changed(export, dialect="peft-0.21.2", cases=[])
    assert refused(export) == f"'{export.resolve() / 'export.json'}' lists no cases. {ANEW}"


def test_other_vectors(export: Path) -> None:
    index = json.loads((export / "export.json").read_text())
    first, *others = index["cases"]
    changed(export, cases=[{**first, "digest": "0" * 16}, *others])
    other = f"'{export}' was exported from other golden vectors than these: "
    assert refused(export) == f"{other}1 differ or are unknown here ({first['case']}). {ANEW}"
    changed(export, cases=[{**case, "case": f"{case['case']}-new"} for case in index["cases"]])
    names = ", ".join(sorted(f"{case['case']}-new" for case in index["cases"])[:3])
    assert refused(export) == f"{other}4 differ or are unknown here ({names} …). {ANEW}"


def test_another_model(tmp_path: Path) -> None:
    vectors = [v for v in all_vectors() if v.case.id.endswith("common/attention/prefix")]
    write_export(tmp_path / "export", vectors, BOTH)
    index = json.loads((tmp_path / "export/export.json").read_text())
    changed(tmp_path / "export", models=dict.fromkeys(index["models"], "0" * 16))
    (name,) = index["models"]
    assert f"1 differ or are unknown here (the model {name}). " in refused(tmp_path / "export")


def test_vectors_of_ones_own(tmp_path: Path) -> None:
    """A failure's directory can be exported, and is then judged by it alone."""
    (vector,) = [v for v in all_vectors() if v.case.id == MASK]
    mine = tmp_path / "mine/vectors" / MASK
    shutil.copytree(vector.directory, mine)
    (tmp_path / "mine/manifest.json").write_text("{}")
    case = json.loads((mine / "case.json").read_text())
    (mine / "case.json").write_text(json.dumps({**case, "title": "mine"}))
    write_export(tmp_path / "export", [read_vector(mine)], BOTH)
    assert f"1 differ or are unknown here ({MASK}). " in refused(tmp_path / "export")
    port = FilesPort(tmp_path / "export", tmp_path / "mine")
    assert [v.case.title for v in port.vectors] == ["mine"]
    assert not port.complete


def test_a_selection_is_not_complete(export: Path) -> None:
    assert not FilesPort(export).complete
