"""Where the corpus lies, where torch is needed, and what happens without them."""

from __future__ import annotations

import os
from collections.abc import Generator
from importlib.util import find_spec
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
    if os.environ.get("CI") == "true":
        # Modules of the training tests skip themselves where torch is absent.
        missing = [name for name in ("torch", "trl") if find_spec(name) is None]
        if missing or "TRAINERS" not in os.environ:
            raise pytest.UsageError(
                f"under CI: {', '.join(missing) or 'TRAINERS'} missing, and tests would skip; "
                "run .ci/run, which installs them"
            )
        return
    if SHARED.is_dir():
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
    """Under CI a test of the corpus or the trainers that skips itself has failed."""
    report = yield
    held = any(item.get_closest_marker(name) for name in ("corpus", "train"))
    if report.skipped and os.environ.get("CI") == "true" and held:
        report.outcome = "failed"
        report.longrepr = f"a test that must run under CI was skipped: {report.longrepr}"
    return report
