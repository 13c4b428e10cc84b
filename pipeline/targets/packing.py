"""Rows put together into sequences of bounded length, whole."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort

import numpy as np

from pipeline.targets.chunk import Int64s


def pack(lengths: Int64s, capacity: int) -> tuple[Int64s, Int64s]:
    """Which rows share a sequence: sequence s holds ``order[firsts[s]:firsts[s + 1]]``.

    Best fit, the longest first (Johnson, *Near-optimal bin packing algorithms*, 1973), equal
    lengths in their order; within a sequence rows keep their order, and sequences come in the order
    of their first rows, so that a shuffled build stays shuffled. No length may exceed *capacity*.
    """
    rooms: dict[int, list[int]] = {}  # sequences by the room left in them, the earliest on top
    left: list[int] = []  # the keys of `rooms`, sorted
    held: list[list[int]] = []
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        at = bisect_left(left, length)
        if at == len(left):
            sequence, room = len(held), capacity
            held.append([])
        else:
            room = left[at]
            sequence = heapq.heappop(rooms[room])
            if not rooms[room]:
                del rooms[room], left[at]
        held[sequence].append(row)
        room -= length
        if room:
            if room not in rooms:
                rooms[room] = []
                insort(left, room)
            heapq.heappush(rooms[room], sequence)
    kept = sorted(sorted(rows) for rows in held)
    firsts = np.zeros(len(kept) + 1, np.int64)
    np.cumsum([len(rows) for rows in kept], out=firsts[1:])
    return np.array([row for rows in kept for row in rows], np.int64), firsts
