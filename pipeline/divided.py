"""The ``spans`` column of many rows at once, and the turns that were divided into it.

The same as ``regions.restore_turns`` and ``scales.restore_scales`` row by row, at a sixth of their
cost: most of the time of reweighting would be theirs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns import flat_column, numbers
from pipeline.edges import BytePositions, CharacterSpans
from pipeline.regions import Turn
from pipeline.rules.scan import Said
from pipeline.scales import Scale
from pipeline.spans import Span

_OUTPUT = ("reasoning", "content", "tool_call", "stop")
_OPENING = re.compile(r"\s*<(?:\w+:)?think(?:ing)?>")

Flags = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Regions:
    """Regions of a batch as flat arrays: row r has ``firsts[r]`` up to ``firsts[r + 1]``.

    ``roles`` and ``names`` are the words that ``role`` and ``name`` count; ``weight`` float32.
    """

    firsts: Int64s
    message: Int64s
    role: Int64s
    name: Int64s
    start: Int64s
    end: Int64s
    weight: npt.NDArray[np.float32]
    roles: Sequence[str]
    names: Sequence[str]

    def outside(self, lengths: Int64s) -> Int64s:
        """The rows that have a region out of their text, which is *lengths* characters long."""
        rows = self._rows()
        bad = (self.start < 0) | (self.end < self.start) | (self.end > lengths[rows])
        return np.unique(rows[bad])

    def turns(self, texts: Sequence[str]) -> DividedTurns:
        """All rows' turns; how their starts were found is not stored."""
        rows = self._rows()
        begins = _changes(rows) | _changes(self.message) | _changes(self.role)
        turn = np.cumsum(begins) - 1
        first = np.flatnonzero(begins)
        count = len(first)
        spoken = self._named(*_OUTPUT)
        stop, called = np.full(count, -1), np.full(count, -1)
        stops = np.flatnonzero(self._named("stop"))
        stop[turn[stops]] = self.start[stops]  # the last of a turn stays
        calls = np.flatnonzero(self._named("tool_call"))[::-1]
        called[turn[calls]] = self.start[calls]  # the first
        return DividedTurns(
            np.searchsorted(rows[first], np.arange(len(self.firsts))).tolist(),
            self.message[first].tolist(),
            [self.roles[role] for role in self.role[first].tolist()],
            _joined(turn, self.start, self.end, count),
            _joined(turn[spoken], self.start[spoken], self.end[spoken], count),
            stop.tolist(),
            called.tolist(),
            self._opened(turn, rows, texts, count).tolist(),
        )

    def scales(self) -> list[list[Scale]]:
        """Each row's weights before any rule, where they are not 1."""
        scales: list[list[Scale]] = [[] for _ in self.firsts[1:]]
        at = np.flatnonzero(self.weight != 1)
        for row, *scale in zip(
            self._rows()[at].tolist(),
            self.start[at].tolist(),
            self.end[at].tolist(),
            self.weight[at].tolist(),
            strict=True,
        ):
            scales[row].append(Scale(*scale))
        return [sorted(mine) for mine in scales]

    def _rows(self) -> Int64s:
        return np.repeat(np.arange(len(self.firsts) - 1), np.diff(self.firsts))

    def _named(self, *names: str) -> Flags:
        return np.array([name in names for name in self.names], np.bool_)[self.name]

    def _opened(self, turn: Int64s, rows: Int64s, texts: Sequence[str], count: int) -> Flags:
        """The turns whose reasoning began in the header: it has no opening tag of its own."""
        opened = np.zeros(count, np.bool_)
        at = np.flatnonzero(self._named("reasoning"))
        at = at[_changes(turn[at])]
        opened[turn[at]] = [
            not _OPENING.match(texts[row], start)
            for row, start in zip(rows[at].tolist(), self.start[at].tolist(), strict=True)
        ]
        return opened


@dataclass(frozen=True, slots=True)
class Joined:
    """Spans of turns: those of turn t are ``edges[t]`` up to ``edges[t + 1]``."""

    start: Int64s
    end: Int64s
    edges: list[int]

    def of(self, first: int, stop: int) -> Iterator[list[Span]]:
        """The spans of each of some turns."""
        edges = self.edges[first : stop + 1]
        a, b = edges[0], edges[-1]
        spans = [*map(Span, self.start[a:b].tolist(), self.end[a:b].tolist())]
        return (spans[x - a : y - a] for x, y in itertools.pairwise(edges))


@dataclass(frozen=True, slots=True)
class DividedTurns:
    """Turns of a batch, field by field: row r has ``firsts[r]`` up to ``firsts[r + 1]``.

    Made into values one row at a time, as many rows are weighed without.
    """

    firsts: list[int]
    messages: list[int]
    roles: list[str]
    ranges: Joined
    outputs: Joined
    stops: list[int]
    called: list[int]
    opened: list[bool]

    def of(self, row: int) -> list[Turn]:
        """A row's turns, in the order of its messages; what nobody owns is none."""
        turns: list[Turn] = []
        first, stop = self.firsts[row], self.firsts[row + 1]
        mine = zip(self.ranges.of(first, stop), self.outputs.of(first, stop), strict=True)
        for t, (own, said) in enumerate(mine, first):
            message = self.messages[t]
            if message >= 0:
                at, called = self.stops[t], self.called[t]
                turns.append(
                    Turn(message, self.roles[t], own, said, at, "", self.opened[t], called)
                )
        return turns

    def said(self, bytes_of: BytePositions) -> Said:
        """`said_in` all turns, without making them."""
        turns, spoken = self._spoken()
        start, end, stop = spoken.starts, spoken.ends, np.array(self.stops, np.int64)[turns]
        end = np.where((start <= stop) & (stop < end), stop, end)
        messages = np.array(self.messages, np.int64)[turns]
        return Said(
            spoken.rows.tolist(),
            [*zip(messages.tolist(), start.tolist(), end.tolist(), strict=True)],
            bytes_of(spoken.rows, start).tolist(),
            bytes_of(spoken.rows, end).tolist(),
        )

    def spoken(self, *, without: Sequence[int] = ()) -> CharacterSpans:
        """All outputs but those of some rows, by row and start."""
        _, spoken = self._spoken()
        if not without:
            return spoken
        kept = ~np.isin(spoken.rows, np.array(without, np.int64))
        return CharacterSpans(spoken.rows[kept], spoken.starts[kept], spoken.ends[kept])

    def _spoken(self) -> tuple[Int64s, CharacterSpans]:
        """All outputs by row and start, and whose turn's each is."""
        outputs = self.outputs
        turns = np.repeat(np.arange(len(self.messages)), np.diff(outputs.edges))
        rows = np.searchsorted(np.array(self.firsts), turns, side="right") - 1
        order = np.lexsort((outputs.start, rows))
        spans = CharacterSpans(rows[order], outputs.start[order], outputs.end[order])
        return turns[order], spans

    def count(self, kept: Flags) -> dict[str, int]:
        """Of the *kept* rows: turns that train, and those of them without a stop token."""
        numbers = np.arange(len(self.messages))
        rows = np.searchsorted(np.array(self.firsts), numbers, side="right") - 1
        training = kept[rows] & (np.diff(self.outputs.edges) > 0)
        stopless = int((training & (np.array(self.stops) < 0)).sum())
        return {"turns": int(training.sum()), "turns_without_stop": stopless}


def read_regions(spans: pa.ChunkedArray) -> Regions:
    """The column ``spans`` of a shard."""
    firsts, values = flat_column(spans)
    message, role, name, start, end, weight = values.flatten()
    role, name = role.dictionary_encode(), name.dictionary_encode()
    return Regions(
        firsts,
        _integers(message),
        _integers(role.indices),
        _integers(name.indices),
        _integers(start),
        _integers(end),
        numbers(weight),
        role.dictionary.to_pylist(),
        name.dictionary.to_pylist(),
    )


def _integers(values: pa.Array) -> Int64s:
    return np.asarray(numbers(values), np.int64)


def _changes(values: npt.NDArray[Any]) -> Flags:
    """Where a value is not the one before; the first always."""
    changes = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes


def _joined(turn: Int64s, start: Int64s, end: Int64s, count: int) -> Joined:
    """Spans joined where they touch."""
    begins = _changes(turn)
    begins[1:] |= start[1:] != end[:-1]
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(turn))[: len(first)] - 1
    edges = np.append(0, np.cumsum(np.bincount(turn[first], minlength=count)))
    return Joined(start[first], end[last], edges.tolist())
