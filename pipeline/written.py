"""Rendered texts of many rows as one array of characters, to be asked about many places at once."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.laid import ROLES, Int64s
from pipeline.markers import Markers
from pipeline.rendered import Recorded
from pipeline.surroundings import Prompt

ASSISTANT = ROLES.index("assistant")
WIDEST = 0x3000  # the last character that is white space
_TRIMS = 64  # white space after a stop token that is looked through

Codes = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]


class Row(NamedTuple):
    """A plain conversation, rendered; ``strings`` has all that it says.

    ``roles`` are the codes of its messages' roles, a byte each, 0 for another; ``prompts`` precede
    what the assistant says, turn by turn.
    """

    recorded: Recorded
    messages: Sequence[dict[str, Any]]
    strings: str
    roles: bytes
    prompts: Sequence[Prompt]


class Ranges(NamedTuple):
    """Ranges of the joined texts that messages wrote."""

    row: Int64s
    message: Int64s
    role: Int64s
    start: Int64s
    end: Int64s


class Written:
    """All rows' texts as one array of characters, with what the renders reported.

    ``begins`` is where each row's text begins in it, and where the last one ends.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.texts = [row.recorded.text for row in rows]
        recorders = [row.recorded.recorder for row in rows]
        joined = "".join(self.texts)
        self.codes: Codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        pieces = [r.pieces for r in recorders]
        lengths = map(len, itertools.chain.from_iterable(pieces))
        self.ends = np.cumsum(integers(itertools.chain((0,), lengths)))
        self.firsts = np.cumsum([0, *map(len, pieces)])
        self.begins = self.ends[self.firsts]
        self.messages = np.array([len(row.roles) for row in rows])
        self.roles = np.frombuffer(b"".join([row.roles for row in rows]), np.uint8)
        self.usual = np.array([not (r.generated or r.called) for r in recorders])
        self._recorders = recorders

    def turns(self) -> Ranges:
        """One for each message that wrote one range; rows with others are not usual."""
        events, count = [r.events for r in self._recorders], len(self.rows)
        piece, owner = self._pairs(events)
        row = np.repeat(np.arange(count), [len(mine) for mine in events])
        start = self.ends[piece + self.firsts[row]]
        end = self.begins[row + 1]  # of a row's last event
        (followed,) = np.nonzero(row[1:] == row[:-1])
        end[followed] = start[followed + 1]
        (kept,) = np.nonzero((owner >= 0) & (start < end))
        row, owner, start, end = row[kept], owner[kept], start[kept], end[kept]
        self.usual[row[1:][(row[1:] == row[:-1]) & (owner[1:] <= owner[:-1])]] = False
        role = self.roles[(np.cumsum(self.messages) - self.messages)[row] + owner]
        of_message = np.repeat(np.arange(count), self.messages)
        self.usual[of_message[self.roles == 0]] = False  # one that has no code
        asked = np.bincount(of_message[self.roles == ASSISTANT], minlength=count)
        self.usual &= asked == np.bincount(row[role == ASSISTANT], minlength=count)
        return Ranges(row, owner, role, start, end)

    def _pairs(self, pairs: Sequence[Sequence[tuple[int, int]]]) -> Int64s:
        flat = itertools.chain.from_iterable(itertools.chain.from_iterable(pairs))
        flat_pairs: Int64s = integers(flat).reshape(-1, 2).T
        return flat_pairs

    def tags(self) -> tuple[Int64s, Int64s]:
        """Where what stands inside of generation tags starts and ends."""
        enclosed = [r.enclosed for r in self._recorders]
        first, stop = self._pairs(enclosed)
        base = np.repeat(self.firsts[:-1], [len(mine) for mine in enclosed])
        start, end = self.ends[first + base], self.ends[stop + base]
        return start[start < end], end[start < end]

    def starts_with(self, word: str, start: Int64s, end: Int64s) -> Flags:
        """Whether it stands at each *start*, and ends no later than *end*."""
        found = start + len(word) <= end
        for i in range(0, len(word), 8):  # most are told by a few characters
            (left,) = np.nonzero(found)
            if not len(left):
                break
            piece = codes_of(word[i : i + 8])
            at = start[left, None] + np.arange(i, i + len(piece))
            found[left] = (self.codes[at] == piece).all(axis=1)
        return found

    def trimmed(self, start: Int64s, end: Int64s) -> tuple[Int64s, Flags]:
        """The ends without white space before them, and whether that is sure."""
        end = end.copy()
        left = np.arange(len(end))
        for _ in range(_TRIMS):
            left = left[end[left] > start[left]]
            left = left[self.is_space(end[left] - 1)]
            if not len(left):
                break
            end[left] -= 1
        sure = np.ones(len(end), np.bool_)
        sure[left] = False
        return end, sure

    def is_space(self, at: Int64s) -> Flags:
        """Of the characters at these places."""
        found: Flags = _spaces()[np.minimum(self.codes[at], WIDEST + 1)]
        return found

    def stopped(self, start: Int64s, end: Int64s, markers: Markers) -> tuple[Int64s, Flags]:
        """Where the control token that ends each range starts, *end* without; which are the eos."""
        at, eos = end.copy(), np.zeros(len(end), np.bool_)
        left = np.flatnonzero(start < end)
        for token in markers.apart:
            left = self._take(token, left, start, end, at, eos, markers)
        while len(left):
            # Asked one by one; what one finds is looked for in all that are left.
            first, left = left[:1], left[1:]
            row = int(np.searchsorted(self.begins, start[first[0]], side="right")) - 1
            base = int(self.begins[row])
            token = markers.ending(
                self.texts[row], int(start[first[0]]) - base, int(end[first[0]]) - base
            )
            if token:
                self._take(token, first, start, end, at, eos, markers)
            if token in markers.apart:
                left = self._take(token, left, start, end, at, eos, markers)
        return at, eos

    def _take(
        self,
        token: str,
        left: Int64s,
        start: Int64s,
        end: Int64s,
        at: Int64s,
        eos: Flags,
        markers: Markers,
    ) -> Int64s:
        """Those that do not end with *token*; the others are noted."""
        begun = end[left] - len(token)
        found = begun >= start[left]
        found[found] = self.starts_with(token, begun[found], end[left][found])
        at[left[found]] = begun[found]
        eos[left[found]] = token == markers.eos
        return left[~found]


@cache
def _spaces() -> Flags:
    """Which characters are white space; the last entry stands for all beyond the table."""
    known: Flags = np.array([*(chr(code).isspace() for code in range(WIDEST + 1)), False])
    return known


@lru_cache(10)
def table_of(characters: frozenset[str]) -> Flags:
    """Which characters these are; as `_spaces`, but all beyond the table are taken for them."""
    table = np.zeros(WIDEST + 2, np.bool_)
    codes = [ord(character) for character in characters]
    table[[code for code in codes if code <= WIDEST]] = True
    table[-1] = any(code > WIDEST for code in codes)
    return table


@lru_cache(1000)
def codes_of(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def integers(values: Iterable[int]) -> Int64s:
    # Through an array, as numpy asks each number of an iterable what it is.
    numbers: Int64s = np.frombuffer(array("q", values), np.int64)
    return numbers
