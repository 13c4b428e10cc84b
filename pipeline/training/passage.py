"""One pass of one worker over its share of an order, a window at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from pipeline.training.block import Block, Int64s, Row
from pipeline.training.blocks import Blocks
from pipeline.training.order import Order
from pipeline.training.share import Share


class Window:
    """Rows of several blocks in an order of their own; each block is read when it is its turn."""

    def __init__(self, blocks: Blocks, block: Int64s, row: Int64s) -> None:
        self._source = blocks
        self._needed, which = np.unique(block, return_inverse=True)
        sorted_by = np.argsort(which, kind="stable")
        counts = np.bincount(which, minlength=len(self._needed))
        self._picks = np.split(row[sorted_by], np.cumsum(counts)[:-1])
        within = np.empty(len(row), np.int64)
        within[sorted_by] = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._places = list(zip(which.tolist(), within.tolist(), strict=True))
        self._read: list[Block] = []

    def __len__(self) -> int:
        return len(self._places)

    def read(self, share: float = 1.0) -> None:
        """Reads on until that share of the blocks is there."""
        for number in range(len(self._read), int(share * len(self._needed))):
            self._read.append(self._source.pick(int(self._needed[number]), self._picks[number]))

    def rows(self, columns: tuple[str, ...], following: Window | None) -> Iterator[Row]:
        """Its rows; meanwhile the next window is read, a block now and then, so that none waits."""
        self.read()
        read = self._read
        for number, (block, row) in enumerate(self._places):
            if following is not None:
                following.read((number + 1) / len(self))
            yield read[block].row(row, columns)


def pass_over(
    blocks: Blocks, order: Order, share: Share, *, start: int, stop: int, given: int
) -> Iterator[Window]:
    """The windows of what a share still gets of places ``start:stop``, without its first *given*.

    Shares are dealt from *start* on. Places beyond the last row begin again with the first.
    """
    if stop <= start:  # resumed beyond the end: a lap for each epoch of a billion rows takes hours
        return
    rows = int(order.bounds[-1])
    for turn in itertools.count():
        lap, number = divmod(turn, len(order))
        begin, end = (lap * rows + int(bound) for bound in order.bounds[number : number + 2])
        if begin >= stop:
            return
        places = share.places(begin - start, min(stop, end) - start)
        skipped = min(given, len(places))
        given -= skipped
        if len(places) > skipped:
            block, row = order.rows(number)
            inside = places[skipped:] + (start - begin)
            yield Window(blocks, block[inside], row[inside])
