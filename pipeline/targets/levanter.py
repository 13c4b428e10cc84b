"""marin's levanter, its prebuilt format: ids and weights of one length, in Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.columns import list_column
from pipeline.files import shard_name
from pipeline.targets.chunk import Chunk
from pipeline.targets.rows import Rows, Wishes

_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("loss_weights", pa.list_(pa.float32()))])
_MULTIPLE = 128  # attention kernels of TPUs take blocks of so many tokens
_PART = 1 << 22  # padded tokens that are written at once


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:
    """One file a shard; a row an example, padded with id 0 and weight 0 to ``wishes.pack`` tokens.

    Without it, to the longest row. Rows never share an example: levanter parts the documents of one
    at EOS tokens, which chat templates write after each turn. ``loss_weights[i]`` weighs what is
    predicted at i, the next token.
    """
    width = wishes.pack or -(-int(rows.lengths().max()) // _MULTIPLE) * _MULTIPLE
    for shard in range(len(rows.shards)):
        path = folder / shard_name("parquet", shard, len(rows.shards))
        with pq.ParquetWriter(path, _SCHEMA, compression="zstd", write_statistics=False) as file:
            for chunk in rows.of(shard):
                _write_chunk(file, chunk, width)
    return {"width": width, "filled": round(rows.tokens / (rows.rows * width), 4)}


def _write_chunk(file: pq.ParquetWriter, chunk: Chunk, width: int) -> None:
    """Some rows at a time: padded, a chunk of short rows may be a hundred times as large."""
    step = max(1, _PART // width)
    for first in range(0, chunk.rows, step):
        part = chunk.taken(np.arange(first, min(first + step, chunk.rows)))
        firsts = np.arange(part.rows + 1) * width
        weights = part.shifted(part.weights, 0)
        lists = [list_column(firsts, _padded(part, v, width)) for v in (part.ids, weights)]
        file.write_table(pa.Table.from_arrays(lists, schema=_SCHEMA))


def _padded(chunk: Chunk, values: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    grid = np.zeros((chunk.rows, width), values.dtype)
    grid[np.arange(width) < chunk.lengths()[:, None]] = values
    return grid.ravel()


def recipe(folder: Path, told: Mapping[str, Any]) -> str:
    """How to load it."""
    return (
        "data:\n"
        "  block_cross_document_attention: false  # else turns would not see across an EOS\n"
        "  components:\n"
        "    shards:\n"
        "      source:\n"
        "        type: url\n"
        f"        train_urls: [{str(folder / 'train-*.parquet')!r}]\n"
        "      format:\n"
        "        type: prebuilt\n"
        "        loss_weights_key: loss_weights\n"
        f"train_seq_len: {told['width']}  # exactly\n"
        "# marin-levanter; levanter 1.2 has no prebuilt format and makes integers of weights"
    )
