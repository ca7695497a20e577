"""What a name means: a clause of specs/, a golden case, a stage or step, a question, a known mistake."""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path

from refpeft.oracle import names, questions
from refpeft.oracle.budget import MEANINGFUL_BITS, PROFILES, agreement, meaningful
from refpeft.oracle.cases import ask_of, stages_of
from refpeft.oracle.kill_matrix import kill_matrix
from refpeft.oracle.mutants import MUTANTS, Mutant
from refpeft.oracle.vectors import Vector, all_vectors, golden_directory, matches
from refpeft.steps import STEPS, Step

USAGE = (
    "Say what to explain: a clause (PX-2), a page of clauses (PX), a question (forward), a stage, step or tensor "
    "(prefix.layers.0.key), a known mistake (M16), or a case."
)
BARE = ("draws", "parameters", "gradients", "trained")
"""What stands before the first dot of tensors that are no stage."""
CLAUSE = re.compile(r"^### ([A-Z]{2}-\d+) (.*)$", re.MULTILINE)
"""The heading of a clause."""


def specs_directory() -> Path:
    """The pages of specs/: inside the installed package, or in the checkout.

    Raises:
        LookupError: there are none.
    """
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "specs", package.parent / "specs"):
        if (candidate / "protocol.md").is_file():
            return candidate
    raise LookupError(
        "The pages of specs/ are not installed. Reinstall refpeft, or run from a complete checkout."
    )


def clauses() -> dict[str, str]:
    """Every clause by label: its heading, text, and the page it stands on.

    Raises:
        LookupError: a label stands twice.
    """
    found: dict[str, str] = {}
    for page in sorted(specs_directory().glob("*.md")):
        text = page.read_text(encoding="utf-8")
        headings = list(CLAUSE.finditer(text))
        ends = [*(h.start() for h in headings[1:]), len(text)]
        for heading, end in zip(headings, ends, strict=False):
            label = heading[1]
            if label in found:
                raise LookupError(f"The clause {label} stands twice in specs/.")
            body = text[heading.end() : end]
            body = re.split(r"^## ", body, maxsplit=1, flags=re.MULTILINE)[0].strip()
            found[label] = f"{label} {heading[2]}\n\n{body}\n\n(specs/{page.name})"
    return found


@functools.cache
def _titles() -> dict[str, str]:
    try:
        return {label: text.split("\n", 1)[0] for label, text in clauses().items()}
    except LookupError:
        return {}


def clause_title(label: str) -> str:
    """A clause's label with its title, or the label alone where the pages are not installed."""
    return _titles().get(label, label)


def explain(topic: str) -> str:
    """The explanation of a clause's label, a page's two letters, a case's id, a question, or a stage, step or tensor.

    Raises:
        LookupError: the name means nothing; the message names what is near it.
    """
    topic = topic.strip()
    if not topic:
        raise LookupError(USAGE)
    labels = clauses()
    if topic.upper() in labels:
        return labels[topic.upper()]
    page = [label for label in labels if label.startswith(f"{topic.upper()}-")]
    if page:
        page.sort(key=lambda label: int(label.partition("-")[2]))
        return "\n".join([labels[label].splitlines()[0] for label in page])
    if topic in questions.QUESTIONS:
        return _question(topic, labels)
    if topic.upper() in MUTANTS:
        return _mutant(MUTANTS[topic.upper()], labels)
    step = STEPS.get(topic) or names.step_of(topic)
    if step is not None:
        return _step(step, labels)
    tensor = f"{topic.rstrip('.*…')}.*" if topic.rstrip(".*…") in BARE else topic
    if names.is_known(tensor):
        return _tensor(tensor, labels)
    return _case(topic, labels)


def _mutant(mutant: Mutant, labels: dict[str, str]) -> str:
    """A known mistake: what is done instead, why, which steps it replaces, which cases decide it best."""
    matrix, doc = kill_matrix(golden_directory()), (mutant.make.__doc__ or "").strip()
    deciding = matrix.deciding(mutant.id, "float32")
    deciding.sort(key=lambda case: -matrix.margin(case, mutant.id, "bfloat16"))
    lines = [
        f"mistake {mutant.id}: {mutant.title}",
        "",
        f"what is computed instead: {doc}",
        f"why people make it: {mutant.why}",
        *([f"seen: {mutant.seen}"] if mutant.seen else []),
        f"steps: {', '.join(mutant.make())}",
        f"decided by {len(deciding)} cases in float32, among them:",
        *(f"  {case}" for case in deciding[:5]),
    ]
    return "\n".join([*lines, "", labels.get(mutant.clause, mutant.clause)])


def _case(topic: str, labels: dict[str, str]) -> str:
    """One case, or the list of those that a part of an id fits."""
    vectors = {vector.case.id: vector for vector in all_vectors()}
    cases = {name: vector.case for name, vector in vectors.items()}
    chosen = [cases[topic]] if topic in cases else [c for i, c in cases.items() if matches(i, topic)]
    if len(chosen) == 1:
        case = chosen[0]
        lines = [
            case.id,
            case.title,
            "",
            f"question: {case.question} ({questions.QUESTIONS[case.question].title})",
        ]
        lines += [
            f"model: {case.model or 'none'}",
            f"sizes: {', '.join(f'{k} {v}' for k, v in case.dims.items())}",
        ]
        lines += [f"expected: {', '.join(case.tensors) or 'a document'}"]
        if case.question == "training":
            lines.append(_trajectory(vectors[case.id]))
        lines += ["", "clauses:"]
        lines += [f"  {labels[c].splitlines()[0]}" if c in labels else f"  {c}" for c in case.clauses]
        return "\n".join(lines)
    if chosen:
        return "\n".join([f"{len(chosen)} cases:", *(f"  {c.id}  {c.title}" for c in chosen)])
    known = [*labels, *questions.QUESTIONS, *STEPS, *MUTANTS, *cases]
    near = difflib.get_close_matches(topic, known, 3, 0.4)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise LookupError(f"{topic!r} is no clause, question, stage, step, known mistake or case.{hint}")


def _trajectory(vector: Vector) -> str:
    """How long the case's trajectory means something in float32 (clause TR-8), measured now."""
    bits = agreement(ask_of(vector), PROFILES["float32"])
    return (
        f"trajectory: float32 replays agree to {bits[0]:.0f} bits after the first step, and to {bits[-1]:.0f} after the "
        f"last; {meaningful(bits)} of {len(bits)} steps mean something ({MEANINGFUL_BITS} bits or more, TR-8)"
    )


def _question(name: str, labels: dict[str, str]) -> str:
    """A question's row of PP-4, its cases and clauses, and what may be answered besides."""
    question = questions.QUESTIONS[name]
    vectors = [vector for vector in all_vectors() if vector.case.question == name]
    given, wanted = _row(name, labels["PP-4"])
    about = sorted({label for vector in vectors for label in vector.case.clauses}, key=list(labels).index)
    required = ", ".join(p.replace("\\", "").replace(".*", "*") for p in question.required) or "a document"
    lines = [
        f"question {name}: {question.title}",
        f"level {question.level}; methods {', '.join(question.methods)}; required: {required}; {len(vectors)} cases",
        "",
        f"given: {given}",
        "",
        f"wanted (required in **bold**): {wanted}",
        "",
        "clauses:",
        *(f"  {labels[label].splitlines()[0]}" for label in about),
    ]
    stages = _welcome(name, vectors)
    lines += (
        ["", "welcome besides, to see where a difference begins:", *(f"  {s}" for s in stages)]
        if stages
        else []
    )
    return "\n".join([*lines, "", "(specs/protocol.md, PP-4)"])


def _row(question: str, table: str) -> tuple[str, str]:
    """What PP-4 says is given and wanted."""
    row = next(line for line in table.splitlines() if line.startswith(f"| `{question}` |"))
    *_, given, wanted = row.strip("| ").split(" | ")
    return given, wanted


def _welcome(question: str, vectors: list[Vector]) -> list[str]:
    """The stages that may be answered though they need not be, each once, in the order of computation."""
    found: list[str] = []
    for vector in vectors:
        place = 0
        for name in stages_of(vector) if vector.case.document is None else ():
            step = names.step_of(name)
            stage = step.stage if step else name
            if questions.is_required(question, name):
                continue
            if stage not in found:
                found.insert(place, stage)
            place = found.index(stage) + 1
    return found


def _tensor(name: str, labels: dict[str, str]) -> str:
    """A tensor of the protocol that is no stage: the questions it belongs to, and its clause."""
    clause = names.clause_of(name)
    required = [question for question in questions.QUESTIONS if questions.is_required(question, name)]
    lines = [f"required by the question{'s' * (len(required) > 1)} {', '.join(required)}"] if required else []
    asking = {vector.case.question for vector in all_vectors() if name in vector.case.tensors}
    welcome = [question for question in questions.QUESTIONS if question in asking - set(required)]
    lines += [f"welcome in answers to {', '.join(welcome)}"] if welcome else []
    if name.startswith(questions.PARAMETERS):
        lines.append("given, as inputs, by the other questions about trainable parameters")
    where = "; ".join(lines)
    return f"tensor {name}{': ' if where else ''}{where} (PP-4)\n\n{labels.get(clause, clause)}"


def _step(step: Step, labels: dict[str, str]) -> str:
    recorded = step.stage or "not recorded"
    doc = (step.definition.__doc__ or "").strip()
    return (
        f"step {step.name}; stage {recorded}; axes ({', '.join(step.axes)}); compared as {step.kind}\n"
        f"HF: {step.source}\n\n{doc}\n\n{labels.get(step.clause, step.clause)}"
    )
