"""Rows that are tokenized already, for torchtune's recipes; written by a Weighted Shards export.

Labels stand at their own tokens: the recipes of torchtune 0.6 shift them. Those of a torchtune that
shifts in its datasets would train each token's label one place too early, so that is refused.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch.utils.data import Dataset
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX  # type: ignore[import-not-found]
from torchtune.datasets import PackedDataset, SFTDataset  # type: ignore[import-not-found]


class TokenizedDataset(Dataset[Any]):
    """Gives ``tokens`` and ``labels`` as lists, -100 where nothing trains; mapped into memory."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        (path,) = Path(folder).glob("data-*.arrow")
        self._rows = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()

    def __reduce__(self) -> tuple[Any, ...]:
        """Each worker maps the file itself."""
        return TokenizedDataset, (self.folder,)

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {name: self._rows[name][index].as_py() for name in ("tokens", "labels")}


def tokenized_dataset(
    tokenizer: Any, *, folder: str, packed: bool = False, split_across_pack: bool = False
) -> Dataset[Any]:
    """A component for ``dataset`` in a recipe's configuration; *folder* is that of the export."""
    _require_unshifted()
    rows = TokenizedDataset(folder)
    if not packed:
        return rows
    if tokenizer.max_seq_len is None:
        raise ValueError("tokenizer.max_seq_len: null; packing needs a length, so give one")
    made: Dataset[Any] = PackedDataset(
        rows,
        max_seq_len=tokenizer.max_seq_len,
        padding_idx=tokenizer.pad_id,
        split_across_pack=split_across_pack,
    )
    return made


def _require_unshifted() -> None:
    """torchtune's own datasets must give unshifted labels, as ours do."""

    def encode(_: Any) -> dict[str, Any]:
        return {"tokens": [7, 8, 9], "mask": [True, False, False]}

    module = inspect.getmodule(SFTDataset)
    made = module.SFTTransform(model_transform=encode)({})  # type: ignore[union-attr]
    if [int(label) for label in made["labels"]] != [CROSS_ENTROPY_IGNORE_IDX, 8, 9]:
        raise RuntimeError(
            "torchtune shifts labels in its datasets, not in its recipes as version 0.6 does; "
            "use 0.6.1, or an export that is made for this version"
        )
