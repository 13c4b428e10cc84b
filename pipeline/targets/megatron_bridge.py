"""Megatron-Bridge: rows packed into sequences, in its Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.columns import list_column
from pipeline.files import shard_name
from pipeline.targets.parquet import open_parquet
from pipeline.targets.rows import Rows, Wishes
from pipeline.targets.saved import escape_glob
from pipeline.targets.sequences import Sequences, pack_shard

_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("seq_start_id", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.int8())),
    ]
)


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:
    """One file a shard, of sequences of at most ``wishes.pack`` tokens.

    ``loss_mask[i]`` is 1 where the token that is predicted at i trains, the next one of its row:
    Megatron-Bridge moves ids, not masks.
    """
    assert wishes.pack is not None  # the target needs it
    sequences = 0
    for shard in range(len(rows.shards)):
        name = shard_name("parquet", shard, len(rows.shards)).removesuffix(".parquet")
        with open_parquet(folder / f"{name}.idx.parquet", _SCHEMA) as file:
            for packed in pack_shard(rows, shard, wishes.pack):
                table = _table(packed)
                # Its reader unpacks a whole row group for one sequence.
                file.write_table(table, row_group_size=500)
                sequences += table.num_rows
    return {"sequences": sequences, "filled": round(rows.tokens / (sequences * wishes.pack), 4)}


def _table(packed: Sequences) -> pa.Table:
    rows, firsts, tokens = packed.rows, packed.firsts, packed.token_firsts()
    sequence = np.repeat(np.arange(len(firsts) - 1), np.diff(firsts))  # of each row
    starts = (rows.firsts[:-1] - tokens[sequence]).astype(np.int32)
    mask = rows.shifted(rows.mask().astype(np.int8), 0)
    lists = [
        list_column(tokens, rows.ids),
        list_column(firsts, starts),
        list_column(tokens, mask),
    ]
    return pa.Table.from_arrays(lists, schema=_SCHEMA)


def recipe(folder: Path, told: Mapping[str, Any]) -> str:  # noqa: ARG001 - as every target
    """How to load it."""
    files = str(escape_glob(folder) / "*.idx.parquet")
    return (
        "# From 0.4.0 on, packed_sequence_size as --pack:\n"
        f"#   PackedSequenceSpecs(packed_train_data_path={files!r})\n"
        "# 0.3.1 reads only .npy, which these lines make of it:\n"
        "import glob, numpy, pyarrow.parquet\n"
        f"paths = sorted(glob.glob({files!r}))\n"
        "rows = [row for path in paths for row in pyarrow.parquet.read_table(path).to_pylist()]\n"
        f"numpy.save({str(folder / 'packed.npy')!r}, numpy.array(rows, dtype=object))\n"
        "# weights are 0 or 1 there: its collate_fn makes integers of them, of 0.5 a 0"
    )
