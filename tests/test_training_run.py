"""Fifty steps on the embedded sample: what weighs 0 is not learnt, what weighs is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra: pip install '.[train]'")

import torch
from torch.utils.data import DataLoader

from pipeline import build, cli
from pipeline.training import (
    ShardDataset,
    ShardStream,
    WeightedCollator,
    weighted_cross_entropy,
)
from tests.tiny import make_model

pytestmark = [pytest.mark.train, pytest.mark.slow]

NO_THINKING = """
version: 1
name: no_thinking
rules:
  - {pattern: '<think>[\\s\\S]*?</think>\\s*', weight: 0}
"""
STEPS, EVALUATED = 50, 64


@dataclass(frozen=True)
class Learnt:
    """Mean log-probability of some tokens before and after."""

    before: float
    after: float


def train(shards: Path) -> tuple[Any, Any]:
    """The model before and after."""
    model, untrained = make_model(initializer_range=0.02), make_model(initializer_range=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    stream, steps = ShardStream(shards, batch_size=8, seed=0), 0
    for epoch in range(2):
        stream.set_epoch(epoch)
        for batch in DataLoader(stream, 8, collate_fn=WeightedCollator(pad_token_id=0)):
            if steps == STEPS:
                break
            labels, weights = batch.pop("labels"), batch.pop("loss_scale")
            weighted_cross_entropy(model(**batch).logits, labels, weights).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    assert steps == STEPS
    return untrained, model


def spoken(model: Any, rows: list[dict[str, Any]]) -> Any:
    """The log-probability of each token of all rows but the first of each, one after another."""
    batch = WeightedCollator(pad_token_id=0)(rows)
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logps = torch.log_softmax(logits[:, :-1], dim=-1)
    picked = logps.gather(2, batch["input_ids"][:, 1:, None]).squeeze(2)
    return picked[batch["attention_mask"][:, 1:].bool()]


def measure(shards: Path, rows: list[dict[str, Any]], tokens: dict[str, Any]) -> dict[str, Learnt]:
    before, after = (spoken(model, rows) for model in train(shards))
    return {
        name: Learnt(float(before[which].mean()), float(after[which].mean()))
        for name, which in tokens.items()
    }


def test_what_weighs_0_is_not_learnt_and_what_weighs_is(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(NO_THINKING)
    for name, rules in (("ours", str(tmp_path / "rules.yaml")), ("all", "default")):
        words = ["--rules", rules, "--output", str(tmp_path / name), "--quiet"]
        assert cli.run(build.main, words) == 0
    ours, everything = ShardDataset(tmp_path / "ours"), ShardDataset(tmp_path / "all")
    ids = torch.cat([torch.tensor(ours[i]["input_ids"][1:]) for i in range(EVALUATED)])
    one, other = (
        torch.cat([torch.tensor(rows[i]["loss_scale"][1:]) for i in range(EVALUATED)])
        for rows in (ours, everything)
    )
    # The marks of thinking stand nowhere but in think blocks: no other place teaches them.
    marks = torch.isin(ids, torch.tensor([4994, 4995])) & (one == 0) & (other == 1)
    assert marks.sum() > 50
    tokens = {"marks": marks, "trained": one == 1}
    rows = [ours[i] for i in range(EVALUATED)]
    masked = measure(tmp_path / "ours", rows, tokens)
    learnt = measure(tmp_path / "all", rows, tokens)
    assert masked["trained"].after > masked["trained"].before + 1
    assert learnt["trained"].after > learnt["trained"].before + 1
    # Ids that are never a target only lose to those that are.
    assert masked["marks"].after < masked["marks"].before - 0.5
    assert learnt["marks"].after > learnt["marks"].before + 5
