"""Layouts of trainers without the trainers: any rows come back by the documented layout alone."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.exporting import export_dataset
from pipeline.targets import levanter, megatron_bridge, mosaic, olmo_core
from pipeline.targets.chunk import Chunk
from pipeline.targets.sequences import put_together
from tests.exports import plain  # noqa: F401 - a fixture

Row = tuple[list[int], list[float]]
ROWS = st.lists(
    st.lists(
        st.tuples(st.integers(1, 2**31 - 1), st.sampled_from([0.0, 0.25, 1.0, 7.5])),
        min_size=1,
        max_size=12,
    ),
    min_size=1,
    max_size=20,
)


def chunk_of(
    rows: list[list[tuple[int, float]]], *, binary: bool = False
) -> tuple[Chunk, list[Row]]:
    """A chunk and its rows; the first token of a row has weight 0, as in every build."""
    made: list[Row] = []
    for row in rows:
        scales = [0.0, *(weight for _, weight in row[1:])]
        made.append(([i for i, _ in row], [float(w != 0) if binary else w for w in scales]))
    firsts = np.cumsum([0, *(len(ids) for ids, _ in made)]).astype(np.int64)
    ids = np.array([i for row, _ in made for i in row], np.int32)
    weights = np.array([w for _, row in made for w in row], np.float32)
    labels = np.where(weights != 0, ids, np.int32(-100))
    return Chunk(firsts, ids, labels, weights, np.zeros(len(made), np.bool_), 0, 0), made


def moved(rows: list[Row]) -> list[Row]:
    """The rows with each weight where its token is predicted."""
    return sorted((ids, [*weights[1:], 0.0]) for ids, weights in rows)


@given(ROWS, st.integers(12, 40), st.integers(1, 5))
def test_levanters_segments_are_the_rows(
    rows: list[list[tuple[int, float]]], width: int, step: int
) -> None:
    chunk, own = chunk_of(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levanter, "_PART", step * width)
        tables = list(levanter._tables(put_together(chunk, width), width))
    found: list[Row] = []
    for table in tables:
        assert table.num_rows <= step
        for example in table.to_pylist():
            assert {len(values) for values in example.values()} == {width}
            for number in range(max(example["segment_ids"]) + 1):
                at = [i for i, s in enumerate(example["segment_ids"]) if s == number]
                found.append(
                    (
                        [example["input_ids"][i] for i in at],
                        [example["loss_weights"][i] for i in at],
                    )
                )
    assert sorted(found) == moved(own)


@given(ROWS, st.integers(12, 40))
def test_bridges_sequences_are_the_rows(rows: list[list[tuple[int, float]]], room: int) -> None:
    chunk, own = chunk_of(rows, binary=True)
    found: list[Row] = []
    for row in megatron_bridge._table(put_together(chunk, room)).to_pylist():
        assert len(row["input_ids"]) == len(row["loss_mask"]) <= room
        starts = row["seq_start_id"]
        assert starts[0] == 0
        for a, b in zip(starts, [*starts[1:], None], strict=True):
            found.append((row["input_ids"][a:b], [float(v) for v in row["loss_mask"][a:b]]))
    assert sorted(found) == moved(own)


@given(ROWS)
def test_samples_of_mds_are_the_rows(rows: list[list[tuple[int, float]]]) -> None:
    chunk, own = chunk_of(rows)
    for sample, (ids, weights) in zip(mosaic._samples(chunk), own, strict=True):
        sizes = struct.unpack_from("<3I", sample)
        assert len(sample) == 12 + sum(sizes)
        at, columns = 12, []
        for size, kind in zip(sizes, "iif", strict=True):
            shape, length = sample[at], sample[at + 1]
            assert shape == 1 << 2  # one axis, whose length is one byte
            columns.append(list(struct.unpack_from(f"<{length}{kind}", sample, at + 2)))
            assert size == 2 + 4 * length
            at += size
        labels = [i if w else -100 for i, w in zip(ids, weights, strict=True)]
        assert columns == [ids, labels, weights]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(0, 99))
def test_places_of_rows_follow_each_other(lengths: list[int], start: int) -> None:
    bounds = start + np.cumsum([0, *lengths])
    lines = [line.split(",") for line in olmo_core._lines(bounds).decode().splitlines()]
    assert [int(b) - int(a) for a, b in lines] == lengths
    assert int(lines[0][0]) == start


@pytest.mark.parametrize(
    "target", ["levanter", "megatron-bridge", "megatron-lm", "mosaic", "olmo-core", "verl"]
)
def test_the_same_rows_are_the_same_bytes(
    plain: Path,  # noqa: F811
    tmp_path: Path,
    target: str,
) -> None:
    pack = 1000 if target == "megatron-bridge" else None
    one, two = (
        export_dataset(plain, target, tmp_path / name, pack=pack).receipt for name in ("a", "b")
    )
    assert one["files"] == two["files"]
    assert one["rows"] == 351
