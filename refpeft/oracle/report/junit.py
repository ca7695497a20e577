"""A run as JUnit XML: each case in each profile a testcase, for the test views of CI systems."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from refpeft.oracle.judge import CaseResult, Results
from refpeft.oracle.questions import LEVELS
from refpeft.oracle.report.terminal import block, verdict_line

ERRORS = ("ERRORED", "CRASHED", "TIMEOUT")
"""Verdicts on a port that gave no answer."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that an XML document cannot have, not even escaped."""


def junit(results: Results) -> bytes:
    """A suite for each level."""
    name = clean(f"refpeft {results.implementation.name}")
    levels = [*LEVELS, *sorted({case.level for case in results.cases} - set(LEVELS))]
    suites = [_suite(results, level) for level in levels if any(c.level == level for c in results.cases)]
    root = ElementTree.Element("testsuites", {"name": name, **_sums(results.cases)})
    root.extend(suites)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def clean(text: str) -> str:
    """Without the characters that XML cannot have."""
    return _NOT_XML.sub("?", text)


def _sums(cases: Sequence[CaseResult]) -> dict[str, str]:
    outcomes = [_outcome(case) for case in cases]
    return {
        "tests": str(len(cases)),
        "failures": str(outcomes.count("failure")),
        "errors": str(outcomes.count("error")),
        "skipped": str(outcomes.count("skipped")),
        "time": f"{sum(case.seconds for case in cases):.6f}",
    }


def _outcome(case: CaseResult) -> str:
    """The element that says how a testcase ended; nothing where it conforms."""
    if case.verdict == "CONFORMS":
        return ""
    if case.verdict == "SKIPPED" or case.expected is not None:
        return "skipped"
    return "error" if case.verdict in ERRORS else "failure"


def _suite(results: Results, level: str) -> ElementTree.Element:
    cases = [case for case in results.cases if case.level == level]
    suite = ElementTree.Element("testsuite", {"name": clean(level), **_sums(cases)})
    properties = ElementTree.SubElement(suite, "properties")
    said = {
        "refpeft": results.refpeft,
        "dialect": results.dialect,
        "port": f"{results.implementation.name} {results.implementation.version}",
        "verdict": verdict_line(results).plain.strip(),
        "partial": results.summary.partial_because or "no",
        "expected failures": str(results.summary.expected_failures),
        "unexpected passes": ", ".join(results.summary.unexpected_passes),
        "not asked": str(results.summary.not_asked),
    }
    for key, value in said.items():
        ElementTree.SubElement(properties, "property", {"name": key, "value": clean(value)})
    suite.extend(_testcase(case, results.expected_from) for case in cases)
    return suite


def _testcase(case: CaseResult, expected_from: str) -> ElementTree.Element:
    suite, _, name = case.case.rpartition("/")
    element = ElementTree.Element(
        "testcase",
        {
            "classname": clean(suite.replace(".", "_").replace("/", ".")),
            "name": clean(f"{name} [{case.profile}]"),
            "time": f"{case.seconds:.6f}",
        },
    )
    outcome = _outcome(case)
    if outcome == "skipped":
        known = case.expected
        message = f"expected to fail: {known.reason} {known.url}".strip() if known else case.message
        ElementTree.SubElement(element, "skipped", {"message": clean(message)})
    elif outcome:
        first = case.first
        message = f"{first.name}: {first.reason or first.worst}" if first else case.message
        said = {"type": case.verdict, "message": clean(message)}
        text = block([case], expected_from, False).plain
        ElementTree.SubElement(element, outcome, said).text = clean(text)
    return element
