"""Packed rows of finished shards for marin's levanter, with a weight for each token.

Written against marin-levanter 0.2.20; reads an export of ``--to levanter --pack TOKENS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax  # type: ignore[import-not-found]
import numpy as np
import pyarrow.parquet as pq
from levanter.data import SyncDataset  # type: ignore[import-not-found]
from levanter.data.text import GrugLmExample  # type: ignore[import-not-found]


class PackedRows(SyncDataset):  # type: ignore[misc]
    """Examples whose rows do not see each other; ``loss_weight[i]`` is of what i predicts.

    levanter's own prebuilt dataset parts rows at EOS tokens, of which each turn has one.
    """

    def __init__(self, folder: str) -> None:
        names = ("input_ids", "loss_weights", "segment_ids")
        paths = sorted(Path(folder).glob("train-*.parquet"))
        if not paths:
            raise ValueError(f"{folder}: no export here; name the folder that export wrote")
        tables = [pq.read_table(path, columns=list(names)) for path in paths]
        self.columns = [
            np.concatenate(
                [
                    chunk.flatten().to_numpy().reshape(len(chunk), -1)
                    for table in tables
                    for chunk in table[name].chunks
                ]
            )
            for name in names
        ]

    def __len__(self) -> int:
        return len(self.columns[0])

    def is_finite(self) -> bool:
        return True

    def get_batch(self, indices: Sequence[int] | np.ndarray) -> Sequence[GrugLmExample]:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return [self._example(int(index)) for index in indices]

    def _example(self, index: int) -> GrugLmExample:
        tokens, weights, segments = (jax.numpy.asarray(column[index]) for column in self.columns)
        return GrugLmExample.causal(tokens, loss_weight=weights, segment_ids=segments)
