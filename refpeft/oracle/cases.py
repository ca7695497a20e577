"""A golden case as a question to a port: what is asked, in which order, of which ports, and what can be compared."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from refpeft.config import CONFIG_NAME, TASK_TYPES
from refpeft.errors import RefpeftError
from refpeft.files import read_json_object
from refpeft.oracle.protocol import StartAnswer
from refpeft.oracle.questions import COMMON, QUESTIONS, Ask, answer
from refpeft.oracle.vectors import Vector, VectorError, golden_directory, read_vector
from refpeft.transformer.config import ModelConfig


def ask_of(vector: Vector) -> Ask:
    """A golden case as a question."""
    case = vector.case
    arguments = dict(case.arguments)
    if "tokenizer" in arguments:
        arguments["tokenizer"] = str(golden_directory(vector.directory) / arguments["tokenizer"])
    return Ask(
        question=case.question,
        method=case.method,
        config=case.config,
        arguments=arguments,
        inputs=vector.inputs,
        model=vector.model_directory,
        adapter=vector.adapter_directory,
    )


@contextlib.contextmanager
def damage_is_told(vector: Vector) -> Iterator[None]:
    """A case may contradict itself in any way; what then goes wrong while it is asked or judged is an error about it.

    Raises:
        VectorError: anything but refpeft's own errors was raised.
    """
    try:
        yield
    except RefpeftError:
        raise
    except Exception as error:
        raise VectorError(
            f"'{vector.directory}' cannot be asked and judged ({type(error).__name__}: {error}). Is the case damaged? If "
            "it came with refpeft, please report this."
        ) from error


def in_order(vectors: Iterable[Vector]) -> list[Vector]:
    """The vectors from the least that a port can do to the most, so that the first failure is the simplest.

    Raises:
        VectorError: a case asks a question that does not exist.
    """
    rank = {name: number for number, name in enumerate(QUESTIONS)}
    vectors = list(vectors)
    for vector in vectors:
        if vector.case.question not in rank:
            raise VectorError(
                f"'{vector.directory}' asks {vector.case.question!r}; this refpeft knows {', '.join(rank)}."
            )
    return sorted(vectors, key=lambda vector: (rank[vector.case.question], vector.case.id))


@functools.lru_cache(maxsize=64)
def family_of_model(directory: Path) -> str:
    """The family of a base model: what a port must list to be asked about it."""
    return ModelConfig.from_pretrained(directory).family


@functools.lru_cache(maxsize=1024)
def _stages(directory: Path) -> tuple[str, ...]:
    return tuple(answer(ask_of(read_vector(directory))).tensors)


def stages_of(vector: Vector) -> list[str]:
    """Every tensor of a case that can be compared, in the order of computation."""
    if vector.truth == "refpeft":
        return list(vector.case.tensors)
    return list(dict.fromkeys([*_stages(vector.directory), *vector.case.tensors]))


def task_of(vector: Vector) -> str | None:
    """The task type that a case's configuration names, known or not; None where there is none."""
    case, adapter = vector.case, vector.adapter_directory
    config: Any = case.config
    if case.question == "config.resolve":
        config = case.arguments.get("config")
    elif adapter is not None:
        config = read_json_object(adapter / CONFIG_NAME, "the adapter's configuration")
    task = config.get("task_type") if isinstance(config, dict) else None
    return task if isinstance(task, str) else None


def can_answer(abilities: StartAnswer, vector: Vector) -> bool:
    """Whether the port says that it can do what a case asks."""
    case = vector.case
    family = family_of_model(vector.model_directory) if vector.model_directory else None
    task = task_of(vector)
    return (
        case.question in abilities.questions
        and case.method in {*abilities.methods, COMMON}
        and (family is None or family in abilities.families)
        and (task not in TASK_TYPES or task in abilities.tasks)
    )
