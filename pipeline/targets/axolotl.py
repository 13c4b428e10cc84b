"""axolotl: a saved dataset of exactly the columns by which it knows tokenized rows.

They are input_ids, attention_mask and labels (axolotl 0.19: ``_is_dataset_already_tokenized`` in
utils/data/wrappers.py), of a map-style dataset; then no prompt strategy is asked. Its trainer
divides each micro-batch by that one's trained tokens (core/trainers/base.py, line 131; builders/
base.py, line 678 for several ranks), so accumulated steps are not those of one large batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.targets.rows import Rows, Wishes
from pipeline.targets.saved import MASKED, masked_table, open_saved, quoted


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:  # noqa: ARG001 - as every target
    """All rows in their order; tells the longest, since axolotl drops what is above a limit."""
    longest = 0
    with open_saved(folder, MASKED) as file:
        for chunk in rows:
            file.write_table(masked_table(chunk))
            longest = max(longest, int(chunk.lengths().max()))
    return {"longest_row": longest}


def recipe(folder: Path, told: Mapping[str, Any]) -> str:
    """How to load it."""
    return f"""\
datasets:
  - path: {quoted(folder)}
    type:  # empty: the rows are tokenized
sequence_len: {told["longest_row"]}  # at least: longer rows are dropped
excess_length_strategy: raise  # instead of dropping them without an error
# Of gradient_accumulation_steps each is divided by its own trained tokens, not by those of all.
# axolotl keeps what it prepared by the path, not the contents: give another export another folder,
# or empty dataset_prepared_path (last_run_prepared)."""
