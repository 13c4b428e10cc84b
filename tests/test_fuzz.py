"""A short run of every fuzz target; ``python -m benchmarks.fuzz`` runs them longer."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from benchmarks.fuzz_choices import Chance, Drawn
from benchmarks.fuzz_targets import DAY, TARGETS, Checks, Fault, Target, find_target
from benchmarks.fuzz_templates import template_case
from pipeline.batch import Encoder
from pipeline.policy import Policy
from pipeline.source.record import Record
from pipeline.template import Template


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


@each("records", 20)
def test_every_record_of_edited_json_is_a_row_or_a_reject(checks: Checks, data: bytes) -> None:
    checks.records(data)


@each("conversations", 30)
def test_every_odd_conversation_is_a_row_or_a_reject(checks: Checks, data: bytes) -> None:
    checks.records(data)


@each("rules", 40)
def test_edited_rule_files_load_or_say_why_not(checks: Checks, data: bytes) -> None:
    checks.rules(data)


@each("claims", 20)
def test_odd_rules_weigh_every_talk(checks: Checks, data: bytes) -> None:
    checks.rules(data)


@each("templates", 60)
def test_a_shortcut_gives_what_the_templates_own_code_does(checks: Checks, data: bytes) -> None:
    checks.shortcuts(data)


def test_most_made_templates_compile_and_some_take_their_shortcut(tmp_path: Path) -> None:
    """Else the test before would say nothing."""
    checks, chance = Checks(tmp_path), Chance(Random(0))
    for _ in range(60):
        checks.shortcuts(template_case(chance))
    assert checks.shortened >= 12


def test_a_short_run_finds_nothing_in_damaged_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a child, as Arrow may die of what it reads."""
    words = ["--target", "columns", "--seconds", "3", "--keep", str(tmp_path)]
    assert fuzz.main(words) == 0
    assert "columns by random, seed 0: " in capsys.readouterr().out


DYING = """
import os, signal, sys
from pathlib import Path
from benchmarks.fuzz import Ledger
ledger = Ledger(Path(sys.argv[1]))
ledger.enter(6, b"harmless, and longer")
ledger.enter(7, b"deadly")
os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_an_input_that_kills_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "MOST_FAULTS", 1)
    monkeypatch.setattr(
        fuzz, "_command", lambda _, folder, *__: [sys.executable, "-c", DYING, str(folder)]
    )
    words = ["--target", "columns", "--seconds", "60", "--keep", str(tmp_path)]
    assert fuzz.main(words) == 1
    out = capsys.readouterr().out
    assert ": 7 executions in " in out
    assert "killed by SIGSEGV" in out
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"deadly"]


def test_an_input_that_breaks_a_check_is_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError

    monkeypatch.setattr("pipeline.batch.parse", fail)
    args = Namespace(
        target="records", child=tmp_path / "child", keep=tmp_path / "kept", templates=None
    )
    (tmp_path / "child").mkdir()
    (tmp_path / "kept").mkdir()
    runner = fuzz.Runner(args, tmp_path, math.inf)
    runner.run(b"")
    assert not list((tmp_path / "kept").iterdir())
    runner.run(b"{}")
    runner.run(b"[]")
    assert [path.read_bytes() for path in (tmp_path / "kept").iterdir()] == [b"{}"]
    told = json.loads((tmp_path / "child" / "faults.json").read_text())
    assert [what.partition(":")[0] for what in told] == ["ValueError at test_fuzz.py"]


def test_rows_and_rejects_that_are_not_the_records_are_a_fault(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Encoder.encode

    def lose(self: Encoder, records: Any, **more: Any) -> Any:
        return honest(self, records[1:], **more)

    monkeypatch.setattr(Encoder, "encode", lose)
    with pytest.raises(Fault, match=r"rows .* and rejects .* of 1 records"):
        checks.records(b"{}")


def test_a_rows_first_token_trains_under_no_profile(checks: Checks) -> None:
    """Found by it: where a text is a stop token alone, ms-swift's profile trained that."""
    template = Template(
        "{% for m in messages %}{{ m.content }}"
        "{% if loop.last and not add_generation_prompt %}<|im_end|>{% endif %}{% endfor %}",
        variables={},
        today=DAY,
    )
    plain, policy = checks.plain, Policy(profile="ms-swift", unsure="build")
    encoder = Encoder(plain.tokenizer, template, plain.rules, policy=policy)
    raws = [
        b'{"messages": [{"role": "assistant", "content": "%s"}]}' % said for said in (b"", b"Yes.")
    ]
    made = encoder.encode([Record("a", i, i + 1, raw=raw) for i, raw in enumerate(raws)])
    assert [(r.row, r.reason) for r in made.rejects] == [(0, "nothing_to_train")]
    [row] = made.rows.to_pylist()
    assert row["row"] == 1
    assert row["labels"][0] == -100
    assert row["labels"][-1] == row["input_ids"][-1]
    assert row["loss_scale"][-1] == 1


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
