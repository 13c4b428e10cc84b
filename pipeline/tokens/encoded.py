"""A batch of encoded texts as flat arrays, and the arithmetic of such arrays."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Flat = TypeVar("Flat", Int32, Int64)


@dataclass(frozen=True, slots=True)
class Paths:
    """How many texts took which path: ``fast``, ``reference`` and ``quoted`` add up to all.

    ``quoted``: some control token in it was encoded as text, which only the reference can.
    ``repaired``: offsets are the reference's own, because lengths of ids did not tell them; where
    a normalization form alone is why, only those of what it changes.
    ``checked``: encoded by both engines, with equal ids.
    """

    fast: int
    reference: int
    repaired: int
    checked: int
    quoted: int = 0


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


def join_rows(rows: Sequence[Flat]) -> tuple[Flat, Int64]:
    """Flat values and firsts from one array per row; no rows make an empty int32 array."""
    firsts = _cumulated(np.fromiter(map(len, rows), np.int64, len(rows)))
    return np.concatenate([np.zeros(0, np.int32), *rows]), firsts


def join_texts(raws: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], Int64]:
    """Flat bytes and starts from one UTF-8 string per row."""
    starts = _cumulated(np.fromiter(map(len, raws), np.int64, len(raws)))
    return np.frombuffer(b"".join(raws), np.uint8), starts


def splice(values: Flat, firsts: Int64, rows: Mapping[int, Flat]) -> tuple[Flat, Int64]:
    """Flat values and firsts with some *rows* replaced."""
    if not rows:
        return values, firsts
    slices = np.split(values, firsts[1:-1])
    return join_rows([rows.get(row, old) for row, old in enumerate(slices)])


def select_rows(encoded: Encoded, rows: Sequence[int]) -> Encoded:
    """Some rows of a batch, in that order; the paths stay those of the whole batch."""
    tokens = [slice(*encoded.firsts[row : row + 2]) for row in rows]
    shifts, starts = np.zeros(len(rows), np.int64), [0]
    for i, row in enumerate(rows):
        shifts[i] = starts[-1] - encoded.starts[row]
        starts.append(starts[-1] + int(encoded.starts[row + 1] - encoded.starts[row]))
    ids, firsts = join_rows([encoded.ids[span] for span in tokens])
    ends, _ = join_rows([encoded.ends[span] for span in tokens])
    texts = [encoded.text[encoded.starts[row] : encoded.starts[row + 1]] for row in rows]
    return Encoded(
        ids,
        firsts,
        ends.astype(np.int64) + np.repeat(shifts, np.diff(firsts)),
        np.concatenate([np.zeros(0, np.uint8), *texts]),
        np.array(starts, np.int64),
        encoded.paths,
    )


def cut_text(text: str, cuts: Sequence[int]) -> list[str]:
    """The pieces between sorted *cuts*, none of them empty; an empty text is one empty piece."""
    edges = [0, *cuts, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges) if a < b] or [text]


def join_pieces(encoded: Encoded, counts: Sequence[int]) -> Encoded:
    """Rows that were encoded in ``counts[r]`` consecutive pieces each, as one row each again.

    No id changes; the paths stay those of the pieces. Raises ValueError where *counts* are not
    those of the batch.
    """
    pieces = len(encoded.firsts) - 1
    if sum(counts) != pieces or min(counts, default=1) < 1:
        raise ValueError(f"counts: expected 1 or more of each row's, {pieces} pieces in all")
    picks = _cumulated(np.fromiter(counts, np.int64, len(counts)))
    firsts, starts, ends = encoded.firsts[picks], encoded.starts[picks], encoded.ends
    # Where a last piece has bytes and no token, they go to the row's last one, as within a text.
    filled = firsts[:-1] < firsts[1:]
    last, stops = firsts[1:][filled] - 1, starts[1:][filled]
    if (ends[last] != stops).any():
        ends = ends.copy()
        ends[last] = stops
    return Encoded(encoded.ids, firsts, ends, encoded.text, starts, encoded.paths)


def fill_rows(encoded: Encoded, filled: Mapping[int, tuple[Int32, Int64, bytes]]) -> Encoded:
    """Row r is ``filled[r]`` (ids, bytes per token, text in UTF-8), or else the next of *encoded*.

    The paths stay those of *encoded*.
    """
    total = len(encoded.firsts) - 1 + len(filled)
    begins = np.concatenate(([0], encoded.ends[:-1])) if len(encoded.ends) else encoded.ends
    held = encoded.firsts[:-1] < encoded.firsts[1:]
    begins[encoded.firsts[:-1][held]] = encoded.starts[:-1][held]
    widths, text = encoded.ends - begins, encoded.text.tobytes()
    spans = zip(
        itertools.pairwise(encoded.firsts.tolist()),
        itertools.pairwise(encoded.starts.tolist()),
        strict=True,
    )
    others = ((encoded.ids[a:b], widths[a:b], text[c:d]) for (a, b), (c, d) in spans)
    rows = [filled[row] if row in filled else next(others) for row in range(total)]
    ids, firsts = join_rows([row[0] for row in rows])
    flat, _ = join_rows([row[1] for row in rows])
    joined, starts = join_texts([row[2] for row in rows])
    return Encoded(
        ids,
        firsts,
        end_tokens(flat.astype(np.int64), firsts, starts),
        joined,
        starts,
        encoded.paths,
    )


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
