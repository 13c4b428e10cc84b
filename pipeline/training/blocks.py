"""A finished build as its row groups: how many rows each has, and the rows of one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BuildError
from pipeline.lineage import read_finished
from pipeline.manifest import NAME
from pipeline.shards import require_schema
from pipeline.training.block import FACTS, TOKENS, Block, Int64s, make_block

_AGAIN = "run the build's command again, which makes it anew"
# Its tokens are the arrays that all rows share the borders of, so they are read always.
_READ = [*TOKENS, *FACTS]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Blocks:
    """Row group b is number ``number[b]`` of file ``shard[b]``; its rows are ``firsts[b:b + 2]``.

    Nothing stays open, and a file is looked at when a row of it is asked for: what is pickled, or
    inherited by a fork, is only where things are.
    """

    files: tuple[Path, ...]
    digests: tuple[str, ...]
    form: str
    shard: Int64s
    number: Int64s
    firsts: Int64s
    fingerprint: str
    tokens: int
    remedy: str = _AGAIN
    _mapped: dict[int, list[Block]] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def rows(self) -> int:
        """Of all row groups."""
        return int(self.firsts[-1])

    def read(self, block: int) -> Block:
        """All its rows: of an Arrow shard views of the mapped file, of Parquet decoded anew."""
        file, number = int(self.shard[block]), int(self.number[block])
        path = self.files[file]
        if self.form == "parquet":
            found = make_block(read_group(path, number), path, self.remedy)
            self._require_rows(path, [found], np.array([block]))
            return found
        if file not in self._mapped:
            batches = map_batches(path, self.remedy)
            mapped = [make_block(batch, path, self.remedy) for batch in batches]
            self._require_rows(path, mapped, np.flatnonzero(self.shard == file))
            self._mapped[file] = mapped
        return self._mapped[file][number]

    def _require_rows(self, path: Path, found: list[Block], blocks: Int64s) -> None:
        """BuildError where another build, or another file, took the place of what was looked at."""
        told = (self.firsts[blocks + 1] - self.firsts[blocks]).tolist()
        if [len(block) for block in found] != told:
            raise BuildError(f"{path}: holds other rows than it did; {self.remedy}")

    def pick(self, block: int, rows: Int64s) -> Block:
        """Those rows of a block in that order, and no memory of its others."""
        whole = self.read(block)
        if self.form == "arrow" or len(rows) == len(whole):
            return whole.view(rows)
        return whole.copy(rows)


def find_blocks(folder: Path) -> Blocks:
    """Looks at the end of each Parquet shard, or the headers of an Arrow one; reads no token.

    BuildError where the folder is no finished build, has no rows, or a shard is missing, of another
    size than the manifest tells, or of another schema. Bytes are for ``python -m pipeline.verify``.
    """
    manifest = read_finished(folder)
    if not manifest.counts["rows"]:
        raise BuildError(f"{folder}: its build has no rows; see its rejects.jsonl")
    sizes = []
    for told in manifest.shards:
        path = folder / told["file"]
        sizes.append(_read(path, lambda p: _count_rows(p, manifest.format)))
        if sum(sizes[-1]) != told["rows"]:
            raise BuildError(
                f"{path}: has {sum(sizes[-1])} rows, {NAME} tells {told['rows']}; {_AGAIN}"
            )
    counts = [len(size) for size in sizes]
    return Blocks(
        files=tuple(folder / told["file"] for told in manifest.shards),
        digests=tuple(told["sha256"] for told in manifest.shards),
        form=manifest.format,
        shard=np.repeat(np.arange(len(sizes)), counts),
        number=np.concatenate([np.arange(count) for count in counts]),
        firsts=np.concatenate(
            [[0], np.cumsum([n for size in sizes for n in size], dtype=np.int64)]
        ),
        fingerprint=manifest.fingerprint,
        tokens=sum(told.get("tokens", 0) for told in manifest.shards),
    )


def read_group(path: Path, number: int) -> pa.RecordBatch:
    """What trains of one row group of a Parquet shard; opened each time, 1 % of what it takes."""

    def read(path: Path) -> pa.RecordBatch:
        with pq.ParquetFile(path) as file:
            group = file.read_row_group(number, columns=_READ, use_threads=False)
        return group.select(_READ).combine_chunks().to_batches()[0]

    return _read(path, read)


def map_batches(path: Path, remedy: str = _AGAIN) -> list[pa.RecordBatch]:
    """What trains of the batches of an Arrow shard, mapped; the file itself is closed again.

    A thousand shards would take as many descriptors as a process may have.
    """

    def read(path: Path) -> list[pa.RecordBatch]:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as batches:
            return [batch.select(_READ) for batch in batches]

    return _read(path, read, remedy)


def _count_rows(path: Path, form: str) -> list[int]:
    if form == "parquet":
        with pq.ParquetFile(path) as file:
            require_schema(path, file.schema_arrow)
            footer = file.metadata
            return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as batches:
        require_schema(path, batches.schema)
        return [batch.num_rows for batch in batches]


def _read(path: Path, read: Callable[[Path], _T], remedy: str = _AGAIN) -> _T:
    try:
        return read(path)
    except (pa.ArrowException, OSError) as error:
        raise BuildError(f"{path}: cannot be read: {error}; {remedy}") from error
