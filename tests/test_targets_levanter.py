"""marin-levanter's prebuilt reader and processor give our rows, and weights where it wants them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import BuildError
from pipeline.exporting import Exported, export_dataset
from pipeline.targets import levanter
from tests.exports import once, rows_of, stop_token, weighed  # noqa: F401 - a fixture
from tests.trainers import run_with_trainers

pytestmark = pytest.mark.train

_COLUMNS = ("input_ids", "loss_weights", "segment_ids")
_READ = """
    import sys
    from tests.stand_ins import stand_in

    # JAX takes 600 MB; what reads a prebuilt source and makes arrays of it is numpy and pyarrow.
    stand_in("jax", "equinox", "haliax", "draccus", "jaxtyping", "fray", "zephyr")
    stand_in("rigging.distributed_lock", "optax", "tensorstore")
    stand_in("botocore", "s3fs", "gcsfs", "google")
    for name in (
        "models", "store", "layers", "grug", "tracker", "callbacks", "checkpoint", "eval",
        "trainer", "distributed", "config", "optim", "main", "analysis", "visualization",
        "compat", "tokenizers", "metrics", "schedule", "utils.jax_utils", "data.audio",
        "data.packing", "data.dataset", "data.loader", "data.mixture", "data.text.cache",
        "data.text.datasets", "data.text.examples", "data.text.preference",
        "data.text.trace_chat",
    ):
        stand_in(f"levanter.{name}")
    import draccus

    class ChoiceRegistry:  # names of configurations: formats are only to be defined
        @classmethod
        def register_subclass(cls, name):
            return lambda kind: kind

    draccus.ChoiceRegistry = ChoiceRegistry
    import json
    import numpy as np
    from levanter.data.sharded_datasource import UrlDataSource
    from levanter.data.text.formats import PrebuiltCacheProcessor

    urls, out = sys.argv[1:]
    source = UrlDataSource([urls])
    rows = [row for name in source.shard_names for row in source.open_shard_at_row(name, 0)]
    made = PrebuiltCacheProcessor("input_ids", "loss_weights")(rows)
    some = next(iter(source.open_shard_at_row(source.shard_names[1], 5)))
    np.savez(
        out,
        **{key: np.stack([row[key] for row in made]) for key in made[0]},
        later=some["input_ids"],
    )
    print(json.dumps({key: str(value.dtype) for key, value in made[0].items()}))
"""


@pytest.fixture(scope="module")
def read(weighed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: F811
    """What levanter makes of the export."""

    def make(folder: Path) -> Any:
        export_dataset(weighed, "levanter", folder / "export")
        words = (folder / "export" / "train-*.parquet", folder / "found.npz")
        return run_with_trainers(_READ, *words, needs=("levanter", "rigging", "braceexpand"))

    folder, told = once(tmp_path_factory, "levanter", make)
    return dict(np.load(folder / "found.npz")) | {"dtypes": told}


def test_its_processor_gives_every_row_with_the_weight_of_what_is_predicted(
    weighed: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    rows = rows_of(weighed)
    assert read["dtypes"] == {"input_ids": "int32", "loss_weights": "float32"}
    width = read["input_ids"].shape[1]
    assert width == 896  # the least multiple of 128 that holds the longest row
    assert max(len(row["ids"]) for row in rows) == 828
    for number, row in enumerate(rows):
        pads = width - len(row["ids"])
        assert read["input_ids"][number].tolist() == [*row["ids"].tolist(), *[0] * pads]
        moved = [*row["weights"][1:].tolist(), *[0] * (pads + 1)]
        assert read["loss_weights"][number].tolist() == moved
    assert len(read["input_ids"]) == len(rows)


def test_its_loss_of_an_example_is_that_of_the_row(
    weighed: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    # levanter/models/loss.py: weight[i] times the loss of predicting tokens[i + 1], none for the
    # last. Here with any number for "the loss of this token after that one".
    rows = rows_of(weighed)
    for number in range(0, len(rows), 37):
        ids, weights = rows[number]["ids"].astype(float), rows[number]["weights"].astype(float)
        tokens = read["input_ids"][number].astype(float)
        target = np.roll(tokens, -1)
        given = read["loss_weights"][number].astype(float)
        given[-1] = 0
        loss = np.sin(tokens) + np.cos(target)
        own = np.sin(ids[:-1]) + np.cos(ids[1:])
        assert given @ loss == pytest.approx(weights[1:] @ own)
        assert given.sum() == pytest.approx(weights.sum())


def test_a_reader_may_begin_in_the_middle(weighed: Path, read: dict[str, Any]) -> None:  # noqa: F811
    rows = [row["ids"].tolist() for row in rows_of(weighed)]
    later = [token for token in read["later"].tolist() if token]
    assert later in rows
    assert rows.index(later) > 100  # in the second shard


def test_a_turn_ends_with_what_it_would_take_for_the_end_of_a_document(
    weighed: Path,  # noqa: F811
) -> None:
    # So that block_cross_document_attention must be false, as the recipe says: its segments are
    # the running count of EOS tokens (levanter/data/text/examples.py).
    rows, stop = rows_of(weighed), stop_token(weighed)
    within = [row for row in rows if (row["ids"][:-2] == stop).any()]
    assert len(within) > 300


def packed(folder: Path) -> list[dict[str, list[Any]]]:
    """The examples of a packed export, column by column."""
    paths = sorted(folder.glob("train-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def test_packed_each_row_is_a_segment_of_one_example(weighed: Path, tmp_path: Path) -> None:  # noqa: F811
    # What the copied class hands to GrugLmExample.causal; with JAX, which CI does not have, its
    # attention masks were those of these segments.
    told = made(weighed, tmp_path, pack=1000).receipt["told"]
    rows = []
    for example in packed(tmp_path / "export"):
        assert {len(values) for values in example.values()} == {1000}
        ids, weights, segments = (np.array(example[name]) for name in _COLUMNS)
        padding = segments == -1
        assert not ids[padding].any()
        assert not weights[padding].any()
        assert (np.diff(segments[~padding]) >= 0).all()
        assert (np.flatnonzero(padding) >= (~padding).sum()).all()
        rows += [
            (ids[segments == number].tolist(), weights[segments == number].tolist())
            for number in range(segments.max() + 1)
        ]
    own = [(r["ids"].tolist(), [*r["weights"][1:].tolist(), 0.0]) for r in rows_of(weighed)]
    assert sorted(rows) == sorted(own)
    assert told["examples"] == len(packed(tmp_path / "export")) < len(own) / 5


def test_parts_that_are_written_apart_hold_the_same(
    weighed: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made(weighed, tmp_path, pack=900)
    whole = packed(tmp_path / "export")
    monkeypatch.setattr(levanter, "_PART", 2000)
    made(weighed, tmp_path, pack=900, overwrite=True)
    assert packed(tmp_path / "export") == whole


def made(shards: Path, folder: Path, **options: Any) -> Exported:
    return export_dataset(shards, "levanter", folder / "export", **options)


def test_the_recipe_says_the_length_and_not_to_part_at_eos(
    weighed: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    recipe = made(weighed, tmp_path).recipe
    assert "train_seq_len: 896 " in recipe
    assert "block_cross_document_attention: false" in recipe


def test_a_length_below_the_longest_row_is_refused(weighed: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(BuildError, match="longer than --pack 500"):
        made(weighed, tmp_path, pack=500)
