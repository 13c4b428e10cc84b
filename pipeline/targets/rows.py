"""The rows of a finished build, read for a target: checked, refused or converted as asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns import flat_column, numbers
from pipeline.errors import BuildError
from pipeline.lineage import read_finished, require_digest
from pipeline.manifest import Manifest
from pipeline.shards import read_groups
from pipeline.targets.chunk import Chunk, Flags
from pipeline.weights import IGNORED

_LISTS = ("input_ids", "labels", "loss_scale")
_UNREADABLE = (OSError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class Wishes:
    """Flags that only some targets take: tokens of a packed sequence, share of validation rows."""

    pack: int | None = None
    validation: float | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """What the manifest tells of one shard."""

    file: str
    rows: int
    tokens: int
    targets: int
    sha256: str


@dataclass(slots=True)
class Rows:
    """The rows of a build, chunk by chunk; each pass reads them again, none holds more than one.

    ``convert`` makes of each chunk what the target can hold, or raises. A shard's sha256 is
    compared when it is first read.
    """

    folder: Path
    manifest: Manifest
    shards: tuple[Shard, ...]
    convert: Callable[[Rows, Chunk], Chunk]
    wishes: Wishes
    _sound: set[int] = field(default_factory=set)

    @property
    def rows(self) -> int:
        """Of the whole build."""
        return sum(shard.rows for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Of the whole build."""
        return sum(shard.tokens for shard in self.shards)

    def __iter__(self) -> Iterator[Chunk]:
        for shard in range(len(self.shards)):
            yield from self.of(shard)

    def of(self, shard: int) -> Iterator[Chunk]:
        """Those of one shard, in its order."""
        columns = [*_LISTS, *(["source", "row"] if self.wishes.validation else [])]
        first = 0
        for table in self._tables(shard, columns):
            if table.num_rows:
                yield self.convert(self, self._chunk(table, shard, first))
            first += table.num_rows

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every row, int64 [rows], without reading them."""
        found = [
            numbers(table["length"].combine_chunks()).astype(np.int64)
            for shard in range(len(self.shards))
            for table in self._tables(shard, ["length"])
        ]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def place(self, chunk: Chunk, row: int) -> str:
        """Where a row of *chunk* lies, as ``show`` takes it."""
        return f"{self.folder / self.shards[chunk.shard].file}[{chunk.row + row}]"

    def _tables(self, shard: int, columns: list[str]) -> Iterator[pa.Table]:
        told = self.shards[shard]
        path = self.folder / told.file
        if shard not in self._sound:
            require_digest(self.folder, {"file": told.file, "sha256": told.sha256})
            self._sound.add(shard)
        try:
            yield from read_groups(path, self.manifest.format, columns)
        except _UNREADABLE as error:
            fact = str(error).strip().partition("\n")[0]
            raise BuildError(
                f"{path}: cannot be read as a shard ({fact}); remove it and run the build again"
            ) from error

    def _chunk(self, table: pa.Table, shard: int, row: int) -> Chunk:
        (firsts, ids), (_, labels), (_, weights) = (flat_column(table[name]) for name in _LISTS)
        ends = [flat_column(table[name])[0] for name in _LISTS[1:]]
        if not all(np.array_equal(firsts, other) for other in ends) or not np.diff(firsts).all():
            raise BuildError(
                f"{self.folder / self.shards[shard].file}: its columns differ in length, or hold "
                "empty rows; python -m pipeline.verify tells which, and a new build mends it"
            )
        chunk = Chunk(
            firsts,
            numbers(ids),
            numbers(labels),
            numbers(weights),
            np.zeros(len(firsts) - 1, np.bool_),
            shard,
            row,
        )
        broken = any(values.null_count for values in (ids, labels, weights)) or not _is_sound(chunk)
        if broken:
            raise BuildError(
                f"{self.folder / self.shards[shard].file}: its columns break the contract of "
                "shards; python -m pipeline.verify tells where, and a new build mends it"
            )
        if self.wishes.validation:
            chunk.held_out[:] = _drawn(table["source"], table["row"], self.wishes.validation)
        return chunk


def _is_sound(chunk: Chunk) -> bool:
    """Whether labels are -100 or the ids and live where a finite weight is not 0, never the first.

    Layouts keep some of the columns: where they differ, what trains would depend on the target.
    """
    live, heads = chunk.labels != IGNORED, chunk.firsts[:-1]
    return bool(
        np.isfinite(chunk.weights).all()
        and (chunk.ids >= 0).all()
        and not (live & (chunk.labels != chunk.ids)).any()
        and not ((chunk.weights != 0) & ~live).any()
        and not live[heads].any()
    )


def open_rows(
    folder: Path, convert: Callable[[Rows, Chunk], Chunk], wishes: Wishes | None = None
) -> Rows:
    """The rows of the finished build in *folder*; BuildError where it is not one, or damaged."""
    manifest = read_finished(folder)
    shards = tuple(
        Shard(
            file=shard["file"],
            rows=shard["rows"],
            tokens=shard.get("tokens", 0),
            targets=shard.get("targets", 0),
            sha256=shard["sha256"],
        )
        for shard in manifest.shards
    )
    return Rows(folder, manifest, shards, convert, wishes or Wishes())


def _drawn(source: pa.ChunkedArray, row: pa.ChunkedArray, share: float) -> Flags:
    """Whether each record is of the validation set: by where it came from, so all its rows are."""
    encoded = source.combine_chunks().dictionary_encode()
    seeds = np.array([_seed(name.as_py()) for name in encoded.dictionary], np.uint64)
    mixed = seeds[numbers(encoded.indices)] ^ numbers(row.combine_chunks()).astype(np.uint64)
    drawn: Flags = _mix(mixed) < np.uint64(min(int(share * 2.0**64), 2**64 - 1))
    return drawn


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): close numbers end far apart."""
    mixed: npt.NDArray[np.uint64] = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
