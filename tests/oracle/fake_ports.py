"""Ports that do what a test tells them: a program that reads its misbehaviour from its command line, and Python objects.

As a program it imports nothing but the standard library, so that it starts at once:

    ProcessPort(command(q1=[["say", {"document": {}}]], q2=[["exit", 3]]))

answers the first question with an empty document and exits with status 3 at the second. A script belongs to the number
of a question, so it goes on where it was after the port was started anew.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START: dict[str, Any] = {
    "version": 1,
    "implementation": {"name": "fake", "language": "python", "version": "0"},
    "families": ["gpt2"],
    "methods": ["prompt_tuning", "prefix_tuning"],
    "questions": ["config.resolve", "mask", "prefix.encode", "forward"],
    "profiles": ["float32"],
}
"""What the program says that it can do, unless the script says otherwise."""


def command(
    start: list[Any] | None = None, stop: list[Any] | None = None, **questions: list[Any]
) -> list[str]:
    """The command line of a program with a script: lists of steps for `start`, `stop`, and questions `q1`, `q2` and so on.

    `rest` are the steps for every other question.
    """
    script = {"start": start or [["say", START]], "stop": stop or [], **questions}
    return [sys.executable, "-I", "-S", __file__, json.dumps(script)]


def do(step: list[Any], message: dict[str, Any]) -> None:
    """One step of a script."""
    output, seq = Path(message.get("output", ".")), message.get("seq", 0)
    if not (speak(step, seq) or stop(step) or leave(step, output) or start_another(step)):
        match step:
            case ["expected", golden]:
                case = Path(golden, "vectors", message["case"])
                shutil.copy(case / "expected.safetensors", output / "expected")
                speak(["say", {"tensors": "expected"}], seq)
            case _:
                sys.exit(f"no such step: {step}")


def speak(step: list[Any], seq: int) -> bool:
    """What a port writes on its streams."""
    match step:
        case ["say", message]:
            print(json.dumps({"seq": seq, **message} if seq else message, ensure_ascii=False), flush=True)
        case ["error of", length]:
            speak(["say", {"errored": {"message": "x" * length}}], seq)
        case ["raw" | "flood" as how, text, times]:  # a flood has no end of line
            sys.stdout.buffer.write(text.encode("latin-1") * times + b"\n" * (how == "raw"))
            sys.stdout.flush()
        case ["forever", text, times]:
            while True:
                sys.stdout.buffer.write(text.encode() * times)
        case ["errors", text, times]:
            sys.stderr.write(text * times)
            sys.stderr.flush()
        case _:
            return False
    return True


def stop(step: list[Any]) -> bool:
    """Ways to end, or to wait."""
    match step:
        case ["exit", status]:
            sys.exit(status)
        case ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["signal", name]:
            os.kill(os.getpid(), getattr(signal, name))
        case ["ignore", name]:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        case ["wait", seconds]:
            time.sleep(seconds)
        case ["hang"]:
            time.sleep(60)
        case ["close"]:
            os.close(1)
            time.sleep(60)
        case ["close input"]:
            os.close(0)
            time.sleep(60)
        case _:
            return False
    return True


def leave(step: list[Any], output: Path) -> bool:
    """What a port leaves in files, or of them."""
    match step:
        case ["copy", name, source]:
            shutil.copy(source, output / name)
        case ["bytes", name, text]:
            (output / name).write_bytes(text.encode("latin-1"))
        case ["sparse", name, size]:
            with (output / name).open("wb") as file:
                file.truncate(size)
        case ["append", path]:
            with Path(path).open("ab") as file:
                file.write(b"x")
        case _:
            return leave_strange(step, output)
    return True


def leave_strange(step: list[Any], output: Path) -> bool:
    """What is no file."""
    match step:
        case ["link", name, target]:
            (output / name).symlink_to(target)
        case ["fifo", name]:
            os.mkfifo(output / name)
        case ["device", name]:
            os.mknod(output / name, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero
        case ["mkdir", name]:
            (output / name).mkdir(parents=True)
        case ["replace output", target]:
            output.rmdir()
            output.symlink_to(target)
        case ["chdir", path]:
            os.chdir(path)
        case _:
            return False
    return True


def start_another(step: list[Any]) -> bool:
    """Processes: this one's number, and others."""
    match step:
        case ["note", path]:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(f"{os.getpid()}\n")
        case ["child", path]:  # it keeps standard output open
            child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(30)"])
            Path(path).write_text(f"{child.pid}", encoding="utf-8")
        case ["daemon", path]:  # in a session of its own, its parent gone; it keeps standard output
            daemon(Path(path))
        case _:
            return False
    return True


def daemon(pid: Path) -> None:
    """A process that outlives this one, as daemons are made."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        while not (pid.exists() and pid.read_text(encoding="utf-8")):
            time.sleep(0.005)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    pid.write_text(f"{os.getpid()}", encoding="utf-8")
    time.sleep(60)
    os._exit(0)


def main() -> None:
    """Play the script, or a side of a conversation."""
    if sys.argv[1] == "replay":
        replay(*map(Path, sys.argv[2:]))
        return
    script = json.loads(sys.argv[1])
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    for line in sys.stdin:
        message = json.loads(line)
        seq = message.get("seq", 0)
        steps = script[message["cmd"]] if seq == 0 else script.get(f"q{seq}") or script["rest"]
        for step in steps:
            do(step, message)
        if message["cmd"] == "stop":
            return


def replay(transcript: Path, root: Path, log: Path) -> None:
    """Play the port's side of a conversation, whatever is asked; write down what is asked.

    The files that its answers name are copied from the case asked about.
    """
    lines = [json.loads(line) for line in transcript.read_text(encoding="utf-8").splitlines()]
    answers = iter([line["message"] for line in lines if line["from"] == "port"])
    for line in sys.stdin:
        with log.open("a", encoding="utf-8") as file:
            file.write(line)
        request = json.loads(line)
        if request["cmd"] == "stop":
            return
        answer = next(answers)
        case, output = root / "golden/vectors" / request.get("case", ""), Path(request.get("output", ""))
        if "tensors" in answer:
            shutil.copy(case / "expected.safetensors", output / answer["tensors"])
        if "adapter" in answer:
            directory = output / answer["adapter"]
            directory.mkdir()
            shutil.copy(case / "expected.safetensors", directory / "adapter_model.safetensors")
            config = json.loads((case / "case.json").read_text(encoding="utf-8"))["document"]["config"]
            (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        print(json.dumps(answer), flush=True)


# ---------------------------------------------------------------- Python objects


class Honest:
    """refpeft as an object port: answers everything, in the protocol's own messages where tensors do not do."""

    def start(self) -> dict[str, Any]:
        """What it can do: everything."""
        from refpeft.oracle.questions import QUESTIONS

        return {**START, "questions": list(QUESTIONS)}

    def run(self, request: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        """Refpeft's answer."""
        from refpeft.oracle.questions import Arithmetic, Ask, answer

        paths = {key: Path(request[key]) if request[key] else None for key in ("model", "adapter", "output")}
        given = {key: request[key] for key in ("question", "method", "config", "arguments")}
        reply = answer(Ask(**given, inputs=inputs, **paths), Arithmetic(request["dtype"]))
        if reply.document is not None:
            return {"seq": request["seq"], "document": reply.document}
        if reply.adapter is not None:
            return {"seq": request["seq"], "adapter": reply.adapter.name}
        return reply.tensors


class KeysForValues(Honest):
    """Takes each layer's keys from the block that holds its values."""

    def run(self, request: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        """The answer with the mistake."""
        from refpeft.steps import replaced

        with replaced({"prefix.key_row": lambda layer, layers: 2 * layer + 1}):
            return super().run(request, inputs)


class TooLarge(Honest):
    """Values a hundredth too large."""

    def run(self, request: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        """The answer with the mistake."""
        answer = super().run(request, inputs)
        return {name: x * x.dtype.type(1.01) if name.endswith(".value") else x for name, x in answer.items()}


class Lazy(Honest):
    """Skips everything."""

    def run(self, request: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        """A reason, nothing else."""
        return {"seq": request["seq"], "skipped": {"message": "not today"}}


class Noisy(Honest):
    """Prints where refpeft prints its JSON."""

    def start(self) -> dict[str, Any]:
        """What it can do, and a word about it."""
        print("loading the model")
        return super().start()

    def run(self, request: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        """Refpeft's answer, and a word about it."""
        print(f"question {request['seq']}")
        return super().run(request, inputs)


class Interrupted(Lazy):
    """Ctrl-C at the third question."""

    def run(self, request: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        """A reason, then the end."""
        if request["seq"] == 3:
            raise KeyboardInterrupt
        return super().run(request, inputs)


class WrongAndInterrupted(KeysForValues):
    """Ctrl-C once something was wrong."""

    def run(self, request: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        """One answer with the mistake, asked for twice, and no other."""
        if request["seq"] == 2:
            raise KeyboardInterrupt
        return super().run(request, inputs)


if __name__ == "__main__":
    main()
