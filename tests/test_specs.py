"""The pages of specs/: their labels, their table of stages, their links, and their code, which is executed here."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import families_table
import pytest
from pages import code, run
from support import METHODS, MODELS, tasks_of, tiny_adapter, tiny_model, tiny_question

import refpeft
from refpeft.oracle.clauses import clauses
from refpeft.oracle.lint import AXES
from refpeft.oracle.names import step_of
from refpeft.oracle.vectors import golden_directory
from refpeft.steps import STEPS, Step, recording

ROOT = Path(__file__).resolve().parent.parent
SPECS = ROOT / "specs"
PAGES = sorted(SPECS.glob("*.md"))
PREFIXES = ("AD", "AT", "CF", "CK", "GN", "JG", "MK", "PO", "PP", "PT", "PX", "TK", "TR", "VF")
LABEL = re.compile(r"(?<![A-Za-z0-9-])[A-Z]{2}-[0-9]+(?![0-9])")
TOY = "TY"
"""The prefix of labels that tests make up for steps of their own."""
HEADING = re.compile(r"^### ([A-Z]{2})-([0-9]+) (\S.*)$", re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
MODEL = "models/gpt2-odd"


def import_specification() -> None:
    """Import every module of the specification, so that every step is in `STEPS`."""
    for module in pkgutil.walk_packages(refpeft.__path__, "refpeft."):
        if not module.name.startswith("refpeft.oracle") and module.name not in {
            "refpeft.cli",
            "refpeft.__main__",
        }:
            importlib.import_module(module.name)


def headings() -> Iterator[tuple[str, str, int]]:
    """Page, prefix and number of each clause, in the order of the pages."""
    for page in PAGES:
        for match in HEADING.finditer(page.read_text(encoding="utf-8")):
            yield page.name, match[1], int(match[2])


def labels() -> set[str]:
    return {f"{prefix}-{number}" for _, prefix, number in headings()}


# ---------------------------------------------------------------- labels


def test_each_label_stands_once_and_numbers_run_from_one() -> None:
    numbers: dict[str, list[int]] = defaultdict(list)
    pages: dict[str, set[str]] = defaultdict(set)
    for page, prefix, number in headings():
        numbers[prefix].append(number)
        pages[prefix].add(page)
    assert sorted(numbers) == sorted(PREFIXES)
    assert {
        prefix: found for prefix, found in numbers.items() if found != list(range(1, len(found) + 1))
    } == {}
    assert {prefix: sorted(found) for prefix, found in pages.items() if len(found) > 1} == {}


def test_every_heading_of_the_third_rank_is_a_clause() -> None:
    lines = [
        f"{page.name}: {line}"
        for page in PAGES
        for line in FENCED.sub("", page.read_text(encoding="utf-8")).splitlines()
        if line.startswith("###") and not HEADING.match(line)
    ]
    assert lines == []


@pytest.mark.parametrize(
    "pattern", ["refpeft/**/*.py", "golden/*.py", "golden/**/case.json", "tests/**/*.py", "specs/*.md"]
)
def test_every_label_quoted_is_a_clause(pattern: str) -> None:
    known, unknown = labels(), []
    for path in ROOT.glob(pattern):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            strange = [x for x in LABEL.findall(line) if x not in known and not x.startswith(TOY)]
            unknown += [f"{path.relative_to(ROOT)}:{number}: {label}" for label in strange]
    assert unknown == []


def test_every_step_names_a_clause() -> None:
    import_specification()
    assert {name: step.clause for name, step in STEPS.items() if step.clause not in labels()} == {}


def test_labels_are_told_from_other_words() -> None:
    assert LABEL.findall("GPT-2, SHA-256, UTF-8; PT-2 (PX-7), `AT-6`; PT-x, U+PT") == ["PT-2", "PX-7", "AT-6"]


# ---------------------------------------------------------------- the table of stages


def rows_of(table: str) -> list[list[str]]:
    """The cells of the Markdown table whose heading line is `table`."""
    text = (SPECS / "notation.md").read_text(encoding="utf-8")
    assert text.count(f"\n{table}\n") == 1
    rows = []
    for line in text.split(f"\n{table}\n")[1].splitlines()[1:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def row_for(step: Step) -> list[str]:
    return [step.name, " ".join(step.axes), step.kind, step.clause]


STAGES = "| stage | step | axes | kind | clause | what exactly | HF |"


def test_the_table_of_stages_is_the_table_of_steps() -> None:
    import_specification()
    rows = rows_of(STAGES)
    recorded = {step.name: step for step in STEPS.values() if step.stage}
    assert sorted(row[1] for row in rows) == sorted(recorded)
    for stage, name, axes, kind, clause, what, source in rows:
        assert [stage, name, axes, kind, clause] == [recorded[name].stage, *row_for(recorded[name])]
        assert source == recorded[name].source
        assert what


def test_the_table_of_unrecorded_steps_is_complete() -> None:
    import_specification()
    rows = rows_of("| step | axes | kind | clause | what exactly | HF |")
    silent = {step.name: step for step in STEPS.values() if not step.stage}
    assert sorted(row[0] for row in rows) == sorted(silent)
    for name, axes, kind, clause, what, source in rows:
        assert [name, axes, kind, clause, source] == [*row_for(silent[name]), silent[name].source]
        assert what


def test_every_axis_of_a_step_is_in_the_alphabet() -> None:
    import_specification()
    alphabet = {row[0] for row in rows_of("| axis | size |")}
    assert {axis for step in STEPS.values() for axis in step.axes} <= alphabet
    assert alphabet >= AXES


def templates_of(stages: Iterable[str]) -> list[str]:
    """The stages by the names that the table has, each where it comes first."""
    found = [step_of(stage) for stage in stages]
    assert None not in found
    return list(dict.fromkeys(step.stage for step in found if step))


WHERE_FIRST_ASKED = {"{stack}.visible", "{stack}.sliding_visible"}
"""Computed when the first layer of their kind is, which may come behind a layer of the other kind."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_the_table_is_in_the_order_of_computation(name: str, method: str) -> None:
    """Within a stack: what is computed for an encoder, its decoder and their inputs stands in rows of the same names."""
    family, changes = MODELS[name]
    base, order = tiny_model(family, **changes), list(dict.fromkeys(row[0] for row in rows_of(STAGES)))
    for task in tasks_of(family):
        adapted = tiny_adapter(base, method, task)
        with recording() as stages:
            adapted(**tiny_question(adapted))
        crossing = [stage for stage in stages if ".cross_attention." in stage]
        others = [stage for stage in stages if ".cross_attention." not in stage]
        whole = base.config.kind != "encoder_decoder"
        parts = (
            [others] if whole else [[x for x in others if x.startswith(s)] for s in ("encoder.", "decoder.")]
        )
        for part in (*parts, crossing):
            found = [name for name in templates_of(part) if name not in WHERE_FIRST_ASKED]
            assert found == [name for name in order if name in found]
        assert len(stages) > 30


def test_the_tables_of_families_are_those_of_the_code() -> None:
    """`python tests/families_table.py` writes them anew."""
    page = families_table.PAGE.read_text(encoding="utf-8")
    assert [match[2] for match in families_table.BLOCK.finditer(page)] == [
        "choices", "options", "refused", "heads", "weights",
    ]  # fmt: skip
    assert page == families_table.written(page)


def test_every_option_of_a_family_changes_something() -> None:
    for line in families_table.tables()["options"].splitlines()[2:]:
        assert line.split("|")[5].strip(), line


# ---------------------------------------------------------------- the code


@pytest.mark.parametrize("page", [page for page in PAGES if code(page)], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path) -> None:
    assert (golden_directory() / MODEL / "config.json").is_file(), (
        f"golden/{MODEL}, which the pages use, is missing"
    )
    namespace: dict[str, object] = {"__name__": f"specs_{page.stem.replace('-', '_')}"}
    first: dict[str, object] = {}
    run(SPECS / "notation.md", code(SPECS / "notation.md")[0], first)
    namespace["tiny_model"] = first["tiny_model"]  # which that page promises to every page
    for block in code(page):
        run(page, block, namespace)


WITHOUT = {
    "PP": ("HF has no part in it, and nobody else speaks it: its clauses have neither a line *HF* nor *How others differ*.", {"HF", "How others differ"}),
    "VF": ("The format is refpeft's own: its clauses have neither a line *HF* nor *How others differ*.", {"HF", "How others differ"}),
    "JG": ("HF judges nothing, so that no clause has a line *HF*; *How others differ* is about other suites, where they do otherwise.", {"HF", "How others differ"}),
}  # fmt: skip
"""Pages that say, in these words, why their clauses have no such lines."""


def test_every_clause_has_a_statement_code_hf_and_how_others_differ() -> None:
    missing = []
    for label, text in clauses().items():
        code_of, prose = BLOCK.findall(text), BLOCK.sub("", text)
        statement = re.split(r"^- (?:HF|How others differ)\b", prose.split("\n", 1)[1], flags=re.MULTILINE)[0]
        found = {
            "statement": len(re.sub(r"\(specs/.*\)", "", statement).split()) > 10,
            "code that asserts": any(
                isinstance(node, ast.Assert | ast.Raise)
                for code in code_of
                for node in ast.walk(ast.parse(code))
            ),
            **{
                line: re.search(rf"^- {line}: \S", prose, re.MULTILINE) is not None
                for line in ("HF", "How others differ")
            },
        }
        excused = WITHOUT.get(label[:2], ("", set()))[1]
        missing += [f"{label}: {what}" for what, there in found.items() if not there and what not in excused]
    assert missing == []
    assert len(clauses()) > 100


def test_pages_without_such_lines_say_so() -> None:
    for prefix, (words, _) in WITHOUT.items():
        (page,) = {page for page, found, _ in headings() if found == prefix}
        assert words in (SPECS / page).read_text(encoding="utf-8"), page


# ---------------------------------------------------------------- the prose


LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`[^`\n]+`")
LINKED = [
    *sorted(SPECS.rglob("*.md")),
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
]


def links(page: Path) -> list[str]:
    """The links of a page that do not leave the repository."""
    prose = CODE.sub("", FENCED.sub("", page.read_text(encoding="utf-8")))
    return [target for target in LINK.findall(prose) if "://" not in target]


@functools.cache
def anchors(page: Path) -> set[str]:
    """The anchors that code hosts give the headings of a page."""
    found: dict[str, int] = defaultdict(int)
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", LINK.sub("]", heading)).strip().lower().replace(" ", "-")
        found[words] += 1
    return {f"{words}-{i}" if i else words for words, count in found.items() for i in range(count)}


def broken(page: Path) -> Iterator[str]:
    """Links that lead nowhere: no such file, no such heading; or out of specs/, which the wheel and the site hold alone."""
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        outside = page.is_relative_to(SPECS) and not there.is_relative_to(SPECS)
        if outside or not there.exists() or (anchor and anchor not in anchors(there)):
            yield f"{page.relative_to(ROOT)}: {target}"


def test_links_lead_somewhere() -> None:
    assert [link for page in LINKED for link in broken(page)] == []
    assert sum(len(links(page)) for page in LINKED) > 140
    assert sum("#" in link for page in LINKED for link in links(page)) > 40


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    """Anchors are those of code hosts: lower case, hyphens, signs left out, repeated headings counted."""
    page = SPECS / "prefix-tuning.md"
    assert {"px-4-which-block-is-which", "px-7-load_prompt_embeddings"} <= anchors(page)
    (tmp_path / "twice.md").write_text("# A `b`: c\n\n# A b c\n", encoding="utf-8")
    assert anchors(tmp_path / "twice.md") == {"a-b-c", "a-b-c-1"}


def test_the_site_has_every_page_in_the_order_of_the_index() -> None:
    site = tomllib.loads((ROOT / ".zensical.toml").read_text(encoding="utf-8"))["project"]

    def pages(entries: list[dict[str, Any]]) -> Iterator[str]:
        for entry in entries:
            for page in entry.values():
                yield from [page] if isinstance(page, str) else pages(page)

    found = list(pages(site["nav"]))
    assert sorted(found) == sorted(str(page.relative_to(SPECS)) for page in SPECS.rglob("*.md"))
    index = [target for target in links(SPECS / "README.md") if target.endswith(".md")]
    assert list(dict.fromkeys(["README.md", *index])) == found


def test_formulas_that_the_site_typesets_stand_somewhere() -> None:
    """In a page or a docstring, as an indented block."""
    given = tomllib.loads((ROOT / ".site/formulas.toml").read_text(encoding="utf-8"))["formula"]
    paths = [*SPECS.rglob("*.md"), *Path(refpeft.__file__).parent.rglob("*.py")]
    text = " ".join(" ".join(path.read_text(encoding="utf-8").split()) for path in paths)
    assert [formula["text"] for formula in given if formula["text"] not in text] == []
    assert len(given) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_line_names_a_place_on_some_machine(page: Path) -> None:
    place = re.compile(r"(?<![\w.…/])/(?:work|root|home|usr|mnt|opt|var|Users)/|\.\./shared|site-packages")
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    assert [f"{page.name}:{number}: {line}" for number, line in lines if place.search(line)] == []
