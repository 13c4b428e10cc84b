"""A build with fractions, zeros and large weights, its export, and its rows read without us."""

from __future__ import annotations

import json
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
Row = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="session")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sample in several shards, with weights 0, 0.3, 1 and 2.5."""
    folder = tmp_path_factory.mktemp("weighed")
    (folder / "rules.yaml").write_text(RULES, encoding="utf-8")
    return _built(folder, folder / "rules.yaml")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sample with weights 0 and 1."""
    return _built(tmp_path_factory.mktemp("plain"), "ignore_empty_think")


def _built(folder: Path, rules: str | Path) -> Path:
    out = folder / "shards"
    words = ["--rules", str(rules), "--output", str(out), "--shard-size", "100000", "--quiet"]
    assert build.main([*words, "--workers", "1"]) == 0
    return out


def exported(shards: Path, target: str, folder: Path, *flags: str) -> dict[str, Any]:
    """Exports, and returns what export.json says."""
    words = [str(shards), "--to", target, "--output", str(folder), "--quiet", *flags]
    assert export.main(words) == 0
    receipt: dict[str, Any] = json.loads((folder / "export.json").read_text())
    return receipt


def rows_of(shards: Path) -> list[Row]:
    """ids, labels and weights of every row, as pyarrow reads them."""
    found = []
    for path in sorted(shards.glob("*.parquet")):
        for row in pq.read_table(path, columns=["input_ids", "labels", "loss_scale"]).to_pylist():
            found.append(
                {
                    "ids": np.array(row["input_ids"], np.int32),
                    "labels": np.array(row["labels"], np.int32),
                    "weights": np.array(row["loss_scale"], np.float32),
                }
            )
    assert len(found) > 300 and all(len(row["ids"]) for row in found)
    return found
