"""The turns of many rows as numbers, for rows of the usual kind: each message in one range.

Objects of six turns cost more than all that is done with them, so a row makes its own only when
somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from pipeline.regions import Turn
from pipeline.spans import Span

# A turn's numbers: whose, how its output was found, and the seven borders of its six parts.
ROW, MESSAGE, ROLE, FOUND, OPENED, START, BEGIN, THOUGHT, SPEECH, BODY, UNTIL, END = range(12)
NUMBERS = 12
ROLES = ("", "system", "developer", "user", "assistant", "tool")
CODES = {role: code for code, role in enumerate(ROLES) if role}
HOW = ("", "tags", "prompt", "common", "probe", "content", "unprompted", "unsure")

Int64s: TypeAlias = npt.NDArray[np.int64]
Piece: TypeAlias = tuple[int, int, int]  # what the assistant says: its message, start and end


@dataclass(frozen=True)
class TurnTable:
    """``numbers`` is int64 [turns, 12], by row and message; a row's are ``firsts[row]`` and on.

    ``BEGIN`` to ``UNTIL`` are -1 in a turn without an output; ``BODY`` is where its stop token
    starts, or ``UNTIL`` without one. ``opens`` are for some texts the rows in which something that
    the assistant says begins with it, or with white space.
    """

    numbers: Int64s
    firsts: list[int]
    opens: Mapping[str, frozenset[int]]

    @cached_property
    def _said(self) -> tuple[list[Piece], list[int]]:
        """What `said_in` finds in all turns, and the first piece of each row."""
        spoken = self.numbers[self.numbers[:, BEGIN] >= 0]
        columns = (spoken[:, column].tolist() for column in (MESSAGE, BEGIN, BODY))
        firsts = np.searchsorted(spoken[:, ROW], np.arange(len(self.firsts)))
        return list(zip(*columns, strict=True)), firsts.tolist()

    def said(self, row: int) -> list[Piece]:
        """What the assistant says in a row, without stop tokens."""
        pieces, firsts = self._said
        return pieces[firsts[row] : firsts[row + 1]]

    def turns(self, row: int) -> list[Turn]:
        """A row's turns as objects."""
        return [_turn(n) for n in self.numbers[self.firsts[row] : self.firsts[row + 1]].tolist()]


class Laid(Sequence[Turn]):
    """The turns of one row of a table, made when they are read."""

    __slots__ = ("_turns", "row", "table")

    def __init__(self, table: TurnTable, row: int) -> None:
        self.table, self.row = table, row
        self._turns: list[Turn] | None = None

    def __len__(self) -> int:
        firsts = self.table.firsts
        return firsts[self.row + 1] - firsts[self.row]

    @overload
    def __getitem__(self, index: int) -> Turn: ...
    @overload
    def __getitem__(self, index: slice) -> list[Turn]: ...
    def __getitem__(self, index: int | slice) -> Turn | list[Turn]:
        if self._turns is None:
            self._turns = self.table.turns(self.row)
        return self._turns[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment] # a list has none either

    def said(self) -> list[Piece]:
        """What the assistant says, without stop tokens."""
        return self.table.said(self.row)


def gather(many: Iterable[Sequence[Turn]]) -> tuple[Int64s, list[int]]:
    """The numbers of all turns that are laid, and the positions of those in *many* that are not.

    ``ROW`` is the position in *many*; rows are in its order.
    """
    parts: list[tuple[TurnTable, list[int], list[int]]] = []
    listed: list[int] = []
    table: TurnTable | None = None
    rows, positions = list[int](), list[int]()
    for position, turns in enumerate(many):
        if type(turns) is not Laid:
            listed.append(position)
            continue
        if turns.table is not table:
            table, rows, positions = turns.table, [], []
            parts.append((table, rows, positions))
        rows.append(turns.row)
        positions.append(position)
    if not parts:
        return np.zeros((0, NUMBERS), np.int64), listed
    return np.concatenate([_select(*part) for part in parts]), listed


def _select(table: TurnTable, rows: list[int], positions: list[int]) -> Int64s:
    firsts = np.array(table.firsts)
    first, counts = firsts[rows], np.diff(firsts)[rows]
    ends = np.cumsum(counts)
    chosen = np.arange(ends[-1]) + np.repeat(first - (ends - counts), counts)
    numbers: Int64s = table.numbers[chosen]
    numbers[:, ROW] = np.repeat(positions, counts)
    return numbers


def _turn(numbers: list[int]) -> Turn:
    _, message, role, how, opened, start, begin, _, _, body, until, end = numbers
    if begin < 0:
        return Turn(message, ROLES[role], [Span(start, end)], [], -1, "", False)
    stop = body if body < until else -1
    outputs = [Span(begin, until)]
    return Turn(message, ROLES[role], [Span(start, end)], outputs, stop, HOW[how], bool(opened))
