"""OLMo-core's packed dataset gives our rows whole; by its defaults it would cut them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.exporting import export_dataset
from tests.exports import once, plain, rows_of, stop_token  # noqa: F401 - a fixture
from tests.trainers import run_with_trainers

pytestmark = pytest.mark.train

_READ = """
    import sys
    from tests.stand_ins import stand_in

    # Clouds, and threads of its data loader; its dataset reads local files without them.
    stand_in("google", "requests", "urllib3", "boto3", "botocore", "bettermap")
    import json
    from glob import glob
    from pathlib import Path
    import numpy as np
    import torch
    from olmo_core.data import (
        NumpyDatasetDType, NumpyFSLDatasetConfig, NumpyPackedFSLDatasetConfig, TokenizerConfig,
    )
    from olmo_core.data.collator import DataCollator
    from olmo_core.data.utils import get_labels

    folder, work, recipe, length, eos, pad = *sys.argv[1:4], *map(int, sys.argv[4:])

    def build(name, **more):
        plain = dict(
            tokenizer=TokenizerConfig(vocab_size=5000, eos_token_id=eos, pad_token_id=pad),
            paths=sorted(glob(f"{folder}/token_ids_part_*.npy")),
            label_mask_paths=sorted(glob(f"{folder}/labels_mask_part_*.npy")),
            dtype=NumpyDatasetDType.uint32, sequence_length=length, work_dir=f"{work}/{name}",
            use_array_if_local=False, generate_doc_lengths=True,
        )
        return items_of(NumpyPackedFSLDatasetConfig(**(plain | more)).build())

    def items_of(dataset):
        dataset.prepare()
        return [dataset[i] for i in range(len(dataset))]

    exec(recipe)  # the lines that the export printed: they make dataset
    dataset.work_dir = Path(work, "recipe")
    items = items_of(dataset)
    arrays = {key: torch.cat([item[key] for item in items]).numpy() for key in items[0]
              if key in ("input_ids", "label_mask")}
    arrays["doc_lens"] = torch.cat([item["doc_lens"] for item in items]).numpy()
    arrays["docs"] = np.array([len(item["doc_lens"]) for item in items])
    batch = DataCollator(pad_token_id=pad)([dict(item) for item in items[:4]])
    arrays["labels"] = get_labels(batch).numpy()
    told = {"dtypes": {key: str(items[0][key].dtype) for key in ("input_ids", "label_mask")}}
    for name, more in (
        ("scanned", {"use_array_if_local": None}),
        ("short", {"sequence_length": 256}),
    ):
        found = build(name, **more)
        told[name] = {
            "documents": int(sum((item["doc_lens"] > 0).sum() for item in found)),
            "trained": int(sum(item["label_mask"].sum() for item in found)),
        }
    arrays["guessed"] = build("guessed", dtype=None)[0]["input_ids"].numpy()
    np.savez(f"{work}/found.npz", **arrays)
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def read(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: F811
    """What OLMo-core makes of the export."""

    def make(folder: Path) -> Any:
        made = export_dataset(plain, "olmo-core", folder / "export")
        length = str(made.receipt["told"]["sequence_length"])
        numbers = f"vocab_size=5000, eos_token_id={stop_token(plain)}, pad_token_id=0"
        asked = "vocab_size=..., eos_token_id=..., pad_token_id=..."
        assert asked in made.recipe
        recipe = made.recipe.replace(asked, numbers)
        words = (folder / "export", folder, recipe, length, str(stop_token(plain)), "0")
        return run_with_trainers(_READ, *words, needs=("olmo_core", "cached_path"))

    folder, told = once(tmp_path_factory, "olmo-core", make)
    found: dict[str, Any] = told | {"arrays": dict(np.load(folder / "found.npz"))}
    return found


def test_its_dataset_gives_every_row_whole_with_its_mask(
    plain: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    rows, found = rows_of(plain), read["arrays"]
    assert read["dtypes"] == {"input_ids": "torch.int64", "label_mask": "torch.bool"}
    ends = np.cumsum(found["doc_lens"])[:-1]
    ids = np.split(found["input_ids"], ends)
    masks = np.split(found["label_mask"], ends)
    given = sorted((i.tolist(), m.tolist()) for i, m in zip(ids, masks, strict=True) if m.any())
    assert given == sorted((r["ids"].tolist(), (r["weights"] == 1).tolist()) for r in rows)


def test_its_labels_are_those_of_the_build_moved_left(
    plain: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    found = read["arrays"]
    labels = {r["ids"].tobytes(): r["labels"] for r in rows_of(plain)}
    width = found["labels"].shape[1]
    ids = found["input_ids"].reshape(-1, width)
    docs = np.split(found["doc_lens"], np.cumsum(found["docs"])[:-1])
    for row, (given, lens) in enumerate(zip(found["labels"], docs[:4], strict=True)):
        expected = np.full(width + 1, -100)
        first = 0
        for length in lens:
            own = labels.get(ids[row, first : first + length].astype(np.int32).tobytes())
            if own is not None:  # else it is padding
                expected[first : first + length] = own
            first += length
        np.testing.assert_array_equal(given, expected[1:])
        assert (given != -100).any()


def test_looking_for_eos_would_take_each_turn_for_a_document(
    plain: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    rows, stop = rows_of(plain), stop_token(plain)
    turns = sum(int((row["ids"] == stop).sum()) for row in rows)
    assert turns > 2 * len(rows)
    assert read["scanned"]["documents"] >= turns


def test_a_length_below_the_length_row_would_cut_what_trains(
    plain: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    trained = sum(int((row["weights"] == 1).sum()) for row in rows_of(plain))
    assert read["arrays"]["label_mask"].sum() == trained
    assert read["short"]["trained"] < trained


def test_a_dtype_guessed_from_a_small_vocabulary_would_read_halves_of_ids(
    read: dict[str, Any],
) -> None:
    # uint16: beside each lower half an upper one, 0; and nothing is said.
    ids = read["arrays"]["guessed"][:100]
    assert (ids[1::2] == 0).all() or (ids[::2] == 0).all()
    assert (ids != 0).any()
