"""What a port answers in JSON, and the adapter directories it writes, against what HF peft writes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from refpeft.checkpoint import TENSOR
from refpeft.config import CONFIG_NAME
from refpeft.files import read_json_object
from refpeft.oracle.answer_files import read_answer_tensors, require_plain
from refpeft.oracle.compare import Difference
from refpeft.oracle.questions import Answer

LONGEST_VALUE = 200
"""Characters of a configuration's value that are shown."""


def compare_document(expected: Mapping[str, Any], given: Any, truth: str = "HF peft") -> Difference:
    """A JSON answer, against `truth`'s: a configuration key for key, or a rejection."""

    def wrong(reason: str) -> Difference:
        return Difference(
            "document", ok=False, reason=reason, clause="CF-2" if "rejected" in expected else "CF-3"
        )

    if not isinstance(given, Mapping):
        return wrong(
            'is missing: answer with {"document": {"config": {…}}} or {"document": {"rejected": true}}'
        )
    if expected.get("rejected"):
        why = str(expected.get("message", ""))
        return (
            Difference("document", ok=True)
            if given.get("rejected") is True
            else wrong(f"accepts a configuration that {truth} rejects: {why}")
        )
    if given.get("rejected"):
        return wrong(f"rejects a configuration that {truth} accepts: {given.get('message', 'no message')}")
    wanted, found = expected["config"], given.get("config")
    if not isinstance(found, Mapping):
        return wrong("has no object `config`")
    for key in sorted({*wanted, *found}):
        if key not in found:
            return wrong(f"lacks the key `{key}`, which {truth} writes as {_shown(wanted[key])}")
        if key not in wanted:
            return wrong(f"has the key `{key}`, which {truth} does not write")
        if not _same(found[key], wanted[key]):
            return wrong(f"has `{key}` = {_shown(found[key])}; {truth} has {_shown(wanted[key])}")
    return Difference("document", ok=True, measure="exact")


def _shown(value: Any) -> str:
    """A value as JSON, its beginning if it is long."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + " …"


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON: 1 is 1.0, but true is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def read_adapter(answer: Answer, heads: Collection[str] = ()) -> tuple[Answer, list[Difference]]:
    """An adapter directory that the port wrote, as tensors and document. `heads`: the heads' tensors that HF saves beside."""
    if answer.adapter is None:
        reason = 'is missing: answer with {"adapter": "…"}, the directory that the port wrote'
        return answer, [Difference("adapter", ok=False, reason=reason, clause="CK-2")]
    try:
        tensors = read_answer_tensors(answer.adapter / "adapter_model.safetensors", "the adapter's weights")
        require_plain(answer.adapter / CONFIG_NAME, "the adapter's configuration")
        document = {"config": read_json_object(answer.adapter / CONFIG_NAME, "the adapter's configuration")}
    except (OSError, ValueError, RecursionError) as error:
        return answer, [Difference("adapter", ok=False, reason=f"cannot be read: {error}", clause="CK-2")]
    strange = sorted(set(tensors) - {TENSOR, *heads})
    problems = []
    if strange and TENSOR in tensors:  # else what is missing says what is there
        writes = f"the tensors {', '.join((TENSOR, *sorted(heads)))}" if heads else f"one tensor, {TENSOR}"
        reason = f"adapter_model.safetensors has {', '.join(strange)}; HF peft writes {writes}"
        problems = [Difference("adapter", ok=False, reason=reason, clause="CK-1")]
    return Answer(tensors, document, answer.adapter), problems
