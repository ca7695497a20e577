"""What a name means: a clause of specs/, a golden case, a stage or step, a question, a property, a known mistake."""

from __future__ import annotations

import difflib
import inspect

from refpeft.oracle import names, questions
from refpeft.oracle.budget import MEANINGFUL_BITS, PROFILES, agreement, meaningful
from refpeft.oracle.cases import ask_of, stages_of
from refpeft.oracle.clauses import clause_title, clauses, fitted, hanging, traceability
from refpeft.oracle.kill_matrix import kill_matrix
from refpeft.oracle.mutants import MUTANTS, Mutant
from refpeft.oracle.traced import named, place_of, what_it_has
from refpeft.oracle.vectors import Vector, all_vectors, golden_directory, matches
from refpeft.steps import STEPS, Step

USAGE = (
    "Say what to explain: a clause (PX-2), a page of clauses (PX), a question (forward), a stage, step or tensor "
    "(prefix.layers.0.key), a known mistake (M16), a property (T26), or a case."
)
BARE = ("draws", "parameters", "gradients", "trained")
"""What stands before the first dot of tensors that are no stage."""


def explain(topic: str) -> str:
    """The explanation of any name that refpeft prints, in lines of at most 100 characters where it is prose.

    That is a clause's label, a page's two letters, a question, a known mistake, a property, a stage, step or tensor, or a case.

    Raises:
        LookupError: the name means nothing; the message names what is near it.
    """
    topic = topic.strip()
    if not topic:
        raise LookupError(USAGE)
    labels = clauses()
    if topic.upper() in labels:
        said = (_text(topic.upper(), labels), what_it_has(topic.upper()))
        return "\n\n".join(filter(None, said))
    page = [label for label in labels if label.startswith(f"{topic.upper()}-")]
    if page:
        page.sort(key=lambda label: int(label.partition("-")[2]))
        return "\n".join([labels[label].splitlines()[0] for label in page])
    if topic in questions.QUESTIONS:
        return _question(topic, labels)
    if topic.upper() in MUTANTS:
        return _mutant(MUTANTS[topic.upper()], labels)
    if topic.upper() in traceability().properties:
        return _property(topic.upper())
    step = STEPS.get(topic) or names.step_of(topic)
    if step is not None:
        return _step(step, labels)
    tensor = f"{topic.rstrip('.*…')}.*" if topic.rstrip(".*…") in BARE else topic
    if names.is_known(tensor):
        return _tensor(tensor, labels)
    return _case(topic, labels)


def _text(label: str, labels: dict[str, str]) -> str:
    """A clause as it is shown below something else, or its label where the pages have none of that name."""
    return fitted(labels.get(label, label))


def _property(number: str) -> str:
    """A property: its statement, which clauses it speaks for, which mistakes it notices, and where it is tested."""
    table = traceability()
    title, _, statement = table.properties[number].partition(": ")
    speaks = [label for label, row in table.clauses.items() if number in row.properties]
    speaks.sort(key=lambda label: (label[:2], int(label[3:])))
    lines = [f"property {number}: {title}", "", hanging(statement, "  "), ""]
    lines += ["fails, without any value of HF's, under known mistakes of"] if speaks else []
    lines += [f"  {clause_title(label)}" for label in speaks]
    mistakes = table.noticed.get(number, [])
    lines += ["namely", *named({name: MUTANTS[name].title for name in mistakes})] if mistakes else []
    lines += ["tested on drawn models and inputs of every family to which it applies:"]
    return "\n".join([*lines, f"  pytest tests/identities -k {number.lower()}"])


def _mutant(mutant: Mutant, labels: dict[str, str]) -> str:
    """A known mistake: what is done instead, why, which steps it replaces, which cases decide it best."""
    matrix, doc = kill_matrix(golden_directory()), (mutant.make.__doc__ or "").strip()
    deciding = matrix.deciding(mutant.id, "float32")
    deciding.sort(key=lambda case: -matrix.margin(case, mutant.id, "bfloat16"))
    lines = [
        f"mistake {mutant.id}: {mutant.title}",
        "",
        hanging(f"what is computed instead: {doc}", "  "),
        hanging(f"why people make it: {mutant.why}", "  "),
        *([hanging(f"seen: {mutant.seen}", "  ")] if mutant.seen else []),
        hanging(f"steps: {', '.join(mutant.make())}", "  "),
        f"decided by {len(deciding)} cases in float32, among them:",
        *(f"  {case}" for case in deciding[:5]),
    ]
    noticing = [number for number, mistakes in traceability().noticed.items() if mutant.id in mistakes]
    lines += (
        [f"noticed without any value of HF's by the properties {', '.join(noticing)}"] if noticing else []
    )
    return "\n".join([*lines, "", _text(mutant.clause, labels)])


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
        lines.append(f"to ask it: refpeft check -k {case.id} -- PORT")
        lines += ["", "clauses:"]
        lines += [f"  {labels[c].splitlines()[0]}" if c in labels else f"  {c}" for c in case.clauses]
        return "\n".join(lines)
    if chosen:
        return "\n".join([f"{len(chosen)} cases:", *(f"  {c.id}  {c.title}" for c in chosen)])
    known = [*labels, *questions.QUESTIONS, *STEPS, *MUTANTS, *traceability().properties, *cases]
    near = difflib.get_close_matches(topic, known, 3, 0.4)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise LookupError(
        f"{topic!r} is no clause, question, stage, step, known mistake, property or case.{hint}"
    )


def _trajectory(vector: Vector) -> str:
    """How long the case's trajectory means something in float32 (clause TR-8), measured now."""
    bits = agreement(ask_of(vector), PROFILES["float32"])
    return hanging(
        f"trajectory: float32 replays agree to {bits[0]:.0f} bits after the first step, and to {bits[-1]:.0f} after the "
        f"last; {meaningful(bits)} of {len(bits)} steps mean something ({MEANINGFUL_BITS} bits or more, TR-8)",
        "  ",
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
        hanging(
            f"level {question.level}; methods {', '.join(question.methods)}; required: {required}; {len(vectors)} cases",
            "  ",
        ),
        "",
        hanging(f"given: {given}", "  "),
        "",
        hanging(f"wanted (required in **bold**): {wanted}", "  "),
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
    return f"tensor {name}{': ' if where else ''}{where} (PP-4)\n\n{_text(clause, labels)}"


def _step(step: Step, labels: dict[str, str]) -> str:
    recorded = f"stage {step.stage or 'not recorded'}; axes ({', '.join(step.axes)}); compared as {step.kind}"
    lines = [hanging(f"step {step.name}; {recorded}", "  "), f"code: {' '.join(place_of(step))}"]
    lines += [hanging(f"HF: {step.source}", "  "), "", fitted(inspect.getdoc(step.definition) or "")]
    return "\n".join([*lines, "", _text(step.clause, labels)])
