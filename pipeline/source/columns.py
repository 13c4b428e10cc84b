"""Rows of Parquet and Arrow files: where to cut, and how to read a range without the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from pipeline.errors import InputError, RecordError
from pipeline.source.arrowfile import ArrowFile
from pipeline.source.record import Piece, Record
from pipeline.source.soundness import require_sound
from pipeline.source.spool import writing
from pipeline.source.values import Column, plan_columns
from pipeline.source.written import write_row

# To read rows in the middle of a row group is to decode it from its start. Past this many pieces
# in a group a copy on disk is cheaper: 300,000 conversations in one group take 1.4 s to decode.
PIECES_PER_GROUP = 4


@dataclass(frozen=True, slots=True)
class _Shape:
    """How many *rows*, their *size* in memory, how many rows at most only come *together*."""

    names: list[str]
    rows: int
    size: int
    together: int


def cut(
    opened: Piece, *, target: Path, label: str, piece_bytes: int, piece_rows: int
) -> tuple[tuple[Piece, ...], int]:
    """Pieces of one number of rows each, and the number of all rows.

    *opened* gives source, path and form. What cannot be read by ranges at a fair price (large row
    groups, compressed Arrow) is unpacked into *target* first, as an Arrow stream; that changes no
    border. ``size`` of a piece is its share of the decoded bytes, to compare with JSON's.
    """
    path, form = opened.path, opened.form
    with _blaming(label, form):
        shape = _parquet_shape(path) if form == "parquet" else _arrow_shape(path)
        if twice := {name for name in shape.names if shape.names.count(name) > 1}:
            raise InputError(f"{label}: has two columns {min(twice)!r}; rename or drop one")
        step = max(1, min(piece_rows, piece_bytes * shape.rows // max(1, shape.size)))
        if shape.together > PIECES_PER_GROUP * step:
            _unpack(path, form, target)
            path, form = str(target), "arrow"
    pieces: list[Piece] = []
    for start in range(0, shape.rows, step):
        end = min(shape.rows, start + step)
        size = shape.size * end // shape.rows - shape.size * start // shape.rows
        pieces.append(Piece(opened.source, path, form, start, end, start, 0, size))
    return tuple(pieces), shape.rows


def read(piece: Piece, *, batch_records: int, batch_bytes: int) -> Iterator[list[Record]]:
    """The piece's rows as dicts (see ``values``), a batch decoded at a time.

    *batch_bytes* holds on the average of the file. Raises InputError for damaged data.
    """
    count = piece.end - piece.start
    step = max(1, min(batch_records, batch_bytes * count // max(1, piece.size)))
    with _blaming(piece.source, piece.form):
        if piece.form == "parquet":
            skip, batches = _parquet_batches(piece, step)
        else:
            skip, batches = piece.start, ArrowFile(piece.path).batches()
        row, columns = piece.start, None
        for batch in _trimmed(batches, skip, count):
            columns = columns or plan_columns(batch.schema)
            for first in range(0, batch.num_rows, step):
                part = batch.slice(first, step)
                if piece.form == "arrow":  # Parquet's decoder checks what it reads
                    require_sound(part)
                yield _records(part, columns, piece.source, row)
                row += part.num_rows
    if row < piece.end:
        raise InputError(f"{piece.source}: became shorter during the build; run it again at rest")


@contextmanager
def _blaming(place: str, form: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a name
        fact = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"{place}: damaged or cut off as {form.capitalize()} ({fact}); "
            "fetch or write the file again"
        ) from error


def _parquet_shape(path: str) -> _Shape:
    with _open_parquet(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        rows = [group.num_rows for group in groups]
        size = sum(group.total_byte_size for group in groups)
        return _Shape(file.schema_arrow.names, sum(rows), size, max(rows, default=0))


def _arrow_shape(path: str) -> _Shape:
    """Walks the batches, whose data is mapped, not read, unless it is compressed."""
    rows = size = 0
    names: list[str] = []
    mapped = True
    file = ArrowFile(path)
    for batch in file.batches():
        batch.validate()  # the ends of each column, before `nbytes` follows them
        names = batch.schema.names
        rows, size = rows + batch.num_rows, size + batch.nbytes
        mapped = mapped and file.holds(batch)
    return _Shape(names, rows, size, 0 if mapped else rows)


def _open_parquet(path: str) -> Any:
    # By default the columns of all row groups that are asked for stay in memory: of a file of
    # 180 MB, 180 MB; with these, 7.
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


def _parquet_batches(piece: Piece, step: int) -> tuple[int, Iterator[Any]]:
    """Batches of the row groups that the piece touches, and how many of their rows to skip."""
    file = _open_parquet(piece.path)
    groups: list[int] = []
    begin = skip = 0
    for i in range(file.metadata.num_row_groups):
        end = begin + file.metadata.row_group(i).num_rows
        if begin < piece.end and piece.start < end:
            skip = skip if groups else piece.start - begin
            groups.append(i)
        begin = end
    # The engine owns the cores: one process each.
    return skip, file.iter_batches(batch_size=step, row_groups=groups, use_threads=False)


def _trimmed(batches: Iterator[Any], skip: int, count: int) -> Iterator[Any]:
    for batch in batches:
        part = batch.slice(min(skip, batch.num_rows), count)
        skip -= min(skip, batch.num_rows)
        count -= part.num_rows
        if part.num_rows:
            yield part
        if not count:
            return


def _unpack(path: str, form: str, target: Path) -> None:
    if form == "parquet":
        with _open_parquet(path) as file:
            _write(file.iter_batches(batch_size=1024, use_threads=False), target)
    else:
        _write(map(_sound, ArrowFile(path).batches()), target)


def _sound(batch: Any) -> Any:
    require_sound(batch)
    return batch


def _write(batches: Iterator[Any], target: Path) -> None:
    """One Arrow stream: unlike a file, it may give each batch a dictionary of its own."""
    writer = None
    for batch in batches:
        with writing(target):
            if writer is None:
                target.parent.mkdir(parents=True, exist_ok=True)
                writer = ipc.new_stream(str(target), batch.schema)
            writer.write_batch(batch)
    if writer is not None:
        with writing(target):
            writer.close()


def to_records(table: Any, *, source: str = "") -> list[Record]:
    """The rows of a Table or RecordBatch in memory, as they would be read from a file."""
    columns = plan_columns(table.schema)
    batches = table.to_batches() if hasattr(table, "to_batches") else [table]
    records: list[Record] = []
    for batch in batches:
        records += _records(batch, columns, source, len(records))
    return records


def _records(batch: Any, columns: Sequence[Column], source: str, row: int) -> list[Record]:
    """Rows of a batch; a column that is null is left out, one that is bad becomes the fault."""
    rows: list[dict[str, Any]] = [{} for _ in range(batch.num_rows)]
    faults: dict[int, list[tuple[Column, RecordError]]] = {}
    for column in columns:
        for i, value in enumerate(column.values(batch)):
            if isinstance(value, RecordError):
                faults.setdefault(i, []).append((column, value))
            elif value is not None:
                rows[i][column.name] = value
    records = [Record(source, row + i, 0, None, value) for i, value in enumerate(rows)]
    for i, found in faults.items():
        bad = [column.index for column, _ in found]
        raw = write_row(rows[i], [(batch.schema.field(j), batch.column(j)[i : i + 1]) for j in bad])
        records[i] = Record(source, row + i, 0, raw, rows[i], found[0][1])
    return records
