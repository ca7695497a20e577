"""How many numbers a model has, and how many of them are trained: HF's counts, quirks included.

Follows HF peft 0.21.2 `peft_model.py` (`PeftModel.get_nb_trainable_parameters`, `print_trainable_parameters`).
"""

from __future__ import annotations

import math

from refpeft import tasks
from refpeft.adapters import Adapters
from refpeft.arrays import Parameters
from refpeft.transformer.shapes import HEADS, parameter_shapes
from refpeft.transformer.weights import HEAD, TOKENS, BaseModel

_POOLER = HEADS + "pooler."
_FINAL_BIAS = "head.bias"


def base_parameters(base: BaseModel, task_type: str | None) -> int:
    """The numbers of the base model in HF's class for a task, each once. Clause AD-8.

    A directory may hold the heads of several tasks; HF's class has that of its own. Tied tables count once; buffers, BART's
    `final_logits_bias` among them, do not; Falcon's keys and values count as they are stored.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.get_nb_trainable_parameters`.
    """
    total = 0
    for name, shape in parameter_shapes(base.config).items():
        if _is_in_class(name, base, task_type):
            total += math.prod(shape) // _repeated(name, base)
    return total


def _is_in_class(name: str, base: BaseModel, task_type: str | None) -> bool:
    """Whether HF's class for the task has the parameter, as one of its own."""
    head = tasks.head_of(base, task_type)
    if name.startswith(_POOLER):
        return task_type == "FEATURE_EXTRACTION" or (head is not None and head.form == "pooler")
    if name.startswith(HEADS):
        return head is not None and name.removeprefix(HEADS) in tasks.head_tensors(head)
    if name in (HEAD, _FINAL_BIAS):
        language = task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM")
        buffer = name == _FINAL_BIAS and base.config.kind == "encoder_decoder"
        tied = name == HEAD and base.parameters.get(HEAD) is base.parameters[TOKENS]
        return language and not buffer and not tied
    return True


def _repeated(name: str, base: BaseModel) -> int:
    """How often Falcon repeats a key's or value's rows before its cache; the checkpoint holds them once."""
    stored = base.config.stored_key_value_heads
    fused = ".attention.key." in name or ".attention.value." in name
    return base.config.num_key_value_heads // stored if fused and stored else 1


def size_of(parameters: Parameters) -> int:
    """The numbers of some parameters.

    Source: torch's `Tensor.numel`.
    """
    return sum(math.prod(value.shape) for value in parameters.values())


def trainable_and_all(base: BaseModel, adapters: Adapters) -> tuple[int, int]:
    """HF's `get_nb_trainable_parameters`. Clauses AD-7 and AD-8.

    Trained are the prompt encoders of *all* adapters, and the copy of the head that is used, if it is trained. A head with
    copies counts once more for each of them: the base keeps its own.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.get_nb_trainable_parameters`.
    """
    every = adapters.every.values()
    prompts, heads = sum(size_of(own.prompt) for own in every), sum(size_of(own.head) for own in every)
    trained_head = {}
    if adapters.head is not None and adapters.head_trains:
        trained_head = dict(adapters.every[adapters.head].head)
    whole = base_parameters(base, adapters.config.task_type)
    return prompts + size_of(trained_head), whole + prompts + heads


def sentence(trainable: int, whole: int) -> str:
    """What HF's `print_trainable_parameters` prints.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.print_trainable_parameters`.
    """
    return f"trainable params: {trainable:,d} || all params: {whole:,d} || trainable%: {100 * trainable / whole:.4f}"
