"""Rows for training and rows held out to evaluate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.errors import BuildError
from pipeline.files import SPLIT
from pipeline.targets.chunk import Chunk
from pipeline.targets.rows import Rows, Wishes

HELD_OUT = "validation"


def name_splits(wishes: Wishes) -> Sequence[str]:
    """``train`` and, where a share is wanted for it, ``validation``."""
    return [SPLIT] if wishes.validation is None else [SPLIT, HELD_OUT]


def part(chunk: Chunk, splits: Sequence[str]) -> Iterator[tuple[str, Chunk]]:
    """Of each split the chunk's rows, if there are any."""
    for split in splits:
        rows = chunk.taken(chunk.held_out == (split == HELD_OUT)) if len(splits) > 1 else chunk
        if rows.rows:
            yield split, rows


def require_all(counts: Counter[str], splits: Sequence[str], rows: Rows) -> None:
    """BuildError where a split got no rows."""
    for split in splits:
        if not counts[split]:
            raise BuildError(
                f"--validation {rows.wishes.validation:g}: leaves no row for {split} of "
                f"{rows.rows:,}; give another share, or none"
            )
