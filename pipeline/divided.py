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
from pipeline.regions import Turn
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

    def turns(self, texts: Sequence[str]) -> Iterator[list[Turn]]:
        """Each row's turns; how their starts were found is not stored."""
        rows = self._rows()
        begins = _changes(rows) | _changes(self.message) | _changes(self.role)
        turn = np.cumsum(begins) - 1
        first = np.flatnonzero(begins)
        ranges, edges = _joined(turn, self.start, self.end, len(first))
        spoken = self._named(*_OUTPUT)
        outputs, cuts = _joined(turn[spoken], self.start[spoken], self.end[spoken], len(first))
        stop, called = np.full(len(first), -1), np.full(len(first), -1)
        stops = np.flatnonzero(self._named("stop"))
        stop[turn[stops]] = self.start[stops]  # the last of a turn stays
        calls = np.flatnonzero(self._named("tool_call"))[::-1]
        called[turn[calls]] = self.start[calls]  # the first
        opened = self._opened(turn, rows, texts, len(first))
        made = [
            Turn(message, self.roles[role], ranges[a:b], outputs[c:d], stop, "", opened, called)
            for message, role, (a, b), (c, d), stop, opened, called in zip(
                self.message[first].tolist(),
                self.role[first].tolist(),
                itertools.pairwise(edges),
                itertools.pairwise(cuts),
                stop.tolist(),
                opened.tolist(),
                called.tolist(),
                strict=True,
            )
        ]
        owned = np.cumsum(np.bincount(rows[first], minlength=len(self.firsts) - 1)).tolist()
        for a, b in itertools.pairwise([0, *owned]):
            yield [turn for turn in made[a:b] if turn.message >= 0]

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


def _joined(turn: Int64s, start: Int64s, end: Int64s, count: int) -> tuple[list[Span], list[int]]:
    """Spans joined where they touch; turn t has those from ``edges[t]`` up to ``edges[t + 1]``."""
    begins = _changes(turn)
    begins[1:] |= start[1:] != end[:-1]
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(turn))[: len(first)] - 1
    spans = [*map(Span, start[first].tolist(), end[last].tolist())]
    edges = np.cumsum(np.bincount(turn[first], minlength=count))
    return spans, [0, *edges.tolist()]
