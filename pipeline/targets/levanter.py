"""marin's levanter: examples of one length, ids and weights, in Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns import list_column
from pipeline.files import shard_name
from pipeline.targets.chunk import Chunk, Int64s
from pipeline.targets.copies import CODE, copy_recipe
from pipeline.targets.parquet import open_parquet
from pipeline.targets.rows import Rows, Wishes
from pipeline.targets.saved import escape_glob, quoted
from pipeline.targets.sequences import Sequences, pack_shard

_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_weights", pa.list_(pa.float32())),
        ("segment_ids", pa.list_(pa.int32())),
    ]
)
_MULTIPLE = 128  # attention kernels of TPUs take blocks of so many tokens
_PART = 1 << 22  # padded tokens that are written at once


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:
    """One file a shard, of examples padded with id 0 and weight 0 to ``wishes.pack`` tokens.

    ``loss_weights[i]`` weighs what is predicted at i, the next token of its row; ``segment_ids``
    number the rows of an example, -1 the padding. Without ``wishes.pack`` an example is one row, as
    long as the longest: levanter's prebuilt format parts rows at EOS tokens alone, which chat
    templates write after each turn. With it, the class that is copied there parts them.
    """
    width = wishes.pack or -(-int(rows.lengths().max()) // _MULTIPLE) * _MULTIPLE
    examples = 0
    for shard in range(len(rows.shards)):
        path = folder / shard_name("parquet", shard, len(rows.shards))
        with open_parquet(path, _SCHEMA) as file:
            for sequences in _sequences(rows, shard, wishes.pack):
                for table in _tables(sequences, width):
                    file.write_table(table)
                    examples += table.num_rows
    if wishes.pack is not None:
        copy_recipe("levanter", folder)
    return {
        "width": width,
        "examples": examples,
        "packed": wishes.pack is not None,
        "filled": round(rows.tokens / (examples * width), 4),
    }


def _sequences(rows: Rows, shard: int, capacity: int | None) -> Iterator[Sequences]:
    if capacity is not None:
        yield from pack_shard(rows, shard, capacity)
        return
    for chunk in rows.of(shard):
        yield Sequences(chunk, np.arange(chunk.rows + 1))


def _tables(sequences: Sequences, width: int) -> Iterator[pa.Table]:
    """Some examples at a time: padded, rows may be a hundred times as large."""
    firsts, step = sequences.firsts, max(1, _PART // width)
    for first in range(0, len(firsts) - 1, step):
        part = firsts[first : first + step + 1]
        rows = sequences.rows.taken(np.arange(part[0], part[-1]))
        yield _table(rows, part - part[0], width)


def _table(rows: Chunk, firsts: Int64s, width: int) -> pa.Table:
    """Example e holds the rows ``firsts[e]`` to before ``firsts[e + 1]``."""
    number = np.arange(rows.rows) - np.repeat(firsts[:-1], np.diff(firsts))
    segments = np.repeat(number, rows.lengths()).astype(np.int32)
    sizes = np.diff(rows.firsts[firsts])
    bounds = np.arange(len(firsts)) * width
    columns = ((rows.ids, 0), (rows.shifted(rows.weights, 0), 0), (segments, -1))
    return pa.Table.from_arrays(
        [list_column(bounds, _padded(values, sizes, width, fill)) for values, fill in columns],
        schema=_SCHEMA,
    )


def _padded(values: npt.NDArray[Any], sizes: Int64s, width: int, fill: int) -> npt.NDArray[Any]:
    grid = np.full((len(sizes), width), fill, values.dtype)
    grid[np.arange(width) < sizes[:, None]] = values
    return grid.ravel()


def recipe(folder: Path, told: Mapping[str, Any]) -> str:
    """How to load it."""
    end = f"{told['width']}  # exactly"
    if told["packed"]:
        return (
            f"import sys; sys.path.insert(0, {str(folder)!r})\n"
            f"from {Path(CODE).stem} import PackedRows\n"
            "from levanter.data.text import DirectDatasetComponent\n"
            f"train = PackedRows({str(folder)!r}).as_async_dataset()\n"
            'component = DirectDatasetComponent({"train": train})\n'
            "# of LmDataConfig.components, with TrainLmConfig.train_seq_len="
            f"{end}"
        )
    return (
        "data:\n"
        "  block_cross_document_attention: false  # else turns would not see across an EOS\n"
        "  components:\n"
        "    shards:\n"
        "      source:\n"
        "        type: url\n"
        f"        train_urls: [{quoted(escape_glob(folder) / 'train-*.parquet')}]\n"
        "      format:\n"
        "        type: prebuilt\n"
        "        loss_weights_key: loss_weights\n"
        f"train_seq_len: {end}\n"
        f"# {told['filled']:.1%} of that is tokens; --pack TOKENS puts rows together.\n"
        "# marin-levanter; levanter 1.2 has no prebuilt format and makes integers of weights"
    )
