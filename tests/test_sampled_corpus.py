"""Random ids of a real tokenizer as contents: exactly they stand in the row, weighing as given."""

from __future__ import annotations

import datetime
import json
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.batch import Encoder
from pipeline.recipe import load_template
from pipeline.rules import load_rules
from pipeline.source.record import Record
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from pipeline.tokens.vocabulary import read_vocabulary

pytestmark = pytest.mark.corpus
DAY = datetime.date(2026, 3, 14)
ROWS = 300


def encoder_of(folder: Path) -> Encoder:
    vocabulary = read_vocabulary(folder)
    return Encoder(load_tokenizer(vocabulary), load_template(vocabulary, today=DAY), load_rules([]))


def draw(random_: random.Random, tokenizer: Tokenizer) -> list[int]:
    """Ids that are text together, not white space at an end: Qwen's template takes that off."""
    while True:
        limits = (random_.choice([300, tokenizer.size]) for _ in range(random_.randint(1, 20)))
        ids = [random_.randrange(limit) for limit in limits]
        text = tokenizer.decode(ids)
        tags = any(tag in text for tag in ("think>", "<tool_"))
        if "\ufffd" not in text and text.strip() == text and not tags:
            return ids


def test_random_ids_stand_in_the_row_with_their_weights(shared: Path) -> None:
    encoder = encoder_of(shared / "tokenizers" / "qwen3")
    random_ = random.Random(7)
    talks: list[Any] = []
    for _ in range(ROWS):
        asked, said = draw(random_, encoder.tokenizer), draw(random_, encoder.tokenizer)
        weights = [random_.choice([0.0, 0.5, 1.0, 3.0]) for _ in said]
        if any("\ufffd" in encoder.tokenizer.decode([id_]) for id_ in said):
            weights = [0.5] * len(said)  # tokens that share a character
        talks.append((asked, said, weights))
    records = []
    for row, (asked, said, weights) in enumerate(talks):
        content = {"token_ids": said, "loss_scale": weights}
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": content}]
        raw = json.dumps({"messages": messages}).encode()
        records.append(Record(source="s", row=row, line=row + 1, raw=raw))
    batch = encoder.encode(records)
    assert not batch.rejects, batch.rejects[0].message
    begun, user, assistant, newline, stop = (
        encoder.tokenizer.encode([t]).ids.tolist()
        for t in (
            "<|im_start|>",
            "user\n",
            "assistant\n<think>\n\n</think>\n\n",
            "\n",
            "<|im_end|>",
        )
    )
    canonical = 0
    for row, (asked, said, weights) in zip(batch.rows.to_pylist(), talks, strict=True):
        head = [*begun, *user, *asked, *stop, *newline, *begun, *assistant]
        tail = [*stop, *newline] if said[-1:] != stop else newline
        assert row["input_ids"] == [*head, *said, *tail]
        here = slice(len(head), len(head) + len(said))
        assert row["loss_scale"][here] == weights
        live = [id_ if w else -100 for id_, w in zip(said, weights, strict=True)]
        assert row["labels"][here] == live
        text = encoder.tokenizer.decode(said)
        canonical += encoder.tokenizer.encode([text]).ids.tolist() == said
    assert ROWS - canonical > 50, "many are what no tokenizer would give"


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3.5", "gemma3", "glm-4.7-flash", "deepseek_r1"])
def test_an_answer_cut_into_odd_tokens_keeps_them(shared: Path, name: str) -> None:
    encoder = encoder_of(shared / "tokenizers" / name)
    tokenizer = encoder.tokenizer
    said = [
        int(i)
        for piece in ("It", " ", "is", " 21", "°", "C", "，", "好", "🦜")
        for i in tokenizer.encode([piece]).ids
    ]
    content = {"token_ids": said, "loss_scale": [0.5] * len(said)}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]
    raw = json.dumps({"messages": messages}).encode()
    batch = encoder.encode([Record(source="s", row=0, line=1, raw=raw)])
    assert not batch.rejects, batch.rejects[0].message
    (row,) = batch.rows.to_pylist()
    ids = row["input_ids"]
    found = [i for i in range(len(ids)) if ids[i : i + len(said)] == said]
    assert len(found) == 1
    assert row["loss_scale"][found[0] : found[0] + len(said)] == [0.5] * len(said)
