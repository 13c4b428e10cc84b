"""TRL's SFTTrainer: Parquet of the columns that it keeps, input_ids and labels.

A dataset that has them is taken as it is (TRL 1.16: ``_prepare_dataset``), but cut at
``max_length``, 1,024 unless it is None. Packed rows carry ``seq_lengths``, from which the
padding-free collator makes positions that start anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.columns import list_column
from pipeline.files import shard_name
from pipeline.targets.parquet import open_parquet
from pipeline.targets.rows import Rows, Wishes
from pipeline.targets.saved import list_table
from pipeline.targets.sequences import pack_shard

_PLAIN = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
_PACKED = _PLAIN.append(pa.field("seq_lengths", pa.list_(pa.int32())))


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:
    """One file, with the rows in their order, or packed within each shard."""
    path = folder / shard_name("parquet", 0, 1)
    written = 0
    schema = _PLAIN if wishes.pack is None else _PACKED
    tables = _plain(rows) if wishes.pack is None else _packed(rows, wishes.pack)
    with open_parquet(path, schema) as file:
        for table in tables:
            # About a million tokens, as in a shard: to read one row takes no more.
            file.write_table(table, row_group_size=max(1, (1 << 20) // (wishes.pack or 1)))
            written += table.num_rows
    return {} if wishes.pack is None else {"sequences": written}


def _plain(rows: Rows) -> Iterator[pa.Table]:
    for chunk in rows:
        yield list_table(_PLAIN, chunk.firsts, chunk.ids, chunk.labels)


def _packed(rows: Rows, capacity: int) -> Iterator[pa.Table]:
    for shard in range(len(rows.shards)):
        for packed in pack_shard(rows, shard, capacity):
            firsts, lengths = packed.token_firsts(), packed.rows.lengths().astype(np.int32)
            lists = [list_column(firsts, v) for v in (packed.rows.ids, packed.rows.labels)]
            columns = [*lists, list_column(packed.firsts, lengths)]
            yield pa.Table.from_arrays(columns, schema=_PACKED)


def recipe(folder: Path, told: Mapping[str, Any]) -> str:
    """How to load it."""
    packed = "sequences" in told
    keywords = "max_length=None, " + ("padding_free=True, " if packed else "")
    return (
        "from datasets import load_dataset\n"
        "from trl import SFTConfig, SFTTrainer\n"
        f'rows = load_dataset({str(folder)!r}, split="train")\n'
        "# Without max_length=None rows are cut at 1024 tokens. On a CPU add bf16=False.\n"
        f'args = SFTConfig(output_dir="out", {keywords}packing=False)\n'
        "SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer).train()"
    )
