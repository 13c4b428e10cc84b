"""LLaMA-Factory's own run, from its arguments to the gradient, is on the export's very rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.errors import BuildError
from pipeline.exporting import export_dataset
from tests import exports
from tests.exports import rows_of
from tests.trainers import run_with_trainers

pytestmark = pytest.mark.train
plain = exports.plain
Pair = list[list[int]]

SCRIPT = """
    import json
    import os
    import sys
    from tests.stand_ins import stand_in

    stand_in("torchaudio")  # for sounds in messages
    os.environ["DISABLE_VERSION_CHECK"] = "1"  # it asks for transformers of at most 5.6
    import torch
    import trl
    trl.AutoModelForCausalLMWithValueHead = object  # of older versions, for PPO
    import yaml
    from llamafactory.hparams import get_train_args
    from llamafactory.train.sft import workflow
    from tests.tiny import Recorder, gradient_of, greatest_difference, load_tokenizer, make_model

    home = sys.argv[1]
    make_model().save_pretrained(f"{home}/model")
    load_tokenizer().save_pretrained(f"{home}/model")
    here = {
        "model_name_or_path": f"{home}/model", "template": "qwen3", "finetuning_type": "full",
        "do_train": True, "report_to": "none", "use_cpu": True,
        "max_steps": 1, "eval_steps": 1, "per_device_eval_batch_size": 16,
        "per_device_train_batch_size": 4, "max_grad_norm": 0,
        "gradient_accumulation_steps": 2, "disable_shuffling": True, "save_strategy": "no",
        "dataloader_pin_memory": False, "disable_gradient_checkpointing": True,
        "cutoff_len": 16}  # a limit that rows would be cut at, if any were
    made = []

    def create_optimizer(trainer):
        made.append((trainer, Recorder(trainer.model)))
        trainer.optimizer = made[-1][1]
        return trainer.optimizer

    workflow.CustomSeq2SeqTrainer.create_optimizer = create_optimizer

    def by_hand(rows):
        model = make_model()
        count = sum(label != -100 for row in rows for label in row["labels"])
        total = 0.0
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            logs = torch.log_softmax(logits, -1)
            for place, label in enumerate(row["labels"]):
                if label != -100:
                    total = total - logs[place - 1, label] / count
        total.backward()
        return total.item(), gradient_of(model)

    def run(recipe):
        out = {"output_dir": f"{home}/out{len(made)}"}
        workflow.run_sft(*get_train_args(recipe | here | out))
        trainer, recorder = made[-1]
        module = {"train": trainer.train_dataset, "validation": trainer.eval_dataset}
        batch = trainer.data_collator([dict(module["train"][i]) for i in range(9)])
        hand = by_hand([module["train"][i] for i in range(8)])
        losses = [entry for entry in trainer.state.log_history if "train_loss" in entry]
        return {
            "rows": {
                name: [[row["input_ids"], row["labels"]] for row in rows]
                for name, rows in module.items() if rows is not None},
            "batch": {name: value.tolist() for name, value in batch.items()},
            "step": [hand[0], losses[0]["train_loss"],
                     greatest_difference(hand[1], recorder.seen[0])],
            "evaluated": any("eval_loss" in entry for entry in trainer.state.log_history),
        }

    print(json.dumps([run(yaml.safe_load(open(recipe))) for recipe in sys.argv[2:]]))
"""
FIRST_VERSION = """
    import json
    import sys
    from types import SimpleNamespace
    from tests.stand_ins import stand_in

    stand_in("torchaudio", "torchdata")  # sounds; the loader that resumes
    import torch
    from llamafactory.v1.trainers.sft_trainer import SFTTrainer
    from tests.tiny import gradient_of, greatest_difference, make_model

    torch.manual_seed(1)
    ids = torch.randint(0, 5000, (2, 12))
    weights = torch.rand(2, 12) + 0.5
    weights[:, :3] = 0
    model = make_model()

    def step(scale):
        model.zero_grad()
        trainer = SimpleNamespace(device="cpu", model=model)
        trainer.compute_log_probs = SFTTrainer.compute_log_probs.__get__(trainer)
        batch = {"input_ids": ids, "labels": ids.masked_fill(weights == 0, -100),
                 "loss_weights": weights * scale}
        loss = SFTTrainer.compute_loss(trainer, batch)
        loss.backward()
        return loss.item(), gradient_of(model)

    plain, threefold, uneven = step(1.0), step(3.0), step(torch.tensor([[1.0], [3.0]]))
    print(json.dumps([
        plain[0], threefold[0],
        *(greatest_difference(plain[1], other[1]) for other in (threefold, uneven))]))
"""


def run(script: str, *words: str | Path) -> Any:
    return run_with_trainers(script, *words, needs=["llamafactory", "peft"])


@pytest.fixture(scope="module")
def rows(plain: Path) -> list[Pair]:
    """ids and labels of each row of the build."""
    return [[row["ids"].tolist(), row["labels"].tolist()] for row in rows_of(plain)]


@pytest.fixture(scope="module")
def told(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What its own code made of an export, and of one with a validation set, in one process."""
    home = tmp_path_factory.mktemp("llamafactory")
    for name, share in (("whole", None), ("divided", 0.1)):
        made = export_dataset(plain, "llamafactory", home / name, validation=share)
        (home / f"{name}.yaml").write_text(made.recipe)
        assert yaml.safe_load(made.recipe).get("do_eval", False) is (share is not None)
    return run(SCRIPT, home, home / "whole.yaml", home / "divided.yaml")


def test_its_loader_and_collator_take_the_rows_as_they_are(told: Any, rows: list[Pair]) -> None:
    assert told[0]["rows"] == {"train": rows}
    batch = told[0]["batch"]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for row, (ids, labels) in enumerate(rows[:9]):
        masks = batch["attention_mask"][row]
        rest = len(masks) - len(ids)
        assert len(masks) % 8 == 0
        assert masks == [1] * len(ids) + [0] * rest
        assert batch["input_ids"][row][: len(ids)] == ids
        assert batch["labels"][row] == labels + [-100] * rest


def test_its_step_has_the_loss_and_the_gradient_by_hand(told: Any) -> None:
    for run in told:
        by_hand, theirs, apart = run["step"]
        assert theirs == pytest.approx(by_hand, rel=1e-4)
        assert apart < 1e-4


def test_a_share_of_the_records_becomes_its_evaluation(told: Any, rows: list[Pair]) -> None:
    found = told[1]["rows"]
    train, held_out = found["train"], found["validation"]
    assert [run["evaluated"] for run in told] == [False, True]
    assert sorted(train + held_out) == sorted(rows)
    assert 0.05 < len(held_out) / len(rows) < 0.2
    numbers = {json.dumps(row): i for i, row in enumerate(rows)}
    for part in (train, held_out):  # each in the order of the build
        places = [numbers[json.dumps(row)] for row in part]
        assert places == sorted(places)


def test_the_folder_is_a_dataset_dict(plain: Path, rows: list[Pair], tmp_path: Path) -> None:
    for name, share in (("whole", None), ("divided", 0.2)):
        export_dataset(plain, "llamafactory", tmp_path / name, validation=share)
    whole = datasets.load_from_disk(str(tmp_path / "whole"))
    divided = datasets.load_from_disk(str(tmp_path / "divided"))
    assert list(whole) == ["train"]
    assert list(divided) == ["train", "validation"]
    assert whole["train"].column_names == ["input_ids", "attention_mask", "labels"]
    assert len(whole["train"]) == len(rows) == sum(map(len, divided.values()))
    fingerprints = {part._fingerprint for part in (whole["train"], *divided.values())}
    assert len(fingerprints) == 3  # what is cached of one is never taken for another


def test_a_share_that_leaves_a_split_empty_is_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"--validation 1e-06: leaves no row for validation"):
        export_dataset(plain, "llamafactory", tmp_path / "out", validation=1e-6)
    assert not (tmp_path / "out").exists()


def test_every_token_is_attended_to(plain: Path, tmp_path: Path) -> None:
    export_dataset(plain, "llamafactory", tmp_path / "out")
    rows = datasets.load_from_disk(str(tmp_path / "out"))["train"]
    tokens = sum(pq.read_table(p)["length"].to_numpy().sum() for p in plain.glob("*.parquet"))
    masks = [mask for row in rows for mask in row["attention_mask"]]
    assert len(masks) == tokens
    assert set(masks) == {1}


def test_its_next_version_divides_by_the_weights_so_that_a_uniform_one_cancels() -> None:
    plain, threefold, apart, uneven = run(FIRST_VERSION)
    assert threefold == pytest.approx(plain, rel=1e-5)
    assert apart < 1e-4
    assert uneven > 0.01
