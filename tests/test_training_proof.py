"""From a conversation to the gradient: by hand, by our loss, by Trainer and by TRL the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra: pip install '.[train]'")
pytest.importorskip("trl", reason="needs the extra: pip install '.[train]'")

import torch
from datasets import load_dataset
from tokenizers import Tokenizer
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

from pipeline import build, cli
from pipeline.exporting import export_dataset
from pipeline.recipe import BUNDLED
from pipeline.training import (
    ShardDataset,
    WeightedCollator,
    WeightedTrainer,
    weighted_cross_entropy,
)
from tests.tiny import Recorder, gradient_of, greatest_difference, load_tokenizer, make_model

pytestmark = [
    pytest.mark.train,
    # SFTConfig sets Trainer's old name for it, and Trainer warns of that.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

TALKS = [
    ("What is 2 + 2?", "", "Four."),
    ("Capital of France?", "Paris, surely.", "Paris, on the Seine."),
    ("你好", "", "Hello to you, 世界."),
    ("Name a tree.", "Oak or elm? Oak.", "Oak."),
]
GRADED = """
version: 1
name: graded
rules:
  - {pattern: '<think>[\\s\\S]*?</think>\\s*', weight: 0.25}
  - {pattern: 'Paris', weight: 3}
"""
EMPTY = """
version: 1
name: empty
rules:
  - {pattern: '<think>\\s*</think>\\s*', weight: 0}
"""


def by_hand(
    talk: tuple[str, str, str], weigh: Callable[[str, int, int], float]
) -> tuple[list[int], list[float]]:
    """Ids and weights of a conversation, from its text and each token's own characters."""
    question, thought, answer = talk
    head = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    said = f"<think>\n{thought}\n</think>\n\n{answer}<|im_end|>"
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer" / "tokenizer.json"))
    encoded = tokenizer.encode(f"{head}{said}\n", add_special_tokens=False)
    weights = [
        weigh(said, start - len(head), end - len(head))
        if len(head) <= start and end <= len(head) + len(said)
        else 0.0
        for start, end in encoded.offsets
    ]
    return encoded.ids, weights


def weigh_graded(said: str, start: int, end: int) -> float:
    """0.25 in the think block and the space after it, three times in Paris."""
    block = said.index("</think>\n\n") + len("</think>\n\n")
    inside = any(
        said.startswith("Paris", at) and at <= start and end <= at + 5 for at in range(len(said))
    )
    return (0.25 if end <= block else 1.0) * (3 if inside else 1)


def weigh_empty(said: str, start: int, end: int) -> float:  # noqa: ARG001 - as the other
    """0 in an empty think block."""
    block = said.index("</think>\n\n") + len("</think>\n\n")
    return 0.0 if end <= block and said.startswith("<think>\n\n</think>") else 1.0


def built(home: Path, rules: str) -> Path:
    """The shards of TALKS under *rules*."""
    (home / "rules.yaml").write_text(rules)
    with (home / "talks.jsonl").open("w") as file:
        for question, thought, answer in TALKS:
            said: dict[str, Any] = {"role": "assistant", "content": answer}
            if thought:
                said["reasoning_content"] = thought
            messages = [{"role": "user", "content": question}, said]
            file.write(json.dumps({"messages": messages}) + "\n")
    words = ["--input", home / "talks.jsonl", "--rules", home / "rules.yaml", "--quiet"]
    words += ["--tokenizer", BUNDLED / "tokenizer", "--output", home / "shards"]
    assert cli.run(build.main, [str(word) for word in words]) == 0
    return home / "shards"


@dataclass(frozen=True)
class Case:
    """A build, and what it has to be by hand."""

    shards: Path
    rows: list[tuple[list[int], list[float]]]
    loss: float
    gradient: dict[str, Any]


def make_case(home: Path, rules: str, weigh: Callable[[str, int, int], float]) -> Case:
    rows = [by_hand(talk, weigh) for talk in TALKS]
    model = make_model().double()
    total = torch.zeros((), dtype=torch.float64)
    targets = 0
    for ids, weights in rows:  # one row at a time: nothing is padded
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        for place in range(1, len(ids)):
            if weights[place]:
                spoken = torch.log_softmax(logits[place - 1], dim=-1)[ids[place]]
                total = total - weights[place] * spoken
                targets += 1
    loss = total / targets
    loss.backward()
    return Case(built(home, rules), rows, loss.item(), gradient_of(model))


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("graded"), GRADED, weigh_graded)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("binary"), EMPTY, weigh_empty)


def test_the_shards_are_as_by_hand(graded: Case, binary: Case) -> None:
    for case in (graded, binary):
        rows = ShardDataset(case.shards)
        assert len(rows) == len(case.rows)
        for row, (ids, weights) in zip(rows, case.rows, strict=True):
            assert list(row["input_ids"]) == ids
            assert list(row["loss_scale"]) == weights
            assert list(row["labels"]) == [
                i if w else -100 for i, w in zip(ids, weights, strict=True)
            ]
    assert {w for _, weights in graded.rows for w in weights} == {0, 0.25, 0.75, 1, 3}
    assert {w for _, weights in binary.rows for w in weights} == {0, 1}


@pytest.mark.parametrize("padding_free", [False, True])
def test_our_loss_is_that_by_hand(graded: Case, padding_free: bool) -> None:
    rows = ShardDataset(graded.shards)
    batch = WeightedCollator(pad_token_id=0, padding_free=padding_free)([*rows])
    model = make_model()
    labels, weights = batch.pop("labels"), batch.pop("loss_scale")
    loss = weighted_cross_entropy(model(**batch).logits, labels, weights)
    loss.backward()
    assert loss.item() == pytest.approx(graded.loss, rel=1e-5)
    assert greatest_difference(gradient_of(model), graded.gradient) < 1e-4


def arguments(home: Path, **changes: Any) -> dict[str, Any]:
    """One step, of which an optimizer can be asked for the gradient."""
    return {
        "output_dir": str(home / "run"),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "max_grad_norm": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        **changes,
    }


@pytest.mark.parametrize(("size", "steps"), [(4, 1), (2, 2), (1, 4)])
def test_trainer_takes_the_step_by_hand(
    graded: Case, tmp_path: Path, size: int, steps: int
) -> None:
    settings = arguments(
        tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps
    )
    model = make_model()
    recorder = Recorder(model)
    trainer = WeightedTrainer(
        model=model,
        args=TrainingArguments(**settings, remove_unused_columns=False),
        train_dataset=ShardDataset(graded.shards),
        data_collator=WeightedCollator(pad_token_id=0),
        optimizers=(recorder, None),
    )
    told = trainer.train()
    assert told.training_loss == pytest.approx(graded.loss, rel=1e-4)
    assert greatest_difference(recorder.seen[0], graded.gradient) < 1e-4


@pytest.mark.parametrize(("size", "steps"), [(4, 1), (2, 2)])
def test_trl_takes_the_step_by_hand_on_its_export(
    binary: Case, tmp_path: Path, size: int, steps: int
) -> None:
    export_dataset(binary.shards, "trl", tmp_path / "trl")
    settings = arguments(
        tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps
    )
    model = make_model()
    recorder = Recorder(model)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**settings, max_length=None, bf16=False),
        train_dataset=load_dataset(str(tmp_path / "trl"), split="train"),
        processing_class=load_tokenizer(),
        optimizers=(recorder, None),
    )
    told = trainer.train()
    assert told.training_loss == pytest.approx(binary.loss, rel=1e-4)
    assert greatest_difference(recorder.seen[0], binary.gradient) < 1e-4


@pytest.mark.parametrize(("size", "steps"), [(4, 1), (2, 2)])
def test_trl_with_our_loss_takes_the_step_by_hand_of_any_weights(
    graded: Case, tmp_path: Path, size: int, steps: int
) -> None:
    class WeightedSFTTrainer(WeightedTrainer, SFTTrainer):  # type: ignore[misc] # types not read
        pass

    settings = arguments(
        tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps
    )
    model = make_model()
    recorder = Recorder(model)
    trainer = WeightedSFTTrainer(
        model=model,
        args=SFTConfig(
            **settings,
            max_length=None,
            bf16=False,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=load_dataset(str(graded.shards), split="train"),
        processing_class=load_tokenizer(),
        data_collator=WeightedCollator(pad_token_id=0),
        optimizers=(recorder, None),
    )
    told = trainer.train()
    assert told.training_loss == pytest.approx(graded.loss, rel=1e-4)
    assert greatest_difference(recorder.seen[0], graded.gradient) < 1e-4
