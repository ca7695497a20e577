"""pytest --refpeft-port: golden cases as tests of somebody's own suite; each run here is a pytest of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest_plugins = ("pytester",)

TESTS = Path(__file__).resolve().parents[1]
HONEST, MISTAKEN = "oracle.fake_ports:Honest", "oracle.fake_ports:KeysForValues"
ODD = "prefix_tuning/prefix_encode/odd-layers[float32]"
FEW = "mask/full or prefix_encode/odd-layers or prefix_encode/even-layers"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports are found; nothing of the pytest that runs this test is."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)


def run(pytester: pytest.Pytester, port: str, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess(f"--refpeft-port={port}", "-p", "no:cacheprovider", *arguments)


def outcomes(result: pytest.RunResult) -> dict[str, int]:
    """How many passed, failed, …; what was deselected aside."""
    return {name: count for name, count in result.parseoutcomes().items() if name != "deselected"}


def test_a_port_that_conforms_passes(pytester: pytest.Pytester) -> None:
    result = run(pytester, HONEST, "-k", FEW, "-v")
    assert outcomes(result) == {"passed": 3}
    result.stdout.fnmatch_lines(["refpeft::common/mask/full[[]float32[]] PASSED*"])


def test_a_failure_is_its_diagnosis_and_no_traceback(pytester: pytest.Pytester) -> None:
    result = run(pytester, MISTAKEN, "-k", FEW)
    assert outcomes(result) == {"passed": 1, "failed": 2}
    lines = result.outlines
    start = next(i for i, line in enumerate(lines) if ODD in line)
    assert lines[start + 1 : start + 3] == [
        "NONCONFORMING at prefix.layers.0.key: M174 values in the place of keys",
        "✗ prefix_tuning/prefix_encode/odd-layers  float32  NONCONFORMING",
    ]
    assert lines[start + 3].startswith("  first difference  prefix.layers.0.key  (PX-4 ")
    assert "  → refpeft explain M174" in lines
    assert "Traceback" not in result.stdout.str()
    assert f"FAILED refpeft::{ODD} - NONCONFORMING at" in result.stdout.str()
    assert (pytester.path / ".refpeft/failures/prefix_tuning.prefix_encode.odd-layers.float32").is_dir()


def test_the_first_failure_ends_it(pytester: pytest.Pytester) -> None:
    assert outcomes(run(pytester, MISTAKEN, "-k", FEW, "-x")) == {"passed": 1, "failed": 1}


def test_levels_and_profiles(pytester: pytest.Pytester) -> None:
    wanted = ("--refpeft-level=components", "--refpeft-profile=float32")
    assert outcomes(run(pytester, HONEST, *wanted, "-k", "odd-layers or forward/left-padding")) == {
        "passed": 1
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--refpeft-level=models",
            "There is no level 'models' for this port; there are config, components, model, gradients, training, generation, checkpoint.",
        ),
        ("--refpeft-profile=bfloat16", "There is no profile 'bfloat16' for this port; there are float32."),
    ],
)
def test_what_there_is_not_is_said_once(pytester: pytest.Pytester, option: str, message: str) -> None:
    result = run(pytester, HONEST, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert list(filter(None, result.errlines)) == [f"ERROR: --refpeft-port: {message}"]


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_a_port_that_cannot_be_reached_is_one_error(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    result = run(pytester, "no_such_module:port", *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert list(filter(None, result.errlines)) == [
        "ERROR: --refpeft-port: Can't import the port 'no_such_module:port': No module named 'no_such_module'. Give it as module:object."
    ]


def test_what_a_port_skips_is_skipped_with_its_reason(pytester: pytest.Pytester) -> None:
    result = run(pytester, "oracle.fake_ports:Lazy", "-k", "mask/full", "-rs")
    assert outcomes(result) == {"skipped": 1}
    result.stdout.fnmatch_lines(["SKIPPED * not today"])


def test_failures_that_are_expected(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                if "odd-layers" in item.name or "mask/full" in item.name:
                    item.add_marker(pytest.mark.xfail(reason="keys and values", strict=True))
        """)
    result = run(pytester, MISTAKEN, "-k", FEW)
    assert outcomes(result) == {"xfailed": 1, "failed": 2}
    result.stdout.fnmatch_lines(["*mask/full*", "[[]XPASS(strict)[]] keys and values"])


def test_workers_each_have_a_port(pytester: pytest.Pytester) -> None:
    assert outcomes(run(pytester, MISTAKEN, "-k", FEW, "-n", "2")) == {"passed": 1, "failed": 2}


def test_a_program_is_asked_and_ended(pytester: pytest.Pytester) -> None:
    port = pytester.makepyfile(
        port="""
        import json, sys
        from pathlib import Path

        Path("started").touch()
        for line in sys.stdin:
            message = json.loads(line)
            if message["cmd"] == "stop":
                Path("stopped").touch()
                break
            if message["cmd"] == "start":
                answer = {"version": 1, "implementation": {"name": "p", "language": "python", "version": "0"},
                          "families": ["gpt2"], "methods": ["prefix_tuning"], "questions": ["mask"], "profiles": ["float32"]}
            else:
                answer = {"seq": message["seq"], "errored": {"message": "not written yet"}}
            print(json.dumps(answer), flush=True)
        """
    )
    result = run(pytester, f"{sys.executable} {port}", "-k", "mask/full")
    assert outcomes(result) == {"failed": 1}
    result.stdout.fnmatch_lines(["ERRORED", "✗ common/mask/full  float32  ERRORED", "  not written yet"])
    assert (pytester.path / "started").exists()
    assert (pytester.path / "stopped").exists()


def test_a_program_that_hangs_is_not_asked_for_ever(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pytester.path)
    cases = _cases_of_a_silent_port()[:5]
    said = []
    for case in cases:
        with pytest.raises(AssertionError) as failure:
            case.check()
        said.append(str(failure.value).splitlines()[0])
    assert said == [
        *["TIMEOUT"] * 3,
        *["not asked: the port did not answer in time 3 times in a row, so it is taken to hang always"] * 2,
    ]


def _cases_of_a_silent_port() -> list:
    from oracle.fake_ports import command

    from refpeft.testing import conformance_cases

    return conformance_cases(command(rest=[["hang"]]), timeout=0.2)


def test_last_failed_and_xml_know_the_cases(pytester: pytest.Pytester) -> None:
    first = pytester.runpytest_subprocess(f"--refpeft-port={MISTAKEN}", "-k", FEW, "--junitxml=results.xml")
    assert outcomes(first) == {"passed": 1, "failed": 2}
    root = ElementTree.parse(pytester.path / "results.xml").getroot()  # noqa: S314  (written here)
    assert {
        (case.get("name"), case.find("failure") is not None, case.find("properties/property").get("value"))
        for case in root.iter("testcase")
    } == {
        ("common/mask/full[float32]", False, "peft-0.21.2/common/mask/full"),
        (ODD, True, "peft-0.21.2/prefix_tuning/prefix_encode/odd-layers"),
        (ODD.replace("odd", "even"), True, "peft-0.21.2/prefix_tuning/prefix_encode/even-layers"),
    }
    again = pytester.runpytest_subprocess(f"--refpeft-port={MISTAKEN}", "-k", FEW, "--lf")
    assert outcomes(again) == {"failed": 2}


def test_as_parameters_of_ones_own_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        from oracle.fake_ports import KeysForValues
        from refpeft.testing import conformance_cases

        CASES = conformance_cases(KeysForValues(), levels=["components"], patterns=["mask/full", "odd-layers"])

        @pytest.mark.parametrize("case", CASES)
        def test_conforms(case):
            case.check()
        """)
    result = pytester.runpytest_subprocess("-v", "-p", "no:cacheprovider")
    assert outcomes(result) == {"passed": 1, "failed": 1}
    result.stdout.fnmatch_lines(["*::test_conforms[[]common/mask/full[[]float32[]][]] PASSED*"])
    result.stdout.fnmatch_lines(["*NONCONFORMING at prefix.layers.0.key: M174 values in the place of keys"])


def test_without_its_option_nothing_happens_and_nothing_is_imported(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_nothing_heavy():
            assert "refpeft.testing.plugin" in sys.modules
            assert not {"numpy", "hypothesis.strategies", "refpeft.oracle"} & sys.modules.keys()
        """)
    result = pytester.runpytest_subprocess("-p", "no:hypothesispytest", "-p", "no:jaxtyping")
    assert outcomes(result) == {"passed": 1}
