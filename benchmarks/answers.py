"""What two programs made of the same conversations: the same ids, the same trained tokens?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError

_MASKS = ("loss_scale", "loss_weight", "assistant_masks", "labels")  # the first there is, counts
_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows as flat ids [tokens], which of them train [tokens], firsts [rows + 1], their numbers."""

    ids: npt.NDArray[np.int64]
    trained: npt.NDArray[np.bool_]
    firsts: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]

    def only(self, rows: npt.NDArray[np.int64]) -> Answer:
        """Those rows, by position."""
        lengths = np.diff(self.firsts)[rows]
        firsts = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.repeat(self.firsts[rows] - firsts[:-1], lengths) + np.arange(firsts[-1])
        return Answer(self.ids[tokens], self.trained[tokens], firsts, self.numbers[rows])


@dataclass(frozen=True, slots=True)
class Difference:
    """How a peer's answer differs from ours.

    ``missing`` rows are the peer's alone, since ours rejects them; ``unequal`` have other ids, and
    no token of theirs is counted. Of the others ``both`` train so many tokens; ``ours`` and
    ``theirs`` tell by id what only one of the two trains.
    """

    rows: int
    missing: int
    unequal: int
    both: int
    ours: Counter[int]
    theirs: Counter[int]

    @property
    def none(self) -> bool:
        """Ids and trained tokens are equal in every row that both have."""
        return not (self.unequal or self.ours or self.theirs)


def read_answer(folder: Path) -> Answer:
    """All Parquet files or Arrow streams of a folder, in the order of their names.

    InputError where there are none, or they lack a column.
    """
    tables = [_read(path) for path in sorted(folder.iterdir()) if path.suffix in _READERS]
    if not tables:
        raise InputError(f"{folder}: holds no Parquet and no Arrow file; write one")
    table = pa.concat_tables(tables)
    mask = next((name for name in _MASKS if name in table.column_names), None)
    if "input_ids" not in table.column_names or mask is None:
        raise InputError(f"{folder}: needs input_ids and one of {', '.join(_MASKS)}; write them")
    ids = table["input_ids"].combine_chunks()
    values = _numbers(table[mask].combine_chunks().flatten())
    trained = values != (_IGNORED if mask == "labels" else 0)
    lengths = _numbers(ids.value_lengths())
    numbers = _numbers(table["row"]) if "row" in table.column_names else np.arange(len(lengths))
    if len(trained) != lengths.sum():
        raise InputError(f"{folder}: {mask} is not as long as input_ids; write one for each token")
    firsts = np.concatenate([[0], np.cumsum(lengths)])
    return Answer(_numbers(ids.flatten()).astype(np.int64), trained, firsts, numbers)


def _read(path: Path) -> Any:
    table = _READERS[path.suffix](path)
    known = [name for name in ("input_ids", "row", *_MASKS) if name in table.column_names]
    return table.select(known)


def _read_stream(path: Path) -> Any:
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as batches:
        return batches.read_all()


_READERS = {".parquet": pq.read_table, ".arrow": _read_stream}


def _numbers(column: Any) -> Any:
    return (
        column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    )


def compare(ours: Answer, theirs: Answer) -> Difference:
    """Row by row of ours, found by number; *theirs* has a row for each conversation."""
    known = ours.numbers < len(theirs.numbers)
    found = theirs.only(ours.numbers[known])
    mine = ours.only(np.flatnonzero(known))
    equal = np.diff(mine.firsts) == np.diff(found.firsts)
    for row in np.flatnonzero(equal).tolist():
        first, stop = mine.firsts[row : row + 2]
        other = found.firsts[row]
        equal[row] = np.array_equal(mine.ids[first:stop], found.ids[other : other + stop - first])
    rows = np.flatnonzero(equal)
    mine, found = mine.only(rows), found.only(rows)
    return Difference(
        rows=len(theirs.numbers),
        missing=len(theirs.numbers) - len(np.unique(ours.numbers[known])),
        unequal=int(len(equal) - len(rows) + (~known).sum()),
        both=int((mine.trained & found.trained).sum()),
        ours=_counted(mine.ids[mine.trained & ~found.trained]),
        theirs=_counted(mine.ids[found.trained & ~mine.trained]),
    )


def _counted(ids: npt.NDArray[np.int64]) -> Counter[int]:
    return Counter(
        dict(zip(*(a.tolist() for a in np.unique(ids, return_counts=True)), strict=True))
    )


def tell(difference: Difference, tokens: Sequence[str] | dict[int, str], most: int = 4) -> str:
    """One line: rows whose ids differ, and what only one of the two trains, by token."""
    parts = [f"{difference.rows:,} rows, ids differ in {difference.unequal:,}"]
    if difference.missing:
        parts.append(f"ours rejects {difference.missing:,}")
    parts.append(f"both train {difference.both:,} tokens")
    for who, counts in (("ours", difference.ours), ("theirs", difference.theirs)):
        if counts:
            told = ", ".join(f"{tokens[i]!r} {n:,}" for i, n in counts.most_common(most))
            more = ", ..." if len(counts) > most else ""
            parts.append(f"only {who} trains {counts.total():,} ({told}{more})")
    return "; ".join(parts)
