"""JSON lines: where to cut a file, and how to read a cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.source.record import WHITE, Piece, Record

NEWLINE, SPACE = 10, 32
# A record is held whole in memory. A longer one is a file in another form: one error now beats a
# worker that is killed later.
LONGEST = 1 << 30


class _Cutter:
    """Takes the ends of lines in order and closes a piece whenever the open one is full."""

    def __init__(self, opened: Piece, piece_bytes: int, piece_rows: int) -> None:
        self.source, self.path, self.form = opened.source, opened.path, opened.form
        self.piece_bytes, self.piece_rows = piece_bytes, piece_rows
        self.start = self.end = opened.start
        self.first, self.line = 0, 1
        self.records = self.lines = 0
        self.pieces: list[Piece] = []

    def feed(self, ends: npt.NDArray[np.int64], filled: npt.NDArray[np.bool_]) -> None:
        """*ends*: file positions after each line; *filled*: which lines are records."""
        if not len(ends):
            return
        counts = self.records + np.cumsum(filled)
        while True:
            last = min(
                int(np.searchsorted(ends, self.start + self.piece_bytes)),
                int(np.searchsorted(counts, self.first + self.piece_rows)),
            )
            if last == len(ends):
                break
            self.close(int(ends[last]), int(counts[last]), self.lines + last + 2)
        self.records, self.end = int(counts[-1]), int(ends[-1])
        self.lines += len(ends)

    def close(self, end: int, records: int, line: int) -> None:
        if records > self.first:  # blank lines alone, however many, make no piece
            number = self.line if self.form == "lines" else 0
            size = end - self.start
            self.pieces.append(
                Piece(self.source, self.path, self.form, self.start, end, self.first, number, size)
            )
        self.start, self.first, self.line = end, records, line


def cut(
    chunks: Iterable[bytes], opened: Piece, *, piece_bytes: int, piece_rows: int
) -> tuple[tuple[Piece, ...], int]:
    """Pieces of a stream of lines, and its number of records, however the stream is chunked.

    *opened* gives the pieces' source, path, form and the position of the first byte. A piece ends
    with the first line that brings it to *piece_bytes* or *piece_rows*. Only a newline byte ends a
    line. Form ``lines``: blank lines are no records. Form ``elements``: every ended line is one.
    """
    cutter = _Cutter(opened, piece_bytes, piece_rows)
    position, filled = opened.start, False
    for chunk in filter(None, chunks):
        ends, records, filled = _scan(chunk, filled, every=opened.form == "elements")
        cutter.feed(ends + position, records)
        position += len(chunk)
        if position - cutter.end > LONGEST:
            raise InputError(
                f"{opened.source}: record {cutter.records} is longer than {LONGEST >> 30} GiB; "
                "give one conversation a line, or a JSON array of conversations"
            )
    if filled and position > cutter.end:
        cutter.feed(np.array([position]), np.array([True]))
    cutter.close(cutter.end, cutter.records, 0)
    return tuple(cutter.pieces), cutter.records


def _scan(
    chunk: bytes, filled: bool, *, every: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], bool]:
    """Ends of lines in the chunk, which of those lines are records, whether the last is begun.

    *filled* says the same of the line that the chunk goes on with. One look at a line's first byte
    settles nearly all; only lines that begin with white space are searched.
    """
    view = np.frombuffer(chunk, np.uint8)
    ends = np.flatnonzero(view == NEWLINE) + 1
    records = np.ones(len(ends), np.bool_)
    if every:
        return ends, records, False
    if not len(ends):
        return ends, records, filled or bool(chunk.strip(WHITE))
    records[0] = filled or bool(chunk[: ends[0]].strip(WHITE))
    heads = view[ends[:-1]]
    # All white space lies at or below a space, and no JSON begins there.
    for i in np.flatnonzero(heads <= SPACE):
        records[i + 1] = bool(chunk[ends[i] : ends[i + 1]].strip(WHITE))
    return ends, records, bool(chunk[ends[-1] :].strip(WHITE))


def read(piece: Piece, *, batch_records: int, batch_bytes: int) -> Iterator[list[Record]]:
    """The piece's records, undecoded; holds *batch_bytes* of the file and one line more.

    Raises InputError where the file is no longer as long as it was surveyed.
    """
    source, position, row, line = piece.source, piece.start, piece.first, piece.line
    step = 1 if piece.line else 0
    with Path(piece.path).open("rb") as file:
        file.seek(position)
        while position < piece.end:
            # readlines goes on while the sum is not *above* the hint, so it may pass the end.
            lines = file.readlines(min(batch_bytes, piece.end - position))
            if not lines:
                raise InputError(
                    f"{piece.source}: became shorter during the build; run it again at rest"
                )
            batch: list[Record] = []
            for text in lines:
                if position >= piece.end:
                    break
                position += len(text)
                raw = text.rstrip(WHITE) if step else text.strip(WHITE)
                if raw or not step:
                    batch.append(Record(source, row, line, raw))
                    row += 1
                line += step
            for i in range(0, len(batch), batch_records):
                yield batch[i : i + batch_records]
