"""What the site adds to the pages of specs/, which are plain Markdown: an extension of Python-Markdown.

- A clause's heading has its label as anchor (`prefix-tuning.html#px-4`), and each label in running text leads there.
- `refpeft.ops.softmax` in code leads to the API reference, where it has an entry.
- A formula of `formulas.toml`, written out as an indented block, is typeset (MathML, which browsers render themselves).
- `<!-- reference: refpeft.ops -->` is where a page of specs/api/ shows the docstrings of a module, with the clause and the
  source of each step.
"""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import griffe
from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from markdown.treeprocessors import Treeprocessor
from pymdownx.slugs import slugify

from refpeft.steps import STEPS

LABEL = r"(?<![A-Za-z0-9-])([A-Z]{2}-[0-9]+)(?![0-9])"
NAME = re.compile(r"refpeft(?:\.[A-Za-z_][A-Za-z_0-9]*)+")
REFERENCE = re.compile(r"<!-- reference: ([a-z_.]+) -->")
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


def _one_line(text: str) -> str:
    return " ".join(text.split())


FORMULAS = {
    _one_line(formula["text"]): formula["latex"]
    for formula in tomllib.loads(Path(__file__).with_name("formulas.toml").read_text(encoding="utf-8"))[
        "formula"
    ]
}


class Slugify:
    """Anchors of headings: a clause's label; else the words, as code hosts make them."""

    def __call__(self, text: str, separator: str) -> str:
        clause = re.match(LABEL, text)
        return clause[1].lower() if clause else slugify(case="lower")(text, separator)


class Labels(InlineProcessor):
    """A clause's label in running text."""

    ANCESTOR_EXCLUDES = ("a", *HEADINGS)

    def handleMatch(self, match: re.Match[str], data: str) -> tuple[ElementTree.Element, int, int]:
        link = ElementTree.Element("autoref", {"identifier": match[1].lower()})
        link.text = match[1]
        return link, match.start(0), match.end(0)


class Names(Treeprocessor):
    """Code that is the name of something in the API reference. Where it has no entry, it stays code."""

    def run(self, root: ElementTree.Element) -> None:
        for parent in list(root.iter()):
            if parent.tag in ("pre", "a", *HEADINGS):
                continue
            for place, child in enumerate(list(parent)):
                if child.tag == "code" and NAME.fullmatch(text := "".join(child.itertext())):
                    link = ElementTree.Element("autoref", {"identifier": text, "optional": ""})
                    link.tail, child.tail = child.tail, None
                    parent[place] = link
                    link.append(child)


class Formulas(Treeprocessor):
    """Indented blocks that are formulas."""

    def run(self, root: ElementTree.Element) -> None:
        for parent in list(root.iter()):
            for place, child in enumerate(list(parent)):
                latex = FORMULAS.get(_one_line("".join(child.itertext()))) if child.tag == "pre" else None
                if latex:
                    typeset = ElementTree.Element("p", {"class": "formula"})
                    typeset.text = self.md.htmlStash.store(convert(latex, display="block"))
                    typeset.tail = child.tail
                    parent[place] = typeset


class Anchors(Treeprocessor):
    """Clauses' headings answer to the anchors that code hosts give them, too. The last child is the permanent link."""

    def run(self, root: ElementTree.Element) -> None:
        for heading in root.iter("h3"):
            words = (heading.text or "") + "".join(
                f"{''.join(x.itertext())}{x.tail or ''}" for x in heading[:-1]
            )
            if re.match(LABEL, words):
                heading.insert(0, ElementTree.Element("span", {"id": slugify(case="lower")(words, "-")}))
                heading[0].tail, heading.text = heading.text, None


class References(Preprocessor):
    """Where the docstrings of a module come in."""

    def run(self, lines: list[str]) -> list[str]:
        return [REFERENCE.sub(r"::: \1", line) for line in lines]


class StepFacts(griffe.Extension):
    """What `@step(...)` says of a function, at the end of its docstring. A module's first line is in the page already."""

    def on_module(self, *, mod: griffe.Module, **_: Any) -> None:
        if mod.docstring:
            mod.docstring.value = mod.docstring.value.partition("\n\n")[2]

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        import_module(func.module.path)
        steps = {
            f"{step.definition.__module__}.{step.definition.__qualname__}": step for step in STEPS.values()
        }
        if func.docstring and func.path in steps:
            step = steps[func.path]
            stage = f"; stage `{step.stage}`" if step.stage else ""
            func.docstring.value += (
                f"\n\nStep `{step.name}`{stage}. Clause {step.clause}. Source: {step.source}."
            )


class Pages(Extension):
    """All of it."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(References(md), "references", 200)
        md.inlinePatterns.register(Labels(LABEL, md), "labels", 5)
        md.treeprocessors.register(Formulas(md), "formulas", 40)  # before pymdownx.highlight takes the block
        md.treeprocessors.register(Anchors(md), "anchors", 4)  # after the table of contents
        md.treeprocessors.register(Names(md), "names", 15)  # after inline code has become elements


def makeExtension(**options: Any) -> Pages:
    """What Python-Markdown calls."""
    return Pages(**options)
