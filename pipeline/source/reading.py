"""The survey of inputs, and the reading of their pieces."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from pipeline.errors import InputError
from pipeline.source.elements import split_array, split_values
from pipeline.source.inputs import Input, resolve
from pipeline.source.lines import cut as cut_lines
from pipeline.source.lines import read as read_lines
from pipeline.source.record import Piece, Record, Source
from pipeline.source.spool import (
    Content,
    Digest,
    Heard,
    chunks,
    kept,
    sniff,
    unheard,
    without_bom,
)

Cut: TypeAlias = tuple[tuple[Piece, ...], int]  # pieces, and how many records they hold

TINY = 1 << 14  # bytes of a piece: a batch costs as much as ten conversations


def survey(
    inputs: Sequence[str],
    *,
    spool: Path,
    piece_bytes: int,
    piece_rows: int = 8192,
    heard: Callable[[int, int], None] | None = None,
    heed: Callable[[list[Path]], None] | None = None,
) -> list[Source]:
    """Sources in the order of *inputs* (files, folders, globs, hub ids, ``-``), hashed and cut.

    Reads every byte once, in chunks. What cannot be read by ranges (compressed files, JSON arrays,
    standard input) is unpacked into the folder *spool*, which is made only if needed and has to
    outlive the reading. Names, hashes and pieces are functions of the content and of where a file
    lies below the folder given. An empty file is a source without pieces. *heard* is told how many
    bytes there are in all files (0 where that is not known) and of those that have been read;
    *heed* sees the paths of all files before one is read, and may raise. Raises InputError for an
    input that is missing or damaged, BuildError if the spool cannot be written.
    """
    items = resolve(inputs)
    if heed is not None:
        heed([item.path for item in items if item.path is not None])
    total = _size(items) if heard else 0
    told = partial(heard, total) if heard else unheard
    return [
        _survey_input(item, Path(spool) / f"{number:05d}", piece_bytes, piece_rows, told)
        for number, item in enumerate(items)
    ]


def _size(items: Sequence[Input]) -> int:
    """Bytes of all files on disk; 0 where some have to be fetched, or cannot be looked at."""
    if any(item.path is None or item.fetch is not None for item in items):
        return 0
    with contextlib.suppress(OSError):
        return sum(item.path.stat().st_size for item in items if item.path)
    return 0


def _survey_input(
    item: Input, target: Path, piece_bytes: int, piece_rows: int, heard: Heard
) -> Source:
    try:
        path = item.path or target
        if item.fetch is not None:
            path = target.with_suffix(".raw")
            item.fetch(path)
        before = _stamp(path)
        content = sniff(path, name=item.name, label=item.label)
        digest = Digest()
        parts = digest.through(chunks(path, content.codec, label=item.label, heard=heard))
        cut = _cut_columns if content.layout in ("parquet", "arrow") else _cut_lines
        limits = {"piece_bytes": piece_bytes, "piece_rows": piece_rows}
        pieces, records = cut(item, path, content, parts, target, **limits)
        source = Source(item.name, digest.sha256, digest.size, records, pieces)
        if _stamp(path) != before:
            raise _changed(item.label)
        return _stamped(source)
    except OSError as error:
        raise InputError(
            f"{item.label}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from error


def _stamp(path: str | Path) -> tuple[int, int]:
    # Not the inode: file systems of the network make new ones up for each machine.
    found = os.stat(path)  # noqa: PTH116 - a piece's path is text
    return found.st_size, found.st_mtime_ns


def _stamped(source: Source) -> Source:
    if not source.pieces:
        return source
    stamp = _stamp(source.pieces[0].path)
    return replace(source, pieces=tuple(replace(piece, stamp=stamp) for piece in source.pieces))


def _changed(place: str) -> InputError:
    return InputError(
        f"{place}: changed during the build; run it again when the file is at rest, with "
        "--overwrite where shards of its old state are finished"
    )


def _cut_lines(
    item: Input, path: Path, content: Content, parts: Iterator[bytes], target: Path, **limits: int
) -> Cut:
    start, form = 0, "lines"
    if content.bom:
        parts, start = without_bom(parts), 3
    if content.layout != "lines":
        array = content.layout == "array"
        parts = split_array(parts, label=item.label) if array else split_values(parts)
        form = "elements"
    if content.codec or form == "elements":
        path, start = target.with_suffix(".jsonl"), 0
        parts = kept(parts, path)
    return cut_lines(
        parts, Piece(item.name, os.fspath(path), form, start, start, 0, 1, 0), **limits
    )


def _cut_columns(
    item: Input, path: Path, content: Content, parts: Iterator[bytes], target: Path, **limits: int
) -> Cut:
    if content.codec:
        path = target.with_suffix(f".{content.layout}")
        parts = kept(parts, path)
    for _ in parts:
        pass
    opened = Piece(item.name, os.fspath(path), content.layout, 0, 0, 0, 0, 0)
    spooled = target.with_suffix(".stream")
    from pipeline.source.columns import cut  # Arrow, which lines do without

    return cut(opened, target=spooled, label=item.label, **limits)


def read(
    piece: Piece, *, batch_records: int = 256, batch_bytes: int = 1 << 20
) -> Iterator[list[Record]]:
    """The piece's records in order, in lists of at most *batch_records*; JSON stays undecoded.

    Memory holds about *batch_bytes* of input and one record more. Raises InputError if the file
    has changed since the survey, told by its size and time of change, or is damaged; a bad record
    raises only in ``decode``.
    """
    form = read_lines
    if piece.form in ("parquet", "arrow"):
        from pipeline.source.columns import read as form  # as above
    try:
        if piece.stamp not in (None, _stamp(piece.path)):
            raise _changed(piece.source)
        yield from form(piece, batch_records=batch_records, batch_bytes=batch_bytes)
        # A file may change, or give way to another, while it is read.
        if piece.stamp not in (None, _stamp(piece.path)):
            raise _changed(piece.source)
    except OSError as error:
        raise InputError(
            f"{piece.source}: cannot be read any more ({error.strerror or error}); "
            "keep inputs in place until the build has ended, and run it again"
        ) from error


def read_together(
    pieces: Iterable[Piece], *, batch_records: int = 256, batch_bytes: int = 1 << 20
) -> Iterator[list[Record]]:
    """The records of *pieces* in order, those of tiny ones after another in one batch.

    Else as ``read``: where pieces are of the usual size, batches are what it gives.
    """
    held: list[Record] = []
    size = 0
    for piece in pieces:
        batches = read(piece, batch_records=batch_records, batch_bytes=batch_bytes)
        tiny = piece.size < TINY
        if held and not (tiny and size + piece.size <= batch_bytes):
            yield held
            held, size = [], 0
        if not tiny:
            yield from batches
            continue
        for batch in batches:
            if len(held) + len(batch) > batch_records:
                yield held
                held, size = [], 0
            held = held + batch
        size += piece.size
    if held:
        yield held
