"""Where in a batch patterns can match at all: one search of its whole text, not one a row.

A pattern that cannot match without some text (``Entry.needed``) is tried only where that stands:
to ask each of a batch's pieces for it took as long as the matching.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.laid import Piece
from pipeline.rules.matching import Matcher


@dataclass(frozen=True, slots=True)
class Said:
    """All that the assistant says in a batch, sorted and disjoint: pieces, each of its row.

    ``starts`` and ``ends`` are bytes of the batch's text, those of a piece characters of its row's.
    """

    rows: Sequence[int]
    pieces: Sequence[Piece]
    starts: Sequence[int]
    ends: Sequence[int]


def choose_pieces(
    matchers: Iterable[Matcher], data: bytes, said: Said
) -> dict[int, list[tuple[Matcher, list[Piece]]]]:
    """What `find_said` has to look at, by row; other rows are claimed nothing of."""
    chosen: dict[int, list[tuple[Matcher, list[Piece]]]] = {}
    found: dict[tuple[str, ...], Sequence[int]] = {}  # patterns of one rule often need the same
    for matcher in matchers:
        last, mine = -1, list[Piece]()
        needed = matcher.entry.needed
        if needed not in found:
            found[needed] = _find(data, needed, said.starts, said.ends)
        for index in found[needed]:
            row = said.rows[index]
            if row != last:
                last, mine = row, []
                chosen.setdefault(row, []).append((matcher, mine))
            mine.append(said.pieces[index])
    return chosen


def choose_rows(matchers: Iterable[Matcher], data: bytes, starts: Sequence[int]) -> list[int]:
    """The rows in which some can match, sorted; row r is bytes ``starts[r]:starts[r+1]``."""
    rows: set[int] = set()
    for matcher in matchers:
        rows.update(_find(data, matcher.entry.needed, starts[:-1], starts[1:]))
    return sorted(rows)


def _find(
    data: bytes, needed: Sequence[str], starts: Sequence[int], ends: Sequence[int]
) -> Sequence[int]:
    """The ranges of *data* that have one of what is *needed*, sorted; all if nothing is."""
    if not needed:
        return range(len(starts))
    if len(needed) == 1:
        return _find_one(data, needed[0], starts, ends)
    return sorted({i for one in needed for i in _find_one(data, one, starts, ends)})


def _find_one(data: bytes, needed: str, starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    sought = needed.encode("utf-8", "surrogatepass")
    found: list[int] = []
    at = data.find(sought)
    while at >= 0:
        index = bisect_right(starts, at) - 1
        if index >= 0 and at + len(sought) <= ends[index]:
            found.append(index)
        if index + 1 == len(starts):
            break
        at = data.find(sought, starts[index + 1])  # once for each range is enough
    return found
