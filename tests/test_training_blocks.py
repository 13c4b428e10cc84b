"""Folders that are no finished build, and shards that are none, are told with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import BuildError
from pipeline.manifest import Manifest, read_manifest, write_manifest
from pipeline.shards import SCHEMA
from pipeline.training.block import make_block
from pipeline.training.blocks import find_blocks
from tests.numbered import build_sample, describe, length_of, write_build

FORMS = ("parquet", "arrow")


@pytest.fixture(scope="module")
def like(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return build_sample(tmp_path_factory.mktemp("sample") / "sample")


@pytest.fixture
def made(tmp_path: Path, like: Manifest) -> Callable[[str], Path]:
    return lambda form: write_build(tmp_path / form, like, [[5, 3], [], [4], [1, 1, 9]], form)


def test_decoded_rows_of_others_are_let_go(made: Callable[[str], Path]) -> None:
    picked = find_blocks(made("parquet")).pick(0, np.array([4, 1]))
    assert [picked.row(i, ("row",))["row"] for i in (0, 1)] == [4, 1]
    assert len(picked.tokens["labels"]) == length_of(4) + length_of(1)
    assert len(find_blocks(made("arrow")).pick(0, np.array([4, 1])).tokens["labels"]) > 10


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_finished_build_is_told(form: str, made: Callable[[str], Path]) -> None:
    folder = made(form)
    with pytest.raises(BuildError, match=r"nowhere: no manifest.json there; give the folder"):
        find_blocks(folder / "nowhere")
    path = sorted(folder.glob("*-of-*"))[2]
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(BuildError, match=f"{path.name}: is .* bytes, but manifest.json says"):
        find_blocks(folder)
    path.unlink()
    with pytest.raises(BuildError, match=f"{path.name}: is missing, but manifest.json says"):
        find_blocks(folder)
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(BuildError, match=f"{path.name}: cannot be read: .*; run the build's"):
        find_blocks(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(BuildError, match=f"{form}: .*no manifest.json"):
        find_blocks(folder)


@pytest.mark.parametrize("form", FORMS)
def test_a_foreign_shard_is_told(form: str, made: Callable[[str], Path]) -> None:
    folder = made(form)
    path = sorted(folder.glob("*-of-*"))[2]
    table = pa.table({"input_ids": [[1, 2]] * 4})
    if form == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as sink:
            sink.write_table(table)
    found = read_manifest(folder)
    assert found is not None
    shards = [describe(path, 4) if s["file"] == path.name else s for s in found.shards]
    write_manifest(replace(found, shards=shards), folder)
    with pytest.raises(
        BuildError, match=f"{path.name}: not a shard of this version, whose columns"
    ):
        find_blocks(folder)


def test_a_count_that_the_shard_has_not_is_told(made: Callable[[str], Path]) -> None:
    folder = made("arrow")
    told = json.loads((folder / "manifest.json").read_text())
    told["shards"][0]["rows"] = 9
    (folder / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(
        BuildError, match=r"00000-of-00004.arrow: has 8 rows, manifest.json tells 9"
    ):
        find_blocks(folder)


def test_a_build_without_rows_is_told(tmp_path: Path, like: Manifest) -> None:
    folder = write_build(tmp_path / "empty", like, [[]])
    with pytest.raises(BuildError, match=r"empty: its build has no rows; see its rejects.jsonl"):
        find_blocks(folder)


SOUND = {
    "input_ids": [[1], [2]],
    "labels": [[1], [2]],
    "loss_scale": [[1.0], [1.0]],
    "length": [1, 1],
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": [[1, 2], [3]]},
        {"loss_scale": [[1.0], [1.0, 1.0]]},
        {"loss_scale": [[1.0], [None]]},
        {"length": [2, None]},
        {"input_ids": [[1], None], "labels": [[1], None], "loss_scale": [[1.0], None]},
    ],
)
def test_columns_that_do_not_fit_are_damage(wrong: dict[str, Any]) -> None:
    def make(columns: dict[str, Any]) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict(columns, pa.schema([SCHEMA.field(c) for c in columns]))

    assert len(make_block(make(SOUND), Path("x"), "mend it")) == 2
    with pytest.raises(BuildError, match=r"x: is damaged \(.*\); mend it"):
        make_block(make({**SOUND, **wrong}), Path("x"), "mend it")


@pytest.mark.parametrize("wrong", [[0, 3, 2], [0, 1, 9]])
def test_borders_that_are_none_are_damage(wrong: list[int]) -> None:
    borders = np.array([0, 1, 2], np.int32)
    raw = [None, pa.py_buffer(borders)]
    ids = pa.Array.from_buffers(
        pa.list_(pa.int32()), 2, raw, children=[pa.array([7, 8], pa.int32())]
    )
    batch = pa.RecordBatch.from_arrays([ids], ["input_ids"])
    assert len(make_block(batch, Path("x"), "mend it")) == 2
    borders[:] = wrong  # in the buffer itself: Arrow would not make such an array
    with pytest.raises(BuildError, match=r"x: is damaged \(.*\); mend it"):
        make_block(batch, Path("x"), "mend it")
