"""One side of a benchmark, in a process of its own: it is told what to do on standard input, and answers in JSON.

    python tests/benchmarks/worker.py refpeft|hf-sdpa|hf-eager BASE cpu|cuda

A line {"do": "step", "method": "prompt", "virtual": 20, "labels": "all", …} is answered by {"seconds": …, "value": …}: the value is
the loss, a norm of the logits, or the tokens, so that it can be seen that both sides did the same. It comes from the device, so
that everything before it is done when the clock is stopped.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy

Job = Callable[[], Any]
LAST = 8
"""So many labels count where not all do."""


def batch(vocab: int, rows: int, tokens: int, labels: str) -> dict[str, numpy.ndarray]:
    """Token ids, and the labels that count: all, or the last eight of each row."""
    ids = numpy.random.default_rng(0).integers(0, vocab, (rows, tokens))
    wanted = ids.copy()
    if labels == "last":
        wanted[:, :-LAST] = -100
    return {"input_ids": ids, "labels": wanted}


def table(rows: int, width: int) -> numpy.ndarray:
    """The values that both sides start from."""
    return numpy.random.default_rng(1).normal(0.0, 0.02, (rows, width)).astype(numpy.float32)


class Refpeft:
    """refpeft's side."""

    def __init__(self, base: str, device: str) -> None:
        import refpeft

        self.refpeft = refpeft
        self.base, self.device = refpeft.load_base_model(base, dtype="float32", device=device), device

    def model(self, job: dict[str, Any]) -> Any:
        kind = {"prompt": self.refpeft.PromptTuningConfig, "prefix": self.refpeft.PrefixTuningConfig}
        config = kind[job["method"]](task_type="CAUSAL_LM", num_virtual_tokens=job["virtual"])
        model = self.refpeft.get_peft_model(self.base, config)
        (name, value), *_ = model.trainable_parameters().items()
        model.load_trainable_parameters({name: table(*value.shape)})
        return model

    def step(self, job: dict[str, Any]) -> Job:
        from refpeft import training

        model, given = (
            self.model(job),
            batch(self.base.config.vocab_size, job["rows"], job["tokens"], job["labels"]),
        )
        arguments = self.refpeft.TrainingArguments(
            max_steps=10**6, learning_rate=1e-3, weight_decay=0.01, max_grad_norm=0.0
        )
        state = [training.initial_state(model.trainable_parameters())]

        def loss_and_gradient(parameters: Any, number: int) -> Any:
            return model.value_and_grad(**given)

        def run() -> float:
            state[0], record = training.take_step(state[0], arguments, loss_and_gradient)
            model.load_trainable_parameters(state[0].parameters)
            return float(record.loss)

        return run

    def forward(self, job: dict[str, Any]) -> Job:
        model, given = self.model(job), batch(self.base.config.vocab_size, job["rows"], job["tokens"], "all")
        return lambda: float(numpy.abs(model(input_ids=given["input_ids"]).logits[:, -1]).mean())

    def losses(self, job: dict[str, Any]) -> Job:
        """Logits and the loss of them, as a user asks for both."""
        model = self.model(job)
        given = batch(self.base.config.vocab_size, job["rows"], job["tokens"], job["labels"])
        return lambda: float(model(**given).loss)

    def generate(self, job: dict[str, Any]) -> Job:
        model, given = self.model(job), batch(self.base.config.vocab_size, job["rows"], job["tokens"], "all")
        options = {"max_new_tokens": job["new"], "min_new_tokens": job["new"], "pad_token_id": 0}
        return lambda: int(
            model.generate(given["input_ids"], numpy.ones_like(given["input_ids"]), **options).sum()
        )

    def products(self, job: dict[str, Any]) -> Job:
        """A step's matrix products and nothing else, in the shapes and threads in which the step does them."""
        from refpeft import language_model, threads

        random, parameters = numpy.random.default_rng(2), self.base.parameters
        rows, tokens, virtual = job["rows"], job["tokens"], job["virtual"]
        layers = [
            {
                name: value
                for name, value in parameters.items()
                if name.startswith(f"layers.{layer}.") and value.ndim == 2
            }
            for layer in range(self.base.config.num_layers)
        ]
        widths = {width for own in layers for value in own.values() for width in value.shape}
        states = {width: random.random((rows * tokens, width), "float32") for width in widths}

        def through(rows: int, tokens: int, keys: int, wanted: int) -> None:
            """`wanted`: for how many positions of each row the last layer makes more than keys and values."""
            for layer, own in enumerate(layers):
                queries = wanted if layer == len(layers) - 1 else tokens
                for name, weight in own.items():
                    of_keys = name.endswith(("key.weight", "value.weight"))
                    count = rows * (tokens if of_keys else queries)
                    states[weight.shape[1]][:count] @ weight.T
                    if layer or not (of_keys or name.endswith("query.weight")):
                        states[weight.shape[0]][:count] @ weight
                self._attention(rows, queries, keys)

        head = parameters["head.weight"]
        everywhere = job["labels"] == "all"
        counted = rows * (tokens if everywhere else LAST)
        pieces = -(-counted * len(head) // language_model.AT_ONCE)

        def run() -> float:
            if job["method"] == "prompt":
                through(1, virtual, virtual, int(everywhere))
            wanted = tokens if everywhere else LAST + 1  # the first label that counts is predicted before it
            parts = threads.parts(rows, states[head.shape[1]].size)
            threads.each(
                lambda part: through(part.stop - part.start, tokens, virtual + tokens, wanted), parts
            )
            for piece in numpy.array_split(states[head.shape[1]][:counted], pieces):
                (piece @ head.T) @ head
            return 0.0

        return run

    def _attention(self, rows: int, tokens: int, keys: int) -> None:
        """Scores and their mixture of values, and the four products of their gradients."""
        config = self.base.config
        heads, grouped = (
            config.num_key_value_heads,
            config.num_attention_heads // config.num_key_value_heads * tokens,
        )
        query = numpy.ones((rows, heads, grouped, config.head_dim), "float32")
        key = numpy.ones((rows, heads, keys, config.head_dim), "float32")
        weights = query @ key.swapaxes(-1, -2)
        weights @ key
        query @ key.swapaxes(-1, -2)
        weights @ key
        weights.swapaxes(-1, -2) @ query
        weights.swapaxes(-1, -2) @ query

    def peak(self) -> float:
        """Gigabytes of memory; of a GPU, those that CuPy's pool has taken, which gives none back by itself."""
        if self.device == "cpu":
            return resident()
        import cupy

        return cupy.get_default_memory_pool().total_bytes() / 1024**3


class HuggingFace:
    """HF peft's side."""

    def __init__(self, base: str, attention: str, device: str) -> None:
        import torch
        import transformers

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        transformers.logging.set_verbosity_error()
        self.torch, self.where, self.attention, self.device = torch, base, attention, device
        self.base = self._loaded()

    def _loaded(self) -> Any:
        import transformers

        return transformers.AutoModelForCausalLM.from_pretrained(
            self.where, dtype="float32", attn_implementation=self.attention
        ).to(self.device)

    def model(self, job: dict[str, Any]) -> Any:
        import peft

        kind = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}[job["method"]]
        model = peft.get_peft_model(self.base, kind(task_type="CAUSAL_LM", num_virtual_tokens=job["virtual"]))
        (weight,) = [p for p in model.parameters() if p.requires_grad]
        weight.data = self.torch.tensor(table(*weight.shape))
        return model.to(self.device).eval()

    def tensors(self, job: dict[str, Any], labels: str) -> dict[str, Any]:
        given = batch(self.base.config.vocab_size, job["rows"], job["tokens"], labels)
        return {name: self.torch.tensor(value, device=self.device) for name, value in given.items()}

    def step(self, job: dict[str, Any]) -> Job:
        model, given = self.model(job), self.tensors(job, job["labels"])
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = self.torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)

        def run() -> float:
            optimizer.zero_grad()
            loss = model(**given).loss
            loss.backward()
            optimizer.step()
            return float(loss)

        return run

    def forward(self, job: dict[str, Any]) -> Job:
        model, given = self.model(job), self.tensors(job, "all")

        def run() -> float:
            with self.torch.no_grad():
                return float(model(input_ids=given["input_ids"]).logits[:, -1].abs().mean())

        return run

    def generate(self, job: dict[str, Any]) -> Job:
        model, given = self.model(job), self.tensors(job, "all")
        options = {
            "max_new_tokens": job["new"],
            "min_new_tokens": job["new"],
            "pad_token_id": 0,
            "do_sample": False,
        }
        mask = self.torch.ones_like(given["input_ids"])

        def run() -> int:
            with self.torch.no_grad():
                return int(model.generate(input_ids=given["input_ids"], attention_mask=mask, **options).sum())

        return run

    def peak(self) -> float:
        """Gigabytes of memory; of a GPU, those that torch has taken."""
        return resident() if self.device == "cpu" else self.torch.cuda.max_memory_reserved() / 1024**3


def resident() -> float:
    """The process's largest resident memory, in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def matrix_product(job: dict[str, Any]) -> Job:
    """The floor: the products of a step, (multiply-adds) as large square-ish ones, by NumPy."""
    random = numpy.random.default_rng(0)
    left, right = (
        random.random((job["rows"], job["inner"]), "float32"),
        random.random((job["inner"], job["columns"]), "float32"),
    )
    return lambda: float((left @ right)[0, 0])


def main() -> None:
    """Answer until the input ends."""
    side, base, device = sys.argv[1:]
    mine = Refpeft(base, device) if side == "refpeft" else HuggingFace(base, side.removeprefix("hf-"), device)
    key, run = None, None
    for line in sys.stdin:
        job = json.loads(line)
        if job != key:  # the first time: prepared, and once not counted
            key = job
            made = matrix_product if job["do"] == "matrix_product" else getattr(mine, job["do"])
            run = made(job)
            run()
        start = time.perf_counter()
        value = run()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "value": value, "peak_gigabytes": mine.peak()}), flush=True)


if __name__ == "__main__":
    main()
