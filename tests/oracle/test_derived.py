"""What is derived from the cases: measured again only where a case's files have changed."""

from __future__ import annotations

import shutil
from pathlib import Path

from refpeft.oracle.derived import OfCase, derived
from refpeft.oracle.vectors import all_vectors, golden_directory, read_vector

HERE = golden_directory() / "vectors" / "peft-0.21.2" / "common" / "mask"


class Length(OfCase):
    """What a test derives: the length of a case's id."""

    length: int


def measured(directory: Path) -> tuple[str, Length]:
    vector = read_vector(directory)
    return vector.case.id, Length(vector.digest, len(vector.case.id))


def test_what_is_stored_for_the_same_files_is_kept_and_the_rest_is_measured(tmp_path: Path) -> None:
    here = tmp_path / "vectors" / "peft-0.21.2" / "common"
    here.mkdir(parents=True)
    shutil.copytree(HERE, here / "mask")
    vectors = list(all_vectors(tmp_path))
    kept, changed, *rest = (vector.case.id for vector in vectors)
    digests = {vector.case.id: vector.digest for vector in vectors}
    stored = {
        kept: Length(digests[kept], 1),
        changed: Length("of other files", 2),
        "no more": Length("gone", 3),
    }
    found = derived(measured, stored, tmp_path)
    assert list(found) == [kept, changed, *rest]
    assert [value.length for value in found.values()] == [1, len(changed), *map(len, rest)]
