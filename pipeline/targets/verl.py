"""verl's SFT trainer: Parquet and the dataset class that gives each token's weight as its mask."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import pyarrow as pa

from pipeline.columns import list_column
from pipeline.files import shard_name
from pipeline.targets.copies import CODE, copy_recipe
from pipeline.targets.parquet import open_parquet
from pipeline.targets.rows import Rows, Wishes

_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("loss_scale", pa.list_(pa.float32()))])


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:  # noqa: ARG001 - as every target
    """One file a shard, with the same rows in the same order, and the class beside them."""
    longest = 0
    for shard in range(len(rows.shards)):
        path = folder / shard_name("parquet", shard, len(rows.shards))
        with open_parquet(path, _SCHEMA) as file:
            for chunk in rows.of(shard):
                lists = [list_column(chunk.firsts, v) for v in (chunk.ids, chunk.weights)]
                file.write_table(pa.Table.from_arrays(lists, schema=_SCHEMA))
                longest = max(longest, int(chunk.lengths().max()))
    copy_recipe("verl", folder)
    return {"longest_row": longest}


def recipe(folder: Path, told: Mapping[str, Any]) -> str:
    """How to load it."""
    longest = told["longest_row"]
    files, code = _override("train_files", folder), _override("custom_cls.path", folder / CODE)
    return (
        "torchrun --nproc_per_node=1 -m verl.trainer.sft_trainer \\\n"
        f"  {files} {code} \\\n"
        "  data.custom_cls.name=WeightedRows data.pad_mode=no_padding \\\n"
        f"  data.max_length={longest} data.max_token_len_per_gpu={max(longest, 8192)} \\\n"
        "  model.use_remove_padding=True engine=fsdp model.path=MODEL\n"
        "# the loss is the weighted sum over the sum of weights of the global batch, so a weight\n"
        "# that all tokens share cancels"
    )


def _override(name: str, path: Path) -> str:
    """A word of the shell; in it Hydra reads commas, brackets and more unless they are quoted."""
    value = str(path)
    if not re.fullmatch(r"[\w/.+-]+", value, re.ASCII):
        # Backslashes are doubled where a quote follows them, and nowhere else.
        value = re.sub(r"(\\*)(?:'|$)", lambda m: m[1] * 2 + m[0][len(m[1]) :], value)
        value = "'" + value.replace("'", "\\'") + "'"
    return quote(f"data.{name}={value}")
