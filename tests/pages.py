"""How the tests run what a page of Markdown says: its Python, its files, and the commands whose output it shows.

A fenced block of `python` runs, in one namespace for the page; what it prints must stand in the block of text below it that is
marked `<!-- printed -->`. Marked `<!-- example: NAME -->`, a block is a file instead, written into the working directory, and a block
of differences marked `<!-- change: NAME -->` changes one; a block of text marked `<!-- output: refpeft … -->` is what that command
says on a terminal of 100 columns. Other blocks are read by people alone.

    python tests/pages.py specs/guides/load.md       writes what is printed into the pages anew
    python tests/pages.py                            counts the blocks of Python that the tests run
"""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refpeft.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "specs").rglob("*.md"))]
"""Every page for people, but the changelog."""
FENCE = re.compile(r"^(?:<!-- (.+?) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FORMATTED = {"check", "inspect", "smoke", "tour"}
"""Commands that write JSON unless they write to a terminal."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    """Of its first line."""
    mark: str
    """What the comment in the line above it says; empty if there is none."""
    language: str
    text: str

    @property
    def kind(self) -> str:
        """`example`, `output`, `printed`, …, or nothing."""
        return self.mark.partition(":")[0]

    @property
    def name(self) -> str:
        """What is said of its kind: a file, a command."""
        return self.mark.partition(":")[2].strip()


def blocks(page: Path) -> list[Block]:
    """Every fenced block."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, match.start(3)) + 1, match[1] or "", match[2], match[3])
        for match in FENCE.finditer(text)
    ]


def code(page: Path) -> list[Block]:
    """The blocks of Python that are no files."""
    return [block for block in blocks(page) if block.language == "python" and block.kind != "example"]


def run(page: Path, block: Block, namespace: dict[str, Any]) -> str:
    """Execute a block under a name of its own, so that a traceback shows the line of the page; returns what it prints."""
    name, text = f"{page}:{block.line}", "\n" * (block.line - 1) + block.text
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(text, name, "exec"), namespace)  # noqa: S102  (that is what the pages are for)
    return printed.getvalue()


def command(line: str) -> str:
    """What a command of refpeft's says on a terminal, without spaces at the ends of lines and more than one empty line."""
    program, name, *arguments = shlex.split(line)
    assert program == "refpeft", line
    form = ["--format", "pretty"] if name in FORMATTED else []
    result = subprocess.run(
        [sys.executable, "-m", "refpeft", name, *form, *arguments],
        env={**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    said = "\n".join(part.rstrip() for part in result.stdout.strip().splitlines())
    return re.sub(r"\n{3,}", "\n\n", said) + "\n"


def change(file: Path, differences: str) -> None:
    """Put the lines that begin with + in the place of those that begin with -, which stand in the file once."""
    old, new = (
        "".join(
            line[1:]
            for line in differences.splitlines(keepends=True)
            if line.startswith(("+", "-", " ")) and line[0] != other
        )
        for other in "+-"
    )
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file} has these lines {text.count(old)} times:\n{old}"
    file.write_text(text.replace(old, new), encoding="utf-8")


def written(page: Path, namespace: dict[str, Any] | None = None) -> str:
    """Does everything that a page says, in its order and in the working directory; the page with the output that there was.

    Raises:
        AssertionError: a block of Python prints something, and the page does not show it.
    """
    lines, printed = page.read_text(encoding="utf-8").splitlines(keepends=True), ""
    namespace = {"__name__": f"page_{page.stem}"} if namespace is None else namespace
    shown: list[tuple[Block, str]] = []
    for block in blocks(page):
        assert not printed or block.kind == "printed", f"{page}:{block.line}: not shown: {printed}"
        if block.kind == "example":
            Path(block.name).write_text(block.text, encoding="utf-8")
        elif block.kind == "change":
            change(Path(block.name), block.text)
        elif block.kind == "output":
            shown.append((block, command(block.name)))
        elif block.kind == "printed":
            shown.append((block, printed.rstrip("\n") + "\n"))
            printed = ""
        elif block.language == "python":
            printed = run(page, block, namespace)
    assert not printed, f"{page}: not shown: {printed}"
    for block, said in reversed(shown):
        lines[block.line - 1 : block.line - 1 + block.text.count("\n")] = [said]
    return "".join(lines)


def counted() -> str:
    """How many blocks of Python the tests run, page by page: those that are files are not counted."""
    lines = [f"{page.relative_to(ROOT)}: {len(code(page))}" for page in PAGES if code(page)]
    return "\n".join(
        [*lines, f"{sum(len(code(page)) for page in PAGES)} blocks of Python on {len(lines)} pages"]
    )


if __name__ == "__main__":
    import tempfile

    for given in [Path(name).resolve() for name in sys.argv[1:]]:
        with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
            write_atomically(given, written(given).encode())
    if not sys.argv[1:]:
        print(counted())
