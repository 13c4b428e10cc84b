"""A short run of every fuzz target; ``python -m benchmarks.fuzz`` runs them for as long as wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from benchmarks.fuzz_choices import Drawn
from benchmarks.fuzz_targets import TARGETS, Checks, Target, find_target


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Checks:
    return Checks(tmp_path_factory.mktemp("fuzz"))


@st.composite
def inputs(draw: Callable[[Any], Any], target: Target) -> bytes:
    return target.make(Drawn(draw, st.integers))


def each(name: str, examples: int) -> Callable[[Callable[[Checks, bytes], None]], Any]:
    """The test over *examples* inputs of that target, the same ones every time."""
    calm = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: calm(given(data=inputs(find_target(name)))(test))


@each("records", 60)
def test_every_record_of_edited_json_is_a_row_or_a_reject(checks: Checks, data: bytes) -> None:
    checks.records(data)


@each("conversations", 60)
def test_every_odd_conversation_is_a_row_or_a_reject(checks: Checks, data: bytes) -> None:
    checks.records(data)


@each("rules", 40)
def test_edited_rule_files_load_or_say_why_not(checks: Checks, data: bytes) -> None:
    checks.rules(data)


@each("claims", 60)
def test_odd_rules_weigh_every_talk(checks: Checks, data: bytes) -> None:
    checks.rules(data)


def test_good_inputs_pass_and_are_read(checks: Checks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that lets everything pass would pass these too: so what they read is counted."""
    met: list[int] = []
    honest = Checks._encode

    def count(self: Checks, encoder: Any, records: Any, **more: Any) -> None:
        met.append(len(records))
        honest(self, encoder, records, **more)

    monkeypatch.setattr(Checks, "_encode", count)
    for target in TARGETS:
        for data in target.seeds():
            met.clear()
            target.check(checks, data)
            assert sum(met) > 0 or not data
