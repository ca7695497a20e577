"""What `refpeft fuzz` says: how many questions were asked, the smallest that was answered wrongly, and what became of old ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from refpeft import __version__
from refpeft.oracle import drawn as drawing
from refpeft.oracle.diagnosis import with_diagnosis
from refpeft.oracle.drawn import Drawn
from refpeft.oracle.evidence import Evidence
from refpeft.oracle.judge import CaseResult, Results, Selection, finish, summarise
from refpeft.oracle.protocol import Implementation
from refpeft.oracle.questions import loaded_base
from refpeft.oracle.reply import Port
from refpeft.oracle.search import RIGHT, Kept, Search
from refpeft.oracle.vectors import Vector


class Example(msgspec.Struct, frozen=True):
    """The smallest question that was answered wrongly."""

    case: str
    family: str
    layers: int
    heads: int
    head_dim: int
    virtual: int
    batch: int
    tokens: int
    first_at: int
    """At which question a wrong answer came first."""
    asked_to_shrink: int
    """How many questions were asked after that."""


class Fuzzed(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything about a search: what `refpeft fuzz --format json` prints."""

    refpeft: str
    implementation: Implementation
    seed: int
    """With which it finds the same again."""
    verdict: str
    """CONFORMS: no disagreement was found, which proves nothing; NONCONFORMING; INCONCLUSIVE: nothing was decided."""
    examples: int
    counts: dict[str, int]
    seconds: float
    ended: str = ""
    """Why the search ended early."""
    shard: str = ""
    mended: list[str] = []
    """Kept failures that conform now, and were removed."""
    still: list[str] = []
    """Kept failures that still are wrong; nothing new is looked for then."""
    example: Example | None = None
    found: Results | None = None
    """The verdicts on what is wrong, as `refpeft check` gives them."""


def seed_of(seed: int, shard: tuple[int, int]) -> int:
    """The seed of one of several searches side by side."""
    if shard == (1, 1):
        return seed
    text = f"{seed} {shard[0]}/{shard[1]}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def of_kept(kept: Sequence[tuple[Kept, Vector]], evidence: Evidence, port: Port) -> Results | None:
    """The verdicts on old failures that are still wrong."""
    wrong = [(one.result, vector) for one, vector in kept if one.result.verdict not in RIGHT]
    if not wrong:
        return None
    return _results(port, [result for result, _ in wrong], [vector for _, vector in wrong], evidence)


def of_search(search: Search, failures: Path) -> tuple[Example, Results] | None:
    """The smallest question that was answered wrongly, its directory written below `failures`, and what it looks like."""
    if search.found is None:
        return None
    drawn, asked = search.found
    drawing.complete(asked.vector)
    result = finish(asked, failures)
    evidence = search.evidence() if search.ended != "interrupted" else Evidence()
    return _example(drawn, asked.vector, search), _results(search.port, [result], [asked.vector], evidence)


def _results(port: Port, cases: list[CaseResult], vectors: list[Vector], evidence: Evidence) -> Results:
    from refpeft.oracle.budget import PROFILES

    profiles = [PROFILES[name] for name in dict.fromkeys(case.profile for case in cases)]
    return with_diagnosis(summarise(port, Selection(vectors, profiles), cases), evidence, port)


def _example(drawn: Drawn, vector: Vector, search: Search) -> Example:
    from refpeft.transformer.config import ModelConfig

    model = (
        loaded_base(vector.model_directory).config
        if vector.model_directory
        else ModelConfig.from_dict(drawn.model)
    )
    return Example(
        vector.case.id,
        drawn.family,
        model.num_layers,
        model.num_attention_heads,
        model.head_dim,
        drawn.virtual,
        drawn.batch,
        drawn.tokens,
        search.first_at,
        search.examples - search.first_at,
    )


def result_of(
    port: Port,
    search: Search,
    seed: int,
    seconds: float,
    kept: Sequence[tuple[Kept, Vector]],
    found: Results | None,
    example: Example | None,
    shard: str = "",
) -> Fuzzed:
    """All of it in one document."""
    counts = search.counts.copy()
    counts.update(one.result.verdict for one, _ in kept)
    wrong = found is not None
    return Fuzzed(
        refpeft=__version__,
        implementation=port.abilities.implementation,
        seed=seed,
        verdict="NONCONFORMING" if wrong else "CONFORMS" if counts.get("CONFORMS") else "INCONCLUSIVE",
        examples=search.examples,
        counts=dict(counts),
        seconds=round(seconds, 3),
        ended=search.ended,
        shard=shard,
        mended=[one.directory for one, _ in kept if one.result.verdict == "CONFORMS"],
        still=[one.directory for one, _ in kept if one.result.verdict not in RIGHT],
        example=example,
        found=found,
    )
