"""One shard file: its columns, its names, and a write that is whole or absent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BuildError
from pipeline.files import put_file

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
            # Not in chunks, which saves a copy (0.4 us a conversation): pages would depend on them.
            self.sink.write_table(pa.Table.from_batches(self.batches).combine_chunks())
        self.batches, self.tokens = [], 0


def read_groups(path: Path, form: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Those columns of a shard's row groups, one at a time; BuildError where it has another schema.

    Raises OSError or ArrowException for what is no shard.
    """
    if form == "parquet":
        with pq.ParquetFile(path) as file:
            require_schema(path, file.schema_arrow)
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns, use_threads=False)
    else:
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as batches:
            require_schema(path, batches.schema)
            for batch in batches:
                yield pa.Table.from_batches([batch]).select(columns)


def require_schema(path: Path, found: pa.Schema) -> None:
    """BuildError where what *path* holds has not the columns of a shard."""
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
            # Least and greatest of a column of lists help no reader, and took 3 ns a token.
            write_statistics=[f.name for f in SCHEMA if not pa.types.is_list(f.type)],
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
