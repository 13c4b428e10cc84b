"""Rows of a build as flat arrays: what every export is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.weights import IGNORED

Flags = npt.NDArray[np.bool_]
Float32s = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """About a million tokens; row r holds those from ``firsts[r]`` to before ``firsts[r + 1]``.

    ``firsts`` is int64 [rows + 1]; ``ids`` and ``labels`` int32 and ``weights`` float32 [tokens].
    ``held_out`` tells the rows of the validation set, bool [rows]. ``shard`` and ``row`` say where
    the first row lies in the build.
    """

    firsts: Int64s
    ids: Int32s
    labels: Int32s
    weights: Float32s
    held_out: Flags
    shard: int
    row: int

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.firsts) - 1

    def lengths(self) -> Int64s:
        """Tokens of each row."""
        return np.diff(self.firsts)

    def mask(self) -> Flags:
        """Which tokens train."""
        return np.not_equal(self.weights, 0)

    def shifted(self, values: npt.NDArray[Any], fill: float) -> npt.NDArray[Any]:
        """*values*, one a token, each row moved left by one; its last place gets *fill*.

        So that what stood at a token stands where that token is predicted.
        """
        moved = np.empty_like(values)
        moved[:-1] = values[1:]
        moved[self.firsts[1:] - 1] = fill
        return moved

    def taken(self, rows: npt.NDArray[Any]) -> Chunk:
        """These of its rows (numbers, or a flag each), in the order given."""
        numbers = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
        lengths = self.lengths()[numbers]
        firsts = np.zeros(len(numbers) + 1, np.int64)
        np.cumsum(lengths, out=firsts[1:])
        # Where each token of the new chunk stood in this one.
        places = np.arange(firsts[-1]) + np.repeat(self.firsts[:-1][numbers] - firsts[:-1], lengths)
        return Chunk(
            firsts,
            self.ids[places],
            self.labels[places],
            self.weights[places],
            self.held_out[numbers],
            self.shard,
            self.row,
        )


def without_zeros(labels: Int32s, weights: Float32s) -> Int32s:
    """Labels that are live only where the weight is not 0."""
    return np.where(weights != 0, labels, np.int32(IGNORED))
