"""A build with fractions, zeros and large weights, its export, and its rows read without us."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from pipeline import build, export

RULES = """\
version: 1
name: mild
rules:
  - {pattern: '<think>[\\s\\S]*?</think>\\s*', weight: 0}
  - {pattern: '[A-Z]\\w+ ?', weight: 0.3}
  - {pattern: '\\d+', weight: 2.5}
"""
EMPTY = """\
version: 1
name: empty
rules:
  - {pattern: '<think>\\s*</think>\\s*', weight: 0}
"""
Row = dict[str, npt.NDArray[Any]]


def once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]
) -> tuple[Path, Any]:
    """What *make* returned and the folder it filled: by one of the test processes, for all.

    Importing a trainer takes seconds, and as many again in each process.
    """
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = root / f"once-{name}", root / f"once-{name}.json"
    with (root / f"once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            done.write_text(json.dumps(make(folder)))
        return folder, json.loads(done.read_text())


@pytest.fixture(scope="session")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sample in two shards, with weights 0, 0.3, 0.75, 1 and 2.5."""
    return once(tmp_path_factory, "weighed", lambda folder: _build(folder, RULES))[0] / "shards"


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sample in two shards, with weights 0 and 1."""
    return once(tmp_path_factory, "plain", lambda folder: _build(folder, EMPTY))[0] / "shards"


def _build(folder: Path, rules: str) -> None:
    (folder / "rules.yaml").write_text(rules, encoding="utf-8")
    words = ["--rules", folder / "rules.yaml", "--output", folder / "shards"]
    words += ["--shard-size", 100_000, "--workers", 1, "--quiet"]
    assert build.main([str(word) for word in words]) == 0


def exported(shards: Path, target: str, folder: Path, *flags: str) -> dict[str, Any]:
    """Exports, and returns what export.json says."""
    words = [str(shards), "--to", target, "--output", str(folder), "--quiet", *flags]
    assert export.main(words) == 0
    receipt: dict[str, Any] = json.loads((folder / "export.json").read_text())
    return receipt


def rows_of(shards: Path) -> list[Row]:
    """ids, labels and weights of every row, as pyarrow reads them."""
    found = [
        {
            "ids": np.array(row["input_ids"], np.int32),
            "labels": np.array(row["labels"], np.int32),
            "weights": np.array(row["loss_scale"], np.float32),
        }
        for path in sorted(shards.glob("*.parquet"))
        for row in pq.read_table(path, columns=["input_ids", "labels", "loss_scale"]).to_pylist()
    ]
    assert len(found) > 300
    return found


def stop_token(shards: Path) -> int:
    """What ends a turn, which is EOS to a tokenizer of ChatML: the last that each row trains."""
    last = {int(row["labels"][row["labels"] != -100][-1]) for row in rows_of(shards)}
    assert len(last) == 1
    return last.pop()
