"""MosaicML streaming: MDS shards whose columns are arrays, one a row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BuildError
from pipeline.files import write_json
from pipeline.targets.chunk import Chunk, Int64s
from pipeline.targets.rows import Rows, Wishes

_COLUMNS = {
    "input_ids": "ndarray:int32",
    "labels": "ndarray:int32",
    "loss_scale": "ndarray:float32",
}
"""Sorted by name, as the format wants them; the dtype is in the encoding, the shape in each row."""

_CONFIG: dict[str, Any] = {
    "column_encodings": list(_COLUMNS.values()),
    "column_names": list(_COLUMNS),
    "column_sizes": [None] * len(_COLUMNS),
    "compression": None,
    "format": "mds",
    "hashes": [],
    "size_limit": None,
    "version": 2,
}
_HEAD = json.dumps(_CONFIG, sort_keys=True).encode()
_MOST = 2**32 - 1  # bytes of a shard: its offsets are uint32


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:  # noqa: ARG001 - as every target
    """``index.json`` and a shard of about a million tokens for each chunk of the build."""
    shards: list[dict[str, Any]] = []
    for chunk in rows:
        name = f"shard.{len(shards):05}.mds"
        size = _write_shard(folder / name, chunk, rows)
        shards.append(
            _CONFIG
            | {
                "raw_data": {"basename": name, "bytes": size, "hashes": {}},
                "samples": chunk.rows,
                "zip_data": None,
            }
        )
    write_json(folder / "index.json", {"shards": shards, "version": 2})
    return {"shards": len(shards)}


def _write_shard(path: Path, chunk: Chunk, rows: Rows) -> int:
    """Samples' number, their offsets, the settings, the samples. Returns its bytes."""
    samples = list(_samples(chunk))
    offsets = np.zeros(chunk.rows + 1, np.int64)
    np.cumsum([len(sample) for sample in samples], out=offsets[1:])
    offsets += 4 + 4 * len(offsets) + len(_HEAD)
    if offsets[-1] > _MOST:
        raise BuildError(
            f"{rows.place(chunk, 0)}: this row group is more than an MDS shard can hold "
            f"({_MOST:,} bytes); build again with --max-length"
        )
    with path.open("wb") as file:
        file.write(np.uint32(chunk.rows).tobytes() + offsets.astype("<u4").tobytes() + _HEAD)
        file.writelines(samples)
    return int(offsets[-1])


def _samples(chunk: Chunk) -> Iterator[bytes]:
    """Each row: the bytes that its columns take, then the columns, each behind its shape."""
    columns = (chunk.ids.astype("<i4"), chunk.labels.astype("<i4"), chunk.weights.astype("<f4"))
    views = [values.tobytes() for values in columns]
    for first, stop, shape in zip(
        chunk.firsts[:-1].tolist(), chunk.firsts[1:].tolist(), _shapes(chunk.lengths()), strict=True
    ):
        sizes = np.full(len(views), len(shape) + 4 * (stop - first), "<u4").tobytes()
        parts = [part for view in views for part in (shape, view[4 * first : 4 * stop])]
        yield b"".join((sizes, *parts))


def _shapes(lengths: Int64s) -> Iterator[bytes]:
    """A byte with the number of axes and the kind of the number that follows, then the length."""
    for length in lengths.tolist():
        kind = 0 if length < 1 << 8 else 1 if length < 1 << 16 else 2
        yield bytes([1 << 2 | kind]) + length.to_bytes(1 << kind, "little")


def recipe(folder: Path, told: Mapping[str, Any]) -> str:  # noqa: ARG001 - as every target
    """How to load it."""
    return (
        "from streaming import StreamingDataset\n"
        f"rows = StreamingDataset(local={str(folder)!r}, shuffle=True, batch_size=8)\n"
        "# rows differ in length, so the default collate_fn fails; pad (and weigh the loss) with\n"
        "# pipeline.training's collator and weighted_cross_entropy"
    )
