"""Which places of an order are whose: of ranks, and of a rank's workers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.training.block import Int64s


@dataclass(frozen=True, slots=True)
class Share:
    """Places rank, rank + world, ... are a rank's; its batches go to its workers in turn.

    So after each step of all ranks what was given out is a beginning of the order, and batches are
    the same for any number of workers, which loaders ask in turn.
    """

    rank: int
    world: int
    worker: int = 0
    workers: int = 1
    batch: int = 1

    def places(self, first: int, stop: int) -> Int64s:
        """Those of ``first:stop`` that are this share's, ascending; none is below 0."""
        turns = np.arange(self._turns(first), self._turns(stop), dtype=np.int64)
        mine: Int64s = turns[turns // self.batch % self.workers == self.worker]
        return mine * self.world + self.rank

    def _turns(self, stop: int) -> int:
        """How many places of the rank's lie before *stop*."""
        return max(0, -((self.rank - stop) // self.world))


def even_out(rows: int, world: int, even: str) -> int:
    """How many places *rows* make for all ranks together: a multiple of *world*, or "none"."""
    if even == "none":
        return rows
    return (rows if even == "drop" else rows + world - 1) // world * world
