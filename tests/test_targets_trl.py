"""SFTTrainer trains on the export's very rows; what it cuts and drops otherwise is shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra: pip install '.[train]'")
pytest.importorskip("trl", reason="needs the extra: pip install '.[train]'")

import datasets
import torch
import trl
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from pipeline import build
from pipeline.exporting import export_dataset
from pipeline.recipe import BUNDLED
from tests import exports
from tests.exports import rows_of
from tests.tiny import gradient_of, greatest_difference, load_tokenizer, make_model

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning"),  # TRL's own
]
HERE = {"bf16": False, "dataloader_pin_memory": False}  # what takes an accelerator
Pair = tuple[list[int], list[int]]
plain = exports.plain


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` caches lies apart, and SFTTrainer writes into the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build with a row of more tokens than TRL keeps by default."""
    folder = tmp_path_factory.mktemp("long")
    talks = [("Count.", " ".join(map(str, range(1000)))), ("Capital of France?", "Paris.")]
    with (folder / "talks.jsonl").open("w") as file:
        for question, answer in talks:
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    words = ["--input", str(folder / "talks.jsonl"), "--tokenizer", str(BUNDLED / "tokenizer")]
    words += ["--output", str(folder / "shards"), "--workers", "1", "--quiet"]
    assert build.main(words) == 0
    assert max(len(row["ids"]) for row in read(folder / "shards")) > 1100
    return folder / "shards"


def read(shards: Path) -> list[dict[str, Any]]:
    """Rows of a small build."""
    rows = load_dataset("parquet", data_files=str(shards / "*.parquet"), split="train")
    return [
        {"ids": row["input_ids"], "labels": row["labels"], "weights": row["loss_scale"]}
        for row in rows
    ]


def pairs(shards: Path) -> list[Pair]:
    return [(row["ids"].tolist(), row["labels"].tolist()) for row in rows_of(shards)]


def prepare(recipe: str, monkeypatch: pytest.MonkeyPatch) -> SFTTrainer:
    """The trainer that the lines of *recipe* make, before it trains."""
    made: list[SFTTrainer] = []

    def keep(self: SFTTrainer) -> None:
        made.append(self)

    monkeypatch.setattr(SFTTrainer, "train", keep)
    monkeypatch.setattr(trl, "SFTConfig", partial(SFTConfig, **HERE))
    model = make_model()
    exec(recipe, {"model": model, "tokenizer": load_tokenizer()})
    return made[0]


def batches_of(trainer: SFTTrainer) -> Iterator[dict[str, Any]]:
    yield from trainer.get_train_dataloader()


def unpadded(batch: dict[str, Any]) -> Iterator[Pair]:
    for row in range(len(batch["input_ids"])):
        kept = batch["attention_mask"][row].bool()
        assert (batch["labels"][row][~kept] == -100).all()
        yield batch["input_ids"][row][kept].tolist(), batch["labels"][row][kept].tolist()


def test_the_recipe_gives_the_model_each_row_as_built(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export_dataset(plain, "trl", tmp_path / "trl")
    trainer = prepare(made.recipe, monkeypatch)
    seen = [pair for batch in batches_of(trainer) for pair in unpadded(batch)]
    assert sorted(seen) == sorted(pairs(plain))


def test_without_max_length_none_it_cuts_ids_and_labels_but_no_weights(
    long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_dataset(long, "datasets", tmp_path / "datasets")
    rows = load_dataset(str(tmp_path / "datasets"), split="train")
    trainer = SFTTrainer(
        make_model(),
        SFTConfig(output_dir="out", **HERE),
        train_dataset=rows,
        processing_class=load_tokenizer(),
    )
    cut = max(trainer.train_dataset, key=lambda row: row["length"])
    assert len(cut["input_ids"]) == len(cut["labels"]) == 1024
    assert len(cut["loss_scale"]) == cut["length"] > 1024
    whole = prepare(export_dataset(long, "trl", tmp_path / "trl").recipe, monkeypatch)
    expected = [(row["ids"], row["labels"]) for row in read(long)]
    assert sorted(p for b in batches_of(whole) for p in unpadded(b)) == sorted(expected)


def test_other_columns_never_reach_a_collator(long: Path, tmp_path: Path) -> None:
    export_dataset(long, "datasets", tmp_path / "datasets")
    columns: dict[bool, set[str]] = {}
    for remove in (True, False):
        trainer = SFTTrainer(
            make_model(),
            SFTConfig(output_dir="out", **HERE, max_length=None, remove_unused_columns=remove),
            train_dataset=load_dataset(str(tmp_path / "datasets"), split="train"),
            processing_class=load_tokenizer(),
            data_collator=lambda rows, remove=remove: columns.setdefault(remove, set(rows[0])),
        )
        next(iter(trainer.get_train_dataloader()))
    assert columns[True] == {"input_ids", "labels"}
    assert columns[False] >= {"input_ids", "labels", "loss_scale"}


def test_packed_rows_keep_their_positions_labels_and_loss(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export_dataset(plain, "trl", tmp_path / "trl", pack=1024)
    trainer = prepare(made.recipe, monkeypatch)
    assert len(trainer.train_dataset) == made.receipt["told"]["sequences"] < 60
    seen: list[Pair] = []
    for batch in batches_of(trainer):
        assert "attention_mask" not in batch
        firsts = batch["cu_seq_lens_q"].tolist()
        for first, stop in pairwise(firsts):
            ids, labels = (batch[name][0, first:stop] for name in ("input_ids", "labels"))
            assert batch["position_ids"][0, first:stop].tolist() == list(range(stop - first))
            seen.append((ids.tolist(), labels.tolist()))
    assert sorted(seen) == sorted(pairs(plain))
    one = trainer.data_collator([trainer.train_dataset[0]])
    assert len(one["cu_seq_lens_q"]) > 5
    _require_equal_step(trainer, one)


def _require_equal_step(trainer: SFTTrainer, batch: dict[str, Any]) -> None:
    """The packed batch has the loss and the gradient of its rows one by one."""
    firsts = batch["cu_seq_lens_q"].tolist()
    model = make_model()
    count = int((batch["labels"] != -100).sum())
    total = 0.0
    for first, stop in pairwise(firsts):
        ids, labels = (batch[name][:, first:stop] for name in ("input_ids", "labels"))
        logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
        (loss / count).backward()
        total += float(loss.detach()) / count
    trainer.model.zero_grad()
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    theirs.backward()
    assert float(theirs.detach()) == pytest.approx(total, rel=1e-5)
    assert greatest_difference(gradient_of(trainer.model), gradient_of(model)) < 1e-4
