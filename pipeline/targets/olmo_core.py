"""OLMo-core: bare arrays of ids and of which of them train, and where each row lies."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.targets.chunk import Chunk, Int64s
from pipeline.targets.rows import Rows, Wishes
from pipeline.targets.saved import escape_glob


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:  # noqa: ARG001 - as every target
    """Of each shard that has rows ``token_ids_part``, ``labels_mask_part`` and the rows' places.

    Bare numbers, though called ``.npy``, as OLMo-core wants them. Ids are uint32, which the recipe
    says; OLMo-core would guess it from the vocabulary.
    """
    longest = parts = 0
    for shard, told in enumerate(rows.shards):
        if told.rows:
            lengths = _write_part(rows, shard, folder, parts)
            longest, parts = max(longest, lengths), parts + 1
    # Its packer takes powers of two only (olmo_core/data/utils.py:795 of 3.0.0).
    length = 1 << (longest - 1).bit_length()
    return {"longest_row": longest, "sequence_length": length, "parts": parts}


def _write_part(rows: Rows, shard: int, folder: Path, part: int) -> int:
    """Returns the tokens of its longest row."""
    stem = folder / f"token_ids_part_{part:05}"
    mask = folder / f"labels_mask_part_{part:05}.npy"
    longest = first = 0
    with (
        stem.with_suffix(".npy").open("wb") as ids,
        mask.open("wb") as flags,
        stem.with_suffix(".csv.gz").open("wb") as file,
        # Neither name nor time: the same rows are the same bytes.
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as places,
    ):
        for chunk in rows.of(shard):
            _write_chunk(chunk, ids, flags)
            places.write(_lines(chunk.firsts + first))
            first += len(chunk.ids)
            longest = max(longest, int(chunk.lengths().max()))
    return longest


def _write_chunk(chunk: Chunk, ids: BinaryIO, flags: BinaryIO) -> None:
    ids.write(chunk.ids.astype("<u4").tobytes())
    flags.write(chunk.mask().tobytes())


def _lines(bounds: Int64s) -> bytes:
    """Where each row begins and where the next does."""
    places = bounds.tolist()
    return "".join(f"{a},{b}\n" for a, b in pairwise(places)).encode()


def recipe(folder: Path, told: Mapping[str, Any]) -> str:
    """How to load it."""
    files = escape_glob(folder)
    return (
        "from glob import glob\n"
        "from olmo_core.data import *\n"
        "dataset = NumpyPackedFSLDatasetConfig(\n"
        "    tokenizer=TokenizerConfig(vocab_size=..., eos_token_id=..., pad_token_id=...),\n"
        f"    paths=sorted(glob({str(files / 'token_ids_part_*.npy')!r})),\n"
        f"    label_mask_paths=sorted(glob({str(files / 'labels_mask_part_*.npy')!r})),\n"
        "    dtype=NumpyDatasetDType.uint32,\n"
        f"    sequence_length={told['sequence_length']},  # a power of two; longer rows are cut\n"
        "    use_array_if_local=False,  # rows lie where the .csv.gz says: EOS may end each turn\n"
        "    generate_doc_lengths=True,  # so that rows do not see each other\n"
        ").build()"
    )
