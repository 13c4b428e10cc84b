"""Where the corpus lies, and what happens without it."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Machines that run tests are shared: how long an example takes is no fact about the code.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", settings.get_profile("calm"), max_examples=5000)
settings.load_profile("calm")

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Corpus tests skip with a reason where the corpus is absent; under CI they run and fail."""
    if SHARED.is_dir() or os.environ.get("CI") == "true":
        return
    skip = pytest.mark.skip(reason=f"no corpus: {SHARED.name} is not beside the checkout")
    for item in items:
        if item.get_closest_marker("corpus"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The corpus folder beside the checkout; only for tests marked ``corpus``."""
    if not SHARED.is_dir():
        pytest.fail("the corpus is absent, and under CI a corpus test must not be skipped")
    return SHARED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI a corpus test that skips itself, for whatever reason, has failed."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and item.get_closest_marker("corpus"):
        report.outcome = "failed"
        report.longrepr = f"a corpus test was skipped under CI: {report.longrepr}"
    return report
