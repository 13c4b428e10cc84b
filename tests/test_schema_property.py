"""Any JSON at all: a conversation that keeps its promises, or a RecordError."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.conversation import (
    Conversation,
    SampledContent,
    with_empty_content,
    with_string_arguments,
)
from pipeline.errors import RecordError
from pipeline.schema import LIST_KEYS, SCHEMAS, read_conversation
from pipeline.schema.message import copy_plain, read_message
from pipeline.schema.weight import read_message_weight

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object"}}
VALID: list[Any] = [
    {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "s", "weight": 0.5}]},
            {"role": "user", "content": [{"type": "text", "value": "q"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 1},
            {"role": "tool", "content": "o", "tool_call_id": "1", "name": "f"},
            {
                "role": "assistant",
                "content": [
                    {"type": "reasoning", "value": "r"},
                    {"type": "text", "value": "t", "train": False, "loss_scale": 0},
                    {"type": "tool_call", "value": '{"name": "f", "arguments": {}}'},
                ],
            },
            {"role": "assistant", "content": "a", "thinking": "r", "function_call": None},
            {"role": "assistant", "content": ["a", {"token_ids": [5], "loss_scale": [0.5]}, [6]]},
            {"role": "tool_call", "content": '{"name": "f", "arguments": {}}', "loss": True},
            {"role": "tool_response", "content": {"temp": 21}},
        ],
        "tools": [TOOL, {"type": "function", "function": TOOL}],
        "chat_template_kwargs": {"enable_thinking": True},
    },
    {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "observation", "value": "o"},
            {"from": "gpt", "value": "a", "loss": True},
        ],
        "sample_weight": 2,
        "tools": json.dumps([TOOL]),
        "system": "s",
    },
    {"conversation": [{"system": "s", "input": "q", "output": "a"}, {"input": "q", "output": "a"}]},
    {"instruction": "i", "input": "x", "output": "a", "system": "s", "history": [["q", "a"]]},
    {"query": "q", "response": "a", "history": [["q", "a"]], "functions": [TOOL]},
]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
WORDS = [
    "role",
    "content",
    "from",
    "value",
    "type",
    "text",
    "tool_calls",
    "function",
    "function_call",
    "name",
    "arguments",
    "tools",
    "system",
    "history",
    "weight",
    "sample_weight",
    "loss",
    "loss_scale",
    "token_ids",
    "tool_response",
    "train",
    "reasoning",
    "user",
    "assistant",
    "tool",
    "gpt",
    "human",
    "thinking",
    "tool_call",
    "f",
    "input",
    "output",
    "instruction",
    "query",
    "response",
    "functions",
    "name_for_model",
    "[",
    "[]",
    "{}",
    "[{}]",
]
names = st.sampled_from(
    [*LIST_KEYS, *WORDS, "", " ", "\ud800", '{"name": "f", "arguments": "{}"}', '[{"name": "f"}]']
)
json_values = st.recursive(
    scalars | names,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(names | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a value."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    return [place for key in keys for place in [(value, key), *places(value[key])]]


@st.composite
def mutated_records(draw: st.DrawFn) -> Any:
    """A valid record in which up to three places were deleted, replaced, doubled or renamed."""
    record = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 3))):
        found = places(record)
        if not found:
            break
        holder, key = draw(st.sampled_from(found))
        change = draw(st.sampled_from(("delete", "replace", "double", "rename")))
        if change == "delete":
            del holder[key]
        elif change == "replace":
            holder[key] = draw(json_values)
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            value = holder[key] if change == "double" else holder.pop(key)
            holder[draw(names)] = copy.deepcopy(value)
    return record


def attempt(record: Any, schema: str = "auto") -> Conversation | RecordError:
    try:
        return read_conversation(record, schema=schema)
    except RecordError as error:
        return error


def assert_conversation_or_record_error(record: Any, schema: str) -> None:
    conversation = attempt(record, schema)
    if isinstance(conversation, RecordError):
        assert conversation.stage == "parse"
        assert conversation.reason
        return
    messages = conversation.messages
    assert len({id(message) for message in messages}) == len(messages)
    assert any(message["role"] == "assistant" for message in messages)
    for message in messages:
        assert message["role"] in {"system", "developer", "user", "assistant", "tool"}
        assert message["content"] is None or isinstance(message["content"], (str, SampledContent))
        assert "function_call" not in message
        for call in message.get("tool_calls", ()):
            assert isinstance(call["function"]["arguments"], (dict, str))
    assert_weights_fit(conversation)
    for message in with_string_arguments(conversation).messages:
        for call in message.get("tool_calls", ()):
            assert isinstance(call["function"]["arguments"], str)
    assert all(m["content"] is not None for m in with_empty_content(conversation).messages)
    if any(isinstance(message["content"], SampledContent) for message in messages):
        return  # no longer JSON
    written = {"messages": messages, "tools": conversation.tools}
    again = read_conversation({**written, "chat_template_kwargs": conversation.kwargs})
    twins = [
        (c.messages, c.tools, c.kwargs, c.weights.messages if c.weights else {})
        for c in (conversation, again)
    ]
    # repr: NaN is not equal to itself
    assert repr(twins[0]) == repr(twins[1]), "what was read once reads as itself"


def assert_weights_fit(conversation: Conversation) -> None:
    weights = conversation.weights
    if weights is None:
        return
    named = [weights.row, *weights.messages.values()]
    assert {*weights.messages, *weights.parts} <= set(range(len(conversation.messages)))
    for index, ranges in weights.parts.items():
        edges = [0, *(edge for start, end, _ in ranges for edge in (start, end))]
        assert ranges
        assert edges == sorted(edges)
        assert all(start < end for start, end, _ in ranges)
        assert edges[-1] <= len(conversation.messages[index]["content"])
        named += [weight for _, _, weight in ranges]
    assert all(type(weight) is float and 0 <= weight <= 1_000_000 for weight in named)


@given(mutated_records(), st.sampled_from(SCHEMAS))
def test_a_damaged_record_is_read_or_refused(record: Any, schema: str) -> None:
    assert_conversation_or_record_error(record, schema)


@given(json_values, st.sampled_from(SCHEMAS))
@example({"messages": [[[]]] * 3}, "auto")
def test_any_json_is_read_or_refused(record: Any, schema: str) -> None:
    assert_conversation_or_record_error(record, schema)


@given(st.lists(json_values, min_size=1, max_size=3), st.sampled_from(LIST_KEYS))
def test_any_items_are_read_or_refused(items: list[Any], key: str) -> None:
    assert_conversation_or_record_error({key: items}, "auto")


@pytest.mark.parametrize("record", VALID)
def test_the_records_to_damage_are_valid(record: Any) -> None:
    assert read_conversation(copy.deepcopy(record)).messages


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("place", range(len(places(VALID))))
def test_depth_at_any_place_is_no_crash(place: int) -> None:
    records = copy.deepcopy(VALID)
    holder, key = places(records)[place]
    holder[key] = nested(100_000)
    for record in records:
        result = attempt(record)
        assert isinstance(result, Conversation) or len(str(result)) < 1000
    holder[key] = None  # taken apart by hand: pytest's report of a failure would recurse


@given(
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("name", "thinking", "tool_calls", "x"), scalars),
            "train": st.none() | st.booleans(),
            "weight": st.none(),
        },
    ).flatmap(
        lambda more: st.permutations([*more.items(), ("role", "assistant"), ("content", "t")]).map(
            dict
        )
    )
)
def test_the_short_way_for_plain_messages_agrees_with_the_long_one(item: dict[str, Any]) -> None:
    plain = copy_plain(item)
    if plain is None:
        assert not item.keys().isdisjoint({"thinking", "tool_calls"})
    else:
        message, weight = read_message(item, "messages[0]")
        assert list(plain.items()) == list(message.items())
        assert weight == read_message_weight(plain, [], "messages[0]")
        assert plain is not item
