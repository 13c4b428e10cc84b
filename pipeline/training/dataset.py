"""A finished build as a dataset that PyTorch, Trainer and samplers index."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pipeline.errors import ConfigurationError
from pipeline.training.block import FACTS, TOKENS, Row
from pipeline.training.blocks import find_blocks
from pipeline.training.decoded import decode


class ShardDataset(Dataset[Row]):
    """Any row at any time, from mapped memory: Arrow shards as they are, Parquet from a copy.

    A row is a dict of numpy arrays of its own: ``input_ids`` and ``labels`` int64, ``loss_scale``
    float32; other *columns* (``length num_target_tokens weight_sum row``) are numbers.

    One row of Parquet costs a row group of a million tokens, so Parquet shards are decoded when the
    dataset is made, into *cache* (``$XDG_CACHE_HOME/weighted-shards/decoded`` without): 12 bytes a
    token, named by the shards' sha256, once for all ranks and workers of a machine; remove the
    folder when you like. Not wanted: build with ``--format arrow``, or use ShardStream.

    Pickles to where things are; workers open files for themselves. BuildError where *folder* is no
    finished build, or a shard is missing, damaged or foreign.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        columns: Sequence[str] = tuple(TOKENS),
        cache: str | PathLike[str] | None = None,
    ) -> None:
        self.columns = require_columns(columns)
        blocks = find_blocks(Path(folder))
        if blocks.form == "parquet":
            blocks = decode(blocks, None if cache is None else Path(cache))
        self._blocks = blocks

    def __len__(self) -> int:
        return self._blocks.rows

    def __getitem__(self, index: SupportsIndex) -> Row:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[Row]:
        """Several rows at once, as a DataLoader asks for a batch."""
        rows = np.fromiter((operator.index(index) for index in indices), np.int64)
        beyond = (rows < -len(self)) | (rows >= len(self))
        if beyond.any():
            raise IndexError(f"row {rows[beyond][0]}: there are {len(self)}")
        rows %= len(self)
        blocks = np.searchsorted(self._blocks.firsts, rows, side="right") - 1
        rows -= self._blocks.firsts[blocks]
        return [
            self._blocks.read(block).row(row, self.columns)
            for block, row in zip(blocks.tolist(), rows.tolist(), strict=True)
        ]

    def __iter__(self) -> Iterator[Row]:
        """All rows in the build's order."""
        for number in range(len(self._blocks)):
            block = self._blocks.read(number)
            yield from (block.row(row, self.columns) for row in range(len(block)))

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row, for sampling by length and packing; reads no token."""
        blocks = map(self._blocks.read, range(len(self._blocks)))
        return np.concatenate([block.facts["length"] for block in blocks])

    def __repr__(self) -> str:
        tokens = f"{self._blocks.tokens:,} tokens"
        return f"ShardDataset({len(self):,} rows, {tokens}, {self._blocks.form})"


def require_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """The columns, if each is one of numbers; ConfigurationError names what is not."""
    known = (*TOKENS, *FACTS)
    for name in columns:
        if name not in known:
            raise ConfigurationError(
                f"columns: {name!r} is no column of numbers; known are {', '.join(known)} "
                "(texts are for pyarrow, polars or datasets)"
            )
    return tuple(columns)
