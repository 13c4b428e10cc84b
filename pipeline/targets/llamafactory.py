"""LLaMA-Factory: a saved DatasetDict for ``tokenized_path``, which is loaded as it is.

Its loader takes the splits ``train`` and ``validation`` (0.9.5: ``get_dataset_module`` in
data/data_utils.py), its collator input_ids, attention_mask and labels; nothing is cut or dropped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.targets.rows import Rows, Wishes
from pipeline.targets.saved import MASKED, masked_table, open_saved, quoted
from pipeline.targets.splits import HELD_OUT, name_splits, part, require_all


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:
    """``train`` and, with a share for it, ``validation``; BuildError where one would be empty."""
    splits = name_splits(wishes)
    counts = Counter[str]()
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(open_saved(folder / split, MASKED, split))
            for split in splits
        }
        for chunk in rows:
            for split, own in part(chunk, splits):
                counts[split] += own.rows
                files[split].write_table(masked_table(own))
    require_all(counts, splits, rows)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}), encoding="utf-8")
    return {f"rows_of_{split}": counts[split] for split in splits}


def recipe(folder: Path, told: Mapping[str, Any]) -> str:
    """How to load it."""
    lines = [
        "stage: sft",
        f"tokenized_path: {quoted(folder)}",
        "dataset: tokenized  # a name is asked for, and not read",
    ]
    if f"rows_of_{HELD_OUT}" in told:
        lines += ["do_eval: true", "eval_strategy: steps"]
        lines += [
            "val_size: 0.1  # a share is asked for, and not used: validation is in the folder"
        ]
    lines += [
        "# cutoff_len is ignored too: no row is cut. Leave packing and neat_packing off. The",
        "# template must be the model's, for its special tokens.",
    ]
    return "\n".join(lines)
