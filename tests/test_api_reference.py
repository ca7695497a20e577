"""The API reference: what the docstrings of public functions say, and that its pages are those of the code."""

from __future__ import annotations

import ast

import api_reference
import pytest
from api_reference import (
    BEHIND,
    PAGE,
    PAGES,
    SUBJECTS,
    Function,
    functions_of,
    modules,
    own,
    public_functions,
)

EVERY = [function for functions in public_functions().values() for function in functions]


def test_every_module_is_public_or_has_a_reason_not_to_be() -> None:
    listed = [module for subject in SUBJECTS.values() for module in subject.modules]
    assert len(listed) == len(set(listed))
    assert set(listed) <= modules()
    assert modules() - set(listed) - set(BEHIND) == set()
    assert set(listed) & set(BEHIND) == set()


def test_every_public_function_says_what_it_computes() -> None:
    assert [f.name for f in EVERY if not f.docstring] == []
    assert len(EVERY) > 300


def test_every_public_function_says_its_shapes() -> None:
    assert {f.name: f.unannotated for f in EVERY if f.arrays and not f.says_shapes} == {}


@pytest.mark.parametrize("module", sorted(modules()))
def test_every_function_that_raises_says_what(module: str) -> None:
    """Of every module, public or not."""
    assert [f.name for f in functions_of(module) if f.raises and not f.says_errors] == []


def test_every_public_function_names_its_source() -> None:
    assert [f.name for f in EVERY if not own(f) and not f.says_source] == []


def test_the_pages_are_those_of_the_code() -> None:
    """`python tests/api_reference.py` writes them anew."""
    assert sorted(path.stem for path in PAGES.glob("*.md")) == sorted(SUBJECTS)
    for name in SUBJECTS:
        assert (PAGES / f"{name}.md").read_text(encoding="utf-8") == api_reference.page(name)
    assert PAGE.read_text(encoding="utf-8") == api_reference.index()


def of_source(text: str) -> Function:
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef)
    return api_reference._function(node, "refpeft.ops.made_up", "refpeft.ops")


@pytest.mark.parametrize(
    ("docstring", "says"),
    [
        ("Twice `x`.", False),
        ("Twice `x`, as (clause AT-4) says (tried).", False),
        ("Twice `x` (batch, tokens).", True),
        ("Rows (batch, 2 · virtual, hidden).", True),
        ("It has the shape of `x`.", True),
        ("A scalar.", True),
    ],
)
def test_a_docstring_without_shapes_is_found(docstring: str, says: bool) -> None:
    function = of_source(f'def f(x: Array, like: Array) -> Float[Array, "batch"]:\n    """{docstring}"""\n')
    assert (function.arrays, function.unannotated) == (("x", "return"), ("x",))
    assert function.says_shapes is says


def test_annotated_axes_are_shapes() -> None:
    assert of_source('def f(x: Float[Array, "batch"] | None) -> int:\n    """Count."""\n').says_shapes


def test_a_silent_raise_is_found() -> None:
    function = of_source('def f(x: int) -> int:\n    """Count."""\n    raise ValueError("no")\n')
    assert function.raises
    assert not function.says_errors
    assert not function.says_source
    again = of_source('def f() -> int:\n    """Count.\n\n    Source: torch.\n\n    Raises:\n        X: y.\n    """\n    raise X\n')  # fmt: skip
    assert again.raises
    assert again.says_errors
    assert again.says_source


def test_a_step_says_clause_and_source() -> None:
    softmax = next(f for f in EVERY if f.name == "refpeft.attention.weights")
    assert "Source:" not in softmax.docstring
    assert (softmax.clause, softmax.says_source) == ("AT-4", True)
