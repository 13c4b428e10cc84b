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
    """What needs what is not there skips with a reason; under CI it runs and fails."""
    if os.environ.get("CI") == "true":
        return
    absent = {}
    if not SHARED.is_dir():
        absent["corpus"] = f"no corpus: {SHARED.name} is not beside the checkout"
    if find_spec("torch") is None or find_spec("trl") is None:
        absent["train"] = "no torch or trl: pip install '.[train]'"
    for item in items:
        for name, reason in absent.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


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
