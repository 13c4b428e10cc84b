"""Arrow columns of a shard from the flat arrays of a batch, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def list_column(firsts: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> pa.ListArray:
    """Row r holds ``values[firsts[r]:firsts[r + 1]]``."""
    return pa.ListArray.from_arrays(pa.array(firsts.astype(np.int32)), pa.array(values))


def flat_column(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Firsts int64 [rows + 1] and the flat values of a list column."""
    lists = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], lists.flatten()


def row_sums(values: npt.NDArray[Any], firsts: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The sum of *values* over each row of a flat batch; 0 for an empty row."""
    dtype = np.int64 if values.dtype == np.bool_ else np.float64
    sums = np.zeros(len(firsts) - 1, dtype)
    filled = firsts[:-1] < firsts[1:]
    # Row by row: the difference of running sums would lose a row next to one of huge weights.
    if filled.any():
        sums[filled] = np.add.reduceat(values, firsts[:-1][filled], dtype=dtype)
    return sums
