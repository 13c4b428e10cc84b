"""Finished builds made by hand, whose row r is known by its number: its ids begin with r."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import build, cli, shards
from pipeline.files import file_digest, shard_name, write_arrow_state
from pipeline.manifest import Manifest, read_manifest, write_manifest
from pipeline.shards import SCHEMA, open_shard


def build_sample(folder: Path, *flags: str) -> Manifest:
    """A real build of the embedded sample."""
    words = ["--output", str(folder), "--workers", "1", "--quiet", *flags]
    assert cli.run(build.main, ["--rules", "ignore_empty_think", *words]) == 0
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def length_of(row: int) -> int:
    return 2 + row * 7 % 5


def batch_of(first: int, stop: int) -> pa.RecordBatch:
    rows = [
        {
            "input_ids": [row, *range(1, length_of(row))],
            "labels": [-100, *range(1, length_of(row))],
            "loss_scale": [0.0, *np.full(length_of(row) - 1, row % 3 / 2 + 0.5, np.float32)],
            "length": length_of(row),
            "num_target_tokens": length_of(row) - 1,
            "weight_sum": 1.0,
            "source": "made.jsonl",
            "row": row,
            "spans": [],
        }
        for row in range(first, stop)
    ]
    return pa.RecordBatch.from_pylist(rows, SCHEMA)


def write_build(
    folder: Path, like: Manifest, sizes: Sequence[Sequence[int]], form: str = "parquet"
) -> Path:
    """Shards whose row groups have those sizes, numbered through, and the manifest *like* one."""
    folder.mkdir()
    first, told = 0, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROW_GROUP_TOKENS", 1)  # each batch is a row group
        for number, groups in enumerate(sizes):
            path = folder / shard_name(form, number, len(sizes))
            begin = first
            with open_shard(path, form, temporary=folder / "temporary") as shard:
                for size in groups:
                    shard.write(batch_of(first, first + size))
                    first += size
            told.append(describe(path, first - begin))
    counts = {**like.counts, "rows": first}
    write_manifest(replace(like, format=form, shards=told, counts=counts), folder)
    if form == "arrow":
        write_arrow_state(folder, [shard["file"] for shard in told], like.fingerprint)
    return folder


def describe(path: Path, rows: int) -> dict[str, Any]:
    """What a manifest tells of a shard."""
    told = {"file": path.name, "rows": rows, "tokens": 0, "targets": 0}
    return {**told, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def number_of(row: Mapping[str, Any]) -> int:
    return int(row["input_ids"][0])


def numbers_of(batches: Any) -> list[list[int]]:
    return [[number_of(row) for row in batch] for batch in batches]
