"""How pages are run: a block that prints something else than the page shows is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_guides
import test_specs
from pages import PAGES, Block, blocks, change, code, command, counted, written

PAGE = """\
# Title

```python
x = 1
print("x is", x)
```

<!-- printed -->
```text
x is 1
```

<!-- example: port.py -->
```python
raise SystemExit
```

```sh
exit 1
```

<!-- output: refpeft explain CK -->
```text
CK-1
```

```python
assert x == 1
```
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    return tmp_path / "page.md"


def test_blocks_are_found(page: Path) -> None:
    assert [(b.line, b.kind, b.name, b.language, b.text.count("\n")) for b in blocks(page)] == [
        (4, "", "", "python", 2),
        (10, "printed", "", "text", 1),
        (15, "example", "port.py", "python", 1),
        (19, "", "", "sh", 1),
        (24, "output", "refpeft explain CK", "text", 1),
        (28, "", "", "python", 1),
    ]
    assert [block.line for block in code(page)] == [4, 28]


def test_what_a_page_shows_is_written_anew(page: Path) -> None:
    namespace: dict[str, object] = {}
    wrong = PAGE.replace("x is 1\n", "x is 2\nor 3\n")
    page.write_text(wrong, encoding="utf-8")
    right = PAGE.replace("CK-1\n", command("refpeft explain CK"))
    assert written(page, namespace) == right
    assert right.count("\nCK-") == 4
    assert namespace["x"] == 1
    assert Path("port.py").read_text() == "raise SystemExit\n"
    page.write_text(right, encoding="utf-8")
    assert written(page) == right


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (PAGE.replace("<!-- printed -->\n", ""), "page.md:9: not shown: x is 1"),
        (PAGE.replace("assert x == 1", 'print("last")'), "page.md: not shown: last"),
    ],
)
def test_what_is_printed_and_not_shown_is_noticed(page: Path, changed: str, message: str) -> None:
    page.write_text(changed, encoding="utf-8")
    with pytest.raises(AssertionError, match=message):
        written(page)


def test_files_are_changed(page: Path) -> None:
    port = page.parent / "port.py"
    port.write_text("a\nb\n  c\nd\n", encoding="utf-8")
    change(port, " b\n-  c\n+  e\n+f\n")
    assert port.read_text(encoding="utf-8") == "a\nb\n  e\nf\nd\n"
    for missing in ("-  c\n+x\n", "-\n"):
        with pytest.raises(AssertionError, match="has these lines"):
            change(port, missing)


def test_a_traceback_shows_the_line_of_the_page(page: Path) -> None:
    page.write_text("text\n\n```python\na = 1\nassert a == 2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError) as caught:
        written(page)
    assert str(caught.traceback[-1].path) == f"{page}:4"
    assert caught.traceback[-1].lineno == 4


def test_commands_say_what_they_say_on_a_terminal() -> None:
    assert command("refpeft tour").startswith("Followed: ")
    assert command("refpeft explain nonsense").startswith("Usage: ")
    with pytest.raises(AssertionError):
        command("ls -l")
    assert Block(1, "output: a b: c", "text", "").name == "a b: c"


# ---------------------------------------------------------------- every page


def test_every_block_of_python_is_run() -> None:
    """By the test of its page; a block that is a file by the test that is named here."""
    files = {
        (page.name, block.name)
        for page in PAGES
        for block in blocks(page)
        if block.kind == "example" and block.language == "python"
    }
    assert files == {
        ("README.md", "my_port.py"),  # tests/ports/test_ports.py
        ("python.md", "adapter.py"),  # tests/test_guides.py
        ("find-the-bug.md", "my_port.py"),  # by the commands of its page
    }
    run_by_tests = {*test_specs.PAGES, *test_guides.PLAYED}
    assert [page.name for page in PAGES if code(page) and page not in run_by_tests] == []
    unread = {
        page.name for page in PAGES for block in blocks(page) if block.language in ("py", "python3", "pycon")
    }
    assert unread == {"fuzzing.md"}, "that one needs somebody's package, and says so"


def test_blocks_are_counted() -> None:
    lines = counted().splitlines()
    assert lines[-1] == f"{sum(len(code(page)) for page in PAGES)} blocks of Python on {len(lines) - 1} pages"
    assert "README.md: 1" in lines
    assert len(lines) > 20
