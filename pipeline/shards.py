"""One shard file: its columns, its names, and a write that is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BuildError

SPLIT = "train"
ROW_GROUP_TOKENS = (
    1 << 20
)  # 12 MB of columns: a reader that samples rows need not read a whole shard

SPAN_TYPE = pa.struct(
    [
        ("message", pa.int32()),
        ("role", pa.string()),
        ("region", pa.string()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("weight", pa.float32()),
    ]
)
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("loss_scale", pa.list_(pa.float32())),
        ("length", pa.int32()),
        ("num_target_tokens", pa.int32()),
        ("weight_sum", pa.float32()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("text", pa.string()),
        ("fields", pa.string()),
        ("spans", pa.list_(SPAN_TYPE)),
    ]
)


def shard_name(form: str, index: int, count: int) -> str:
    """The name that ``datasets`` expects: the hub's for Parquet, save_to_disk's for Arrow."""
    stem, ending = (SPLIT, "parquet") if form == "parquet" else ("data", "arrow")
    return f"{stem}-{index:05d}-of-{count:05d}.{ending}"


class _Sink(Protocol):
    def write_table(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


@dataclass
class ShardWriter:
    """Collects record batches into row groups of about a million tokens; bounded in memory."""

    sink: _Sink
    batches: list[pa.RecordBatch] = field(default_factory=list)
    tokens: int = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Row groups depend on the order and sizes of the batches only."""
        if not batch.num_rows:
            return
        self.batches.append(batch)
        self.tokens += len(batch.column("input_ids").values)
        if self.tokens >= ROW_GROUP_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending as one row group."""
        if self.batches:
            self.sink.write_table(pa.Table.from_batches(self.batches).combine_chunks())
        self.batches, self.tokens = [], 0


def read_groups(path: Path, form: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Those columns of a shard's row groups, one at a time; BuildError where it has another schema.

    Raises OSError or ArrowException for what is no shard.
    """
    if form == "parquet":
        with pq.ParquetFile(path) as file:
            _require_schema(path, file.schema_arrow)
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns, use_threads=False)
    else:
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as batches:
            _require_schema(path, batches.schema)
            for batch in batches:
                yield pa.Table.from_batches([batch]).select(columns)


def _require_schema(path: Path, found: pa.Schema) -> None:
    if not found.equals(SCHEMA):
        raise BuildError(
            f"{path}: not a shard of this version, whose columns are {', '.join(SCHEMA.names)}; "
            "build it again"
        )


@contextmanager
def open_shard(path: Path, form: str, *, temporary: Path) -> Iterator[ShardWriter]:
    """Writes to *temporary*; *path* appears at once, whole and synced, when the block ends well."""
    sink: _Sink
    if form == "parquet":
        sink = pq.ParquetWriter(
            temporary,
            SCHEMA,
            compression="zstd",
            compression_level=3,
            use_dictionary=["source", "spans.list.element.role", "spans.list.element.region"],
        )
    else:
        sink = pa.ipc.new_stream(str(temporary), SCHEMA)
    writer = ShardWriter(sink)
    try:
        yield writer
        writer.flush()
    finally:
        sink.close()
    put_file(temporary, path)


def put_file(temporary: Path, path: Path) -> None:
    """*path* is the old file or the new one, never a part, whatever happens to the machine."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A rename survives a power cut only when its folder was synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Sorted keys and a final newline, whole or absent."""
    temporary = path.with_name(f".{path.name}.tmp")
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    try:
        temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file
        raise
    put_file(temporary, path)


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_arrow_state(folder: Path, files: list[str], fingerprint: str) -> None:
    """The two files beside Arrow shards that make ``datasets.load_from_disk`` read them."""
    for name, value in arrow_state(files, fingerprint).items():
        write_json(folder / name, value)


def arrow_state(files: Sequence[str], fingerprint: str) -> dict[str, dict[str, Any]]:
    """What these two files hold, by their names."""
    return {
        "dataset_info.json": {},
        "state.json": {
            "_data_files": [{"filename": name} for name in files],
            "_fingerprint": fingerprint[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": SPLIT,
        },
    }
