"""Shards are whole or absent, and every reader takes them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import shards
from pipeline.files import shard_name
from pipeline.policy import FORMATS
from pipeline.shards import SCHEMA, open_shard


def batch(rows: int, tokens: int) -> pa.RecordBatch:
    ids = [list(range(tokens))] * rows
    return pa.RecordBatch.from_pydict(
        {
            "input_ids": ids,
            "labels": ids,
            "loss_scale": [[1.0] * tokens] * rows,
            "length": [tokens] * rows,
            "num_target_tokens": [tokens] * rows,
            "weight_sum": [float(tokens)] * rows,
            "source": ["s"] * rows,
            "row": list(range(rows)),
            "text": [None] * rows,
            "fields": [None] * rows,
            "spans": [[{"message": 0, "role": "user", "region": "input", "start": 0, "end": 1}]]
            * rows,
        },
        schema=SCHEMA,
    )


@pytest.mark.parametrize("form", FORMATS)
def test_a_shard_holds_its_batches_in_order(form: str, tmp_path: Path) -> None:
    path = tmp_path / shard_name(form, 0, 1)
    with open_shard(path, form, temporary=tmp_path / "x.tmp") as writer:
        writer.write(batch(3, 5))
        writer.write(batch(0, 0))
        writer.write(batch(2, 4))
    read = pq.read_table(path) if form == "parquet" else pa.ipc.open_stream(path).read_all()
    assert read.schema.equals(SCHEMA)
    assert read["row"].to_pylist() == [0, 1, 2, 0, 1]
    assert read["input_ids"].to_pylist() == [[0, 1, 2, 3, 4]] * 3 + [[0, 1, 2, 3]] * 2
    assert not (tmp_path / "x.tmp").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_an_interrupted_shard_never_appears(form: str, tmp_path: Path) -> None:
    path = tmp_path / shard_name(form, 0, 1)
    with pytest.raises(KeyError), open_shard(path, form, temporary=tmp_path / "x.tmp") as writer:  # noqa: PT012 - the error must come after a write
        writer.write(batch(3, 5))
        raise KeyError
    assert not path.exists()


@pytest.mark.parametrize("form", FORMATS)
def test_a_shard_without_rows_is_readable(form: str, tmp_path: Path) -> None:
    path = tmp_path / shard_name(form, 0, 1)
    with open_shard(path, form, temporary=tmp_path / "x.tmp"):
        pass
    read = pq.read_table(path) if form == "parquet" else pa.ipc.open_stream(path).read_all()
    assert read.num_rows == 0
    assert read.schema.equals(SCHEMA)


@pytest.mark.parametrize("form", FORMATS)
def test_batches_of_a_row_group_are_written_as_one(form: str, tmp_path: Path) -> None:
    batches = [batch(rows, tokens) for rows, tokens in ((211, 999), (1, 3), (97, 1001), (5, 7))]
    whole = pa.Table.from_batches(batches).combine_chunks().to_batches()
    shards = [tmp_path / shard_name(form, index, 2) for index in range(2)]
    for path, parts in zip(shards, (batches, whole), strict=True):
        with open_shard(path, form, temporary=tmp_path / "x.tmp") as writer:
            for part in parts:
                writer.write(part)
    assert len(whole) == 1
    assert whole[0].column("input_ids").values.nbytes > 1 << 20, "more than a page of Parquet"
    assert shards[0].read_bytes() == shards[1].read_bytes()


def test_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_TOKENS", 100)
    path = tmp_path / "s.parquet"
    with open_shard(path, "parquet", temporary=tmp_path / "x.tmp") as writer:
        for _ in range(10):
            writer.write(batch(1, 60))
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [2] * 5


def test_names_are_those_that_datasets_expects() -> None:
    assert shard_name("parquet", 3, 12) == "train-00003-of-00012.parquet"
    assert shard_name("arrow", 0, 1) == "data-00000-of-00001.arrow"
