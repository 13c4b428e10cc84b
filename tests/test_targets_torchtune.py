"""torchtune's recipe finds our component, and its step on our rows is the one by hand."""

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
    import pickle
    import runpy
    import sys
    from contextlib import nullcontext
    from functools import partial
    from pathlib import Path
    from types import SimpleNamespace
    from tests.stand_ins import stand_in

    # Quantization, tokenizers, downloads.
    stand_in("torchao", "sentencepiece", "tiktoken", "blobfile", "kagglehub")
    import torch
    import torchtune.data
    from omegaconf import OmegaConf
    from torchtune import config
    from torchtune.data import padded_collate_packed, padded_collate_sft
    from tests.tiny import gradient_of, greatest_difference, make_model

    # The recipes are no package: tune runs them as files.
    path = Path(torchtune.__file__).parent.parent / "recipes" / "full_finetune_single_device.py"
    Recipe = runpy.run_path(str(path))["FullFinetuneRecipeSingleDevice"]
    told_recipe = OmegaConf.load(sys.argv[1])
    sys.path.insert(0, sys.argv[2])  # as PYTHONPATH does
    tokenizer = SimpleNamespace(pad_id=0, max_seq_len=None)
    told = {}
    self = SimpleNamespace(
        _tokenizer=tokenizer, _loss_fn=torch.nn.CrossEntropyLoss(ignore_index=-100))
    loader = Recipe._setup_data(
        self, told_recipe.dataset, False, 4, "torchtune.data.padded_collate_sft")
    rows = loader.dataset
    told["loaded"] = [
        [batch[name].tolist() for name in ("tokens", "labels")] for batch in loader]
    told["rows"] = [[row["tokens"], row["labels"]] for row in (rows[i] for i in range(len(rows)))]

    class Model(torch.nn.Module):
        # torchtune calls models by tokens, and gets logits alone.
        def __init__(self):
            super().__init__()
            self.inner = make_model()
        def forward(self, tokens, mask=None, input_pos=None):
            more = {}
            if mask is not None:
                zero = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
                more = {"attention_mask": zero[:, None], "position_ids": input_pos}
            return self.inner(input_ids=tokens, **more).logits

    def step(batch):
        # The recipe's own step: it shifts the labels, then asks its loss.
        model = Model()
        recipe = SimpleNamespace(
            _model=model, _loss_fn=torch.nn.CrossEntropyLoss(ignore_index=-100),
            activations_handling_ctx=nullcontext(),
            ignore_labels_cache=torch.full((len(batch["labels"]), 1), -100))
        loss = Recipe._loss_step(recipe, dict(batch))
        loss.backward()
        return loss.item(), gradient_of(model.inner)

    def by_hand(pairs):
        model = make_model()
        count = sum(label != -100 for _, labels in pairs for label in labels)
        total = 0.0
        for ids, labels in pairs:
            logits = model(input_ids=torch.tensor([ids])).logits[0]
            for place, label in enumerate(labels):
                if label != -100:
                    total = total - torch.log_softmax(logits[place - 1], -1)[label] / count
        total.backward()
        return total.item(), gradient_of(model)

    some = sorted(range(len(rows)), key=lambda i: len(rows[i]["tokens"]))[:3]
    collate = partial(padded_collate_sft, padding_idx=0, ignore_idx=-100)
    batch = collate([rows[i] for i in some])
    told["batch"] = {name: value.tolist() for name, value in batch.items()}
    told["some"] = some
    hand = by_hand([told["rows"][i] for i in some])
    theirs = step(batch)
    told["loss"] = [hand[0], theirs[0], greatest_difference(hand[1], theirs[1])]
    shifted = [
        {"tokens": rows[i]["tokens"], "labels": rows[i]["labels"][1:] + [-100]} for i in some]
    told["shifted"] = step(collate(shifted))[0]

    told_recipe.dataset.packed = True
    tokenizer.max_seq_len = 900
    packed = config.instantiate(told_recipe.dataset, tokenizer)
    told["packed"] = []
    for i in range(len(packed)):
        start = 0
        for length in packed[i]["seq_lens"].tolist():
            part = slice(start, start + length)
            told["packed"].append([packed[i][n][part].tolist() for n in ("tokens", "labels")])
            start += length
    class Few(torch.utils.data.Dataset):
        def __len__(self):
            return len(some)
        def __getitem__(self, index):
            return rows[some[index]]
    few = torchtune.datasets.PackedDataset(Few(), max_seq_len=400)
    told["packs"] = len(few)
    theirs = step(padded_collate_packed([few[0]]))
    told["packed_loss"] = [hand[0], theirs[0], greatest_difference(hand[1], theirs[1])]

    again = pickle.loads(pickle.dumps(rows))
    told["worker"] = [len(pickle.dumps(rows)), again[5] == rows[5], len(list(again)), again[-1]]

    tokenizer.max_seq_len = None
    try:
        config.instantiate(told_recipe.dataset, tokenizer)
    except ValueError as error:
        told["without_length"] = str(error)
    transform = sys.modules["torchtune.datasets._sft"].SFTTransform
    plain_call = transform.__call__
    def call(self, sample):
        made = plain_call(self, sample)
        return made | {"labels": list(made["labels"][1:]) + [-100]}
    transform.__call__ = call  # as later versions do
    told_recipe.dataset.packed = False
    try:
        config.instantiate(told_recipe.dataset, tokenizer)
    except RuntimeError as error:
        told["shifting_version"] = str(error)
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def rows(plain: Path) -> list[Pair]:
    """ids and labels of each row of the build."""
    return [[row["ids"].tolist(), row["labels"].tolist()] for row in rows_of(plain)]


@pytest.fixture(scope="module")
def told(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What torchtune's own code made of the export, in one process."""
    home = tmp_path_factory.mktemp("torchtune")
    made = export_dataset(plain, "torchtune", home / "out")
    assert yaml.safe_load(made.recipe)["dataset"]["folder"] == str(home / "out")
    (home / "recipe.yaml").write_text(made.recipe)
    return run_with_trainers(
        SCRIPT,
        home / "recipe.yaml",
        home / "out",
        needs=["torchtune", "recipes", "omegaconf", "torchdata"],
    )


def test_our_component_gives_each_row_as_built(told: Any, rows: list[Pair]) -> None:
    assert told["rows"] == rows


def test_its_loader_gives_all_but_the_last_rows_of_no_whole_batch(
    told: Any, rows: list[Pair]
) -> None:
    assert len(told["loaded"]) == len(rows) // 4
    assert len(rows) % 4 > 0  # it drops these (drop_last), of whatever dataset
    for number, (tokens, labels) in enumerate(told["loaded"]):
        for row in range(4):
            ids, targets = rows[number * 4 + row]
            rest = len(tokens[row]) - len(ids)
            assert tokens[row] == ids + [0] * rest
            assert labels[row] == targets + [-100] * rest


def test_its_collator_pads_and_does_not_shift(told: Any, rows: list[Pair]) -> None:
    for row, number in enumerate(told["some"]):
        ids, labels = rows[number]
        rest = len(told["batch"]["labels"][row]) - len(ids)
        assert told["batch"]["tokens"][row] == ids + [0] * rest
        assert told["batch"]["labels"][row] == labels + [-100] * rest


def test_its_step_has_the_loss_and_the_gradient_by_hand(told: Any) -> None:
    by_hand, theirs, apart = told["loss"]
    assert theirs == pytest.approx(by_hand, rel=1e-5)
    assert apart < 1e-4


def test_labels_that_are_shifted_already_would_be_shifted_twice(told: Any) -> None:
    assert told["shifted"] != pytest.approx(told["loss"][0], rel=1e-3)


def test_its_packing_keeps_every_row_once_and_the_loss(told: Any, rows: list[Pair]) -> None:
    assert sorted(pair for pair in told["packed"] if pair in rows) == sorted(rows)
    assert told["packs"] == 1
    by_hand, theirs, apart = told["packed_loss"]
    assert theirs == pytest.approx(by_hand, rel=1e-5)
    assert apart < 1e-4


def test_a_worker_gets_the_folder_and_not_the_rows(told: Any, rows: list[Pair]) -> None:
    size, same, count, last = told["worker"]
    assert size < 1000
    assert same
    assert count == len(rows)
    assert last == {"tokens": rows[-1][0], "labels": rows[-1][1]}


def test_what_it_cannot_hold_is_refused(told: Any) -> None:
    assert "max_seq_len" in told["without_length"]
    assert "shifts labels in its datasets" in told["shifting_version"]
