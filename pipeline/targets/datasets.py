"""Parquet of the columns that train, for `datasets`, PyTorch, polars and whoever reads Parquet.

A build is that already; without texts and spans it is a good deal smaller.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.columns import column, list_column
from pipeline.files import SPLIT, shard_name
from pipeline.targets.chunk import Chunk
from pipeline.targets.parquet import open_parquet
from pipeline.targets.rows import Rows, Wishes
from pipeline.targets.splits import name_splits, part, require_all

_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("loss_scale", pa.list_(pa.float32())),
        ("length", pa.int32()),
    ]
)


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:
    """One file a shard and split, with the same rows in the same order."""
    splits, counts = name_splits(wishes), Counter[str]()
    for shard in range(len(rows.shards)):
        name = shard_name("parquet", shard, len(rows.shards))
        with ExitStack() as stack:
            files = {
                split: stack.enter_context(
                    open_parquet(folder / name.replace(SPLIT, split, 1), _SCHEMA)
                )
                for split in splits
            }
            for chunk in rows.of(shard):
                for split, own in part(chunk, splits):
                    counts[split] += own.rows
                    files[split].write_table(_table(own))
    require_all(counts, splits, rows)
    return {f"rows_of_{split}": counts[split] for split in splits if len(splits) > 1}


def _table(chunk: Chunk) -> pa.Table:
    lists = [list_column(chunk.firsts, v) for v in (chunk.ids, chunk.labels, chunk.weights)]
    return pa.Table.from_arrays([*lists, column(chunk.lengths().astype(np.int32))], schema=_SCHEMA)


def recipe(folder: Path, told: Mapping[str, Any]) -> str:
    """How to load it."""
    files = str(Path(glob.escape(str(folder)), "train-*.parquet"))
    held_out = ', or split="validation"' if "rows_of_validation" in told else ""
    return (
        "from datasets import load_dataset\n"
        f'rows = load_dataset({str(folder)!r}, split="train"){"  #" * bool(held_out)}{held_out}\n'
        f"# or polars.read_parquet({files!r})\n"
        "# a trainer drops loss_scale unless remove_unused_columns=False"
    )
