"""The rules of the house, held by reading refpeft's own source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import refpeft

ROOT = Path(refpeft.__file__).parent
MODULES = {
    ".".join(("refpeft", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if "skeletons" not in path.relative_to(ROOT).parts  # their users' code, not refpeft's
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}

BESIDES = {
    "refpeft",
    "refpeft.cli",
    "refpeft.__main__",
    "refpeft.testing",
    "refpeft.trainer",
    "refpeft.training_checkpoint",
}
SPECIFICATION = [
    name
    for name in MODULES
    if name not in BESIDES and (name.count(".") == 1 or name.startswith("refpeft.transformer."))
]
SPECIFICATION = [name for name in SPECIFICATION if not name.startswith("refpeft.oracle")]
ALLOWED = {
    "numpy",
    "autograd",
    "safetensors",
    "tokenizers",
    "jaxtyping",
    "ml_dtypes",
    "threadpoolctl",
    "refpeft",
}

FLOORS = [
    {"errors"},
    {
        "arrays",
        "devices",
        "error_function",
        "steps",
        "files",
        "torch_random",
        "rules",
        "config",
        "fill_in",
        "tensors",
        "sharded",
        "threads",
        "stored",
        "safetensors_header",
        "tokenizer",
    },
    {"ops", "activations", "masks", "positions", "prompt_embedding"},
    {"attention", "prefix_encoder", "kernels"},
    {"transformer", "checkpoint", "inputs"},
    {
        "peft_model",
        "adapter",
        "adapters",
        "counts",
        "kv_prefix",
        "tasks",
        "task_inputs",
        "fitting",
        "generation",
        "generation_config",
        "language_model",
        "shared_prompt",
        "beam_search",
        "decoding",
        "token_scores",
    },
    {"training", "training_arguments"},
    {"trainer", "training_checkpoint"},
    {"oracle"},
    {"cli", "__main__", "testing"},
]


def for_types_alone(tree: ast.Module) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING:`, which never runs."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def imports(name: str, running: bool = False) -> Iterator[str]:
    """The modules that a module imports, at its top or within functions; of refpeft's own, the files themselves."""
    skipped = for_types_alone(TREES[name]) if running else set()
    for node in ast.walk(TREES[name]):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively in line {node.lineno}"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def floor(name: str) -> int:
    room = name.split(".")[1]
    numbers = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert numbers, f"{name} stands on no floor: give it one in FLOORS and in the design"
    return numbers[0]


def own_imports(name: str, running: bool = False) -> set[str]:
    return {module for module in imports(name, running) if module.split(".")[0] == "refpeft"}


def test_the_source_was_found() -> None:
    assert {"refpeft.arrays", "refpeft.transformer.stack", "refpeft.peft_model"} <= set(SPECIFICATION)
    assert {"refpeft.ops", "refpeft.steps"} <= own_imports("refpeft.attention") | own_imports(
        "refpeft.prefix_encoder"
    )
    assert "refpeft.transformer.block" in own_imports("refpeft.transformer.stack", running=True)
    assert own_imports("refpeft") - own_imports("refpeft", running=True)


@pytest.mark.parametrize("name", SPECIFICATION)
def test_the_specification_imports_little(name: str) -> None:
    for module in imports(name):
        top = module.split(".")[0]
        allowed = ALLOWED | ({"cupy"} if name == "refpeft.devices" else set())
        assert top in allowed or top in sys.stdlib_module_names, f"{name} imports {module}"
        assert not module.startswith("refpeft.oracle"), f"{name} imports {module}"


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_what_it_specifies(name: str) -> None:
    assert not {module.split(".")[0] for module in imports(name)} & {"torch", "transformers", "peft"}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"refpeft"}))
def test_imports_run_downwards(name: str) -> None:
    for module in own_imports(name) - {"refpeft"}:
        assert floor(module) <= floor(name), (
            f"{name} (floor {floor(name)}) imports {module} (floor {floor(module)})"
        )


def test_there_is_no_import_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in done:
            for module in sorted(own_imports(name, running=True) & set(MODULES) - {"refpeft"}):
                visit(module, (*path, name))
            done.add(name)

    for name in sorted(
        set(MODULES) - {"refpeft"}
    ):  # refpeft/__init__.py names its modules, and imports them late
        visit(name, ())


def test_only_arrays_knows_autograd() -> None:
    users = {name for name in MODULES if any(module.split(".")[0] == "autograd" for module in imports(name))}
    assert users == {"refpeft.arrays"}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("name", MODULES)
def test_functions_fit_on_a_screen(name: str) -> None:
    """Sixty lines, the docstring not counted."""
    for node in functions(TREES[name]):
        body = node.body[1:] if ast.get_docstring(node) else node.body
        length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
        assert length <= 60, f"{name}.{node.name} has {length} lines"


LONG = {
    "refpeft.arrays": 495,  # the one door to NumPy and autograd: two would be none
    "refpeft.config": 460,  # two classes with every field documented under itself, as HF's
    "refpeft.torch_random": 400,  # a port of torch's generator; most of it is prose
    "refpeft.oracle.examine": 370,  # every way in which a file of a user can be wrong, in one order
    "refpeft.oracle.judge": 370,  # one question from asking to verdict, and what a run amounts to
    "refpeft.oracle.lint": 370,  # a rule for each clause of vectors.md
    "refpeft.oracle.own": 410,  # questions about a model that no golden case knows, for every task
    "refpeft.peft_model": 370,  # HF's class: every method with what it takes and raises
    "refpeft.oracle.questions": 380,  # every question side by side
    "refpeft.testing.families": 420,  # how each of nineteen architectures is drawn, side by side
    "refpeft.tasks": 430,  # the flow of all task types side by side: what they share is not told twice
    "refpeft.transformer.config": 410,  # every choice documented under itself
    "refpeft.transformer.families": 970,  # a table: nineteen architectures, each HF's keys, defaults and names
}
"""Modules that may be longer than 350 lines, how long, and why."""


@pytest.mark.parametrize("name", MODULES)
def test_modules_tell_one_story(name: str) -> None:
    lines = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= LONG.get(name, 350), f"{name} has {lines} lines"


def test_long_modules_are_long() -> None:
    assert all(len(MODULES[name].read_text(encoding="utf-8").splitlines()) > 350 for name in LONG)


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_public_functions_say_what_they_do(name: str) -> None:
    tree = TREES[name]
    assert ast.get_docstring(tree), name
    public = [node for node in tree.body if is_public(node)]
    public += [
        item for node in public if isinstance(node, ast.ClassDef) for item in node.body if is_public(item)
    ]
    for node in public:
        assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


def is_public(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")


def test_importing_refpeft_is_light() -> None:
    code = "import sys, refpeft; print(sorted({m.split('.')[0] for m in sys.modules} & {'numpy', 'autograd', 'click'}))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"


def test_public_names_resolve() -> None:
    assert sorted(refpeft.__all__) == refpeft.__all__ == sorted(refpeft._HOMES)
    for name in refpeft.__all__:
        assert getattr(refpeft, name).__name__ == name
        assert name in dir(refpeft)


def test_modules_are_imported_when_first_used() -> None:
    assert refpeft.prefix_encoder.forward.__name__ == "forward"
    with pytest.raises(AttributeError) as caught:
        _ = refpeft.no_such_name
    assert str(caught.value) == "module 'refpeft' has no attribute 'no_such_name'"


def test_a_missing_library_is_said_to_be_missing() -> None:
    """It is not taken for a missing module of refpeft's."""
    code = "import sys; sys.modules['autograd'] = None; import refpeft; refpeft.arrays"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stderr.splitlines()[-1].startswith("ModuleNotFoundError: No module named 'autograd")
