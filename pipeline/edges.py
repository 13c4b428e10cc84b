"""Which tokens lie in spans of characters, and which lie across an edge of them.

Only the edges are looked up (``searchsorted`` on the tokens' byte ends), so the cost goes by spans,
not by tokens. An empty token goes where the byte before it goes; where its row has none, no span
has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.tokens.encoded import Encoded

Int64s = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CharacterSpans:
    """Spans in a batch, sorted and disjoint; starts and ends are characters of text ``rows[i]``."""

    rows: Int64s
    starts: Int64s
    ends: Int64s


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """Disjoint ranges of tokens, ``firsts[i]`` up to ``stops[i]`` of the flat batch, sorted.

    ``spans`` are how many spans of characters they come from, ``straddling`` how many tokens lay
    across an edge of one.
    """

    firsts: Int64s
    stops: Int64s
    spans: int
    straddling: int


class BytePositions:
    """Character positions to byte positions, by counting the bytes that start a character.

    Rows that are ASCII need none of it: there the two are one. To count those of all rows took
    three quarters of the time of all weights.
    """

    def __init__(self, encoded: Encoded, texts: list[str]) -> None:
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self._starts, sizes = encoded.starts, np.diff(encoded.starts)
        self._wide = lengths != sizes
        wide = np.flatnonzero(self._wide)
        if not len(wide):
            return
        text, starts = encoded.text, encoded.starts
        joined = np.concatenate([text[starts[row] : starts[row + 1]] for row in wide.tolist()])
        # Where each character of the wide rows begins among all their bytes: no lead byte is one
        # from 0x80 to 0xBF, which as signed numbers are the least.
        self._leads = np.append(np.flatnonzero(joined.view(np.int8) >= -64), len(joined))
        self._characters, self._shifts = np.zeros((2, len(texts)), np.int64)
        self._characters[wide] = np.cumsum(lengths[wide]) - lengths[wide]
        self._shifts[wide] = starts[wide] - (np.cumsum(sizes[wide]) - sizes[wide])

    def __call__(self, rows: Int64s, characters: Int64s) -> Int64s:
        found = self._starts[rows] + characters
        wide = self._wide[rows]
        if wide.any():
            mine = rows[wide]
            # A row's end is the start of what follows it.
            found[wide] = (
                self._leads[self._characters[mine] + characters[wide]] + self._shifts[mine]
            )
        return np.asarray(found, np.int64)


@dataclass(frozen=True, slots=True)
class Touched:
    """Tokens by where they lie: in the spans, or across an edge of them.

    inner, [runs], may be empty: ``firsts`` and ``stops`` of those inside. ``cut``, sorted: those
    across, with their ``widths`` and how many bytes of them are ``inside``. ``entered``: those in
    which a span starts. ``spans``: how many there are.
    """

    firsts: Int64s
    stops: Int64s
    cut: Int64s
    widths: Int64s
    inside: Int64s
    entered: Int64s
    spans: int

    def mostly(self) -> Flags:
        """The cut tokens that the spans have at least half of; shares of several add up."""
        return np.asarray(2 * self.inside >= self.widths)

    def give(self, taken: Flags) -> tuple[TokenSpans, Int64s, Int64s]:
        """The inner tokens and those *taken*; of each range, bytes inside and width (or 1, 1)."""
        ones = np.ones(len(self.firsts), np.int64)
        firsts = np.concatenate((self.firsts, self.cut[taken]))
        stops = np.concatenate((self.stops, self.cut[taken] + 1))
        inside = np.concatenate((ones, self.inside[taken]))
        widths = np.concatenate((ones, self.widths[taken]))
        order = np.argsort(firsts, kind="stable")
        order = order[firsts[order] < stops[order]]
        spans = TokenSpans(firsts[order], stops[order], self.spans, len(self.cut))
        return spans, inside[order], widths[order]


def touch(encoded: Encoded, bytes_of: BytePositions, spans: CharacterSpans) -> Touched:
    """Where tokens lie to the spans; spans that touch are one."""
    start = bytes_of(spans.rows, spans.starts)
    end = bytes_of(spans.rows, spans.ends)
    rows, start, end = _joined(spans.rows, start, end)
    ends, bound = encoded.ends, encoded.firsts[rows + 1]
    # Tokens that share one character may have equal ends: `right` keeps them on one side of an
    # edge, and `bound` keeps the next row's, which can begin with empty ones, out of this row.
    first = np.searchsorted(ends, start, side="right")
    stop = np.minimum(np.searchsorted(ends, end, side="right"), bound)
    base = encoded.starts[rows]
    begun, stopped = _cuts(ends, first, start, bound, base), _cuts(ends, stop, end, bound, base)
    inner = first + begun
    both = np.concatenate((first[begun], stop[stopped]))
    cut, index = np.unique(both, return_index=True)
    left = _token_starts(ends, cut, np.concatenate((base[begun], base[stopped]))[index])
    right = ends[cut]
    inside = _covered(start, end, right) - _covered(start, end, left)
    stop = np.maximum(stop, inner)
    return Touched(inner, stop, cut, right - left, inside, first[begun], len(spans.starts))


def _joined(rows: Int64s, start: Int64s, end: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Spans of a row that touch are one: a token that only their border cuts lies in both."""
    held = start < end
    if not held.all():
        rows, start, end = rows[held], start[held], end[held]
    if not len(start):
        return rows, start, end
    apart = (start[1:] != end[:-1]) | (rows[1:] != rows[:-1])
    begin = np.append(True, apart)
    return rows[begin], start[begin], end[np.append(apart, True)]


def _token_starts(ends: Int64s, tokens: Int64s, rows: Int64s) -> Int64s:
    """Where each token starts; its row does at *rows*."""
    # A row before may have text and no tokens: then the token before ends ahead of this row.
    before = np.where(tokens > 0, ends[tokens - 1], 0) if len(ends) else tokens
    return np.asarray(np.maximum(before, rows), np.int64)


def _cuts(ends: Int64s, tokens: Int64s, edges: Int64s, bounds: Int64s, rows: Int64s) -> Flags:
    """Whether each edge lies inside its token, with bytes of the token on both sides."""
    inside = tokens < bounds
    inside[inside] = _token_starts(ends, tokens[inside], rows[inside]) < edges[inside]
    return inside


def _covered(start: Int64s, end: Int64s, positions: Int64s) -> Int64s:
    """How many bytes before each position lie in the spans."""
    if not len(start):
        return np.zeros(len(positions), np.int64)
    before = np.concatenate(([0], np.cumsum(end - start)))
    index = np.searchsorted(start, positions, side="right")
    past = np.maximum(end[np.maximum(index - 1, 0)] - positions, 0)
    return np.asarray(before[index] - np.where(index > 0, past, 0), np.int64)
