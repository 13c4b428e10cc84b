"""The order in which a stream gives rows: row groups shuffled, then the rows of several of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.training.block import Int64s


@dataclass(frozen=True, slots=True)
class Order:
    """Places ``bounds[w]:bounds[w + 1]`` are window w: the rows of the next ``window`` blocks."""

    firsts: Int64s
    blocks: Int64s
    bounds: Int64s
    window: int
    key: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def rows(self, number: int) -> tuple[Int64s, Int64s]:
        """The block of each place of a window, and the row in that block."""
        blocks = self.blocks[number * self.window : (number + 1) * self.window]
        sizes = self.firsts[blocks + 1] - self.firsts[blocks]
        block = np.repeat(blocks, sizes)
        row = np.arange(len(block)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        if not self.key:
            return block, row
        shuffled = permute(len(block), (*self.key, number + 1))
        return block[shuffled], row[shuffled]


def make_order(firsts: Int64s, *, window: int, key: tuple[int, ...]) -> Order:
    """Of the rows whose blocks begin at *firsts*; a *key* of no numbers keeps the build's order."""
    blocks = np.arange(len(firsts) - 1)
    if key:
        blocks = permute(len(blocks), (*key, 0))
    else:
        window = 1
    sizes = firsts[blocks + 1] - firsts[blocks]
    bounds = np.concatenate([[0], np.cumsum(np.add.reduceat(sizes, range(0, len(sizes), window)))])
    return Order(firsts, blocks, bounds, window, key)


def permute(count: int, key: tuple[int, ...]) -> Int64s:
    """The same for the same *key* with any version of numpy.

    Only a bit generator's own numbers are promised to stay; those of ``permutation`` are not.
    """
    numbers = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(numbers, kind="stable")
