"""Questions to the port HF peft for its tests: the conversation, and a question for every family, method and task."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from ports.hf_peft_bases import VOCABULARY, write_base
from safetensors.torch import load_file, save_file

PROMPT, PREFIX, PROJECTION = "prompt_tuning", "prefix_tuning", "prefix_tuning with a projection"
LOOSE = {"float32": 1e-4, "float64": 1e-4, "bfloat16": 0.2}
"""How far losses of a profile may be from those in float32: enough to be the same quantity."""
VIRTUAL, TOKENS, DECODER_TOKENS, BATCH = 5, 6, 4, 2
HEADS = {
    "SEQ_CLS": ["classifier", "score"],
    "TOKEN_CLS": ["classifier", "score"],
    "QUESTION_ANS": ["qa_outputs"],
}
ENCODERS, ENCODER_DECODERS = ("bert", "roberta", "electra"), ("t5", "bart")
WITHOUT_CLASS = {
    ("opt", "TOKEN_CLS"),
    ("gpt_bigcode", "QUESTION_ANS"),
    ("gemma", "QUESTION_ANS"),
    ("gemma2", "QUESTION_ANS"),
    ("gemma3_text", "TOKEN_CLS"),
    ("gemma3_text", "QUESTION_ANS"),
    ("phi", "QUESTION_ANS"),
}
"""Transformers has no class for the task."""
DECODER_TASKS = ("CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")


def tasks(family: str) -> list[str]:
    if family in ENCODER_DECODERS:
        return ["SEQ_2_SEQ_LM"]
    known = DECODER_TASKS[1:] if family in ENCODERS else DECODER_TASKS
    return [task for task in known if (family, task) not in WITHOUT_CLASS]


class Conversation:
    """The port in its process, asked one question after the other."""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, str(Path(__file__).parent / "hf_peft.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.directory = directory
        self.numbers = count(1)

    def tell(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())  # type: ignore[no-any-return]

    def ask(self, question: str, inputs: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        """The answer as the port gives it, its paths made whole."""
        number = next(self.numbers)
        output = self.directory / str(number)
        output.mkdir()
        if inputs is not None:
            save_file(
                {k: v.contiguous() for k, v in inputs.items()}, self.directory / f"{number}.safetensors"
            )
        request = {
            "cmd": "run",
            "seq": number,
            "case": question,
            "question": question,
            "method": PROMPT,
            "dtype": "float32",
            "model": None,
            "config": None,
            "arguments": {},
            "inputs": None if inputs is None else str(self.directory / f"{number}.safetensors"),
            "adapter": None,
            "stages": [],
            "output": str(output),
        }
        answer = self.tell(request | {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()})
        assert answer.pop("seq") == number
        return {k: output / v if k in ("tensors", "adapter") else v for k, v in answer.items()}

    def tensors(self, question: str, inputs: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        """The tensors of an answer that must have some, and finite ones."""
        answer = self.ask(question, inputs, **fields)
        assert answer.keys() == {"tensors"}, answer
        tensors = load_file(answer["tensors"])
        assert all(t.isfinite().all() for t in tensors.values())
        return tensors


@contextmanager
def conversation(directory: Path) -> Iterator[Conversation]:
    """A port that is stopped in the end, and ends by itself."""
    opened = Conversation(directory)
    with opened.process as process:
        try:
            yield opened
            assert process.stdin
            process.stdin.write('{"cmd": "stop"}\n')
            process.stdin.close()
            assert process.wait(60) == 0
        finally:
            process.kill()


def base_models(directory: Path) -> Callable[..., Path]:
    """Gives a base model of a family, otherwise than usual in what is named; each is written once."""

    def base(family: str, **changes: Any) -> Path:
        path = directory / "-".join([family, *(f"{k}={v}" for k, v in changes.items())])
        return path if path.exists() else write_base(family, path, **changes)

    return base


def filled_in(port: Conversation, base: Path, method: str, task: str, **changes: Any) -> dict[str, Any]:
    """The adapter's configuration as HF writes it."""
    config = {"num_virtual_tokens": VIRTUAL, "task_type": task, "peft_type": method.partition(" ")[0].upper()}
    if method == PROJECTION:
        config |= {"prefix_projection": True, "encoder_hidden_size": 7}
    base_config = json.loads((base / "config.json").read_text())
    if base_config["model_type"] == "falcon" and method != PROMPT:
        config |= {"token_dim": 8, "num_attention_heads": 1}
    arguments = {"config": config | changes, "base_config": base_config}
    answer = port.ask("config.resolve", method=method.partition(" ")[0], arguments=arguments)
    config = answer["document"]["config"]
    return config | {"modules_to_save": 2 * HEADS[task]} if task in HEADS else config


def drawn(port: Conversation, fields: dict[str, Any]) -> dict[str, Any]:
    """Parameters of HF's shapes, the prompt drawn by HF and the rest moved: as HF begins, they are the base's own."""
    start = port.tensors("init", **fields, arguments={"seed": 3})
    torch.manual_seed(1)
    return {k: (v + 0.1 * torch.randn_like(v)).bfloat16().float() for k, v in start.items()}


def texts(family: str, method: str, task: str) -> dict[str, Any]:
    """A batch, padded on the right, with labels."""
    torch.manual_seed(2)
    ids = torch.randint(3, VOCABULARY, (BATCH, TOKENS))
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if task == "CAUSAL_LM":
        inputs["labels"] = torch.where(mask == 1, ids, -100)
    elif task == "SEQ_2_SEQ_LM":
        inputs["labels"] = ids[:, :DECODER_TOKENS]
        inputs["decoder_attention_mask"] = torch.ones(BATCH, DECODER_TOKENS, dtype=torch.int64)
    elif task == "SEQ_CLS":
        inputs["labels"] = torch.tensor([1, 0])
    elif task == "TOKEN_CLS":
        before = torch.full((BATCH, VIRTUAL), -100) if method == PROMPT else ids[:, :0]
        inputs["labels"] = torch.cat([before, ids % 2], dim=1)
    elif task == "QUESTION_ANS":
        inputs |= {"start_positions": torch.tensor([0, 2]), "end_positions": torch.tensor([3, 2])}
    if family in ENCODERS:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return inputs


def near(given: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Every tensor, measured against its norm."""
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (given[name].double() - tensor.double()).norm()
        assert error <= tolerance * max(tensor.double().norm(), 1e-3), name
