"""torchtune: a saved dataset of tokens and labels, and the component that its config names.

Labels are not shifted: the recipes of 0.6.1 do that (``_loss_step``). Its own datasets all
tokenize, so what reads the rows is `pipeline.training.recipes.torchtune`, copied beside them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.targets.copies import CODE, copy_recipe
from pipeline.targets.rows import Rows, Wishes
from pipeline.targets.saved import list_table, open_saved, quoted

_SCHEMA = pa.schema([("tokens", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:  # noqa: ARG001 - as every target
    """All rows in their order, and the component."""
    longest = 0
    with open_saved(folder, _SCHEMA) as file:
        for chunk in rows:
            file.write_table(list_table(_SCHEMA, chunk.firsts, chunk.ids, chunk.labels))
            longest = max(longest, int(chunk.lengths().max()))
    copy_recipe("torchtune", folder)
    return {"longest_row": longest}


def recipe(folder: Path, told: Mapping[str, Any]) -> str:
    """How to load it."""
    return f"""\
# PYTHONPATH={shlex.quote(str(folder))} tune run full_finetune_single_device --config ...
dataset:
  _component_: {CODE.removesuffix(".py")}.tokenized_dataset
  folder: {quoted(folder)}
  packed: false  # true: sequences of tokenizer.max_seq_len tokens, {told["longest_row"]} or more
# Rows are not cut: nothing is tokenized, so max_seq_len has no other use."""
