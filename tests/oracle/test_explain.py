"""Every kind of name is explained; what is unknown is guessed at."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import EVERY_CASE

from refpeft.oracle import explain as module
from refpeft.oracle.explain import clause_title, clauses, explain, specs_directory
from refpeft.oracle.questions import QUESTIONS
from refpeft.oracle.vectors import VectorError, all_vectors
from refpeft.steps import STEPS


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pages of specs that a test may change."""
    (tmp_path / "protocol.md").write_text(
        "# Page\n\n### TY-1 One\n\ntext\n\n## Section\n\nmore\n\n### TY-2 Two\n\nlast\n"
    )
    (tmp_path / "b.md").write_text("### TY-10 Ten: `x`\n\n#### inside\n\n### not a clause\n")
    monkeypatch.setattr(module, "specs_directory", lambda: tmp_path)
    return tmp_path


def test_clauses_end_at_the_next_heading(pages: Path) -> None:
    assert clauses() == {
        "TY-10": "TY-10 Ten: `x`\n\n#### inside\n\n### not a clause\n\n(specs/b.md)",
        "TY-1": "TY-1 One\n\ntext\n\n(specs/protocol.md)",
        "TY-2": "TY-2 Two\n\nlast\n\n(specs/protocol.md)",
    }
    assert explain("ty-10") == explain("TY-10") == clauses()["TY-10"]
    (pages / "c.md").write_text("### TY-2 Again\n")
    with pytest.raises(LookupError) as caught:
        clauses()
    assert caught.value.args == ("The clause TY-2 stands twice in specs/.",)


def test_pages_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "refpeft/oracle/explain.py"))
    with pytest.raises(LookupError) as caught:
        specs_directory()
    assert caught.value.args == (
        "The pages of specs/ are not installed. Reinstall refpeft, or run from a complete checkout.",
    )
    for place in (tmp_path / "specs", tmp_path / "refpeft/specs"):
        place.mkdir(parents=True)
        (place / "protocol.md").touch()
        assert specs_directory() == place, "those inside the package come first"


@pytest.mark.parametrize("topic", ["PX-2", "px-2"])
def test_a_clause(topic: str) -> None:
    said = explain(topic)
    assert said.startswith("PX-2 ")
    assert said.endswith("(specs/prefix-tuning.md)")
    assert "### " not in said
    assert clause_title("PX-2") == said.split("\n")[0]
    assert clause_title("TY-9") == "TY-9"


def test_a_question() -> None:
    """Its row of PP-4, the clauses of its cases, and what is welcome besides."""
    cases = [v.case for v in all_vectors() if v.case.question == "prefix.encode"]
    about = {label for case in cases for label in case.clauses}
    assert explain("prefix.encode") == (
        "question prefix.encode: virtual tokens to each layer's keys and values\n"
        f"level components; methods prefix_tuning; required: prefix.layers.*; {len(cases)} cases\n\n"
        "given: `config`, `arguments.batch_size`, and where a base model cuts the prefix `arguments.sliding_windows`: each "
        "layer's window, or null (PX-9); `inputs`: `parameters.*`\n\n"
        "wanted (required in **bold**): **`prefix.layers.{i}.key`** and **`prefix.layers.{i}.value`**, each (batch, "
        "kv_heads, virtual, head_dim), in a layer with a window w only the last w − 1 virtual tokens; behind an encoder "
        "(`num_transformer_submodules` 2) those of the decoder's layers (PX-8)\n\n"
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
    assert explain(name) == f"tensor {name}: {said} (PP-4)\n\n{clauses()[clause]}"


@pytest.mark.parametrize("topic", ["trained", "trained.*", "trained…"])
def test_the_beginning_of_such_a_tensor(topic: str) -> None:
    assert (
        explain(topic) == f"tensor trained.*: required by the question training (PP-4)\n\n{clauses()['TR-1']}"
    )


@pytest.mark.parametrize("topic", ["TY", "ty", " ty "])
def test_the_clauses_of_a_page(pages: Path, topic: str) -> None:
    assert explain(topic) == "TY-1 One\nTY-2 Two\nTY-10 Ten: `x`"


@pytest.mark.parametrize("topic", ["", "  "])
def test_nothing_to_explain(topic: str) -> None:
    with pytest.raises(LookupError) as caught:
        explain(topic)
    assert str(caught.value.args[0]) == (
        "Say what to explain: a clause (PX-2), a page of clauses (PX), a question (forward), a stage, step or tensor "
        "(prefix.layers.0.key), a known mistake (M16), or a case."
    )


def test_a_training_case_says_how_long_it_means_something() -> None:
    said = explain("peft-0.21.2/prompt_tuning/training/constant").splitlines()
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
        "step prefix.key; stage prefix.layers.{layer}.key; axes (batch, kv_heads, virtual, head_dim); compared as composite\n"
        f"HF: {step.source}\n\n"
    )
    assert said.endswith(f"\n\n{clauses()[step.clause]}")
    assert (step.definition.__doc__ or "").strip() in said
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
        "'prefix.kye' is no clause, question, stage, step, known mistake or case. Did you mean prefix.key"
    )
    with pytest.raises(LookupError) as caught:
        explain("§§§§§§")
    assert caught.value.args == ("'§§§§§§' is no clause, question, stage, step, known mistake or case.",)
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
    assert lines[13].startswith("PX-2 ")


def test_a_mistake_that_nobody_was_seen_to_make() -> None:
    assert "seen:" not in explain("M02")
    assert "Did you mean M16" in str(_error("M166x"))


def _error(topic: str) -> LookupError:
    with pytest.raises(LookupError) as caught:
        explain(topic)
    return caught.value
