"""JUnit XML."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec
from oracle.report.made import HOSTILE, case, hostile, results, wrong

from refpeft.oracle.claims import Known
from refpeft.oracle.report.junit import clean, junit


def test_each_case_in_each_profile_is_a_testcase() -> None:
    made = results(
        case(), case(profile="float64"), wrong(),
        case("CRASHED", "common/mask/full", level="components", message="status 3", detail="Segmentation fault"),
        case("SKIPPED", "common/mask/left-padding", level="components", message="not yet"),
    )  # fmt: skip
    root = ElementTree.fromstring(junit(made))  # noqa: S314  (made here)
    assert root.attrib == {
        "name": "refpeft my-port", "tests": "5", "failures": "1", "errors": "1", "skipped": "1", "time": "1.250000",
    }  # fmt: skip
    components, model = root
    assert (components.get("name"), components.get("tests"), components.get("failures")) == (
        "components",
        "3",
        "1",
    )
    assert [c.attrib for c in model.iter("testcase")] == [
        {
            "classname": "peft-0_21_2.prefix_tuning.forward",
            "name": f"left-padding [{profile}]",
            "time": "0.250000",
        }
        for profile in ("float32", "float64")
    ]
    failure, error, skipped = (next(components.iter(name)) for name in ("failure", "error", "skipped"))
    assert failure.attrib == {
        "type": "NONCONFORMING", "message": "prefix.layers.0.key: worst at row 0, head 1: -2.5, HF 0.5",
    }  # fmt: skip
    assert "first difference  prefix.layers.0.key" in str(failure.text)
    assert (error.get("type"), error.get("message")) == ("CRASHED", "status 3")
    assert "Segmentation fault" in str(error.text)
    assert skipped.attrib == {"message": "not yet"}


def test_a_partial_run_says_so() -> None:
    made = junit(results(case(), summary={"partial": True, "partial_because": "interrupted"}))
    root = ElementTree.fromstring(made)  # noqa: S314
    said = {p.get("name"): p.get("value") for p in root.iter("property")}
    assert said["partial"] == "interrupted"
    assert "partial: interrupted" in str(said["verdict"])


def test_hostile_words_are_text() -> None:
    root = ElementTree.fromstring(junit(hostile()))  # noqa: S314
    assert {element.tag for element in root.iter()} == {
        "testsuites", "testsuite", "properties", "property", "testcase", "failure", "error", "skipped",
    }  # fmt: skip
    assert HOSTILE in str(next(root.iter("error")).text)


def test_characters_that_xml_lacks_are_replaced() -> None:
    assert clean("a\x00\x1b[1m\tb\n\ud800\uffff𝄞") == "a??[1m\tb\n??𝄞"
    made = junit(results(case("ERRORED", message="\x00\x0b\ud800")))
    assert ElementTree.fromstring(made) is not None  # noqa: S314


def test_an_expected_failure_is_skipped() -> None:
    known = msgspec.structs.replace(wrong(), expected=Known("not yet", "https://x.org/1"))
    root = ElementTree.fromstring(junit(results(case(), known)))  # noqa: S314
    assert (root.get("failures"), root.get("skipped")) == ("0", "1")
    assert next(root.iter("skipped")).attrib == {"message": "expected to fail: not yet https://x.org/1"}
