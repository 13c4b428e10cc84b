"""Calls that are messages of their own become one turn with what stands before them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.conversation import Conversation, Weights
from pipeline.errors import RecordError
from pipeline.schema import read_conversation

USER = {"role": "user", "content": "q"}
DONE = {"role": "assistant", "content": "done"}
ANSWER = {"role": "tool_response", "content": "21"}


def said(content: Any = "Let me look.", **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


def call(name: str, **keys: Any) -> dict[str, Any]:
    content = json.dumps({"name": name, "arguments": {"city": name}}, ensure_ascii=False)
    return {"role": "tool_call", "content": content, **keys}


def read(*messages: Any) -> Conversation:
    return read_conversation({"messages": [USER, *messages, ANSWER, DONE]})


def fault_of(*messages: Any) -> tuple[str, str]:
    with pytest.raises(RecordError) as caught:
        read(*messages)
    return caught.value.reason, caught.value.field


def names_of(message: dict[str, Any]) -> list[str]:
    return [called["function"]["name"] for called in message["tool_calls"]]


def test_calls_in_a_row_are_one_message_of_the_assistant() -> None:
    conversation = read(call("f"), call("g"), ANSWER)
    assert [m["role"] for m in conversation.messages] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert conversation.messages[1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": n, "arguments": {"city": n}}} for n in "fg"
        ],
    }
    assert conversation.weights is None


def test_what_the_assistant_said_before_its_calls_comes_first() -> None:
    conversation = read(said(reasoning_content="Hm."), call("f"), call("g"))
    assert [m["role"] for m in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert conversation.messages[1]["content"] == "Let me look."
    assert conversation.messages[1]["reasoning_content"] == "Hm."
    assert names_of(conversation.messages[1]) == ["f", "g"]


def test_calls_that_an_answer_parts_are_two_turns() -> None:
    conversation = read(call("f"), ANSWER, call("g"))
    assert [names_of(m) for m in conversation.messages if "tool_calls" in m] == [["f"], ["g"]]


def test_calls_join_those_that_a_message_has_already() -> None:
    first = {"name": "e", "arguments": {}}
    assert names_of(read(said(tool_calls=[first]), call("f")).messages[1]) == ["e", "f"]


def test_sharegpts_calls_are_joined_alike() -> None:
    content = '{"name": "f", "arguments": {}}'
    items = [
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "Let me look."},
        {"from": "function_call", "value": content},
        {"from": "observation", "value": "21"},
    ]
    messages = read_conversation({"conversations": items}).messages
    assert [m["role"] for m in messages] == ["user", "assistant", "tool"]
    assert (messages[1]["content"], names_of(messages[1])) == ("Let me look.", ["f"])


@pytest.mark.parametrize(
    "content",
    [
        {"name": "f", "arguments": {"a": 1}},
        {"name": "f", "arguments": '{"a": 1}'},
        '{"name": "f", "parameters": {"a": 1}}',
        '[{"name": "f", "arguments": {"a": 1}}]',
    ],
)
def test_a_call_is_an_object_or_its_json(content: Any) -> None:
    (called,) = read({"role": "tool_call", "content": content}).messages[1]["tool_calls"]
    assert called["function"] == {"name": "f", "arguments": {"a": 1}}


@pytest.mark.parametrize("content", ["{'name': 'f'}", '{"name": "f"', "", None, 3, "3", "{}"])
def test_a_call_that_is_none_is_refused_where_it_stands(content: Any) -> None:
    reason, field = fault_of(call("e"), {"role": "tool_call", "content": content})
    assert (reason, field.startswith("messages[2].content")) == ("bad_tool_call", True)


def test_an_answer_that_is_an_object_is_its_json() -> None:
    answer = {"role": "tool_response", "content": {"aqi": 10, "city": "北京"}}
    assert read(call("f"), answer).messages[2] == {
        "role": "tool",
        "content": '{"aqi": 10, "city": "北京"}',
    }


@pytest.mark.parametrize(
    ("run", "weights"),
    [
        ([call("f", loss=False), call("g")], Weights({1: 0.0}, {})),
        ([call("f", loss_scale=2), call("g", weight=2.0)], Weights({1: 2.0}, {})),
        ([said(), call("f", loss=True)], Weights({1: 1.0}, {})),
        ([said(loss=False), call("f", loss=False), call("g")], Weights({1: 0.0}, {})),
        ([said(weight=1), call("f")], Weights({1: 1.0}, {})),
        ([said(loss=False), call("f")], Weights({}, {1: [(0, 12, 0.0)]})),
        ([said(loss_scale=3), call("f", loss=True)], Weights({1: 1.0}, {1: [(0, 12, 3.0)]})),
        ([said("", loss=False), call("f")], None),
        ([said("", loss=False), call("f", loss_scale=2)], Weights({1: 2.0}, {})),
    ],
)
def test_a_joined_message_weighs_what_its_parts_asked_for(
    run: list[Any], weights: Weights | None
) -> None:
    conversation = read(*run)
    assert conversation.weights == weights
    again = read_conversation({"messages": conversation.messages}).weights
    assert (again.messages if again else {}) == (weights.messages if weights else {}), "its keys"


def test_a_weight_before_calls_multiplies_those_of_the_contents_parts() -> None:
    parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "c", "weight": 0.5}]
    parts.append({"type": "text", "text": "d"})
    conversation = read(said(parts, weight=3), call("f"))
    assert conversation.weights == Weights({}, {1: [(0, 2, 3.0), (2, 3, 1.5), (3, 4, 3.0)]})


@pytest.mark.parametrize(
    ("run", "field"),
    [
        ([call("f", loss=True), call("g", loss=False)], "messages[2]"),
        ([call("f"), call("g", loss=False)], "messages[2]"),
        ([said(), call("f", loss=False)], "messages[2]"),
        ([said(loss=True), call("f", loss=False)], "messages[2]"),
        ([said(weight=2), call("f", weight=3)], "messages[2]"),
        ([said(weight=2, reasoning_content="Hm."), call("f")], "messages[2]"),
    ],
)
def test_a_joined_message_that_disagrees_with_itself_is_refused(run: list[Any], field: str) -> None:
    assert fault_of(*run) == ("conflicting_weight", field)


def test_messages_after_joined_ones_keep_their_weights() -> None:
    answer = {**ANSWER, "weight": 0}
    conversation = read_conversation(
        {"system": "s", "messages": [USER, said(), call("f"), answer, {**DONE, "weight": 0.5}]}
    )
    assert conversation.weights == Weights({3: 0.0, 4: 0.5}, {})
    assert [m["role"] for m in conversation.messages][3:] == ["tool", "assistant"]
