"""A folder that ``datasets.load_from_disk`` reads: one Arrow stream, two small JSON files."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns import list_column
from pipeline.files import SPLIT, file_digest, shard_name, write_arrow_state
from pipeline.targets.chunk import Chunk

MASKED = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("attention_mask", pa.list_(pa.int8())),
        ("labels", pa.list_(pa.int32())),
    ]
)


@contextmanager
def open_saved(
    folder: Path, schema: pa.Schema, split: str = SPLIT
) -> Iterator[pa.RecordBatchStreamWriter]:
    """Takes tables of *schema*, which a reader maps into memory; *folder* must not be there yet."""
    folder.mkdir(exist_ok=True)
    path = folder / shard_name("arrow", 0, 1)
    with pa.ipc.new_stream(str(path), schema) as writer:
        yield writer
    # Of the contents, not of the build: what is cached under it must be of these very rows.
    write_arrow_state(folder, [path.name], file_digest(path), split)


def masked_table(chunk: Chunk) -> pa.Table:
    """The rows as `MASKED` has them; each token may be attended to."""
    ones = np.ones(len(chunk.ids), np.int8)
    return list_table(MASKED, chunk.firsts, chunk.ids, ones, chunk.labels)


def list_table(
    schema: pa.Schema, firsts: npt.NDArray[np.int64], *values: npt.NDArray[np.generic]
) -> pa.Table:
    """One list column for each of *values*, flat, divided at *firsts*."""
    return pa.Table.from_arrays([list_column(firsts, flat) for flat in values], schema=schema)


def quoted(path: Path) -> str:
    """As YAML takes any path."""
    return json.dumps(str(path), ensure_ascii=False)


def escape_glob(folder: Path) -> Path:
    """For patterns of the files in it: a folder ``run[1]`` would be looked for as ``run1``."""
    return Path(glob.escape(str(folder)))
