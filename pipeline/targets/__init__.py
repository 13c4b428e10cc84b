"""What finished shards can be exported to: one module for each trainer's own layout.

A target's module has ``write(rows, folder, wishes)``, which fills the folder and returns what
``export.json`` should tell beyond the common counts, and ``recipe(folder, told)``, the lines with
which the trainer loads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Target:
    """What a trainer's layout can hold; ``takes`` are flags that it has a use for.

    ``weights`` "binary": a token trains or it does not. ``counted``: labels and weights are apart,
    so that a token of weight 0 can count in a mean over labels. ``needs`` must be given.
    """

    name: str
    summary: str
    weights: Literal["float", "binary"]
    counted: bool = False
    takes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Where its layout is written."""
        return f"pipeline.targets.{self.name.replace('-', '_')}"


_ALL = (
    Target(
        "datasets",
        "datasets, PyTorch, polars: Parquet of the three columns and their lengths, "
        "without texts and spans",
        "float",
        counted=True,
        takes=("validation",),
    ),
    Target("trl", "TRL's SFTTrainer: input_ids, labels", "binary", takes=("pack",)),
    Target("axolotl", "axolotl: exactly input_ids, attention_mask, labels", "binary"),
    Target(
        "llamafactory",
        "LLaMA-Factory: a DatasetDict for tokenized_path",
        "binary",
        takes=("validation",),
    ),
    Target("ms-swift", "ms-swift: rows and a plugin that trains on them", "float", counted=True),
    Target("torchtune", "torchtune: tokens, labels", "binary"),
    Target(
        "levanter",
        "marin's levanter: ids and shifted weights of one length, a row each or packed",
        "float",
        takes=("pack",),
    ),
    Target("verl", "verl's SFT trainer: Parquet and a dataset class", "float"),
    Target("megatron-lm", "Megatron-LM: .bin/.idx of tokens and of weights", "float"),
    Target(
        "megatron-bridge",
        "Megatron-Bridge: packed Parquet",
        "binary",
        takes=("pack",),
        needs=("pack",),
    ),
    Target("olmo-core", "OLMo-core: raw ids and a mask of equal length", "binary"),
    Target(
        "mosaic",
        "MosaicML streaming: MDS with a column of numbers each",
        "float",
        counted=True,
    ),
)
TARGETS = {target.name: target for target in _ALL}


def takers(flag: str) -> str:
    """The names of the targets that have a use for it."""
    return ", ".join(target.name for target in _ALL if flag in target.takes)
