"""What a worker is told to do, and how it says what it is at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pipeline.errors import RecordError
from pipeline.plan import Task


class Step(NamedTuple):
    """Progress: how much of each has been done since the last one."""

    records: int
    tokens: int = 0
    rejects: int = 0


class Rows(NamedTuple):
    """Some of a task's records, counted from 0 over all of its pieces."""

    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A record of a task that is to be rejected unread, for it hangs a worker or kills it."""

    row: int
    error: RecordError


@dataclass(frozen=True, slots=True)
class Order:
    """A shard to write; or, with ``only``, some of its records to encode and forget."""

    task: Task
    left_out: tuple[LeftOut, ...] = ()
    only: Rows | None = None


class Cells(Protocol):
    """Whole numbers in memory that two processes share."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


class Watch:
    """Which record a worker is at, in shared memory: it can still be read of one that was killed.

    Three cells: beats, the first record of the batch, the record; -1 between batches.
    """

    def __init__(self, cells: Cells) -> None:
        self.cells = cells

    def at(self, first: int, index: int) -> None:
        """The batch that begins with record *first* is at its *index*-th (or after its last)."""
        self.cells[1] = first
        self.cells[2] = first + index
        self.cells[0] += 1

    def rest(self) -> None:
        """No record is looked at: what takes time now is a disk."""
        self.cells[2] = -1
        self.cells[0] += 1

    @property
    def beats(self) -> int:
        """Grows with every record."""
        return self.cells[0]

    @property
    def resting(self) -> bool:
        """Whether the worker is at no record."""
        return self.cells[2] < 0

    def suspects(self) -> Rows | None:
        """The batch so far; its last record is the one that the worker was at."""
        return None if self.resting else Rows(self.cells[1], self.cells[2] + 1)
