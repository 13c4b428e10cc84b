"""What a layout cannot hold: refused with its place, or converted because that was asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.errors import BuildError
from pipeline.targets import Target
from pipeline.targets.chunk import Chunk, Flags, without_zeros
from pipeline.targets.rows import Rows
from pipeline.weights import IGNORED


@dataclass(slots=True)
class Conversion:
    """Called with each chunk; ``counts`` add up what it changed, once for each pass over the rows,
    and ``trained`` the tokens that still train.

    ``threshold``: a token of at least that weight trains with 1, others do not. ``uncount``: a
    token that counts with weight 0 does not count.
    """

    target: Target
    threshold: float | None = None
    uncount: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    trained: int = 0

    def __call__(self, rows: Rows, chunk: Chunk) -> Chunk:
        """The chunk as the target holds it; BuildError where it cannot and nothing was asked."""
        if self.threshold is not None:
            return self._binarized(chunk, self.threshold)
        if self.target.weights == "binary":
            self._require_binary(rows, chunk)
        if not self.target.counted:
            return self._uncounted(rows, chunk)
        return chunk

    def _binarized(self, chunk: Chunk, threshold: float) -> Chunk:
        on = chunk.weights >= np.float32(threshold)
        weights = on.astype(np.float32)
        self.trained += int(on.sum())
        labels = np.where(on, chunk.ids, np.int32(IGNORED))
        self.counts["tokens_raised_to_1"] += int((on & (chunk.weights < 1)).sum())
        self.counts["tokens_lowered_to_1"] += int((on & (chunk.weights > 1)).sum())
        self.counts["tokens_lowered_to_0"] += int((~on & (chunk.weights > 0)).sum())
        self.counts["negative_tokens_set_to_0"] += int((chunk.weights < 0).sum())
        counted = (chunk.labels != IGNORED) & (chunk.weights == 0)
        self.counts["counted_zeros_dropped"] += int(counted.sum())
        trained = np.add.reduceat(on, chunk.firsts[:-1], dtype=np.int64)
        self.counts["rows_without_targets"] += int((trained == 0).sum())
        return replace(chunk, labels=labels, weights=weights)

    def _require_binary(self, rows: Rows, chunk: Chunk) -> None:
        odd = (chunk.weights != 0) & (chunk.weights != 1)
        if odd.any():
            place, weight = self._first(rows, chunk, odd)
            raise BuildError(
                f"{place} weighs {weight}, and {self.target.name} holds no weights but 0 and 1; "
                "give --binarize THRESHOLD (tokens of at least that weight train), or choose a "
                "target that keeps weights, or train with pipeline.training"
            )

    def _uncounted(self, rows: Rows, chunk: Chunk) -> Chunk:
        counted = (chunk.labels != IGNORED) & (chunk.weights == 0)
        if not counted.any():
            return chunk
        if not self.uncount:
            place, _ = self._first(rows, chunk, counted)
            raise BuildError(
                f"{place} weighs 0 but counts in a mean over labels (a rule says count: true), "
                f"which {self.target.name} cannot hold; give --uncount, and it does not count"
            )
        self.counts["counted_zeros_dropped"] += int(counted.sum())
        return replace(chunk, labels=without_zeros(chunk.labels, chunk.weights))

    def _first(self, rows: Rows, chunk: Chunk, tokens: Flags) -> tuple[str, str]:
        """Where the first of *tokens* is, and its weight, of which 1.0000001 is not 1."""
        at = int(np.flatnonzero(tokens)[0])
        row = int(np.searchsorted(chunk.firsts, at, side="right")) - 1
        token = at - int(chunk.firsts[row])
        return f"{rows.place(chunk, row)}: token {token}", np.format_float_positional(
            chunk.weights[at], trim="-"
        )
