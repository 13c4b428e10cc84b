"""Packed shards hold every row once, whole, whatever chunks they are read in."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.targets.chunk import Chunk
from pipeline.targets.sequences import Sequences, pack_shard

CAPACITY = 12
Lengths = list[list[list[int]]]  # of shards, of chunks, of rows
LENGTHS = st.lists(
    st.lists(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=8), max_size=3), max_size=3
)


def rows_in(shards: Lengths) -> Any:
    """Rows of these lengths; each token's id tells its row and its place there."""
    number = 0

    def chunk(lengths: list[int], shard: int) -> Chunk:
        nonlocal number
        firsts = np.cumsum([0, *lengths])
        ids = [(number + row) * 100 + place for row, n in enumerate(lengths) for place in range(n)]
        number += len(lengths)
        flat = np.array(ids, np.int32)
        weights = (flat % 100).astype(np.float32)
        return Chunk(firsts, flat, flat + 1, weights, np.zeros(len(lengths), bool), shard, 0)

    read = [[chunk(lengths, shard) for lengths in chunks] for shard, chunks in enumerate(shards)]

    def of(shard: int) -> Iterator[Chunk]:
        yield from read[shard]

    return SimpleNamespace(shards=shards, of=of)


@given(LENGTHS)
def test_each_row_is_in_one_sequence_whole_and_in_its_shard(shards: Lengths) -> None:
    lengths = [n for chunks in shards for rows in chunks for n in rows]
    of_shard = [sum(map(len, chunks)) for chunks in shards if chunks]
    found: list[int] = []
    packed = packed_of(shards)
    assert [p.rows.rows for p in packed] == of_shard
    for sequences in packed:
        ends = sequences.token_firsts()
        assert (np.diff(ends) <= CAPACITY).all()
        assert ends[-1] == len(sequences.rows.ids)
        for first, stop in zip(sequences.firsts[:-1], sequences.firsts[1:], strict=True):
            assert first < stop
        rows = sequences.rows
        for row in range(rows.rows):
            ids = rows.ids[rows.firsts[row] : rows.firsts[row + 1]].tolist()
            number = ids[0] // 100
            assert ids == [number * 100 + place for place in range(lengths[number])]
            found.append(number)
        assert np.array_equal(rows.labels, rows.ids + 1)
        assert np.array_equal(rows.weights, (rows.ids % 100).astype(np.float32))
    assert sorted(found) == list(range(len(lengths)))


def packed_of(shards: Lengths) -> list[Sequences]:
    rows = rows_in(shards)
    return [s for shard in range(len(rows.shards)) for s in pack_shard(rows, shard, CAPACITY)]


@given(LENGTHS)
def test_chunks_make_no_difference(shards: Lengths) -> None:
    joined = [[[n for rows in chunks for n in rows]] if chunks else [] for chunks in shards]
    several = packed_of(shards)
    one = packed_of(joined)
    assert len(several) == len(one)
    for left, right in zip(several, one, strict=True):
        assert np.array_equal(left.firsts, right.firsts)
        assert np.array_equal(left.rows.ids, right.rows.ids)
        assert np.array_equal(left.rows.firsts, right.rows.firsts)
