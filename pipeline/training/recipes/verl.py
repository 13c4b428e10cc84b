"""Rows of finished shards for verl's SFT trainer, with a weight for each token.

Point ``data.custom_cls.path`` at this file and ``data.custom_cls.name`` at ``WeightedRows``.
Written against verl 0.9.1; reads an export of ``--to verl`` and, as it is, the folder of a build.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset


class WeightedRows(Dataset):  # type: ignore[type-arg,unused-ignore]
    """Of each row ``input_ids`` and ``position_ids`` (int64) and ``loss_mask`` (float32), unpadded.

    ``loss_mask[i]`` weighs token i, unshifted: verl's ``sft_loss`` moves the masks of a batch left
    as one flat array, so that a weight of a row's first token would go to the last of the row
    before. Such rows are refused. Also refused, as verl would cut or cast: rows longer than
    ``data.max_length``, and other padding than ``no_padding``.
    """

    def __init__(
        self,
        parquet_files: str | Sequence[str],
        tokenizer: Any,  # noqa: ARG002 - as verl calls it
        config: Any,
        processor: Any = None,  # noqa: ARG002
        max_samples: int = -1,
    ) -> None:
        mode = getattr(config.get("pad_mode"), "value", config.get("pad_mode"))
        if mode != "no_padding":
            raise ValueError(f"data.pad_mode={mode}: verl casts weights to bool; set no_padding")
        self.firsts, self.ids, self.weights = _read(_paths(parquet_files), max_samples)
        lengths = np.diff(self.firsts)
        most, over = config.get("max_length", 1024), int(lengths.max())
        if over > most:
            raise ValueError(
                f"data.max_length={most}: {int((lengths > most).sum())} rows are longer, up to "
                f"{over} tokens, and weights are not to be cut; set data.max_length={over}"
            )
        if self.weights[self.firsts[:-1]].any():
            raise ValueError("the first token of a row has a weight, which its neighbour would get")

    def __len__(self) -> int:
        return len(self.firsts) - 1

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        first, stop = self.firsts[row], self.firsts[row + 1]
        return {
            "input_ids": torch.from_numpy(self.ids[first:stop].astype(np.int64)),
            "position_ids": torch.arange(stop - first),
            "loss_mask": torch.from_numpy(self.weights[first:stop].copy()),
        }


def _paths(given: str | Sequence[str]) -> list[Path]:
    """Files, and of a folder all its Parquet files in the order of their names."""
    named = [Path(p) for p in ([given] if isinstance(given, str) else given)]
    paths = [f for p in named for f in (sorted(p.glob("*.parquet")) if p.is_dir() else [p])]
    if not paths:
        raise ValueError(f"{given}: no Parquet files; name the folder of an export or a build")
    return paths


def _read(paths: list[Path], most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Firsts, ids and weights of all rows: 8 bytes a token, which forked workers share."""
    columns = ["input_ids", "loss_scale"]
    table = pa.concat_tables(pq.read_table(path, columns=columns) for path in paths)
    if 0 < most < len(table):
        table = table.slice(0, most)
    lengths, ids, weights = [], [], []
    for batch in table.to_batches():
        rows, scales = batch.column("input_ids"), batch.column("loss_scale")
        lengths.append(np.diff(rows.offsets.to_numpy()))
        ids.append(rows.flatten().to_numpy())
        weights.append(scales.flatten().to_numpy())
    firsts = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
    return firsts, np.concatenate(ids), np.concatenate(weights)
