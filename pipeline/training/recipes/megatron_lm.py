"""Rows of finished shards for Megatron-LM, with a weight for each token.

Put this file's folder on ``sys.path`` and give ``WeightedRows``, in place of ``GPTDataset``, to
``BlendedMegatronDatasetBuilder``. Written against megatron-core 0.16.1.
"""

from __future__ import annotations

from typing import Any

import numpy
import torch
from megatron.core.datasets.indexed_dataset import (  # type: ignore[import-not-found]
    IndexedDataset,
)
from megatron.core.datasets.megatron_dataset import (  # type: ignore[import-not-found]
    MegatronDataset,
)
from megatron.core.datasets.utils import Split  # type: ignore[import-not-found]


class WeightedRows(MegatronDataset):  # type: ignore[misc]
    """A row a sample, padded to ``sequence_length``; ``loss_mask`` holds the weights, as float32.

    ``<prefix>.bin`` has the ids, ``<prefix>_weights.bin`` the weights. ``loss_mask[i]`` weighs the
    prediction made at token i: the weight of token i + 1. Longer rows are refused. Each epoch has
    an order of its own, of ``random_seed``.
    """

    def __init__(
        self,
        dataset: IndexedDataset,
        dataset_path: str,
        indices: numpy.ndarray,
        num_samples: int | None,
        index_split: Split,
        config: Any,
    ) -> None:
        super().__init__(dataset, dataset_path, indices, num_samples, index_split, config)
        self.weights = IndexedDataset(f"{dataset_path}_weights")
        self.epoch, self.order = -1, indices
        if not numpy.array_equal(self.weights.sequence_lengths, dataset.sequence_lengths):
            raise ValueError(f"{dataset_path}: ids and weights differ in length; export again")
        # One more than the model reads: the last token is predicted and never read.
        over = int(dataset.sequence_lengths[indices].max(initial=0)) - 1
        if over > config.sequence_length:
            raise ValueError(
                f"--seq-length {config.sequence_length}: rows have up to {over + 1} tokens, and "
                f"weights are not to be cut; give {over} or more"
            )

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: IndexedDataset) -> int:
        return len(low_level_dataset)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: Any) -> IndexedDataset:
        return IndexedDataset(dataset_path, multimodal=False, mmap=config.mmap_bin_files)

    def __len__(self) -> int:
        return max(len(self.indices), self.num_samples or 0)

    def __getitem__(self, idx: int | None) -> dict[str, torch.Tensor]:
        row = self._row(idx or 0)
        ids = torch.from_numpy(self.dataset[row].astype(numpy.int64))
        weights = torch.from_numpy(self.weights[row].astype(numpy.float32))
        room, size = self.config.sequence_length, len(ids) - 1
        item = {
            "tokens": torch.zeros(room, dtype=torch.int64),
            "labels": torch.zeros(room, dtype=torch.int64),
            "loss_mask": torch.zeros(room, dtype=torch.float32),
            "position_ids": torch.arange(room),
        }
        item["tokens"][:size] = ids[:-1]
        item["labels"][:size] = ids[1:]
        if idx is not None:  # None asks for a sample that fills a batch up
            item["loss_mask"][:size] = weights[1:]
        if self.config.create_attention_mask:
            item["attention_mask"] = torch.ones(1, room, room).tril() < 0.5
        return item

    def _row(self, idx: int) -> int:
        epoch, place = divmod(idx, len(self.indices))
        if self.epoch != epoch:
            seed = (self.config.random_seed, epoch)
            self.order = numpy.random.default_rng(seed).permutation(self.indices)
            self.epoch = epoch
        return int(self.order[place])


def loss_func(
    loss_mask: torch.Tensor,
    output_tensor: torch.Tensor,
    model: Any = None,  # noqa: ARG001 - as pretrain_gpt.py calls it
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The weighted sum, over the number of tokens that train.

    Megatron's own divides by the sum of weights cut to an integer, 0.9 to 0: its schedules hold
    the denominator as int32, so that it cannot be a float.
    """
    weights = loss_mask.view(-1).float()
    loss = torch.sum(output_tensor.view(-1).float() * weights)
    targets = (weights != 0).sum().to(torch.int)
    return loss, targets, {"lm loss": torch.stack([loss.detach(), targets.float()])}
