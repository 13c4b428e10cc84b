"""litdata streams a build's own Parquet, without an export: every row, with exact weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import verify
from tests.exports import once, rows_of, weighed  # noqa: F401 - a fixture
from tests.trainers import run_with_trainers

pytestmark = pytest.mark.train

_READ = """
    import sys
    from tests.stand_ins import stand_in

    # Clouds, images and keys, none of which local Parquet takes.
    stand_in("boto3", "botocore", "google", "urllib3", "obstore", "requests", "cryptography")
    stand_in("torchvision", "tifffile")
    import json
    import numpy as np
    from litdata import StreamingDataLoader, StreamingDataset, index_parquet_dataset
    from litdata.streaming.item_loader import ParquetLoader

    folder, out = sys.argv[1:]
    index_parquet_dataset(folder)
    told, arrays = {}, {}
    columns = ["input_ids", "loss_scale"]

    def stream(**more):
        return StreamingDataset(folder, item_loader=ParquetLoader(columns=columns), **more)

    def loaded(**more):
        # In this process: its workers must be spawned, and would know nothing of the stand-ins.
        loader = StreamingDataLoader(stream(**more), batch_size=8, collate_fn=lambda rows: rows)
        return [row for batch in loader for row in batch]

    for name, rows in (
        ("ordered", list(stream())),
        ("shuffled", list(stream(shuffle=True, seed=3))),
        ("loader", loaded(shuffle=True, seed=3)),
    ):
        for key, dtype in (("input_ids", np.int32), ("loss_scale", np.float32)):
            arrays[f"{name}_{key}"] = np.concatenate([np.array(row[key], dtype) for row in rows])
        arrays[f"{name}_lengths"] = [len(row["input_ids"]) for row in rows]
        told[name] = {key: type(value[0]).__name__ for key, value in rows[0].items()}
    full = StreamingDataset(folder, item_loader=ParquetLoader())[0]
    told["columns"] = sorted(full)
    try:
        next(iter(StreamingDataLoader(stream(), batch_size=8)))
    except Exception as error:
        told["default"] = type(error).__name__
    np.savez(out, **arrays)
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def read(weighed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: F811
    """What litdata makes of a copy of the build, beside which it writes an index."""

    def make(folder: Path) -> Any:
        shutil.copytree(weighed, folder / "shards")
        words = (folder / "shards", folder / "found.npz")
        return run_with_trainers(_READ, *words, needs=("litdata", "lightning_utilities"))

    folder, told = once(tmp_path_factory, "litdata", make)
    found: dict[str, Any] = told | {"shards": folder / "shards"}
    return found | {"arrays": dict(np.load(folder / "found.npz"))}


def given(read: dict[str, Any], name: str) -> list[tuple[list[int], list[float]]]:
    """The rows of one pass, ids and weights."""
    found = read["arrays"]
    ends = np.cumsum(found[f"{name}_lengths"])[:-1]
    parts = [np.split(found[f"{name}_{key}"], ends) for key in ("input_ids", "loss_scale")]
    return [(ids.tolist(), weights.tolist()) for ids, weights in zip(*parts, strict=True)]


@pytest.mark.parametrize("name", ["ordered", "shuffled", "loader"])
def test_every_row_comes_once_with_exact_weights(
    weighed: Path,  # noqa: F811
    read: dict[str, Any],
    name: str,
) -> None:
    rows = [(row["ids"].tolist(), row["weights"].tolist()) for row in rows_of(weighed)]
    assert sorted(given(read, name)) == sorted(rows)


def test_shuffling_changes_the_order(read: dict[str, Any]) -> None:
    assert given(read, "ordered") != given(read, "shuffled")


def test_columns_come_as_lists_of_numbers_which_need_a_collator(read: dict[str, Any]) -> None:
    assert read["ordered"] == {"input_ids": "int", "loss_scale": "float"}
    assert "text" in read["columns"]  # without columns= it would unpack texts and spans too
    assert read["default"] in ("RuntimeError", "TypeError")


def test_the_build_is_still_sound_with_its_index_beside_it(read: dict[str, Any]) -> None:
    assert verify.main([str(read["shards"]), "--quiet"]) == 0
    assert (read["shards"] / "index.json").is_file()
