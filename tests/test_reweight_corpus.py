"""Reweighting real shards: the files of a build with the other rules, in a fraction of its time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import build, cli, reweight
from pipeline.files import file_digest
from pipeline.manifest import Manifest, read_manifest

pytestmark = [pytest.mark.corpus, pytest.mark.slow]
WORKERS = str(min(2, os.cpu_count() or 1))
RULES = """
version: 1
name: {name}
rules:
  - {{pattern: '(?s)<think>.*?</think>\\s*', weight: 0.25}}
  - {{pattern: '{pattern}', weight: 2}}
"""
PATTERNS = {"actions": r"(?m)^(?:Action|Thought)[^\n]*:[^\n]*", "numbers": r"\d+(?:\.\d+)? ?"}


@pytest.fixture
def rules(tmp_path: Path) -> dict[str, str]:
    paths = {}
    for name, pattern in PATTERNS.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(RULES.format(name=name, pattern=pattern), encoding="utf-8")
        paths[name] = str(path)
    return paths


def build_bench(shared: Path, name: str, output: Path, rules: Sequence[str]) -> float:
    """Builds all conversations; seconds."""
    started = time.monotonic()
    flags = ["--input", str(shared / "data" / "bench_messages.jsonl.zst"), "--quiet"]
    flags += ["--tokenizer", str(shared / "tokenizers" / name), "--output", str(output)]
    flags += ["--workers", WORKERS, "--max-reject-rate", "0.2", "--date", "2026-03-14"]
    assert cli.run(build.main, [*flags, "--rules", *rules]) == 0
    return time.monotonic() - started


def reweight_bench(shared: Path, name: str, old: Path, new: Path, rules: Sequence[str]) -> float:
    """Reweights them; seconds."""
    started = time.monotonic()
    flags = [str(old), "--tokenizer", str(shared / "tokenizers" / name), "--output", str(new)]
    flags += ["--workers", WORKERS, "--max-reject-rate", "0.2", "--quiet", "--rules", *rules]
    assert cli.run(reweight.main, flags) == 0
    return time.monotonic() - started


def manifest_of(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_it_equals_a_build_with_either_rule_file(
    shared: Path, name: str, rules: dict[str, str], tmp_path: Path
) -> None:
    """All of 50,000 conversations, file for file; some rows of Qwen3's are normalized."""
    old = tmp_path / "old"
    build_bench(shared, name, old, ["ignore_empty_think"])
    stored = [pq.read_table(path, columns=["text"]) for path in old.glob("*.parquet")]
    kept = sum(t.num_rows - t["text"].null_count for t in stored)
    assert (0 < kept < 10) if name == "qwen3" else kept == 0
    chosen = rules if name == "qwen3" else {"actions": rules["actions"]}
    for word, path in chosen.items():
        fresh, again = tmp_path / f"fresh-{word}", tmp_path / f"again-{word}"
        slow = build_bench(shared, name, fresh, [path])
        fast = reweight_bench(shared, name, old, again, [path])
        files = sorted(path.name for path in fresh.glob("*.parquet"))
        assert len(files) > 5
        for file in files:
            assert file_digest(again / file) == file_digest(fresh / file), file
        expected = {"missing": 0, **manifest_of(fresh).counts}
        assert manifest_of(again).counts == expected
        assert fast < slow  # less than a fifth, on a machine that does nothing else
