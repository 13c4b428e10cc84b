"""Rows that were read together, as flat arrays; one row of them, and some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import BuildError

Row: TypeAlias = dict[str, Any]
Int64s: TypeAlias = NDArray[np.int64]
# Labels of cross-entropy must be int64, and what a row is given as is copied anyway.
TOKENS: Mapping[str, Any] = {"input_ids": np.int64, "labels": np.int64, "loss_scale": np.float32}
FACTS = ("length", "num_target_tokens", "weight_sum", "row")


@dataclass(frozen=True, slots=True)
class Block:
    """Row r holds ``starts[r]:stops[r]`` of each array of ``tokens``, and the r-th of each fact."""

    starts: NDArray[Any]
    stops: NDArray[Any]
    tokens: Mapping[str, NDArray[Any]]
    facts: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.starts)

    def row(self, number: int, columns: tuple[str, ...]) -> Row:
        """Those columns of a row: arrays of its own (ids and labels int64) and numbers."""
        start, stop = self.starts[number], self.stops[number]
        return {
            name: self.tokens[name][start:stop].astype(TOKENS[name])
            if name in TOKENS
            else self.facts[name][number].item()
            for name in columns
        }

    def view(self, rows: Int64s) -> Block:
        """Those rows in that order, over the same arrays of tokens."""
        facts = {name: values[rows] for name, values in self.facts.items()}
        return Block(self.starts[rows], self.stops[rows], self.tokens, facts)

    def copy(self, rows: Int64s) -> Block:
        """Those rows in that order, and no token of any other."""
        viewed = self.view(rows)
        lengths = (viewed.stops - viewed.starts).astype(np.int64)
        stops = np.cumsum(lengths)
        starts = stops - lengths
        places = np.arange(stops[-1] if len(stops) else 0) + np.repeat(
            viewed.starts - starts, lengths
        )
        tokens = {name: values[places] for name, values in self.tokens.items()}
        return Block(starts, stops, tokens, viewed.facts)


def make_block(batch: pa.RecordBatch, path: Path, remedy: str) -> Block:
    """Views of the batch's buffers; BuildError, of *path*, where they do not fit each other."""
    starts = stops = np.zeros(0, np.int32)
    tokens: dict[str, NDArray[Any]] = {}
    facts: dict[str, NDArray[Any]] = {}
    try:
        batch.validate()
        for name in batch.schema.names:
            column = batch.column(name)
            if column.null_count:
                raise pa.ArrowInvalid(f"nulls in {name}")
            if name in TOKENS:
                borders = column.offsets.to_numpy()
                if tokens and not np.array_equal(borders[1:], stops):
                    raise pa.ArrowInvalid(f"rows of {name} are not as long as their others")
                starts, stops = borders[:-1], borders[1:]
                tokens[name] = column.values.to_numpy()
                # Arrow looks at the last border only, and a wrong slice is no error in numpy.
                if (starts > stops).any():
                    raise pa.ArrowInvalid(f"rows of {name} end before they begin")
            else:
                facts[name] = column.to_numpy()
    except pa.ArrowException as error:
        raise BuildError(f"{path}: is damaged ({error}); {remedy}") from error
    return Block(starts, stops, tokens, facts)
