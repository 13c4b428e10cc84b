"""Half-open ranges of characters, and nothing else."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """Characters from ``start`` up to but not including ``end``."""

    start: int
    end: int


def intersect(a: list[Span], b: list[Span]) -> list[Span]:
    """What lies in both of two sorted lists of disjoint spans; empty spans are dropped."""
    out: list[Span] = []
    i = j = 0
    while i < len(a) and j < len(b):
        start, end = max(a[i].start, b[j].start), min(a[i].end, b[j].end)
        if start < end:
            out.append(Span(start, end))
        if a[i].end < b[j].end:
            i += 1
        else:
            j += 1
    return out
