"""ms-swift's own run, from its command line to the gradient, trains on the export's very rows."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.exporting import export_dataset
from tests import exports
from tests.exports import Row, rows_of
from tests.trainers import run_with_trainers

pytestmark = pytest.mark.train
weighed = exports.weighed

SCRIPT = """
    import json
    import sys
    from tests.stand_ins import stand_in

    # Its hub, downloads, sounds and images, tuners that are not used.
    stand_in("modelscope", "aiohttp", "requests", "urllib3", "dacite", "json_repair", "einops")
    import modelscope.hub.api
    modelscope.hub.api.HubApi = type("HubApi", (), {})  # it is patched, which a mock does not let
    import torch
    from swift.dataset import LazyLLMDataset
    from swift.pipelines import SwiftSft
    from swift.pipelines.utils import get_cached_dataset
    from swift.template import MaxLengthError, get_template
    from swift.trainers import TrainerFactory
    from tests.tiny import Recorder, gradient_of, greatest_difference, load_tokenizer, make_model

    home, limit, words = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    make_model().save_pretrained(f"{home}/model")
    load_tokenizer().save_pretrained(f"{home}/model")
    here = ["--model", f"{home}/model", "--model_type", "qwen3", "--torch_dtype", "float32",
            "--tuner_type", "full", "--output_dir", f"{home}/out", "--report_to", "none",
            "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2",
            "--max_steps", "1", "--dataloader_num_workers", "0", "--save_strategy", "no",
            "--max_grad_norm", "0",
            "--train_dataloader_shuffle", "false", "--dataset_shuffle", "false"]
    told = {}

    def start():
        swift = SwiftSft([*here, *words])
        rows, _ = swift._prepare_dataset()
        swift.args.save_args()
        swift.model = swift.prepare_model(
            swift.args, swift.model, template=swift.template, train_dataset=rows)
        recorder = Recorder(swift.model)
        # As SwiftSft.run does it, less the writing of its reports.
        trainer = TrainerFactory.get_trainer_cls(swift.args)(
            model=swift.model, args=swift.args.training_args, template=swift.template,
            train_dataset=rows, optimizers=(recorder, None))
        return swift, rows, trainer, recorder

    def by_hand(some):
        model = make_model()
        count = sum(label != -100 for row in some for label in row["labels"])
        total = 0.0
        for row in some:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            logs = torch.log_softmax(logits, -1)
            for place, (label, weight) in enumerate(zip(row["labels"], row["loss_scale"])):
                if weight:
                    total = total - weight * logs[place - 1, label] / count
        total.backward()
        return total.item(), gradient_of(model)

    swift, rows, trainer, recorder = start()
    every = [rows[i] for i in range(len(rows))]
    told["rows"] = [[row[name] for name in ("input_ids", "labels", "loss_scale")] for row in every]
    hand = by_hand(every[:8])
    loss = trainer.train().training_loss
    told["step"] = [hand[0], loss, greatest_difference(hand[1], recorder.seen[0])]

    batch = swift.template.data_collator([rows[i] for i in range(4)])
    told["batch"] = {name: value.tolist() for name, value in batch.items()}

    # Not by its flag, which wants flash attention; the collator and the loss are those.
    swift, rows, trainer, recorder = start()
    swift.template.padding_free = True
    batch = swift.template.data_collator([rows[i] for i in range(4)])
    told["flat"] = {name: value.tolist() for name, value in batch.items()}
    loss = trainer.train().training_loss
    told["flat_step"] = [hand[0], loss, greatest_difference(hand[1], recorder.seen[0])]

    def loss_of(some):
        flat = swift.template.data_collator([dict(row) for row in some])
        with torch.no_grad():
            return trainer.compute_loss(trainer.model, dict(flat), num_items_in_batch=100).item()

    def with_first(row):
        return row | {"labels": row["input_ids"][:1] + row["labels"][1:],
                      "loss_scale": [5.0, *row["loss_scale"][1:]]}

    told["rolled"] = [loss_of(every[:2]), loss_of([every[0], with_first(every[1])])]
    told["refused"] = {}
    encode = type(swift.template).encode.__get__(swift.template)
    uneven = every[0] | {"labels": every[0]["labels"][1:]}
    odd = {"first": with_first(every[0]), "uneven": uneven, "chat": {"messages": []}}
    for name, row in odd.items():
        try:
            encode(row)
        except ValueError as error:
            told["refused"][name] = str(error)

    longest = max(range(len(every)), key=lambda i: len(every[i]["input_ids"]))
    swift.template.max_length = limit
    loose = LazyLLMDataset(rows.dataset, swift.template.encode, strict=False, random_state=1)
    told["replaced"] = loose[longest]["input_ids"] != every[longest]["input_ids"]
    try:
        LazyLLMDataset(rows.dataset, swift.template.encode, strict=True)[longest]
    except MaxLengthError as error:
        told["refused"]["long"] = str(error)
    swift.args.max_length = limit
    told["left"] = len(get_cached_dataset(swift.args)[0][0])
    try:
        get_template(swift.processor, template_type="qwen3").encode(rows.dataset[0])
    except KeyError as error:
        told["other_template"] = str(error)
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def rows(weighed: Path) -> list[Row]:
    return rows_of(weighed)


@pytest.fixture(scope="module")
def told(weighed: Path, rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ms-swift's own code made of the export, in one process."""
    home = tmp_path_factory.mktemp("swift")
    recipe = export_dataset(weighed, "ms-swift", home / "export").recipe
    command = shlex.split(recipe.replace("\\\n", " "), comments=True)
    assert command[:4] == ["swift", "sft", "--model", "..."]
    limit = sorted(len(row["ids"]) for row in rows)[-3]
    return run_with_trainers(SCRIPT, home, str(limit), *command[4:], needs=["swift", "peft"])


def as_pairs(rows: list[Row]) -> list[Any]:
    return [[row[name].tolist() for name in ("ids", "labels", "weights")] for row in rows]


def test_its_dataset_gives_ids_labels_and_weights_as_built(told: Any, rows: list[Row]) -> None:
    assert told["rows"] == as_pairs(rows)
    assert len({weight for row in told["rows"] for weight in row[2]}) >= 4


def test_its_collator_pads_each_and_does_not_shift(told: Any, rows: list[Row]) -> None:
    batch = told["batch"]
    for row, (ids, labels, weights) in enumerate(as_pairs(rows[:4])):
        rest = len(batch["input_ids"][row]) - len(ids)
        assert batch["input_ids"][row][: len(ids)] == ids
        assert batch["labels"][row] == labels + [-100] * rest
        assert batch["loss_scale"][row] == weights + [0.0] * rest
        assert batch["attention_mask"][row] == [1] * len(ids) + [0] * rest


def test_its_flat_batch_holds_row_after_row(told: Any, rows: list[Row]) -> None:
    flat = told["flat"]
    for name, key in (("input_ids", "ids"), ("labels", "labels"), ("loss_scale", "weights")):
        assert flat[name] == [np.concatenate([row[key] for row in rows[:4]]).tolist()]
    places = np.concatenate([np.arange(len(row["ids"])) for row in rows[:4]])
    assert flat["position_ids"] == [places.tolist()]


@pytest.mark.parametrize("name", ["step", "flat_step"])
def test_its_step_has_the_loss_and_the_gradient_by_hand(told: Any, name: str) -> None:
    by_hand, theirs, apart = told[name]
    assert theirs == pytest.approx(by_hand, rel=1e-5)
    assert apart < 1e-4


def test_a_weight_on_a_first_token_would_be_its_neighbours_and_is_refused(told: Any) -> None:
    clean, rolled = told["rolled"]
    assert rolled > clean * 1.01
    assert "first token" in told["refused"]["first"]


def test_rows_above_its_limit_are_left_out_or_replaced_unless_it_is_strict(
    told: Any, rows: list[Row]
) -> None:
    lengths = sorted(len(row["ids"]) for row in rows)
    assert told["left"] == sum(length <= lengths[-3] for length in lengths) < len(rows)
    assert told["replaced"]
    assert "more than --max_length" in told["refused"]["long"]


def test_what_is_no_row_of_an_export_is_refused(told: Any) -> None:
    assert "different lengths" in told["refused"]["uneven"]
    assert "model's own --template" in told["refused"]["chat"]


def test_a_cached_dataset_is_encoded_again_so_another_template_wants_messages(told: Any) -> None:
    assert "messages" in told["other_template"]
