"""Megatron-Bridge's packed dataset gives our rows and masks; what it would do to weights too."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import BuildError
from pipeline.exporting import export_dataset
from tests.exports import Row, once, plain, rows_of, stop_token, weighed  # noqa: F401 - fixtures
from tests.trainers import run_with_trainers

pytestmark = pytest.mark.train

_PACK = 1000
_READ = """
    import sys
    from tests.stand_ins import stand_in

    # Its models, which take Transformer Engine; its tokenizers: a packed dataset asks for an id.
    stand_in("transformer_engine", "megatron.bridge.models", "megatron.bridge.recipes")
    stand_in("megatron.bridge.peft", "megatron.bridge.training")
    import json
    from pathlib import Path
    from types import SimpleNamespace
    import numpy as np
    import torch
    from megatron.bridge.data.datasets.sft import create_sft_dataset

    folder, recipe, out, capacity, stop, common = *sys.argv[1:4], *map(int, sys.argv[4:])
    exec(recipe)  # the lines that the export printed: they make packed.npy

    def collated(eos, change=lambda row: row):
        path = Path(out, "changed.npy")
        rows = np.load(Path(folder, "packed.npy"), allow_pickle=True)
        np.save(path, np.array([change(dict(row)) for row in rows], dtype=object))
        dataset = create_sft_dataset(
            path, SimpleNamespace(eos_id=eos), seq_length=capacity, pad_to_max_length=True,
        )
        return dataset.collate_fn([dataset[i] for i in range(len(dataset))])

    batch = collated(-1)
    kept = ("tokens", "labels", "loss_mask", "position_ids", "cu_seqlens")
    np.savez(f"{out}/found.npz", **{key: batch[key].numpy() for key in kept})
    halved = collated(-1, lambda row: row | {"loss_mask": [v / 2 for v in row["loss_mask"]]})
    told = {
        "dtype": str(batch["loss_mask"].dtype),
        "trained": int(batch["loss_mask"].sum()),
        "halved": int(halved["loss_mask"].sum()),
        "stop": int(collated(stop)["loss_mask"].sum()),
        "common": int(collated(common)["loss_mask"].sum()),
    }
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def read(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: F811
    """What Megatron-Bridge makes of the export, by the lines that it prints."""

    def make(folder: Path) -> Any:
        made = export_dataset(plain, "megatron-bridge", folder / "export", pack=_PACK)
        words = (folder / "export", made.recipe, folder)
        numbers = (_PACK, stop_token(plain), _common(rows_of(plain)))
        needs = ("megatron/bridge", "megatron/core")
        return run_with_trainers(_READ, *words, *map(str, numbers), needs=needs)

    folder, told = once(tmp_path_factory, "megatron-bridge", make)
    found: dict[str, Any] = told | dict(np.load(folder / "found.npz"))
    return found | {"export": folder / "export"}


def _common(rows: list[Row]) -> int:
    """The id that stands most often before one that trains."""
    before = np.concatenate([row["ids"][:-1][row["weights"][1:] == 1] for row in rows])
    return int(np.bincount(before).argmax())


def sequences(export: Path) -> list[list[tuple[list[int], list[int]]]]:
    """Of each packed sequence its rows, ids and masks, by the documented columns."""
    return [
        [
            (row["input_ids"][a:b], row["loss_mask"][a:b])
            for a, b in pairwise([*row["seq_start_id"], len(row["input_ids"])])
        ]
        for path in sorted(export.glob("*.idx.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def test_every_row_is_in_one_sequence_with_its_mask_moved_left(
    plain: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    packed = sequences(read["export"])
    assert all(sum(len(ids) for ids, _ in rows) <= _PACK for rows in packed)
    assert len(packed) < len(rows_of(plain)) / 4
    assert sorted(row for rows in packed for row in rows) == sorted(
        (row["ids"].tolist(), [*(row["weights"][1:] == 1).astype(int).tolist(), 0])
        for row in rows_of(plain)
    )


def test_its_collator_makes_of_them_inputs_labels_and_masks_of_each_row(
    plain: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    weights = {row["ids"].tobytes(): row["weights"] for row in rows_of(plain)}
    assert len(read["tokens"]) == len(sequences(read["export"]))
    for number, rows in enumerate(sequences(read["export"])):
        first = 0
        for ids, _ in rows:
            stop = first + len(ids) - 1
            assert read["tokens"][number, first:stop].tolist() == ids[:-1]
            assert read["labels"][number, first:stop].tolist() == ids[1:]
            own = weights[np.array(ids, np.int32).tobytes()][1:]
            assert read["loss_mask"][number, first:stop].tolist() == own.tolist()
            assert read["position_ids"][number, first:stop].tolist() == list(range(len(ids) - 1))
            assert stop in read["cu_seqlens"][number]
            first = stop
        assert not read["loss_mask"][number, first:].any()


def test_it_would_make_half_a_weight_none_so_that_weights_are_refused(
    weighed: Path,  # noqa: F811
    tmp_path: Path,
    read: dict[str, Any],
) -> None:
    assert read["dtype"] == "torch.int64"
    assert read["trained"] > 0
    assert read["halved"] == 0
    with pytest.raises(BuildError, match="give --binarize"):
        export_dataset(weighed, "megatron-bridge", tmp_path / "export", pack=_PACK)


def test_what_follows_eos_does_not_train_there(read: dict[str, Any]) -> None:
    # Nothing of ours where EOS ends a turn; where it is a token of the text, what follows it.
    assert read["stop"] == read["trained"]
    assert read["common"] < read["trained"]
