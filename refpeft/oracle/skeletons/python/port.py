"""A port of HF peft's Prompt Tuning and Prefix Tuning, as refpeft asks it.

From top to bottom: the answers (this is where the port grows), tensors in files, the protocol. README.md says how to
judge it, NEXT.md what to write next.
"""

import json
import sys
import traceback
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

# ------------------------------------------------------------------------------------------------------------- answers


def mask(request):
    """The mask over virtual and real tokens: (batch, tokens) -> (batch, virtual + tokens)."""
    batch, virtual = request["arguments"]["batch_size"], request["arguments"]["num_virtual_tokens"]
    ones = np.ones((batch, virtual), dtype=request["dtype"])
    given = read_inputs(request).get("attention_mask")
    extended = ones if given is None else np.concatenate([ones, given], axis=1)
    return write_tensors(request, {"inputs.attention_mask": extended})


# A question's function gets the message `run` and returns its answer: write_tensors(…), or {"document": {…}},
# {"adapter": "a directory below output"}, {"skipped": {"message": "…"}} (`refpeft explain PP-3`).
ANSWERS = {
    "mask": mask,
}

# What is not written yet, in the order of writing, and the clause to read first.
NOT_YET = {
    "inputs": "PO-1",
    "prefix.encode": "PX-4",
    "attention": "AT-2",
    "forward": "TK-2",
    "gradients": "TK-3",
    "training": "TR-1",
    "generate": "GN-1",
    "checkpoint.load": "CK-3",
    "checkpoint.save": "CK-1",
    "config.resolve": "CF-3",
    "init": "PT-5",
    "random": "PT-4",
}

ABILITIES = {
    "version": 1,
    "implementation": {"name": "my-port", "language": "python", "version": "0.1"},
    "families": ["gpt2"],
    "methods": ["prompt_tuning", "prefix_tuning"],
    "tasks": ["CAUSAL_LM"],
    "questions": [*ANSWERS, *NOT_YET],
    "profiles": ["float32", "float64"],
}

# ------------------------------------------------------------------------------------------------------------- tensors


def read_inputs(request):
    """The input tensors by name: real numbers in the wanted dtype, integers and booleans as they are."""
    if request["inputs"] is None:
        return {}
    return {
        name: tensor.astype(request["dtype"]) if tensor.dtype.kind == "f" else tensor
        for name, tensor in load_file(request["inputs"]).items()
    }


def write_tensors(request, tensors):
    """Write an answer's tensors by name, and say where they are."""
    arrays = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
    save_file(arrays, Path(request["output"]) / "answer.safetensors")
    return {"tensors": "answer.safetensors"}


# ------------------------------------------------------------------------------------------------------------ protocol


def respond(message):
    """The answer to a message."""
    if message["cmd"] == "start":
        return ABILITIES
    if message["cmd"] != "run":
        return {"seq": message.get("seq", -1), "errored": {"message": f"unknown command {message['cmd']}"}}
    question = message["question"]
    if question in ANSWERS:
        return {"seq": message["seq"], **ANSWERS[question](message)}
    clause = NOT_YET.get(question, "PP-4")
    why = f"{question} is not written yet: read `refpeft explain {clause}`, then write it in port.py"
    return {"seq": message["seq"], "skipped": {"message": why}}


def main():
    """Answer each line of standard input with a line on standard output."""
    # What is printed elsewhere must not come between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin.buffer:
        message = {}
        try:
            message = json.loads(line)
            if message["cmd"] == "stop":
                return
            answer = respond(message)
        except Exception as error:
            why = {"message": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            answer = {"seq": message.get("seq", -1), "errored": why}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
