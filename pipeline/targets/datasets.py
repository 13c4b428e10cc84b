"""Parquet of the columns that train, for `datasets`, PyTorch, polars and whoever reads Parquet.

A build is that already; without texts and spans it is a good deal smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.columns import column, list_column
from pipeline.files import shard_name
from pipeline.targets.chunk import Chunk
from pipeline.targets.parquet import open_parquet
from pipeline.targets.rows import Rows, Wishes

_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("loss_scale", pa.list_(pa.float32())),
        ("length", pa.int32()),
    ]
)


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:  # noqa: ARG001 - as every target
    """One file a shard, with the same rows in the same order."""
    for shard in range(len(rows.shards)):
        path = folder / shard_name("parquet", shard, len(rows.shards))
        with open_parquet(path, _SCHEMA) as file:
            for chunk in rows.of(shard):
                file.write_table(_table(chunk))
    return {}


def _table(chunk: Chunk) -> pa.Table:
    lists = [list_column(chunk.firsts, v) for v in (chunk.ids, chunk.labels, chunk.weights)]
    return pa.Table.from_arrays([*lists, column(chunk.lengths().astype(np.int32))], schema=_SCHEMA)


def recipe(folder: Path, told: Mapping[str, Any]) -> str:  # noqa: ARG001 - as every target
    """How to load it."""
    return (
        "from datasets import load_dataset\n"
        f'rows = load_dataset({str(folder)!r}, split="train")\n'
        "# or polars.read_parquet, or pipeline.training.ShardDataset on the build itself;\n"
        "# a trainer drops loss_scale unless remove_unused_columns=False"
    )
