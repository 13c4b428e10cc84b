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


def join(spans: list[Span], start: int, end: int) -> None:
    """Appends a span, or lengthens the last one where they touch."""
    if spans and spans[-1].end == start:
        spans[-1] = Span(spans[-1].start, end)
    else:
        spans.append(Span(start, end))


def subtract(a: list[Span], b: list[Span]) -> list[Span]:
    """What of *a* lies in none of *b*, both sorted; *b* may overlap itself."""
    out: list[Span] = []
    j = 0
    for start, end in a:
        while j < len(b) and b[j].end <= start:
            j += 1
        position, k = start, j
        while k < len(b) and b[k].start < end:
            if position < b[k].start:
                out.append(Span(position, b[k].start))
            position = max(position, b[k].end)
            k += 1
        if position < end:
            out.append(Span(position, end))
    return out
