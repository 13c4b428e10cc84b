"""Content that is token ids: read strictly, each fault at its place."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from pipeline.conversation import Piece, SampledContent
from pipeline.errors import RecordError
from pipeline.schema import read_conversation
from pipeline.source.columns import to_records
from pipeline.source.record import decode

USER = {"role": "user", "content": "q"}
PLACE = "messages[1].content"


def read(content: Any, **keys: Any) -> Any:
    message = {"role": "assistant", "content": content, **keys}
    return read_conversation({"messages": [USER, message]}).messages[1]


def pieces_of(content: Any) -> tuple[Piece, ...]:
    found = read(content)["content"]
    assert isinstance(found, SampledContent)
    return found.pieces


def fault_of(content: Any, **keys: Any) -> tuple[str, str]:
    with pytest.raises(RecordError) as caught:
        read(content, **keys)
    assert caught.value.stage == "parse"
    return caught.value.reason, caught.value.field


@pytest.mark.parametrize(
    ("content", "weights"),
    [
        ({"token_ids": [5, 6]}, ()),
        ({"token_ids": [5, 6], "loss_scale": None}, ()),
        ({"token_ids": [5, 6], "loss_scale": [0, 0.5]}, (0.0, 0.5)),
        ({"token_ids": [5, 6], "loss_scale": 2}, (2.0, 2.0)),
        ({"token_ids": [5, 6], "loss": False}, (0.0, 0.0)),
        ({"type": "text", "text": None, "token_ids": [5, 6]}, ()),
    ],
)
def test_ids_come_with_one_weight_each_or_none(content: Any, weights: tuple[float, ...]) -> None:
    assert pieces_of(content) == (Piece("", (5, 6), weights, f"{PLACE}.token_ids"),)
    assert pieces_of([content]) == (Piece("", (5, 6), weights, f"{PLACE}[0].token_ids"),)


def test_a_list_of_ids_is_a_content() -> None:
    assert pieces_of([5, 6]) == (Piece("", (5, 6), (), PLACE),)
    assert pieces_of({"token_ids": []}) == (Piece("", (), (), f"{PLACE}.token_ids"),)


def test_a_list_mixes_texts_and_ids() -> None:
    ids = {"token_ids": [7], "loss_scale": [0.5]}
    assert pieces_of(["a", ids, [5, 6], {"type": "text", "text": "b", "weight": 2}]) == (
        Piece("a"),
        Piece("", (7,), (0.5,), f"{PLACE}[1].token_ids"),
        Piece("", (5, 6), (), f"{PLACE}[2]"),
        Piece("b", weights=(2.0,)),
    )


def test_ids_stand_beside_reasoning_and_calls() -> None:
    call = {"type": "tool_call", "value": {"name": "f", "arguments": {}}}
    message = read([{"type": "reasoning", "text": "r"}, {"token_ids": [7]}, call])
    assert message["reasoning_content"] == "r"
    assert message["content"].pieces[0].ids == (7,)
    assert message["tool_calls"][0]["function"]["name"] == "f"


def test_ids_stand_in_every_schema_with_messages() -> None:
    ids = {"token_ids": [7]}
    for record in (
        {"conversations": [{"from": "human", "value": [1]}, {"from": "gpt", "value": ids}]},
        {"conversation": [{"input": "q", "output": ids}]},
    ):
        assert read_conversation(record).messages[1]["content"].pieces[0].ids == (7,)


@pytest.mark.parametrize(
    ("content", "reason", "field"),
    [
        ({"token_ids": "5"}, "bad_token_ids", ".token_ids"),
        ({"token_ids": {}}, "bad_token_ids", ".token_ids"),
        ({"token_ids": [5, "6"]}, "bad_token_ids", ".token_ids[1]"),
        ({"token_ids": [5, 6.0]}, "bad_token_ids", ".token_ids[1]"),
        ({"token_ids": [True]}, "bad_token_ids", ".token_ids[0]"),
        ({"token_ids": [None]}, "bad_token_ids", ".token_ids[0]"),
        ({"token_ids": [-1]}, "bad_token_ids", ".token_ids[0]"),
        ({"token_ids": [2**31]}, "bad_token_ids", ".token_ids[0]"),
        ({"token_ids": [5], "text": "a"}, "bad_token_ids", ".text"),
        ({"token_ids": [5], "loss_scale": []}, "bad_weight", ".loss_scale"),
        ({"token_ids": [5], "loss_scale": [1, 1]}, "bad_weight", ".loss_scale"),
        ({"token_ids": [5], "loss_scale": [-1]}, "bad_weight", ".loss_scale[0]"),
        ({"token_ids": [5], "loss_scale": [None]}, "bad_weight", ".loss_scale[0]"),
        ({"token_ids": [5], "loss_scale": [True]}, "bad_weight", ".loss_scale[0]"),
        ({"token_ids": [5], "loss_scale": [1], "weight": 1}, "conflicting_weight", ".weight"),
        ({"token_ids": [5], "loss": True, "weight": 0}, "conflicting_weight", ".weight"),
        ([5, "a"], "bad_token_ids", "[1]"),
        ([[5, -6], "a"], "bad_token_ids", "[0][1]"),
        (["a", {"token_ids": [5]}, 6], "bad_content", "[2]"),
        (["a", {"type": "text", "text": "b"}], "bad_content", "[0]"),
        ({"token_ids": None}, "bad_content", ""),
        ({"loss_scale": [1]}, "bad_content", ""),
        ([True], "bad_content", "[0]"),
    ],
)
def test_a_fault_is_told_at_its_place(content: Any, reason: str, field: str) -> None:
    assert fault_of(content) == (reason, f"{PLACE}{field}")


def test_a_weight_list_of_a_message_needs_ids() -> None:
    assert fault_of("a", loss_scale=[1.0]) == ("unsupported_weight", "messages[1].loss_scale")


def test_nulls_that_arrow_pads_with_change_nothing() -> None:
    scaled = {"token_ids": [5, 6], "loss_scale": [0.5, 1.0]}
    rows = [
        {"messages": [{"role": "assistant", "content": scaled}]},
        {"messages": [{"role": "assistant", "content": {"token_ids": [7]}}]},
    ]
    table = pa.Table.from_pylist(rows)
    found = [decode(r) for batch in table.to_batches() for r in to_records(batch)]
    contents = [read_conversation(record).messages[0]["content"] for record in found]
    assert [content.pieces[0].ids for content in contents] == [(5, 6), (7,)]
    assert [content.pieces[0].weights for content in contents] == [(0.5, 1.0), ()]


def test_calls_join_an_answer_of_ids_that_weighs_as_they_do() -> None:
    call = {"role": "tool_call", "content": json.dumps({"name": "f", "arguments": {}})}
    said = {"role": "assistant", "content": {"token_ids": [5]}}
    messages = read_conversation({"messages": [USER, said, call]}).messages
    assert (len(messages), messages[1]["content"].pieces[0].ids) == (2, (5,))
    with pytest.raises(RecordError, match="give both"):
        read_conversation({"messages": [USER, {**said, "weight": 2}, call]})
