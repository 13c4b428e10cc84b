"""Arrow columns of a shard from the flat arrays of a batch, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def list_column(firsts: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> pa.ListArray:
    """Row r holds ``values[firsts[r]:firsts[r + 1]]``."""
    return pa.ListArray.from_arrays(column(firsts.astype(np.int32)), column(values))


def column(values: npt.NDArray[Any]) -> pa.Array:
    """Numbers as an Arrow array, not copied.

    ``pa.array`` would import pandas wherever that is installed: a third of a second.
    """
    data = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(data.dtype)
    return pa.Array.from_buffers(kind, len(data), [None, pa.py_buffer(data)])


def flat_column(chunked: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Firsts int64 [rows + 1] and the flat values of a list column."""
    chunks = chunked.chunks
    lists = pa.concat_arrays(chunks) if chunks else pa.array([], chunked.type)
    offsets = numbers(lists.offsets).astype(np.int64)
    return offsets - offsets[0], lists.flatten()


def numbers(values: pa.Array) -> npt.NDArray[Any]:
    """An array of numbers without nulls, not copied.

    Unlike ``to_numpy``, without pandas.
    """
    dtype = np.dtype(values.type.to_pandas_dtype())
    data = values.buffers()[1]
    if data is None:
        return np.zeros(0, dtype)
    return np.frombuffer(data, dtype)[values.offset : values.offset + len(values)]


def row_sums(values: npt.NDArray[Any], firsts: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The sum of *values* over each row of a flat batch; 0 for an empty row."""
    dtype = np.int64 if values.dtype == np.bool_ else np.float64
    sums = np.zeros(len(firsts) - 1, dtype)
    filled = firsts[:-1] < firsts[1:]
    # Row by row: the difference of running sums would lose a row next to one of huge weights.
    if filled.any():
        sums[filled] = np.add.reduceat(values, firsts[:-1][filled], dtype=dtype)
    return sums
