"""One task's way to its shard: tried, tried again, and searched for the record that kills."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import BuildError, RecordError
from pipeline.order import LeftOut, Order, Rows
from pipeline.plan import Task

_CHANCES = 5  # that a worker dies at no record: while it starts, reads or writes
_SEARCHES = 3  # without a find; then it is not the records, but memory or the machine


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker that died, or was killed because it ``hung``; ``told`` says how."""

    hung: bool
    told: str


@dataclass(slots=True)
class Attempt:
    """``suspects`` are to be encoded alone before the task is tried again, the last first.

    A worker that dies may have been killed by chance, or for the memory of others: its task is
    done again, and only when that fails too its records are searched by halves, those of the
    batch that it was at. One is left out when it kills twice alone (or hangs once more), so that
    the same records are left out whatever happens to workers.
    """

    task: Task
    left_out: list[LeftOut] = field(default_factory=list)
    suspects: list[Rows] = field(default_factory=list)
    deaths: int = 0
    chances: int = 0
    searches: int = 0
    struck: Rows | None = None

    def order(self) -> Order:
        """What to do next."""
        only = self.suspects[-1] if self.suspects else None
        return Order(self.task, tuple(self.left_out), only)

    def acquit(self) -> None:
        """The suspects that were looked at do no harm alone."""
        self.suspects.pop()
        self.chances = 0

    def fail(self, failure: Failure, at: Rows | None) -> None:
        """Decides what comes next; BuildError where nothing is left to try.

        *at* is what the worker was at: a batch so far, or None for no record.
        """
        if at is None:
            self.chances += 1
            if self.chances == _CHANCES:
                raise BuildError(self._hopeless(failure, f"{_CHANCES} times, at no record"))
            return
        if self.suspects:
            self._narrow(failure)
            return
        self.deaths += 1
        if self.deaths == 1 and not failure.hung:
            return
        if self.searches == _SEARCHES:
            raise BuildError(self._hopeless(failure, "though each of its records passes alone"))
        self.searches += 1
        alone = Rows(at.stop - 1, at.stop)
        self.suspects = [alone] if at == alone else [at, alone]

    def _narrow(self, failure: Failure) -> None:
        rows = self.suspects.pop()
        if rows.stop - rows.first > 1:
            middle = (rows.first + rows.stop) // 2
            self.suspects = [Rows(middle, rows.stop), Rows(rows.first, middle)]
        elif failure.hung or rows == self.struck:
            self.left_out.append(LeftOut(rows.first, _verdict(failure)))
            self.suspects, self.struck = [], None
            self.deaths, self.chances, self.searches = 1, 0, 0
        else:
            self.struck = rows
            self.suspects.append(rows)

    def _hopeless(self, failure: Failure, when: str) -> str:
        return (
            f"task {self.task.index}: its worker {failure.told}, {when}; "
            "run the same command again to go on from the finished shards, with fewer --workers "
            "if memory ran out"
        )


def _verdict(failure: Failure) -> RecordError:
    remedy = "drop or shorten the record"
    if failure.hung:
        return RecordError(
            "work", "row_timeout", f"its worker {failure.told}; {remedy}, or allow more time"
        )
    return RecordError("work", "worker_died", f"its worker {failure.told}, each time; {remedy}")
