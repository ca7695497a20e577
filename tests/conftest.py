"""Shapes and dtypes are executed: every annotation of refpeft is checked by beartype (typechecker.py) while the tests run.

Checking takes six times as long as computing. So it is left out where the specification is only replayed, over and over:
its own tests, and the golden questions, each asked once, check every annotation on every family.
"""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # tiny matrices: threads only wait for one another

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

install_import_hook("refpeft", "typechecker.check")

_SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=20, **_SETTINGS)
settings.register_profile("deep", max_examples=60, **_SETTINGS)
settings.load_profile(os.environ.get("REFPEFT_HYPOTHESIS", "quick"))

REPLAYING = (
    "fuzz",
    "golden",
    "identities",
    "oracle",
    "ports",
    "testing",
    "test_cli_fuzz",
    "test_devices",
    "test_every_family",
    "test_generation",
    "test_gpu",
    "test_kernels",
    "test_live",
    "test_traceability",
    "test_trainer",
)
"""How the paths of tests begin that replay the specification."""
CHECKED = "oracle/test_questions.py"
"""Asks every golden question, and checks every annotation meanwhile."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Check annotations, or not, by where a test stands."""
    here = item.path.relative_to(Path(__file__).parent).as_posix()
    jaxtyping.config.update("jaxtyping_disable", here.startswith(REPLAYING) and here != CHECKED)
    return (yield)
