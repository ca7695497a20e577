"""golden/floors.json: the floors of every golden case, measured beforehand and kept apart from HF's truth (clause VF-6).

A case is known by the hash of its files; one that has changed is measured anew.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from refpeft.oracle.budget import PROFILES, Floor, Profile, measure
from refpeft.oracle.cases import ask_of
from refpeft.oracle.derived import (
    WORTH_PROCESSES,
    OfCase,
    derived,
    line_by_line,
    over_processes,
    read_derived,
    unknown_cases,
)
from refpeft.oracle.vectors import Vector, VectorError, all_vectors, golden_directory, read_vector

NAME = "floors.json"
FORMAT = 2
"""The version of the file."""
SAMPLED = 4
"""Of so many cases as are worth several processes, each fourth is measured anew by a check: a change of the code shows in many."""


class _CaseFloors(OfCase):
    profiles: dict[str, dict[str, Floor]]


class _Floors(msgspec.Struct):
    format: int
    cases: dict[str, _CaseFloors]


@functools.lru_cache(maxsize=2)
def _stored(golden: Path) -> Mapping[str, _CaseFloors]:
    path = golden / NAME
    stored = read_derived(path, _Floors)
    if stored is None:
        return {}
    if stored.format != FORMAT:
        raise VectorError(f"'{path}' has format {stored.format}; this refpeft reads format {FORMAT}.")
    return stored.cases


def stale_floors(golden: Path) -> list[str]:
    """How the stored floors differ from those that would be measured now, in words; a factor of four is no difference.

    Every case is looked up by the hash of its files; of very many (`SAMPLED`), some are measured anew.
    """
    stored, vectors = _stored(golden), list(all_vectors(golden))
    problems = unknown_cases(NAME, {case: entry.digest for case, entry in stored.items()}, golden)
    directories = [vector.directory for vector in vectors if vector.case.id in stored]
    step = 1 if len(directories) < WORTH_PROCESSES else SAMPLED
    for case, measured in over_processes(_measured, directories[::step]):
        for profile, by_tensor in measured.profiles.items():
            u, before = PROFILES[profile].unit_roundoff, stored[case].profiles.get(profile, {})
            for name, floor in by_tensor.items():
                old = before.get(name, Floor(-1.0, -1.0))
                for a, b in ((old.norm, floor.norm), (old.largest, floor.largest)):
                    if max(a, b, u) > 4 * max(min(a, b), u):
                        problems.append(f"{NAME}: {case}, {profile}, {name}: {a:.2g}, measured now {b:.2g}")
    return problems


@dataclass(frozen=True)
class Hurried(Vector):
    """A case whose floors are of a few replays, or zero: what conforms then conforms, for budgets only grow with more."""

    replays: int = 0


def hurried(vector: Vector, replays: int) -> Hurried:
    """The case with floors of so many replays."""
    found = Hurried(vector.case, vector.directory, replays)
    found.__dict__.update(vector.__dict__)
    return found


def floors(vector: Vector, profile: Profile) -> Mapping[str, Floor]:
    """The floors of a case's tensors: as measured beforehand if the case is unchanged, else measured now."""
    if isinstance(vector, Hurried):
        few = measure(ask_of(vector), profile, vector.replays) if vector.replays else {}
        return defaultdict(lambda: Floor(0.0, 0.0), few)
    stored = _stored(golden_directory(vector.directory)).get(vector.case.id)
    if stored is not None and stored.digest == vector.digest and profile.name in stored.profiles:
        return stored.profiles[profile.name]
    if vector.truth == "refpeft" and type(vector) is Vector:  # looked at several times
        return floors_of_stages(vector, profile)
    return measure(ask_of(vector), profile)


def floors_of_stages(vector: Vector, profile: Profile) -> Mapping[str, Floor]:
    """The floors of everything that refpeft answers to a case, stages without golden values too; measured once in a run."""
    return _measured_once(vector.directory, vector.digest, profile.name)


@functools.lru_cache(maxsize=256)
def _measured_once(directory: Path, digest: str, profile: str) -> Mapping[str, Floor]:
    return measure(ask_of(read_vector(directory)), PROFILES[profile])


def floors_document(golden: Path | None = None, *, keep: bool = False) -> bytes:
    """The contents of golden/floors.json: for every case and profile, the floors of the tensors it compares.

    With `keep`, those of vectors that have not changed are taken from the stored file.
    """
    stored = _stored(golden or golden_directory()) if keep else {}
    return line_by_line(_Floors(FORMAT, derived(_measured, stored, golden)))


def _measured(directory: Path) -> tuple[str, _CaseFloors]:
    """A case's id, and the floors of the tensors that it compares, in each profile."""

    def rounded(floor: Floor) -> Floor:
        return Floor(float(f"{floor.norm:.3g}"), float(f"{floor.largest:.3g}"))

    vector = read_vector(directory)
    compared = {n for n, tensor in vector.case.tensors.items() if tensor.kind in ("composite", "tokens")}
    by_profile = {}
    for profile in PROFILES.values():
        measured = measure(ask_of(vector), profile) if compared else {}
        by_profile[profile.name] = {name: rounded(measured[name]) for name in measured if name in compared}
    return vector.case.id, _CaseFloors(vector.digest, by_profile)
