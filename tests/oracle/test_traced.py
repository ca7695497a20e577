"""What a clause has is shown whole: where its code is, the cases to ask, its properties, and why a column is empty."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from refpeft import prefix_encoder
from refpeft.oracle import traced as module
from refpeft.oracle.clauses import WIDTH, Traceability, Traced, clauses
from refpeft.oracle.kill_matrix import DECIDED, kill_matrix
from refpeft.oracle.traced import best_cases, named, place_of, what_it_has
from refpeft.oracle.vectors import all_vectors
from refpeft.steps import STEPS

ROOT = Path(__file__).resolve().parents[2]
ENCODE, FORWARD = "peft-0.21.2/prefix_tuning/prefix_encode/", "peft-0.21.2/prefix_tuning/forward/"
WHY = "a reason that is long enough for two lines, as one that names tests and other pages of the specification is"


def made(monkeypatch: pytest.MonkeyPatch, **rows: Traced) -> None:
    """A table of a test's own."""
    table = Traceability(
        {label.replace("_", "-"): row for label, row in rows.items()},
        {"T26": "prefix of real tokens: logits(x) = base(c)", "T5": f"long: {'word ' * 25}"},
    )
    monkeypatch.setattr(module, "traceability", lambda: table)
    monkeypatch.chdir(ROOT)


def line_of(function: str) -> int:
    """Where a step's decorator stands."""
    lines = inspect.getsource(prefix_encoder).splitlines()
    (at,) = [n for n, line in enumerate(lines, 1) if line.startswith(f"def {function}(")]
    return max(n for n, line in enumerate(lines[:at], 1) if line.startswith("@step("))


def test_a_clause_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [f"{ENCODE}odd-layers", f"{ENCODE}gemma-odd-prefix-alone", f"{FORWARD}one-virtual-token"]
    live = ["test_live.py::test_agrees_with_hf_peft"]
    made(
        monkeypatch,
        PX_4=Traced(["prefix.key_row", "prefix.key"], cases, ["T26", "T5"], live, ["M01", "M174"], {}),
    )
    assert (
        what_it_has("PX-4")
        == f"""\
code:
  prefix.key_row  refpeft/prefix_encoder.py:{line_of("key_row")}  key_row
  prefix.key      refpeft/prefix_encoder.py:{line_of("key")}  key
in HF:
  peft peft_model.py PeftModel.get_prompt

golden cases: 3 show a mistake of this clause; of each question the one that shows most:
  prefix_tuning/prefix_encode/odd-layers   M01 M174
  prefix_tuning/forward/one-virtual-token  M01 M174
  refpeft check \\
    -k prefix_tuning/prefix_encode/odd-layers \\
    -k prefix_tuning/forward/one-virtual-token \\
    -- PORT

properties that fail under a mistake of this clause, without any value of HF's:
  T26  prefix of real tokens: logits(x) = base(c)
  T5   long: {("word " * 17).rstrip()}
       {("word " * 8).rstrip()}

live tests, against HF peft itself:
  tests/test_live.py::test_agrees_with_hf_peft

known mistakes:
  M01   all keys before all values
  M174  values in the place of keys
  → refpeft explain M01, refpeft explain T26"""
    )


def test_a_clause_without_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {"golden cases": WHY, "properties": "no arithmetic", "live tests": WHY, "known mistakes": WHY}
    made(monkeypatch, PX_7=Traced(["prefix_encoder.py"], [], [], [], [], empty))
    source = (ROOT / "refpeft/prefix_encoder.py").read_text(encoding="utf-8").splitlines()
    (quoted,) = [number for number, line in enumerate(source, 1) if "PX-7" in line]
    assert (
        what_it_has("PX-7")
        == f"""\
code:
  refpeft/prefix_encoder.py:{quoted}  load_prompt_embeddings

no golden cases, live tests, known mistakes: a reason that is long enough for two lines, as one that
  names tests and other pages of the specification is

no properties: no arithmetic"""
    )


def test_code_elsewhere_is_below_a_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made(monkeypatch, PX_4=Traced(["prefix.key"], [], [], [], [], {}))
    monkeypatch.chdir(tmp_path)
    assert what_it_has("PX-4").splitlines()[0] == f"code, below {ROOT}:"


def test_each_function_that_quotes_a_clause_stands_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "quoting.py").write_text(
        '"""TY-1."""\n\n\nclass A:\n    """TY-1."""\n\n    def f(self):\n        """TY-1 and TY-11."""\n'
        "        return 1  # TY-1\n\n\nasync_ = 1  # TY-11\n"
    )
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "package")
    (tmp_path / "package").mkdir()
    (tmp_path / "quoting.py").rename(tmp_path / "package/quoting.py")
    made(monkeypatch, TY_1=Traced(["quoting.py"], [], [], [], [], {}))
    assert what_it_has("TY-1").splitlines()[1:] == [
        "  package/quoting.py:1  the module",
        "  package/quoting.py:5  A",
        "  package/quoting.py:8  A.f",
    ]


def test_a_clause_that_no_table_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    made(monkeypatch)
    assert what_it_has("PX-4") == ""


def test_places_are_where_steps_are_defined() -> None:
    for step in STEPS.values():
        place, function = place_of(step)
        file, _, line = place.partition(":")
        text = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1 :]
        assert text[0].lstrip().startswith(("@", f"def {function}(")), step.name
        assert any(f"def {function}(" in found for found in text[:40]), step.name


def test_the_best_cases() -> None:
    """Most mistakes, then GPT-2, then the margin; one for each question, in the order of asking."""
    mistakes, matrix = ["M01", "M174"], kill_matrix()
    cases = [v.case.id for v in all_vectors() if "PX-4" in v.case.clauses]
    chosen = best_cases(cases, mistakes)
    questions = {v.case.id: v.case for v in all_vectors()}
    assert [questions[case].question for case in chosen] == ["prefix.encode", "forward", "gradients"]
    for case, shown in chosen.items():
        assert shown == mistakes
        assert questions[case].model in {None, "gpt2-odd", "gpt2-even", "gpt2-heads", "gpt2-aligned"}
        equals = [
            other
            for other in cases
            if questions[other].question == questions[case].question
            and (questions[other].model or "gpt2-").startswith("gpt2-")
            and all(matrix.margin(other, m, "float32") >= DECIDED for m in mistakes)
        ]
        least = {other: min(matrix.margin(other, m, "bfloat16") for m in mistakes) for other in equals}
        assert least[case] == max(least.values())
    assert best_cases(cases, []) == {chosen: [] for chosen in best_cases(cases, [])}
    assert best_cases([], mistakes) == {}


def test_names_with_what_they_mean() -> None:
    assert list(named({"a": "one", "long": "two"})) == ["  a     one", "  long  two"]


def test_every_clause_fits_a_screen() -> None:
    for label in clauses():
        said = what_it_has(label)
        assert said, label
        assert [line for line in said.splitlines() if len(line) > WIDTH and "below" not in line] == [], label
