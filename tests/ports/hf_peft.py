"""HF peft itself as a port: torch in plain float32, in float64 with HF's float32 islands, or in bfloat16.

Written against specs/protocol.md like anybody's port; it shares no code with golden/, so that the vectors are checked by a
second reading of HF. Run it as `refpeft check -- python tests/ports/hf_peft.py`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import hf_peft_answers as answers
import hf_peft_models as models
import peft
import torch
from hf_peft_refusals import refused
from peft.utils.other import _prepare_prompt_learning_config
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, get_scheduler
from transformers.utils import logging

logging.disable_progress_bar()
torch.set_num_threads(1)

DECODERS = (
    *("gpt2", "opt", "gpt_neox", "bloom", "gpt_bigcode", "falcon", "llama", "mistral", "qwen2", "qwen3"),
    *("gemma", "gemma2", "gemma3_text", "phi"),
)
ENCODERS, ENCODER_DECODERS = ("bert", "roberta", "electra"), ("t5", "bart")

Tensors = dict[str, torch.Tensor]


def forward(request: dict[str, Any], inputs: Tensors) -> Tensors:
    return answers.forward(models.load_model(request, inputs), inputs)


def gradients(request: dict[str, Any], inputs: Tensors) -> Tensors:
    model = models.load_model(request, inputs)
    loss = model(**answers.text(inputs, model.dtype)).loss
    loss.backward()
    return {"loss": loss} | {"gradients." + name: p.grad for name, p in models.parameters(model).items()}


def training(request: dict[str, Any], inputs: Tensors) -> Tensors:
    """Torch's AdamW and clipping, transformers' schedule, in the plain loop."""
    how, model = request["arguments"], models.load_model(request, inputs)
    trained = models.parameters(model)
    betas, epsilon = (how["adam_beta1"], how["adam_beta2"]), how["adam_epsilon"]
    decay = how["weight_decay"]
    optimizer = torch.optim.AdamW(trained.values(), how["learning_rate"], betas, epsilon, decay)
    schedule = get_scheduler(how["lr_scheduler_type"], optimizer, how["warmup_steps"], how["max_steps"])
    batches = answers.text(inputs, model.dtype)
    losses, rates, norms = [], [], []
    for step in range(how["max_steps"]):
        rates.append(schedule.get_last_lr()[0])
        losses.append(torch.tensor(0.0, dtype=torch.promote_types(model.dtype, torch.float32)))
        for micro_batch in range(how["gradient_accumulation_steps"]):
            number = (step * how["gradient_accumulation_steps"] + micro_batch) % len(batches["input_ids"])
            loss = model(**{name: tensor[number] for name, tensor in batches.items()}).loss
            loss = loss / how["gradient_accumulation_steps"]
            loss.backward()
            losses[-1] += loss.detach()
        gradients = [p.grad for p in trained.values()]
        norms.append(torch.nn.utils.get_total_norm(gradients))
        if how["max_grad_norm"]:
            torch.nn.utils.clip_grads_with_norm_(trained.values(), how["max_grad_norm"], norms[-1])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    series = {"losses": losses, "gradient_norms": norms, "learning_rates": [torch.tensor(r) for r in rates]}
    answer = {"training." + name: torch.stack(values) for name, values in series.items()}
    return answer | {"trained." + name: p for name, p in trained.items()}


def generate(request: dict[str, Any], inputs: Tensors) -> Tensors:
    given = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    options = {
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "output_scores": True,
    }
    with torch.no_grad():
        output = models.load_model(request, inputs).generate(**given, **options, **request["arguments"])
    answer = {"sequences": output.sequences}
    if request["arguments"].get("num_beams", 1) > 1:
        return answer | {"sequences_scores": output.sequences_scores}
    return answer | {"generation.logits": torch.stack(output.logits, dim=1)}


def prefix_encode(request: dict[str, Any], inputs: Tensors) -> Tensors:
    return answers.cache_tensors(models.make_prefix(request, inputs))


def init(request: dict[str, Any], inputs: Tensors) -> Tensors:
    config = dict(request["config"])
    if request["arguments"].get("tokenizer"):
        config["tokenizer_name_or_path"] = str(Path(request["arguments"]["tokenizer"]).parent)
    base = models.load_base(request, config["task_type"]) if request["model"] else None
    torch.manual_seed(request["arguments"]["seed"])
    if base is None:
        encoder = peft.PrefixEncoder(models.make_config(config))
        return {"parameters.prompt_encoder." + k: v for k, v in encoder.state_dict().items()}
    model = peft.get_peft_model(base, models.make_config(config))
    return {"parameters." + name: p for name, p in models.parameters(model).items()}


def random(request: dict[str, Any], inputs: Tensors) -> Tensors:
    torch.manual_seed(request["arguments"]["seed"])
    answer = {}
    for i, draw in enumerate(request["arguments"]["draws"]):
        if draw["kind"] == "normal":
            answer[f"draws.{i}"] = torch.empty(draw["shape"]).normal_()
        elif draw["kind"] == "uniform":
            answer[f"draws.{i}"] = torch.rand(draw["shape"])
        elif draw["kind"] == "randint":
            answer[f"draws.{i}"] = torch.randint(draw["low"], draw["high"], draw["shape"])
        elif draw["kind"] == "embedding":
            answer[f"draws.{i}.weight"] = torch.nn.Embedding(draw["rows"], draw["columns"]).weight
        else:
            layer = torch.nn.Linear(draw["inputs"], draw["outputs"])
            answer[f"draws.{i}.weight"], answer[f"draws.{i}.bias"] = layer.weight, layer.bias
    return answer


def checkpoint_load(request: dict[str, Any], inputs: Tensors) -> Tensors:
    return answers.forward(models.load_adapter(request), inputs)


def checkpoint_save(request: dict[str, Any], inputs: Tensors) -> Path:
    """Embeddings are none of an adapter's; whether HF adds them depends on a base model, which may be a stand-in."""
    model = models.make_to_save(request, inputs)
    model.save_pretrained(Path(request["output"]) / "adapter", save_embedding_layers=False)
    return Path(request["output"]) / "adapter"


def config_resolve(request: dict[str, Any], inputs: Tensors) -> dict[str, Any]:
    arguments = request["arguments"]
    try:
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / "adapter_config.json").write_text(json.dumps(arguments["config"]))
            config = peft.PeftConfig.from_pretrained(directory)
            if arguments["base_config"] is not None:
                (Path(directory) / "config.json").write_text(json.dumps(arguments["base_config"]))
                config = _prepare_prompt_learning_config(config, AutoConfig.from_pretrained(directory))
                if config.num_transformer_submodules is None:
                    config.num_transformer_submodules = 2 if config.task_type == "SEQ_2_SEQ_LM" else 1
    except (ValueError, TypeError, KeyError) as error:
        return {"rejected": True, "message": str(error)}
    return {"config": json.loads(json.dumps(asdict(config)))}


TENSORS = {
    "forward": forward,
    "gradients": gradients,
    "training": training,
    "generate": generate,
    "prefix.encode": prefix_encode,
    "init": init,
    "random": random,
    "checkpoint.load": checkpoint_load,
}


def run(request: dict[str, Any]) -> dict[str, Any]:
    inputs = load_file(request["inputs"]) if request["inputs"] else {}
    if request["question"] == "config.resolve":
        return {"document": config_resolve(request, inputs)}
    if request["question"] == "checkpoint.save":
        return {"adapter": checkpoint_save(request, inputs).name}
    answer = TENSORS[request["question"]](request, inputs)
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in answer.items()},
        Path(request["output"]) / "answer.safetensors",
    )
    return {"tensors": "answer.safetensors"}


def explain(request: dict[str, Any], error: Exception) -> dict[str, Any]:
    """A question that HF itself raises on is skipped; the rest are errors."""
    shown = {"message": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    try:
        base = json.loads((Path(request["model"]) / "config.json").read_text())
        adapter = request["config"] or peft.PeftConfig.from_pretrained(request["adapter"]).to_dict()
        asked = base["model_type"], request["method"], adapter["task_type"], request["question"]
    except (
        TypeError,
        ValueError,
        KeyError,
        OSError,
    ):  # no base model, or files that are broken: HF does not decide
        return {"errored": shown}
    message = refused(error, *asked)
    return {"skipped": {"message": message}} if message else {"errored": shown}


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["cmd"] == "stop":
            return
        if request["cmd"] == "start":
            answer = {
                "version": 1,
                "implementation": {"name": "hf-peft", "language": "python", "version": peft.__version__},
                "families": [*DECODERS, *ENCODERS, *ENCODER_DECODERS],
                "methods": ["prompt_tuning", "prefix_tuning"],
                "questions": [*TENSORS, "config.resolve", "checkpoint.save"],
                "profiles": ["float32", "float64-islands", "bfloat16"],
            }
        else:
            try:
                answer = {"seq": request["seq"], **run(request)}
            except Exception as error:
                answer = {"seq": request["seq"], **explain(request, error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
