"""Parts of a long text that the reference encodes as well, around places in doubt.

A part alone may have other tokens than in its text, where a pre-tokenizer or a merge reaches across
its edge. So it only ever confirms: equal tokens at the place are evidence, others are a reason to
encode the whole text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.tokens.changes import Aligned
from pipeline.tokens.encoded import Int32, Int64
from pipeline.tokens.faults import Encode, encode_each
from pipeline.tokens.forms import STABLE

MOST = 8  # windows of a text, evenly spread over its places
_AROUND = 16  # tokens on each side of a place, of which those next to it must be equal
_NEXT = 8
_REACH = 64  # tokens beyond, in which to find one that begins with a stable character


class Window(NamedTuple):
    """Tokens ``first:stop`` of a row, and of these ``begin:end``, which must be equal."""

    first: int
    stop: int
    begin: int
    end: int


def pay(places: int, tokens: int) -> bool:
    """Whether windows around *places* are surely less than half of a text of that many tokens."""
    return 4 * _AROUND * min(places, MOST) < tokens


def confirm(encode: Encode, raw: bytes, ids: Int32, aligned: Aligned, lengths: Int64) -> bool:
    """Whether *encode*, given windows of a text, has its *ids* where they touch changes.

    *raw* is the text's UTF-8, *lengths* of ids as in ``Model``.
    """
    windows = list(_find_windows(raw, aligned))
    if None in windows:
        return False
    found = [window for window in windows if window is not None]
    edges = [(_start(aligned.ends, w.first), _start(aligned.ends, w.stop)) for w in found]
    texts = [raw[start:end].decode() for start, end in edges]
    seen, firsts, faults = encode_each(encode, texts)
    spans = itertools.pairwise(firsts.tolist())
    return not faults and all(
        _agrees(window, ids, seen[first:stop], lengths)
        for window, (first, stop) in zip(found, spans, strict=True)
    )


def _find_windows(raw: bytes, aligned: Aligned) -> Iterator[Window | None]:
    """Around some of the changes; None where no sure edge is within reach."""
    for doubted, after in aligned.touching[:: -(-len(aligned.touching) // MOST)].tolist():
        first = _find_edge(raw, aligned.ends, doubted - _AROUND, -1)
        stop = _find_edge(raw, aligned.ends, after + _AROUND, 1)
        if first is None or stop is None:
            yield None
            continue
        begin = max(doubted - _NEXT, first) if first else 0
        end = min(after + _NEXT, stop) if stop < len(aligned.ends) else stop
        yield Window(first, stop, begin, end)


def _find_edge(raw: bytes, ends: Int64, token: int, step: int) -> int | None:
    """The first token from *token* on that begins with a stable character, or an end of all."""
    for place in range(token, token + step * _REACH, step):
        if place <= 0:
            return 0
        if place >= len(ends):
            return len(ends)
        at = _start(ends, place)
        # Inside of a character, to ignore errors would find the next one.
        inside = raw[at : at + 1] >= b"\x80" and raw[at] < 0xC0
        if not inside and STABLE.match(raw[at : at + 4].decode(errors="ignore")):
            return place
    return None


def _start(ends: Int64, token: int) -> int:
    return int(ends[token - 1]) if token else 0


def _agrees(window: Window, ids: Int32, seen: Int32, lengths: Int64) -> bool:
    """Whether *seen* of the window has, about the place in doubt, what a row's *ids* have."""
    doubted = ids[window.begin : window.end]
    start = int(lengths[ids[window.first : window.begin]].sum())
    starts = np.concatenate(([0], np.cumsum(lengths[seen])))
    first = int(np.searchsorted(starts, start))
    same = np.array_equal(seen[first : first + len(doubted)], doubted)
    return same and int(starts[first]) == start
