"""The messages between refpeft and a port, and their JSON schema (specs/protocol.md)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from refpeft.config import TASK_TYPES

VERSION = 1
"""The version of the protocol."""
ProfileName = Literal["float32", "float64", "float64-islands", "tf32", "float16", "bfloat16"]
"""What a port may compute in (clause JG-4)."""

Dtype = Literal["float32", "float64", "float16", "bfloat16"]
"""What it reads inputs into and answers in (clause PP-3)."""


class StartCommand(msgspec.Struct, tag_field="cmd", tag="start", frozen=True, forbid_unknown_fields=True):
    """Clause PP-2."""

    version: int


class RunCommand(msgspec.Struct, tag_field="cmd", tag="run", frozen=True, forbid_unknown_fields=True):
    """Clause PP-3."""

    seq: int
    case: str
    question: str
    method: str
    dtype: Dtype
    model: str | None
    config: dict[str, Any] | None
    arguments: dict[str, Any]
    inputs: str | None
    adapter: str | None
    stages: list[str]
    output: str


class StopCommand(msgspec.Struct, tag_field="cmd", tag="stop", frozen=True, forbid_unknown_fields=True):
    """Clause PP-5."""


class Implementation(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a port says it is."""

    name: str
    language: str
    version: str
    homepage: str | None = None
    issues: str | None = None


class StartAnswer(msgspec.Struct, frozen=True):
    """What a port says it can do; clause PP-2."""

    version: int
    implementation: Implementation
    families: list[str]
    methods: list[str]
    questions: list[str]
    profiles: list[ProfileName]
    tasks: list[str] = msgspec.field(default_factory=lambda: list(TASK_TYPES))


class Skipped(msgspec.Struct, frozen=True, omit_defaults=True):
    """A question that the port does not answer, and why."""

    message: str
    issue_url: str | None = None


class Errored(msgspec.Struct, frozen=True, omit_defaults=True):
    """A question at which the port failed, and how."""

    message: str
    traceback: str | None = None


class RunAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Clause PP-3: one of the five ways to answer."""

    seq: int
    tensors: str | None = None
    document: dict[str, Any] | None = None
    adapter: str | None = None
    skipped: Skipped | None = None
    errored: Errored | None = None


class StrictStartAnswer(StartAnswer, frozen=True, forbid_unknown_fields=True):
    """With `--validate`: a key that the protocol does not have is an error."""


class StrictRunAnswer(RunAnswer, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """With `--validate`: a key that the protocol does not have is an error."""


def protocol_schema() -> bytes:
    """The JSON schema of every message: the contents of specs/protocol.schema.json."""
    messages = (StartCommand, RunCommand, StopCommand, StartAnswer, RunAnswer)
    (_, *_), components = msgspec.json.schema_components(messages, ref_template="#/$defs/{name}")
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"refpeft port protocol, version {VERSION}",
        "anyOf": [{"$ref": f"#/$defs/{message.__name__}"} for message in messages],
        "$defs": components,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
