"""axolotl takes the export for tokenized and trains on its very rows, alone or packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.exporting import export_dataset
from tests import exports
from tests.exports import rows_of
from tests.trainers import run_with_trainers

pytestmark = pytest.mark.train
plain = exports.plain
Pair = list[list[int]]

SCRIPT = """
    import json
    import sys
    from types import ModuleType
    from tests.stand_ins import stand_in

    stand_in("posthog", "requests", "colorama")  # telemetry, downloads, colours of a terminal
    numba = ModuleType("numba")
    numba.njit = lambda function: function  # it compiles the packing, which does the same in Python
    sys.modules["numba"] = numba
    import yaml
    from axolotl.utils.collators import (
        DataCollatorForSeq2Seq, V2BatchSamplerDataCollatorForSeq2Seq)
    from axolotl.utils.data import sft
    from axolotl.utils.data.wrappers import _is_dataset_already_tokenized
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.samplers import MultipackBatchSampler, get_dataset_lengths
    from axolotl.utils.schemas.datasets import SFTDataset
    from datasets import Dataset
    from tests.tiny import load_tokenizer
    from torch.utils.data import SequentialSampler

    save_to_disk = Dataset.save_to_disk  # without a pool of one process, which takes two seconds
    Dataset.save_to_disk = lambda rows, *words, num_proc, **more: save_to_disk(rows, *words, **more)
    recipe, folder, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
    tokenizer = load_tokenizer()
    told = {}
    count = 0

    def prepare(cache=None, **more):
        global count
        count += 1
        config = DictDefault(yaml.safe_load(open(recipe)) | {
            "seed": 7, "val_set_size": 0, "micro_batch_size": 2, "batch_size": 2, "num_epochs": 1,
            "gradient_accumulation_steps": 1, "min_sample_len": 2,
            "sample_packing_bin_size": 200, "sample_packing_group_size": 1000,
            "dataset_prepared_path": f"{folder}/prepared{cache or count}", **more})
        SFTDataset.model_validate(config.datasets[0].to_dict())
        # Less its retries, which name exceptions of requests.
        train, _, _, prompters = sft.prepare_datasets.__wrapped__(config, tokenizer)
        return train, prompters

    def pairs(rows):
        return [[row["input_ids"], row["labels"]] for row in rows]

    def lists(batch):
        return {name: value.tolist() for name, value in batch.items()}

    def save(rows, name):
        save_to_disk(rows, f"{folder}/{name}")
        return {"datasets": [{"path": f"{folder}/{name}", "type": None}]}

    train, prompters = prepare()
    told["columns"] = train.column_names
    told["prompters"] = [type(prompter).__name__ for prompter in prompters]
    told["rows"] = pairs(train)
    told["attended"] = all(set(row["attention_mask"]) == {1} for row in train)
    told["batch"] = lists(DataCollatorForSeq2Seq(tokenizer)([dict(train[i]) for i in range(9)]))

    packed, _ = prepare(sample_packing=True)
    sampler = MultipackBatchSampler(
        SequentialSampler(packed), 1, 900, get_dataset_lengths(packed), bin_size=200,
        num_processes=1)
    collate = V2BatchSamplerDataCollatorForSeq2Seq(tokenizer)
    told["packed"] = [
        lists(collate([[dict(packed[i]) for i in group] for group in batch])) for batch in sampler]

    told["above_the_limit"] = {}
    told["above_the_limit"]["silent"] = len(
        prepare(sequence_len=limit, excess_length_strategy=None)[0])
    try:
        prepare(sequence_len=limit)
    except ValueError as error:
        told["above_the_limit"]["error"] = str(error)

    rows = Dataset.load_from_disk(yaml.safe_load(open(recipe))["datasets"][0]["path"])
    told["tokenized"] = [
        _is_dataset_already_tokenized(rows),
        _is_dataset_already_tokenized(rows.remove_columns("attention_mask")),
        _is_dataset_already_tokenized(rows.to_iterable_dataset()),
    ]
    # Five rows, of which two train nothing.
    some = Dataset.from_list([
        row | {"labels": [-100] * len(row["labels"])} if i in (1, 3) else row
        for i, row in enumerate(rows.select(range(5)))], features=rows.features)
    told["blank"] = {
        "packed": len(prepare(sample_packing=True, **save(some, "some"))[0]),
        "alone": len(prepare(**save(some, "some2"))[0]),
    }
    changed = save(rows.select(range(3)), "changed")
    before = len(prepare(cache="same", **changed)[0])
    save(rows.select(range(7)), "changed")
    told["changed"] = [before, len(prepare(cache="same", **changed)[0])]
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def rows(plain: Path) -> list[Pair]:
    """ids and labels of each row of the build."""
    return [[row["ids"].tolist(), row["labels"].tolist()] for row in rows_of(plain)]


@pytest.fixture(scope="module")
def recipe(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the export prints."""
    return export_dataset(plain, "axolotl", tmp_path_factory.mktemp("axolotl") / "out").recipe


@pytest.fixture(scope="module")
def told(recipe: str, rows: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What axolotl's own code made of it, in one process."""
    home = tmp_path_factory.mktemp("ran")
    (home / "recipe.yaml").write_text(recipe)
    limit = sorted(len(ids) for ids, _ in rows)[-3] - 1
    return run_with_trainers(
        SCRIPT, home / "recipe.yaml", home, str(limit), needs=["axolotl", "peft"]
    )


def test_its_loader_takes_the_rows_as_they_are(told: Any, rows: list[Pair]) -> None:
    assert told["columns"] == ["input_ids", "attention_mask", "labels"]
    assert told["prompters"] == ["UnsupportedPrompter"]  # no prompt strategy was asked
    assert told["attended"]
    assert told["rows"] == rows


def test_its_collator_pads_and_does_not_shift(told: Any, rows: list[Pair]) -> None:
    batch = told["batch"]
    assert len(batch["labels"]) == 9
    for row, (ids, labels) in enumerate(rows[:9]):
        rest = len(batch["labels"][row]) - len(ids)
        assert batch["input_ids"][row][: len(ids)] == ids
        assert batch["labels"][row] == labels + [-100] * rest
        assert batch["attention_mask"][row] == [1] * len(ids) + [0] * rest


def test_its_packing_keeps_every_row_once_with_its_own_positions(
    told: Any, rows: list[Pair]
) -> None:
    found = []
    names = ("input_ids", "labels", "attention_mask", "position_ids")
    for batch in told["packed"]:
        for ids, labels, masks, positions in zip(*(batch[n] for n in names), strict=True):
            for number in sorted(set(masks) - {0}):
                places = [i for i, mask in enumerate(masks) if mask == number]
                assert [positions[i] for i in places] == list(range(len(places)))
                found.append([[ids[i] for i in places], [labels[i] for i in places]])
    assert sorted(found) == sorted(rows)


def test_it_knows_tokenized_rows_by_three_columns_of_a_map_style_dataset(told: Any) -> None:
    assert told["tokenized"] == [True, False, False]


def test_rows_above_its_limit_go_in_silence_and_with_our_recipe_in_an_error(
    told: Any, recipe: str, rows: list[Pair]
) -> None:
    lengths = sorted(len(ids) for ids, _ in rows)
    assert told["above_the_limit"]["silent"] == sum(n < lengths[-3] for n in lengths) < len(rows)
    assert "exceeds the maximum" in told["above_the_limit"]["error"]
    assert yaml.safe_load(recipe)["sequence_len"] == lengths[-1]


def test_rows_that_train_nothing_go_only_when_it_packs(told: Any) -> None:
    assert told["blank"] == {"packed": 3, "alone": 5}


def test_what_it_prepared_of_a_path_outlives_the_contents(told: Any) -> None:
    assert told["changed"] == [3, 3]  # and not 7: so the recipe says another folder
