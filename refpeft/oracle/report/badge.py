"""The verdict as an endpoint badge: the JSON that badge services read."""

from __future__ import annotations

import msgspec

from refpeft.oracle.judge import Results
from refpeft.oracle.report.looks import counted

COLOURS = {"CONFORMS": "brightgreen", "NONCONFORMING": "red", "INCONCLUSIVE": "lightgrey"}
PARTIAL = "yellowgreen"
"""What conforms as far as it was asked, or but for failures that are expected."""


def badge(results: Results) -> bytes:
    """`schemaVersion`, `label`, `message` and `color`."""
    summary = results.summary
    said = f"{summary.verdict.lower()} {summary.counts.get('CONFORMS', 0)}/{summary.asked}"
    said += ", float64-exact" if summary.float64_exact else ""
    said += f", {counted(summary.expected_failures, 'expected failure')}" if summary.expected_failures else ""
    said += " (partial)" if summary.partial else ""
    partial = summary.verdict == "CONFORMS" and (summary.partial or summary.expected_failures > 0)
    document = {
        "schemaVersion": 1,
        "label": f"refpeft {results.dialect}" if results.expected_from == "HF peft" else "refpeft own model",
        "message": said,
        "color": PARTIAL if partial else COLOURS[summary.verdict],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
