"""Every kind of name is explained; what is unknown is guessed at."""

from __future__ import annotations

import re

import pytest
from support import EVERY_CASE

from refpeft.oracle import explain as module
from refpeft.oracle.clauses import Traceability, Traced, clause_title, clauses, fitted
from refpeft.oracle.explain import explain
from refpeft.oracle.questions import QUESTIONS
from refpeft.oracle.traced import place_of, what_it_has
from refpeft.oracle.vectors import VectorError, all_vectors
from refpeft.steps import STEPS


@pytest.mark.parametrize("topic", ["PX-2", "px-2"])
def test_a_clause(topic: str) -> None:
    """As it stands on its page, and then what it has."""
    text = fitted(clauses()["PX-2"])
    assert text.startswith("PX-2 The flat row\n\nWithout projection, the table itself.")
    assert text.endswith("\n\n(specs/prefix-tuning.md)")
    assert explain(topic) == f"{text}\n\n{what_it_has('PX-2')}"


def test_a_clause_that_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "what_it_has", lambda label: "")
    assert explain("PX-2") == fitted(clauses()["PX-2"])


def test_a_question() -> None:
    """Its row of PP-4, the clauses of its cases, and what is welcome besides."""
    cases = [v.case for v in all_vectors() if v.case.question == "prefix.encode"]
    about = {label for case in cases for label in case.clauses}
    assert explain("prefix.encode") == (
        "question prefix.encode: virtual tokens to each layer's keys and values\n"
        f"level components; methods prefix_tuning; required: prefix.layers.*; {len(cases)} cases\n\n"
        "given: `config`, `arguments.batch_size`, and where a base model cuts the prefix\n"
        "  `arguments.sliding_windows`: each layer's window, or null (PX-9); `inputs`: `parameters.*`\n\n"
        "wanted (required in **bold**): **`prefix.layers.{i}.key`** and **`prefix.layers.{i}.value`**, each\n"
        "  (batch, kv_heads, virtual, head_dim), in a layer with a window w only the last w − 1 virtual\n"
        "  tokens; behind an encoder (`num_transformer_submodules` 2) those of the decoder's layers (PX-8)\n\n"
        "clauses:\n"
        + "".join(f"  {clause_title(label)}\n" for label in clauses() if label in about)
        + "\nwelcome besides, to see where a difference begins:\n"
        "  prefix.projection_hidden\n  prefix.projection_activation\n  prefix.flat\n\n"
        "(specs/protocol.md, PP-4)"
    )
    assert "; required: a document; " in explain("config.resolve")
    assert "welcome besides" not in explain("config.resolve")
    for name in QUESTIONS if EVERY_CASE else ("mask", "random", "inputs", "checkpoint.save"):
        assert explain(name).startswith(f"question {name}: ")


def test_what_is_welcome_stands_in_the_order_of_computation() -> None:
    lines = explain("training").split("begins:\n")[1].splitlines()
    step = "training.steps.{step}"
    assert [line.strip() for line in lines if line.startswith("  ")] == [
        "training.learning_rates",
        *(
            f"{step}.{name}"
            for name in ("loss", "gradients.{parameter}", "gradient_norm", "clip_coefficient")
        ),
        *(f"{step}.{name}.{{parameter}}" for name in ("exp_avg", "exp_avg_sq", "parameters")),
        "training.gradient_norms",
    ]
    forward = explain("forward")
    places = [forward.index(f"\n  {stage}\n") for stage in ("prefix.flat", "prefix.layers.{layer}.key", "{stack}.visible", "{stack}.layers.{layer}.{attention}.scores", "{stack}.final_norm")]  # fmt: skip
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("name", "said", "clause"),
    [
        ("training.losses", "required by the question training", "TR-5"),
        ("training.learning_rates", "welcome in answers to training", "TR-2"),
        ("trained.prompt_encoder.embedding.weight", "required by the question training", "TR-1"),
        ("draws.0", "required by the question random", "PT-4"),
        ("gradients.prompt_encoder.transform.0.weight", "required by the question gradients", "PX-2"),
        (
            "parameters.prompt_encoder.transform.0.weight",
            "required by the question init; given, as inputs, by the other questions about trainable parameters",
            "PX-6",
        ),
        ("prompt_embeddings", "required by the question checkpoint.save", "CK-1"),
    ],
)
def test_a_tensor_that_is_no_stage(name: str, said: str, clause: str) -> None:
    assert explain(name) == f"tensor {name}: {said} (PP-4)\n\n{fitted(clauses()[clause])}"


@pytest.mark.parametrize("topic", ["trained", "trained.*", "trained…"])
def test_the_beginning_of_such_a_tensor(topic: str) -> None:
    assert (
        explain(topic)
        == f"tensor trained.*: required by the question training (PP-4)\n\n{fitted(clauses()['TR-1'])}"
    )


@pytest.mark.parametrize("topic", ["CK", "ck", " ck "])
def test_the_clauses_of_a_page(topic: str) -> None:
    assert explain(topic) == "\n".join(clause_title(f"CK-{number}") for number in range(1, 5))
    assert explain("JG").splitlines()[9] == clause_title("JG-10")


@pytest.mark.parametrize("topic", ["", "  "])
def test_nothing_to_explain(topic: str) -> None:
    with pytest.raises(LookupError) as caught:
        explain(topic)
    assert str(caught.value.args[0]) == (
        "Say what to explain: a clause (PX-2), a page of clauses (PX), a question (forward), a stage, step or tensor "
        "(prefix.layers.0.key), a known mistake (M16), a property (T26), or a case."
    )


def test_a_training_case_says_how_long_it_means_something() -> None:
    said = (
        explain("peft-0.21.2/prompt_tuning/training/constant")
        .replace("\n  10 steps", " 10 steps")
        .splitlines()
    )
    (line,) = [line for line in said if line.startswith("trajectory: ")]
    assert re.fullmatch(
        r"trajectory: float32 replays agree to 2[234] bits after the first step, and to 2[012] after the last; "
        r"10 of 10 steps mean something \(12 bits or more, TR-8\)",
        line,
    )
    assert not any(
        line.startswith("trajectory") for line in explain("prompt_tuning/gradients/left-padding").splitlines()
    )


def test_a_step_and_its_stages() -> None:
    step = STEPS["prefix.key"]
    said = explain("prefix.key")
    assert said.startswith(
        "step prefix.key; stage prefix.layers.{layer}.key; axes (batch, kv_heads, virtual, head_dim);\n  compared as composite\n"
        f"code: {' '.join(place_of(step))}\nHF: {step.source}\n\n"
    )
    assert said.endswith(f"\n\n{fitted(clauses()[step.clause])}")
    assert (
        "\n\nThe order of the virtual tokens cannot be seen in GPT-2's logits (clause AT-6), only here.\n\n"
        in said
    )
    assert explain("prefix.layers.2.key") == said
    assert explain("prefix.key_row").startswith("step prefix.key_row; stage not recorded; axes ()")
    assert all(explain(name) for name in STEPS)


def test_a_case() -> None:
    vector = next(v for v in all_vectors() if v.case.id.endswith("prompt_tuning/forward/left-padding"))
    case = vector.case
    lines = explain(case.id).splitlines()
    sizes = ", ".join(f"{name} {size}" for name, size in case.dims.items())
    assert lines == [
        case.id,
        case.title,
        "",
        "question: forward (logits, or what the task gives, and loss)",
        f"model: {case.model}",
        f"sizes: {sizes}",
        "expected: logits, loss",
        f"to ask it: refpeft check -k {case.id} -- PORT",
        "",
        "clauses:",
        *(f"  {clause_title(label)}" for label in case.clauses),
    ]
    assert explain("prompt_tuning/forward/left-pad") == explain(case.id), "a part that fits one"
    assert "model: none\n" in explain("common/mask/full")
    assert "expected: a document\n" in explain("prefix_tuning/config/minimal")


def test_the_whole_id_comes_before_ids_that_contain_it() -> None:
    whole = "peft-0.21.2/prefix_tuning/forward/left-padding"
    assert sum(whole in v.case.id for v in all_vectors()) > 1
    assert explain(whole).startswith(f"{whole}\n")


def test_a_part_that_fits_several_cases() -> None:
    chosen = [v.case for v in all_vectors() if "/mask/" in v.case.id]
    assert len(chosen) > 2
    assert explain("/mask/").splitlines() == [
        f"{len(chosen)} cases:",
        *(f"  {case.id}  {case.title}" for case in chosen),
    ]
    assert explain("*/common/mask/*") == explain("/mask/")


def test_what_is_unknown() -> None:
    with pytest.raises(LookupError) as caught:
        explain("prefix.kye")
    message = caught.value.args[0]
    assert message.startswith(
        "'prefix.kye' is no clause, question, stage, step, known mistake, property or case. Did you mean prefix.key"
    )
    with pytest.raises(LookupError) as caught:
        explain("§§§§§§")
    assert caught.value.args == (
        "'§§§§§§' is no clause, question, stage, step, known mistake, property or case.",
    )
    assert not isinstance(caught.value, VectorError)


def test_a_known_mistake() -> None:
    lines = explain("m16").splitlines()
    assert lines[:6] == [
        "mistake M16: relu instead of tanh in the projection",
        "",
        "what is computed instead: Relu between the two linear maps.",
        "why people make it: the projection of P-tuning has relu",
        "seen: peft-rs (prefix_tuning.rs)",
        "steps: prefix.projection_activation",
    ]
    assert lines[6].startswith("decided by ")
    assert lines[6].endswith(" cases in float32, among them:")
    assert all(line.startswith("  peft-0.21.2/prefix_tuning/") for line in lines[7:12])
    assert lines[12].startswith("noticed without any value of HF's by the properties ")
    assert lines[14].startswith("PX-2 ")


def table(monkeypatch: pytest.MonkeyPatch, noticed: dict[str, list[str]]) -> None:
    """A table of a test's own."""
    rows = {
        "GN-10": Traced([], [], ["T26"], [], [], {}),
        "GN-2": Traced([], [], ["T26", "T5"], [], [], {}),
        "AT-3": Traced([], [], ["T26"], [], [], {}),
    }
    properties = {
        "T26": "prefix of real tokens: logits(x | prefix = cache of c) = base(c ∥ x)[n:]",
        "T5": "x: y",
    }
    monkeypatch.setattr(module, "traceability", lambda: Traceability(rows, properties, noticed))


@pytest.mark.parametrize("topic", ["T26", "t26"])
def test_a_property(monkeypatch: pytest.MonkeyPatch, topic: str) -> None:
    table(monkeypatch, {"T26": ["M01", "M174"]})
    assert (
        explain(topic)
        == """\
property T26: prefix of real tokens

logits(x | prefix = cache of c) = base(c ∥ x)[n:]

fails, without any value of HF's, under known mistakes of
  AT-3 Scores
  GN-2 Positions of the text
  GN-10 Without a cache beside a prefix
namely
  M01   all keys before all values
  M174  values in the place of keys
tested on drawn models and inputs of every family to which it applies:
  pytest tests/identities -k t26"""
    )


def test_a_property_that_notices_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "traceability", lambda: Traceability({}, {"T9": "x: y"}))
    assert explain("T9") == (
        "property T9: x\n\ny\n\ntested on drawn models and inputs of every family to which it applies:\n"
        "  pytest tests/identities -k t9"
    )


def test_every_property_of_the_table_is_explained() -> None:
    numbers = module.traceability().properties
    assert len(numbers) > 20
    for number in numbers:
        assert explain(number).startswith(f"property {number}: ")


def test_which_properties_notice_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    table(monkeypatch, {"T26": ["M16", "M01"], "T5": ["M16"], "T6": ["M01"]})
    lines = explain("M16").splitlines()
    assert lines[lines.index(fitted(clauses()["PX-2"]).splitlines()[0]) - 2] == (
        "noticed without any value of HF's by the properties T26, T5"
    )
    assert "noticed" not in explain("M70")


def test_a_mistake_that_nobody_was_seen_to_make() -> None:
    assert "seen:" not in explain("M02")
    assert "Did you mean M16" in str(_error("M166x"))


def _error(topic: str) -> LookupError:
    with pytest.raises(LookupError) as caught:
        explain(topic)
    return caught.value
