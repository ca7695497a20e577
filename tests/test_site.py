"""The site of specs/: it is built without a warning, its labels and anchors lead somewhere, it needs nothing from elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support import need

ROOT = Path(__file__).resolve().parent.parent
for module in ("zensical", "mkdocstrings", "latex2mathml"):
    need(module)


def build(directory: Path) -> subprocess.CompletedProcess[str]:
    """As CONTRIBUTING.md says, on a copy."""
    return subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "-f", ".zensical.toml"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([".site", "."])},
        capture_output=True,
        text=True,
        check=False,
    )


def copy(directory: Path) -> None:
    shutil.copy(ROOT / ".zensical.toml", directory)
    shutil.copytree(ROOT / ".site", directory / ".site", ignore=shutil.ignore_patterns("html", "__pycache__"))
    shutil.copytree(ROOT / "specs", directory / "specs")
    shutil.copytree(ROOT / "refpeft", directory / "refpeft", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    copy(directory)
    process = build(directory)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "No issues found" in process.stdout + process.stderr
    return directory / ".site/html"


class Page(HTMLParser):
    """What a page links, loads, and can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given["id"] or ""} if "id" in given else set()
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        elif tag in {"script", "img", "link", "iframe"}:
            self.loads += [given[name] or "" for name in ("src", "href") if given.get(name)]


def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    found, count = pages(site), 0
    for path, page in found.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / parts.path).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.name}: {link}"
            if parts.fragment and target in found:
                assert parts.fragment in found[target].anchors, f"{path.name}: {link}"
            count += 1
    assert count > 5000


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for path, page in pages(site).items():
        assert [load for load in page.loads if urlsplit(load).netloc] == [], path.name


def test_labels_lead_to_clauses(site: Path) -> None:
    page = Page(site / "papers.html")
    assert re.search(r'<a [^>]*href="attention\.html#at-4"[^>]*>AT-4</a>', page.text)
    clauses = Page(site / "prefix-tuning.html")
    assert {"px-4", "px-4-which-block-is-which"} <= clauses.anchors
    assert re.search(r'href="masks-and-positions\.html#po-3"', clauses.text)


def test_formulas_are_typeset(site: Path) -> None:
    counts = {str(path.relative_to(site)): page.text.count("<math") for path, page in pages(site).items()}
    assert counts["attention.html"] >= 3
    assert counts["training.html"] >= 2
    assert sum(counts.values()) > 25
    assert "Kₚ ; k]ᵀ" not in (site / "attention.html").read_text(encoding="utf-8")


def test_docstrings_are_there_with_their_steps(site: Path) -> None:
    page = Page(site / "api/attention.html")
    assert {"refpeft.attention.weights", "refpeft.ops.softmax"} <= page.anchors
    text = " ".join(re.sub(r"<[^>]+>", "", page.text).split())
    assert "Step attention.weights; stage {stack}.layers.{layer}.{attention}.weights. Clause AT-4." in text
    assert 'href="attention.html#refpeft.attention.weights"' in page.text or 'href="#refpeft.attention.weights"' in page.text  # fmt: skip
    assert "refpeft.peft_model.PeftModel.__call__" in Page(site / "api/models-and-files.html").anchors


def test_pictures_and_schemas_are_copied(site: Path) -> None:
    names = {path.name for path in site.rglob("*") if path.suffix in {".svg", ".json"}}
    assert names >= {"flat-row.svg", "attention-map.svg", "protocol.schema.json", "results.schema.json"}


NOWHERE = """
[A page](no-such-page.md), [an anchor](attention.md#no-such-clause), and as TY-1 says.
"""


def test_what_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    """A page, an anchor, a clause's label."""
    copy(tmp_path)
    with (tmp_path / "specs/papers.md").open("a", encoding="utf-8") as page:
        page.write(NOWHERE)
    process = build(tmp_path)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", process.stdout + process.stderr)
    assert process.returncode != 0
    assert "3 issues found" in printed
    for message in ("page does not exist", "anchor does not exist", "unresolved autoref `ty-1` in papers.md"):
        assert message in printed
