"""Rows put together into long sequences, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.targets.chunk import Chunk, Int64s
from pipeline.targets.packing import pack
from pipeline.targets.rows import Rows


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequence s holds the rows ``firsts[s]`` to before ``firsts[s + 1]`` of *rows*."""

    rows: Chunk
    firsts: Int64s

    def token_firsts(self) -> Int64s:
        """Where the tokens of each sequence begin, int64 [sequences + 1]."""
        return self.rows.firsts[self.firsts]


def pack_shard(rows: Rows, shard: int, capacity: int) -> Iterator[Sequences]:
    """A shard's rows in sequences of at most *capacity* tokens, at once; nothing if it has none.

    Across shards nothing is packed: that would take all rows at once, or reads all over the disk,
    to fill the last sequence of each shard.
    """
    chunks = list(rows.of(shard))
    if chunks:
        yield put_together(_joined(chunks), capacity)


def put_together(rows: Chunk, capacity: int) -> Sequences:
    """All of them in sequences of at most *capacity* tokens."""
    order, firsts = pack(rows.lengths(), capacity)
    return Sequences(rows.taken(order), firsts)


def _joined(chunks: list[Chunk]) -> Chunk:
    starts = np.cumsum([0, *(len(chunk.ids) for chunk in chunks)])
    firsts = [chunk.firsts[:-1] + start for chunk, start in zip(chunks, starts, strict=False)]
    return Chunk(
        np.concatenate([*firsts, starts[-1:]]),
        np.concatenate([chunk.ids for chunk in chunks]),
        np.concatenate([chunk.labels for chunk in chunks]),
        np.concatenate([chunk.weights for chunk in chunks]),
        np.concatenate([chunk.held_out for chunk in chunks]),
        chunks[0].shard,
        chunks[0].row,
    )
