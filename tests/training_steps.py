"""One step of a tiny model, by hand and by trainers; under torchrun also as a script.

python -m torch.distributed.run --nproc_per_node 2 -m tests.training_steps FOLDER

writes FOLDER/<name>.npy for each of ``TWO_RANKS``: what a step of learning rate 1 took from the
weights of rank 0, which is the gradient.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import TrainingArguments

from pipeline.training import WeightedCollator, WeightedTrainer
from tests import tiny

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]
VOCABULARY = 64
# Each of these cuts the same eight rows into micro-batches for two ranks.
TWO_RANKS: dict[str, dict[str, Any]] = {
    "at_once": {"size": 4, "micro": 1},
    "accumulated": {"size": 2, "micro": 2},
    "padding_free": {"size": 2, "micro": 2, "padding_free": True},
    "by_weights": {"size": 1, "micro": 4, "denominator": "weights"},
    "by_tokens": {"size": 2, "micro": 2, "denominator": "tokens"},
    "stream": {"size": 2, "micro": 2, "padding_free": True, "stream": True},
    "each_its_own": {"size": 2, "micro": 2, "average_tokens_across_devices": False},
}


def make_rows() -> list[Row]:
    """Eight rows whose lengths, targets and weights differ much, so that means of means differ."""
    dice, rows = np.random.default_rng(7), []
    lengths, shares = (3, 40, 25, 5, 30, 2, 9, 6), (0.9, 0.1, 0.9, 0.5, 0.4, 1, 0, 1)
    for length, share in zip(lengths, shares, strict=True):
        ids = dice.integers(0, VOCABULARY, length)
        trained = dice.random(length) < share
        trained[0] = False
        weights = np.where(trained, dice.choice([0.25, 1, 4], length), 0).astype(np.float32)
        rows.append(
            {
                "input_ids": ids.tolist(),
                "labels": np.where(trained, ids, -100).tolist(),
                "loss_scale": weights.tolist(),
            }
        )
    return rows


class Stream(torch.utils.data.IterableDataset):  # type: ignore[misc] # torch is Any to mypy
    """The rows one after the other, for whoever splits them."""

    def __iter__(self) -> Iterator[Row]:
        return iter(make_rows())


def make_model(attention: str = "sdpa") -> Any:
    """The same tiny Qwen3 each time."""
    return tiny.make_model(vocab_size=VOCABULARY, attn_implementation=attention)


def flatten(tensors: Any) -> Floats:
    joined: Floats = torch.cat([t.detach().double().flatten() for t in tensors]).numpy()
    return joined


def differentiate(rows: list[Row], denominator: str, model: Any = None) -> tuple[float, Floats]:
    """Loss and gradient by hand: each row alone, in float64, each target by its own logarithm."""
    model = (model or make_model()).double()
    total, counts = 0.0, {"targets": 0.0, "weights": 0.0, "tokens": 0.0}
    for row in rows:
        shares = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for place in range(1, len(row["labels"])):
            counts["tokens"] += 1
            if row["labels"][place] != -100:
                counts["targets"] += 1
                counts["weights"] += row["loss_scale"][place]
                total -= row["loss_scale"][place] * shares[place - 1, row["labels"][place]]
    loss: Any = total / counts[denominator]
    loss.backward()
    return loss.item(), flatten(p.grad for p in model.parameters())


def make_arguments(folder: Path, **named: Any) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "optim": "sgd",
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0,
            "max_steps": 1,
            **named,
        }
    )


def step(trainer: Any) -> Floats:
    """The gradient of one step: what SGD with a learning rate of 1 took from the weights."""
    before = flatten(trainer.model.parameters())
    trainer.train()
    return before - flatten(trainer.model.parameters())


def take_step(
    folder: Path,
    *,
    size: int,
    micro: int,
    padding_free: bool = False,
    denominator: Any = "targets",
    stream: bool = False,
    **named: Any,
) -> Floats:
    """Of WeightedTrainer, over all rows in *micro* micro-batches of *size* rows a rank."""
    arguments = make_arguments(
        folder, per_device_train_batch_size=size, gradient_accumulation_steps=micro, **named
    )
    trainer = WeightedTrainer(
        make_model(),
        arguments,
        WeightedCollator(0, padding_free=padding_free, multiple_of=4),
        Stream() if stream else make_rows(),
        denominator=denominator,
    )
    return step(trainer)


def main(folder: Path) -> None:
    for name, settings in TWO_RANKS.items():
        found = take_step(folder, **settings)
        if int(torch.distributed.get_rank()) == 0:
            np.save(folder / f"{name}.npy", found)
    arguments = make_arguments(folder, per_device_eval_batch_size=4)
    trainer = WeightedTrainer(make_model(), arguments, WeightedCollator(0))
    loss = trainer.evaluate(make_rows())["eval_loss"]
    if int(torch.distributed.get_rank()) == 0:
        np.save(folder / "evaluated.npy", loss)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
