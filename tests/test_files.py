"""Reading JSON that somebody else wrote, and writing a file or a directory in one piece."""

from pathlib import Path

import pytest

from refpeft.errors import ConfigError, RefpeftError
from refpeft.files import read_json_object, whole_directory, write_atomically


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"{}", {}),
        (b'{"a": 1, "a": [2.5, null, true]}', {"a": [2.5, None, True]}),
        ('{"ä": "\\ud800"}'.encode(), {"ä": "\ud800"}),
    ],
)
def test_reading(tmp_path: Path, data: bytes, value: object) -> None:
    (tmp_path / "a.json").write_bytes(data)
    assert read_json_object(tmp_path / "a.json", "the thing") == value


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            b"",
            "'{}' is not valid JSON: Expecting value, line 1, column 1. Correct the thing there, or write it anew.",
        ),
        (
            b'{\n "a": ]',
            "'{}' is not valid JSON: Expecting value, line 2, column 7. Correct the thing there, or write it anew.",
        ),
        (b"[1]", "'{}' must hold a JSON object ({{…}}) with the thing, not a list."),
        (b"null", "'{}' must hold a JSON object ({{…}}) with the thing, not a NoneType."),
        (b'{"a": NaN}', "'{}' cannot be used: NaN is not a JSON number. Correct the thing there."),
        (
            b'{"a": -Infinity}',
            "'{}' cannot be used: -Infinity is not a JSON number. Correct the thing there.",
        ),
        (b'{"a": 1e999}', "'{}' cannot be used: 1e999 is too large a number. Correct the thing there."),
        (b'{"a": "\xff"}', "'{}' is not UTF-8: byte 7 is 0xff. Save the thing as UTF-8."),
        (b" " * 10_000_001, "'{}' is larger than 10 MB, which the thing never is. Is it another file?"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read_json_object(path, "the thing")
    assert str(caught.value) == expected.format(path)


@pytest.mark.parametrize("data", [b'{"a": ' * 50_000, b'{"a": ' + b"1" * 5000 + b"}"])
def test_what_exhausts_the_parser(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ConfigError, match="cannot be used"):
        read_json_object(tmp_path / "a.json", "the thing")


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"b": ', "}")])
def test_deep_nesting(tmp_path: Path, opening: str, closing: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{{"a": {opening * 99}1{closing * 99}}}')
    assert set(read_json_object(path, "the thing")) == {"a"}
    path.write_text(f'{{"a": {opening * 100}1{closing * 100}}}')
    with pytest.raises(ConfigError) as caught:
        read_json_object(path, "the thing")
    assert str(caught.value) == (
        f"'{path}' cannot be used: it is nested more than 100 deep. Correct the thing there."
    )


def test_keys_that_must_be_unique(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": {"b": 1}, "b": {"a": 2}}')
    assert read_json_object(path, "the thing", unique=True) == {"a": {"b": 1}, "b": {"a": 2}}
    for text, key in (
        ('{"a": 1, "b": 2, "b": 2}', "'b'"),
        ('{"c": [{"\\u001b": 1, "\\u001b": 2}]}', "'\\x1b'"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_json_object(path, "the thing", unique=True)
        assert str(caught.value) == (
            f"'{path}' cannot be used: it has the key {key} twice. Correct the thing there."
        )


def test_ten_megabytes_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"{}" + b" " * 9_999_998)
    assert read_json_object(tmp_path / "a.json", "the thing") == {}


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_json_object(tmp_path / "a.json", "the thing")
    assert str(caught.value) == (
        f"Can't find 'a.json' at '{tmp_path}': that directory has no such file. "
        "Give the directory that holds the thing."
    )


def test_writing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a", b"new")]


def test_writing_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a", b"old")]


def test_writing_into_no_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "a", b"new")


def names(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def test_a_whole_directory(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "a/b") as building:
        (building / "c").mkdir()
        (building / "c/d").write_text("d")
        assert not (tmp_path / "a/b").exists()
    assert names(tmp_path) == ["a", "a/b", "a/b/c", "a/b/c/d"]


def test_a_directory_that_is_empty_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays the same directory: the working directory, a mounted one."""
    (tmp_path / "a").mkdir()
    before = (tmp_path / "a").stat().st_ino
    monkeypatch.chdir(tmp_path / "a")
    with whole_directory(Path()) as building:
        assert building.resolve().parent == tmp_path / "a", "a mounted directory is a file system of its own"
        (building / "c").mkdir()
        (building / "c/d").write_text("d")
        (building / "e").write_text("e")
    assert names(tmp_path) == ["a", "a/c", "a/c/d", "a/e"]
    assert (tmp_path / "a").stat().st_ino == before


@pytest.mark.parametrize("there", ["new", "empty"])
def test_a_directory_that_fails_half_way(tmp_path: Path, there: str) -> None:
    (tmp_path / "empty").mkdir()

    def fill() -> None:
        with whole_directory(tmp_path / there) as building:
            (building / "c").write_text("c")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fill()
    assert names(tmp_path) == ["empty"]


def test_a_directory_that_cannot_be_moved_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "e":
            raise OSError("no space")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)

    def fill() -> None:
        with whole_directory(tmp_path / "a") as building:
            (building / "c").mkdir()
            (building / "c/d").write_text("d")
            (building / "e").write_text("e")

    with pytest.raises(OSError, match="no space"):
        fill()
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["file", "full", "broken link"])
def test_a_directory_that_is_not_empty(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a"
    if kind == "file":
        target.write_text("mine")
    elif kind == "full":
        target.mkdir()
        (target / ".mine").touch()
    else:
        target.symlink_to("nothing")
    before = names(tmp_path)
    with pytest.raises(RefpeftError) as caught, whole_directory(target):
        pass
    assert str(caught.value) == (
        f"'{target}' exists and is not an empty directory; nothing was written. Give the name of a new directory, or "
        "remove this one first."
    )
    assert names(tmp_path) == before
