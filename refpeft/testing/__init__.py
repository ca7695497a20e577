"""What test suites of ports can use: golden cases as tests, and hypothesis strategies over models, adapters and questions.

`conformance_cases` gives the golden cases that a port can answer, for `pytest.mark.parametrize`. `models`, `adapters`,
`inputs` and `cases` are strategies. With the option `--refpeft-port`, pytest collects the golden cases by itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refpeft.testing.conformance import ConformanceCase, Nonconforming, conformance_cases
    from refpeft.testing.strategies import adapters, cases, inputs, models

_HOMES = {
    **dict.fromkeys(("ConformanceCase", "Nonconforming", "conformance_cases"), "refpeft.testing.conformance"),
    **dict.fromkeys(("adapters", "cases", "inputs", "models"), "refpeft.testing.strategies"),
}

__all__ = ["ConformanceCase", "Nonconforming", "adapters", "cases", "conformance_cases", "inputs", "models"]


def __getattr__(name: str) -> Any:
    """Names are imported when they are first used: pytest loads this package of everybody who has refpeft installed."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
