"""The pure core, called from Python in the ways that its users have."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pipeline
import pipeline.batch
from pipeline.errors import InputError
from pipeline.recipe import BUNDLED
from pipeline.rules import compose, parse_rule_file
from pipeline.shards import SCHEMA
from pipeline.source.record import Record

TALK = {
    "messages": [
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "Four 🙂"},
    ]
}
CALLED = {
    "messages": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "look", "arguments": {"b": 1, "a": None}}}
            ],
        },
        {"role": "tool", "content": "Rain"},
        {"role": "assistant", "content": "Rain."},
    ],
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}],
}


@pytest.fixture(scope="module")
def encoder() -> Any:
    vocabulary = pipeline.read_vocabulary(BUNDLED / "tokenizer")
    return pipeline.Encoder(
        pipeline.load_tokenizer(vocabulary, certificate=pipeline.find_certificate(vocabulary)),
        pipeline.load_template(vocabulary),
        pipeline.load_rules(["ignore_empty_think"]),
    )


def test_values_in_memory_become_rows_and_stay_as_they_are(encoder: Any) -> None:
    values = [copy.deepcopy(TALK), copy.deepcopy(CALLED)]
    rows = encoder(values)
    assert rows.schema.equals(SCHEMA)
    assert rows.column("row").to_pylist() == [0, 1]
    assert values == [TALK, CALLED]


def test_a_batch_gives_the_rows_that_its_records_give_alone(encoder: Any) -> None:
    together = encoder([TALK, CALLED, TALK])
    for i, value in enumerate([TALK, CALLED, TALK]):
        alone = encoder([value]).to_pylist()[0]
        assert {**together.to_pylist()[i], "row": 0} == alone


def test_an_arrow_table_gives_the_rows_of_its_values(encoder: Any) -> None:
    """Arrow pads what one message has and another has not with nulls; they say nothing."""
    table = pa.Table.from_pylist([TALK, {"messages": CALLED["messages"]}])
    rows = encoder(table)
    assert isinstance(rows, pa.Table)
    assert rows["input_ids"].to_pylist()[0] == encoder([TALK]).to_pylist()[0]["input_ids"]


def test_datasets_can_map_it(encoder: Any) -> None:
    import datasets

    datasets.disable_progress_bars()
    source = datasets.Dataset.from_list([TALK] * 5).with_format("arrow")
    mapped = source.map(encoder, batched=True, batch_size=2, remove_columns=source.column_names)
    assert mapped.with_format(None)["labels"][:] == encoder([TALK] * 5).to_pydict()["labels"]


def test_an_encoder_survives_pickling(encoder: Any) -> None:
    assert pickle.loads(pickle.dumps(encoder))([TALK, CALLED]).equals(encoder([TALK, CALLED]))


def test_the_first_bad_record_is_named(encoder: Any) -> None:
    with pytest.raises(InputError, match=r"^\[1\]: messages\[0\]\.role: "):
        encoder([TALK, {"messages": [{"role": "wizard", "content": "x"}]}])


def test_no_records_are_no_rows(encoder: Any) -> None:
    assert encoder([]).num_rows == 0


def test_public_names_exist() -> None:
    for name in pipeline.__all__:
        assert getattr(pipeline, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipeline.nothing


@pytest.mark.parametrize("depth", [100, 900, 960, 985, 990, 1200, 100_000])
def test_a_record_nested_too_deep_is_a_reject_and_no_crash(encoder: Any, depth: int) -> None:
    deep = '{"a": ' * depth + "{}" + "}" * depth
    tool = '{"type": "function", "function": {"name": "f", "parameters": ' + deep + "}}"
    raw = (json.dumps(TALK)[:-1] + f', "tools": [{tool}]}}').encode()
    encoded = encoder.encode([Record("x", 0, 1, raw), Record("x", 1, 2, json.dumps(TALK).encode())])
    assert encoded.rows.num_rows + len(encoded.rejects) == 2
    for row in encoded.rows.to_pylist():
        kept = [i for i, w in zip(row["input_ids"], row["loss_scale"], strict=True) if w]
        assert encoder.tokenizer.decode(kept) == "Four 🙂<|im_end|>"


def test_a_weight_on_a_part_is_the_weight_of_its_characters(encoder: Any) -> None:
    record = copy.deepcopy(TALK)
    record["messages"][1]["content"] = [  # type: ignore[assignment] # parts, not text
        {"type": "text", "text": "Four"},
        {"type": "text", "text": " or five", "weight": 0.5},
        {"type": "text", "text": ".", "weight": 0},
    ]
    (row,) = encoder([record]).to_pylist()
    vocabulary = pipeline.read_vocabulary(BUNDLED / "tokenizer")
    tokenizer = pipeline.load_tokenizer(vocabulary)
    said: dict[float, str] = {}
    for id_, weight in zip(row["input_ids"], row["loss_scale"], strict=True):
        said[weight] = said.get(weight, "") + tokenizer.decode([id_])
    assert said[0.5] == " or five"
    assert said[1.0] == "Four<|im_end|>"


def test_huge_weights_leave_the_sums_of_other_rows_alone() -> None:
    from pipeline.columns import row_sums

    values = np.array([1e20, 1.0, 1.0, 0.5], np.float32)
    assert row_sums(values, np.array([0, 1, 1, 4])).tolist() == [np.float32(1e20), 0.0, 2.5]


def test_a_pattern_that_searches_backwards_claims_all_it_finds() -> None:
    rule = parse_rule_file(
        "version: 1\nname: r\nrules:\n  - pattern: '(?r)[a-z]+'\n    weight: 0\n", place="r"
    )
    vocabulary = pipeline.read_vocabulary(BUNDLED / "tokenizer")
    reverse = pipeline.Encoder(
        pipeline.load_tokenizer(vocabulary), pipeline.load_template(vocabulary), compose([rule])
    )
    talk = copy.deepcopy(TALK)
    talk["messages"][1]["content"] = "one 1 two 2 three 3"
    row = reverse([talk]).to_pylist()[0]
    kept = [i for i, w in zip(row["input_ids"], row["loss_scale"], strict=True) if w]
    text = reverse.tokenizer.decode(kept)
    assert "1" in text
    assert "one" not in text
    assert "three" not in text


@pytest.mark.parametrize("turns", ["as_rendered", "fan_out"])
def test_a_record_with_too_long_a_row_is_a_reject_and_the_others_stay_as_they_are(
    turns: str, encoder: Any
) -> None:
    said = [["Yes.", "No " * n] for n in (1, 40, 2, 50, 3)]
    values = [
        {
            "messages": [
                m
                for word in words
                for m in (
                    {"role": "user", "content": "So?"},
                    {"role": "assistant", "content": word},
                )
            ]
        }
        for words in said
    ]
    records = [Record("s", i, i + 1, json.dumps(value).encode()) for i, value in enumerate(values)]

    def encode(limit: int) -> Any:
        policy = pipeline.Policy(turns=turns, max_length=limit)
        parts = (encoder.tokenizer, encoder.template, encoder.rules)
        return pipeline.Encoder(*parts, policy=policy).encode(records)

    free = encode(0)
    longest = [
        max(r["length"] for r in free.rows.to_pylist() if r["row"] == row) for row in range(5)
    ]
    bounded = encode(longest[4])
    assert [(r.row, r.stage, r.reason) for r in bounded.rejects] == [
        (1, "encode", "too_long"),
        (3, "encode", "too_long"),
    ]
    told = f"s:2: has {longest[1]:,} tokens, and --max-length is {longest[4]}; "
    assert bounded.rejects[0].message.startswith(told)
    kept = [row for row in free.rows.to_pylist() if row["row"] in (0, 2, 4)]
    assert bounded.rows.to_pylist() == kept
    assert (bounded.counts["conversations"], bounded.counts["rows"]) == (5, len(kept))


def test_a_large_record_is_looked_at_alone(encoder: Any) -> None:
    """Should it kill its worker, it is the one that the worker was at."""
    large = {"messages": [{"role": "user", "content": "x " * 160_000}, TALK["messages"][1]]}
    values = [TALK, CALLED, large, TALK, CALLED, TALK]
    records = [
        Record(source="", row=i, line=0, raw=json.dumps(value).encode())
        for i, value in enumerate(values)
    ]
    told: list[int] = []
    together = encoder.encode(records, at=told.append)
    assert {*told} == {*range(6)}
    first, last = told.index(2), len(told) - told[::-1].index(2)
    assert {*told[first:last]} == {2}
    assert told[:4] == [0, 1, 0, 1]  # the others stage by stage
    assert together.rows.column("row").to_pylist() == [*range(6)]
    alone = [encoder.encode([record]).rows for record in records]
    assert together.rows.equals(pa.Table.from_batches(alone).combine_chunks().to_batches()[0])


def test_texts_that_are_encoded_together_are_bounded_by_their_length(
    encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of columnar files come by number, so many of them may be large."""
    records = [Record("s", row, 0, value=TALK) for row in range(100)]
    expected = encoder.encode(records)
    held: list[int] = []
    encode_texts = encoder.encode_texts

    def seen(prepared: Any) -> Any:
        held.append(sum(len(p.text) for p in prepared))
        return encode_texts(prepared)

    monkeypatch.setattr(pipeline.batch, "_GROUP", 1000)
    monkeypatch.setattr(encoder, "encode_texts", seen)
    assert encoder.encode(records).rows.equals(expected.rows)
    assert sum(held) > 5_000
    assert max(held) < 1200
