"""Shards into a training loop: the only room that knows torch, imported when a name is used.

collator = WeightedCollator(pad_token_id=0)
loader = DataLoader(ShardDataset("shards"), batch_size=8, collate_fn=collator)
for batch in loader:
    weights, labels = batch.pop("loss_scale"), batch.pop("labels")
    weighted_cross_entropy(model(**batch).logits, labels, weights).backward()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.training.collator import WeightedCollator
    from pipeline.training.dataset import ShardDataset
    from pipeline.training.loss import count_items, weighted_cross_entropy
    from pipeline.training.origin import require_tokenizer
    from pipeline.training.stream import ShardStream
    from pipeline.training.trainer import WeightedTrainer

__all__ = [
    "ShardDataset",
    "ShardStream",
    "WeightedCollator",
    "WeightedTrainer",
    "count_items",
    "require_tokenizer",
    "weighted_cross_entropy",
]
_ROOMS = {
    "ShardDataset": "dataset",
    "ShardStream": "stream",
    "WeightedCollator": "collator",
    "WeightedTrainer": "trainer",
    "count_items": "loss",
    "require_tokenizer": "origin",
    "weighted_cross_entropy": "loss",
}
_EXTRA = frozenset({"accelerate", "torch", "transformers"})


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise ImportError(
            f"{__name__}.{name}: needs {error.name}, which is not installed; "
            "pip install 'weighted-shards[train]'"
        ) from error
