"""Rows put together into sequences: whole, once, within bounds, and few."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.targets.packing import pack

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=200)


def packed(lengths: list[int], capacity: int) -> list[list[int]]:
    order, firsts = pack(np.array(lengths, np.int64), capacity)
    return [order[a:b].tolist() for a, b in pairwise(firsts)]


@given(LENGTHS, st.integers(100, 400))
def test_each_row_is_in_one_sequence_and_none_is_too_long(
    lengths: list[int], capacity: int
) -> None:
    sequences = packed(lengths, capacity)
    assert sorted(row for rows in sequences for row in rows) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in rows) <= capacity for rows in sequences)


@given(LENGTHS, st.integers(100, 400))
def test_no_more_sequences_than_the_bound_of_best_fit_decreasing(
    lengths: list[int], capacity: int
) -> None:
    # 11/9 of the optimum and 6/9 (Dosa, 2007); the optimum is at least the total over the capacity.
    # What holds without knowing the optimum: no two sequences that fit into one.
    sequences = packed(lengths, capacity)
    sums = sorted(sum(lengths[row] for row in rows) for rows in sequences)
    assert len(sums) < 2 or sums[0] + sums[1] > capacity


@given(LENGTHS, st.integers(100, 400))
def test_it_is_best_fit_decreasing(lengths: list[int], capacity: int) -> None:
    # The definition, in quadratic time.
    room: list[int] = []
    rows: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda r: (-lengths[r], r)):
        fits = [s for s in range(len(room)) if room[s] >= lengths[row]]
        if fits:
            best = min(fits, key=lambda s: (room[s], s))
        else:
            best = len(room)
            room.append(capacity)
            rows.append([])
        room[best] -= lengths[row]
        rows[best].append(row)
    assert packed(lengths, capacity) == sorted(sorted(found) for found in rows)


def test_rows_keep_their_order() -> None:
    assert packed([10, 60, 30, 50, 40], 100) == [[0, 2, 3], [1, 4]]


def test_no_rows_are_no_sequences() -> None:
    assert packed([], 10) == []
