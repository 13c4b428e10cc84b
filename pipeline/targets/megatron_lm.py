"""Megatron-LM: an indexed dataset of the ids and, aligned with it, one of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline.targets.copies import CODE, copy_recipe
from pipeline.targets.rows import Rows, Wishes

_DTYPES = {"rows": (4, "<i4"), "rows_weights": (7, "<f4")}
"""Of each file: the format's own number for the dtype, and the dtype."""

_MAGIC = b"MMIDIDX\x00\x00"


def write(rows: Rows, folder: Path, wishes: Wishes) -> dict[str, Any]:  # noqa: ARG001 - as every target
    """``rows`` and ``rows_weights``, each a ``.bin`` of values and an ``.idx``; a document a row.

    Always int32, not uint16: Megatron reads the dtype from the index. Weights stand at the token
    they weigh, unshifted, so that a reader takes the same slice of both.
    """
    lengths: list[npt.NDArray[np.int64]] = []
    with (folder / "rows.bin").open("wb") as ids, (folder / "rows_weights.bin").open("wb") as scale:
        for chunk in rows:
            _put(ids, chunk.ids, "rows")
            _put(scale, chunk.weights, "rows_weights")
            lengths.append(chunk.lengths())
    sizes = np.concatenate(lengths)
    for name in _DTYPES:
        _write_index(folder / f"{name}.idx", sizes, name)
    copy_recipe("megatron_lm", folder)
    return {"longest_row": int(sizes.max())}


def _put(file: BinaryIO, values: npt.NDArray[Any], name: str) -> None:
    file.write(values.astype(_DTYPES[name][1], copy=False).tobytes())


def _write_index(path: Path, sizes: npt.NDArray[np.int64], name: str) -> None:
    """Version 1: counts, then of each sequence its length and byte, then where documents begin."""
    code, dtype = _DTYPES[name]
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    with path.open("wb") as file:
        file.write(_MAGIC + np.array(1, "<u8").tobytes() + bytes([code]))
        file.write(np.array([len(sizes), len(sizes) + 1], "<u8").tobytes())
        file.write(sizes.astype("<i4").tobytes())
        file.write((starts[:-1] * np.dtype(dtype).itemsize).astype("<i8").tobytes())
        file.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())


def recipe(folder: Path, told: Mapping[str, Any]) -> str:
    """How to load it."""
    prefix = quote(str(folder / "rows"))
    return (
        "# Megatron's GPTDataset cuts documents anywhere and knows no weights. In pretrain_gpt.py\n"
        "# take WeightedRows in its place, and this loss_func:\n"
        f"#   sys.path.insert(0, {str(folder)!r})\n"
        f"#   from {Path(CODE).stem} import WeightedRows, loss_func\n"
        f"--data-path {prefix} --split 99,1,0 --seq-length {told['longest_row'] - 1} \\\n"
        "  --calculate-per-token-loss\n"
        "# Without that flag each micro-batch is divided by its own number of tokens that train;\n"
        "# with Megatron's own loss_func by its sum of weights, cut to an integer: a weight that\n"
        "# all of it shares cancels."
    )
