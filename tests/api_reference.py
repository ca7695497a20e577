"""The API reference of specs/, read from the docstrings: `python tests/api_reference.py` writes its pages anew.

A function is public if its name and its module's have no underscore, and its module stands in `SUBJECTS`; the public methods of a
public class are functions too. `BEHIND` names the other modules, with why nobody need call them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import refpeft
from refpeft.oracle.lint import AXES
from refpeft.steps import STEPS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "specs/api.md"
PAGES = ROOT / "specs/api"
COUNTED = re.compile(r"(<!-- generated: (names|counts|behind) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Subject:
    """One page of the reference."""

    title: str
    about: str
    modules: tuple[str, ...]


SUBJECTS = {
    "models-and-files": Subject(
        "Models and files",
        "An adapter on a base model, as HF's `PeftModel`: its configuration, its numbers, its directory.",
        ("peft_model", "config", "fill_in", "checkpoint", "counts", "errors"),
    ),
    "prompts-and-prefixes": Subject(
        "Prompts and prefixes",
        "From the trained parameters to embeddings, or to keys and values.",
        ("prompt_embedding", "prefix_encoder", "kv_prefix"),
    ),
    "attention": Subject(
        "Attention and its parts",
        "Attention with a prefix, who sees whom, positions, and the elementary operations.",
        ("attention", "masks", "positions", "ops", "activations", "error_function"),
    ),
    "transformer": Subject(
        "The base model",
        "What is frozen: layers, stacks and heads of every family, and how HF's files become them.",
        tuple(f"transformer.{x}" for x in ("config", "families", "shapes", "weights", "norms", "rotary", "block", "stack", "heads")),
    ),
    "tasks-and-training": Subject(
        "Tasks and training",
        "What each task type makes of inputs and labels; AdamW, schedules, the loop.",
        ("tasks", "shared_prompt", "language_model", "training_arguments", "training", "trainer"),
    ),
    "generation": Subject(
        "Generation",
        "Greedy decoding and beam search behind virtual tokens.",
        ("generation_config", "decoding", "token_scores", "generation", "beam_search"),
    ),
    "underneath": Subject(
        "Underneath",
        "Steps, which are recorded and replaced; arrays with gradients; torch's random numbers; drawing and judging in tests.",
        ("steps", "arrays", "torch_random", "testing"),
    ),
}  # fmt: skip
BEHIND = {
    "adapter": "behind the methods of `PeftModel`",
    "adapters": "behind the methods of `PeftModel`",
    "devices": "behind the `device` of `load_base_model`",
    "files": "reading and writing bytes",
    "fitting": "checks behind `get_peft_model`",
    "inputs": "checks of what a caller passes",
    "kernels": "faster equals of functions whose definitions are described",
    "threads": "parts of a batch in threads; nothing of it is seen from outside",
    "transformer.rows": "the kernel of `transformer.stack.forward`",
    "rules": "checks behind the configurations",
    "safetensors_header": "reading and writing bytes",
    "sharded": "reading and writing bytes",
    "stored": "reading and writing bytes",
    "task_inputs": "checks of what a caller passes",
    "tensors": "reading and writing bytes",
    "testing.conformance": "behind `refpeft.testing`, which names what is public",
    "testing.families": "behind `refpeft.testing`, which names what is public",
    "testing.plugin": "behind `pytest --refpeft-port`",
    "testing.strategies": "behind `refpeft.testing`, which names what is public",
    "tokenizer": "reading and writing bytes",
    "training_checkpoint": "behind `refpeft.train`",
    "transformer.columns": "how the table of families is written down",
}
"""Modules whose functions are not public, and why."""
OWN = {
    "refpeft.arrays": "NumPy's functions, with gradients that keep dtype and device",
    "refpeft.error_function": "an approximation of its own; the formula says of what",
    "refpeft.steps": "the mechanism of this specification",
    "refpeft.testing": "the oracle's",
}
"""Modules that have no counterpart in HF, torch or a paper, so that their functions name no source."""
ARRAY = re.compile(r"\bArray\b")
ANNOTATED = re.compile(r"\b(?:Float|Int|Bool|Shaped)\[")
SAID = re.compile(
    r"\bscalar\b|\bany shape\b|\b(?:has|have|with|of) the shape\b|\bof its parameter's shape|\bshape of\b"
)
"""How a docstring says a shape without naming axes."""
LIKE = "like"
"""An argument of which only dtype, kind and device are taken: it has no shape to speak of."""


@dataclass(frozen=True)
class Function:
    """A public function, or a public method, as the source has it."""

    name: str
    """From the package on: refpeft.ops.softmax."""
    module: str
    docstring: str
    around: str
    """The docstring of the class, of a method."""
    arrays: tuple[str, ...]
    """Arguments that are arrays, and `return`."""
    unannotated: tuple[str, ...]
    """Those of them whose annotation has no axes."""
    raises: bool
    """A `raise` stands in its own body."""

    @property
    def clause(self) -> str:
        """Its step's, or nothing."""
        return next((s.clause for s in STEPS.values() if _full_name(s.definition) == self.name), "")

    @property
    def says_shapes(self) -> bool:
        """Each array has its axes in the annotation; or the docstring has a shape; or all of its module are of any shape."""
        of_module = " ".join((import_module(self.module).__doc__ or "").split())
        lists = re.findall(r"\(([^()]+)\)", self.docstring)
        said = SAID.search(self.docstring) or "of any shape" in of_module or any(map(_is_shape, lists))
        return not self.unannotated or bool(said)

    @property
    def says_errors(self) -> bool:
        """Whether it says what it raises."""
        return "Raises:" in self.docstring

    @property
    def says_source(self) -> bool:
        """In its step, its docstring or its class's docstring."""
        step = next((s for s in STEPS.values() if _full_name(s.definition) == self.name), None)
        return bool(step and step.source) or "Source:" in self.docstring or "Source:" in self.around


def _is_shape(text: str) -> bool:
    """Whether what stands in parentheses is a list of axes: `batch, 2 · virtual, hidden`."""
    words = [part.split(" · ")[-1] for part in text.split(", ")]
    return all(re.fullmatch(r"[a-z_]+|…|[0-9]+", word) for word in words) and bool(AXES.intersection(words))


def _full_name(function: object) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', '')}"


def _own_raises(node: ast.AST) -> bool:
    """Whether a function raises in its own body; functions within it have their own, but are not public: they count as its."""
    return any(isinstance(inner, ast.Raise) and inner.exc is not None for inner in ast.walk(node))


def _function(node: ast.FunctionDef, name: str, module: str, around: str = "") -> Function:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    annotations = {a.arg: ast.unparse(a.annotation) for a in arguments if a.annotation}
    if node.returns:
        annotations["return"] = ast.unparse(node.returns)
    arrays = {
        x: text
        for x, text in annotations.items()
        if x != LIKE and (ARRAY.search(text) or ANNOTATED.search(text))
    }
    return Function(
        name,
        module,
        ast.get_docstring(node) or "",
        around,
        tuple(arrays),
        tuple(x for x, text in arrays.items() if not ANNOTATED.search(text)),
        _own_raises(node),
    )  # fmt: skip


def _of_body(body: list[ast.stmt], prefix: str, module: str, around: str = "") -> Iterator[Function]:
    for node in body:
        if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__call__"):
            yield _function(node, f"{prefix}.{node.name}", module, around)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _of_body(node.body, f"{prefix}.{node.name}", module, ast.get_docstring(node) or "")


def functions_of(module: str) -> list[Function]:
    """The public functions of a module of refpeft; of a package with `__all__`, of those that it names."""
    full = f"refpeft.{module}"
    loaded = import_module(full)
    path = Path(str(loaded.__file__))
    if path.name != "__init__.py":
        return list(_of_body(ast.parse(path.read_text(encoding="utf-8")).body, full, full))
    homes = {getattr(loaded, name).__module__ for name in loaded.__all__}
    found = [f for home in sorted(homes) for f in functions_of(home.removeprefix("refpeft."))]
    return [f for f in found if f.name.removeprefix(f"{f.module}.").split(".")[0] in loaded.__all__]


def public_functions() -> dict[str, list[Function]]:
    """By subject."""
    return {
        name: [function for module in subject.modules for function in functions_of(module)]
        for name, subject in SUBJECTS.items()
    }


def own(function: Function) -> bool:
    """Whether it has no counterpart anywhere."""
    return any(function.module == name or function.module.startswith(f"{name}.") for name in OWN)


def counts() -> str:
    """How many functions there are, and how many of those that should say something do."""
    columns = ("functions", "what it computes", "shapes and dtypes", "errors", "source")
    lines = [f"| page | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    every = public_functions()
    together = [function for functions in every.values() for function in functions]
    for name, functions in [*every.items(), ("", together)]:
        said = (
            [bool(f.docstring) for f in functions],
            [f.says_shapes for f in functions if f.arrays],
            [f.says_errors for f in functions if f.raises],
            [f.says_source for f in functions if not own(f)],
        )
        title = f"[{SUBJECTS[name].title}](api/{name}.md)" if name else "together"
        cells = [f"{sum(column)} of {len(column)}" for column in said]
        lines.append(f"| {title} | {len(functions)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def names() -> str:
    """What `import refpeft` names directly."""
    lines = [f"- `{name}`: `{getattr(refpeft, name).__module__}.{name}`" for name in refpeft.__all__]
    return "\n".join(lines) + "\n"


def exceptions() -> str:
    """What is not public, and what has no source."""
    reasons: dict[str, list[str]] = {}
    for module in sorted(modules() & set(BEHIND)):
        reasons.setdefault(BEHIND[module], []).append(f"`{module}`")
    lines = [f"- {', '.join(names)}: {reason}." for reason, names in reasons.items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page(name: str) -> str:
    """One page of specs/api/: a table for people on a code host, and where the site puts the docstrings in."""
    subject = SUBJECTS[name]
    text = f"# {subject.title}\n\n{subject.about}\n"
    for module in subject.modules:
        loaded = import_module(f"refpeft.{module}")
        first = (loaded.__doc__ or "").strip().split("\n")[0]
        functions = functions_of(module)
        text += f"\n## `refpeft.{module}`\n\n{first}\n\n"
        if functions:
            text += "| function | clause | what |\n|---|---|---|\n"
        for function in functions:
            what = function.docstring.split("\n\n")[0].replace("\n", " ").split(" Source: ")[0]
            text += f"| `{function.name}` | {function.clause} | {_cell(what)} |\n"
        text += "\n" * bool(functions) + f"<!-- reference: refpeft.{module} -->\n"
    return text


def index() -> str:
    """specs/api.md with its counts."""
    written = PAGE.read_text(encoding="utf-8")
    tables = {"names": names, "counts": counts, "behind": exceptions}
    return COUNTED.sub(lambda match: match[1] + tables[match[2]]() + match[4], written)


def modules() -> set[str]:
    """Every module of the specification and of `refpeft.testing`."""
    package = Path(refpeft.__file__).parent
    paths = [*package.glob("*.py"), *package.glob("transformer/*.py"), *package.glob("testing/*.py")]
    names = {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__") for path in paths
    }
    return names - {"__init__", "__main__", "transformer"}


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for subject in SUBJECTS:
        (PAGES / f"{subject}.md").write_text(page(subject), encoding="utf-8")
    PAGE.write_text(index(), encoding="utf-8")
