"""A batch of encoded texts as flat arrays, and the arithmetic of such arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Paths:
    """How many texts took which path: ids by ``fast`` or ``reference`` (they add up to all).

    ``repaired``: offsets are the reference's own, because lengths of ids did not tell them.
    ``checked``: encoded by both engines, with equal ids.
    """

    fast: int
    reference: int
    repaired: int
    checked: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch of texts: row r is tokens ``firsts[r]:firsts[r+1]``, bytes ``starts[r]:starts[r+1]``.

    ids int32 [tokens]; firsts int64 [rows+1].
    text uint8 [bytes], the texts' UTF-8 one after another; starts int64 [rows+1].
    ends int64 [tokens]: where each token ends in ``text``, non-decreasing. A token starts where
    the one before it ends, a row's first at its row's start; a row's last ends at its row's end.
    Where more tokens share a character than it has bytes, some are empty.
    """

    ids: Int32
    firsts: Int64
    ends: Int64
    text: npt.NDArray[np.uint8]
    starts: Int64
    paths: Paths


def join_rows(rows: Sequence[Int32]) -> tuple[Int32, Int64]:
    """Flat ids and firsts from one array per row."""
    firsts = _cumulated(np.fromiter(map(len, rows), np.int64, len(rows)))
    return np.concatenate([np.zeros(0, np.int32), *rows]), firsts


def join_texts(raws: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], Int64]:
    """Flat bytes and starts from one UTF-8 string per row."""
    starts = _cumulated(np.fromiter(map(len, raws), np.int64, len(raws)))
    return np.frombuffer(b"".join(raws), np.uint8), starts


def splice(ids: Int32, firsts: Int64, rows: Mapping[int, Int32]) -> tuple[Int32, Int64]:
    """Flat ids and firsts with some *rows* replaced."""
    if not rows:
        return ids, firsts
    slices = np.split(ids, firsts[1:-1])
    return join_rows([rows.get(row, old) for row, old in enumerate(slices)])


def end_tokens(widths: Int64, firsts: Int64, starts: Int64) -> Int64:
    """Ends of tokens from their *widths*, anew from each row's start."""
    cumulated = _cumulated(widths)
    shift = starts[:-1] - cumulated[firsts[:-1]]
    return cumulated[1:] + np.repeat(shift, np.diff(firsts))


def sum_rows(widths: Int64, firsts: Int64) -> Int64:
    """Total width of each row's tokens."""
    return np.diff(_cumulated(widths)[firsts])


def _cumulated(counts: npt.NDArray[np.integer]) -> Int64:
    total = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=total[1:])
    return total
