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

    # Telemetry, downloads, colours of a terminal, other metrics, kernels of Triton.
    stand_in("posthog", "requests", "colorama", "wandb", "evaluate")
    stand_in("axolotl.monkeypatch.trainer.utils")
    numba = ModuleType("numba")
    numba.njit = lambda function: function  # it compiles the packing, which does the same in Python
    sys.modules["numba"] = numba
    import torch
    import trl
    import yaml
    prm = ModuleType("trl.experimental.prm")  # of older versions, for rewards
    prm.PRMConfig, prm.PRMTrainer = trl.RewardConfig, trl.RewardTrainer
    sys.modules["trl.experimental.prm"] = prm
    from axolotl.utils.collators import (
        DataCollatorForSeq2Seq, V2BatchSamplerDataCollatorForSeq2Seq)
    from axolotl.utils.data import sft
    from axolotl.utils.data.wrappers import _is_dataset_already_tokenized
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.samplers import MultipackBatchSampler, get_dataset_lengths
    from axolotl.utils.config import normalize_config, validate_config
    from axolotl.utils.trainer import setup_trainer
    from datasets import Dataset
    from tests.tiny import (
        Recorder, gradient_of, greatest_difference, load_tokenizer, make_model)
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

    make_model().save_pretrained(f"{folder}/model")
    tokenizer.save_pretrained(f"{folder}/model")

    def train_once(size, steps):
        config = validate_config(DictDefault(yaml.safe_load(open(recipe)) | {
            "base_model": f"{folder}/model", "micro_batch_size": size, "max_steps": 1,
            "gradient_accumulation_steps": steps, "learning_rate": 1e-3, "optimizer": "adamw_torch",
            "output_dir": f"{folder}/out", "val_set_size": 0, "bf16": False, "tf32": False,
            "attn_implementation": "eager", "save_strategy": "no", "max_grad_norm": 0,
            "curriculum_sampling": True, "dataloader_num_workers": 0,  # in the rows' order
            "dataset_prepared_path": f"{folder}/trained", "dataloader_pin_memory": False}),
            capabilities={"bf16": False, "n_gpu": 0, "compute_capability": None},
            env_capabilities={"torch_version": "2.13.0"})
        config.dataloader_prefetch_factor = None  # it sets one, which takes workers
        normalize_config(config)
        rows, *_ = sft.prepare_datasets.__wrapped__(config, tokenizer)
        trainer = setup_trainer(
            cfg=config, train_dataset=rows, eval_dataset=None, model=make_model(),
            tokenizer=tokenizer, processor=None, total_num_steps=1)
        trainer.optimizer = Recorder(trainer.model)
        recorder = trainer.optimizer
        loss = trainer.train().training_loss
        return loss, recorder.seen[0]

    def by_hand(*groups):
        # Each group of rows divides by its own trained tokens, the sum by their number.
        model = make_model()
        total = 0.0
        for group in groups:
            count = sum(label != -100 for row in group for label in row["labels"])
            for row in group:
                logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
                logs = torch.log_softmax(logits, -1)
                for place, label in enumerate(row["labels"]):
                    if label != -100:
                        total = total - logs[place - 1, label] / count / len(groups)
        total.backward()
        return total.item(), gradient_of(model)

    first = [rows[i] for i in range(8)]
    told["steps"] = {}
    hands = {"one": by_hand(first), "each": by_hand(first[:4], first[4:])}
    for name, shape in {"whole": (8, 1), "accumulated": (4, 2)}.items():
        theirs = train_once(*shape)
        told["steps"][name] = {
            way: [hand[0], theirs[0], greatest_difference(hand[1], theirs[1])]
            for way, hand in hands.items()}
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


def test_its_trainers_step_is_by_hand_but_accumulated_divides_each_micro_batch_alone(
    told: Any,
) -> None:
    steps = told["steps"]
    for way, step in (("one", "whole"), ("each", "accumulated")):
        by_hand, theirs, apart = steps[step][way]
        assert theirs == pytest.approx(by_hand, rel=1e-5)
        assert apart < 1e-4
    assert steps["accumulated"]["one"][2] > 0.01  # so the recipe tells
