"""ms-swift: a cached dataset of our columns, and the plugin whose template gives them back.

A cached dataset of ms-swift 4.6 holds messages and their lengths, and is encoded again at each
access (``get_cached_dataset`` in pipelines/utils.py, ``LazyLLMDataset`` in pipelines/train/sft.py).
Ours holds ids, labels and weights instead, which `pipeline.training.recipes.ms_swift` returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.columns import column, list_column
from pipeline.targets.chunk import Chunk
from pipeline.targets.copies import CODE, copy_recipe
from pipeline.targets.rows import Rows, Wishes
from pipeline.targets.saved import open_saved

_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("loss_scale", pa.list_(pa.float32())),
        ("lengths", pa.int32()),
    ]
)


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:  # noqa: ARG001 - as every target
    """All rows in their order, and the plugin; tells the longest, since ms-swift has a limit."""
    longest = 0
    with open_saved(folder, _SCHEMA) as file:
        for chunk in rows:
            file.write_table(_table(chunk))
            longest = max(longest, int(chunk.lengths().max()))
    copy_recipe("ms_swift", folder)
    return {"longest_row": longest}


def _table(chunk: Chunk) -> pa.Table:
    lists = [list_column(chunk.firsts, v) for v in (chunk.ids, chunk.labels, chunk.weights)]
    lengths = column(chunk.lengths().astype(np.int32))
    return pa.Table.from_arrays([*lists, lengths], schema=_SCHEMA)


def recipe(folder: Path, told: Mapping[str, Any]) -> str:
    """How to load it."""
    return f"""\
swift sft --model ... \\
    --external_plugins {quote(str(folder / CODE))} --template weighted_rows \\
    --cached_dataset {quote(str(folder))} --max_length {told["longest_row"]} --strict true
# --max_length is at least the longest row: longer ones are left out. --padding_free true and
# --packing true want flash attention. For inference give the model's own --template."""
