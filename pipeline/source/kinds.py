"""What files of data are called, and what lies beside them that is none."""

from __future__ import annotations

import re

EXTENSIONS = ".jsonl .ndjson .json (also with .gz .zst .bz2 .lz4), .parquet, .arrow, .feather"
DATA = re.compile(
    r"\.(?:(?:jsonl|ndjson|json)(?:\.(?:gz|zst|zstd|bz2|bz|lz4))?|parquet|arrow|feather)$",
    re.IGNORECASE,
)
# JSON files that describe data, as datasets, LLaMA-Factory and this program write them.
DESCRIPTIONS = frozenset(
    {
        "dataset_dict.json",
        "dataset_info.json",
        "dataset_infos.json",
        "manifest.json",
        "rejects.jsonl",
        "state.json",
    }
)
