"""A plugin of pytest: with `--refpeft-port`, each golden case that a port can answer is a test. Without it, nothing happens.

pytest --refpeft-port=my_package:port -m refpeft           only these
pytest --refpeft-port="node port.mjs" -n auto -k "forward and not gradients"

A test's name is the case's id and the number format; a failure's text is the diagnosis. pytest's own options work: `-k`,
`-x`, `--lf`, `-n` (each worker starts a port of its own), JUnit XML; marks such as xfail are added to the items in
`pytest_collection_modifyitems`, by name.
"""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from refpeft.testing.conformance import ConformanceCase

SUITE = "refpeft"
"""What stands before the names of the tests, and the mark that they have."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options; values are looked at when the first of them is given."""
    group = parser.getgroup("refpeft", "conformance of a port with HF peft (refpeft)")
    group.addoption(
        "--refpeft-port",
        metavar="PORT",
        help="Collect the golden cases that this port can answer: module:object, or a command that speaks the protocol.",
    )
    for name, what in (
        ("level", "Only questions of this level. Repeatable."),
        ("profile", "Numbers to compute in; else all that the port declares. Repeatable."),
    ):
        group.addoption(f"--refpeft-{name}", action="append", metavar=name.upper(), help=what)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known; and if a port is named, be the first whom pytest shows what it collected."""
    config.addinivalue_line("markers", "refpeft: a golden case that a port is asked about (--refpeft-port)")
    if config.getoption("--refpeft-port") is not None:
        config.pluginmanager.register(_Collecting(), "refpeft-collecting")
        if getattr(config.option, "dist", "no") != "no" and not hasattr(config, "workerinput"):
            for case in _cases(config)[:1]:  # workers cannot say what is wrong with an option
                case.asking.close()


def _cases(config: pytest.Config) -> list[ConformanceCase]:
    """What the options choose.

    Raises:
        pytest.UsageError: the port cannot be reached, or an option has a value that there is not.
    """
    from refpeft.errors import RefpeftError
    from refpeft.testing.conformance import conformance_cases

    option = config.getoption
    try:
        return conformance_cases(
            option("--refpeft-port"), levels=option("--refpeft-level"), profiles=option("--refpeft-profile")
        )
    except RefpeftError as error:
        raise pytest.UsageError(f"--refpeft-port: {error}") from None


class _Collecting:
    """Adds the cases before anybody selects, `-k` and `--lf` included: registered last, it is called first."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> Iterator[None]:
        suite = Suite.from_parent(session, name=SUITE, nodeid=SUITE)
        items.extend(suite.collect())
        return (yield)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """End the port."""
        for item in session.items:
            if isinstance(item, Question):
                item.case.asking.close()
                return


class Suite(pytest.Collector):
    """All cases of one port."""

    def collect(self) -> Iterator[Question]:
        """Each as a test."""
        for case in _cases(self.config):
            yield Question.from_parent(self, name=case.name, nodeid=f"{SUITE}::{case.name}", case=case)


class Question(pytest.Item):
    """One golden case in one number format."""

    def __init__(self, *, case: ConformanceCase, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.case = case
        self.add_marker(SUITE)
        self.user_properties.append(("refpeft_case", case.vector.case.id))
        self.user_properties.append(("refpeft_profile", case.profile.name))

    def runtest(self) -> None:
        """Ask and judge."""
        try:
            self.case.check()
        except unittest.SkipTest as skipped:
            pytest.skip(str(skipped))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The diagnosis, and no traceback of refpeft's."""
        if isinstance(excinfo.value, AssertionError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, None, str]:
        """What stands over a failure."""
        return SUITE, None, self.name
