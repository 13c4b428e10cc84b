"""Records of every schema, by hand: what each becomes, and which field a bad one is blamed on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.conversation import Conversation
from pipeline.errors import ConfigurationError, RecordError
from pipeline.schema import SCHEMAS, read_conversation

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
QA = [USER, ANSWER]


def roles_and_texts(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in conversation.messages]


def fault_of(record: Any, schema: str = "auto") -> tuple[str, str]:
    """Reason and field of the error that the record must raise; its text begins with the field."""
    with pytest.raises(RecordError) as caught:
        read_conversation(record, schema=schema)
    error = caught.value
    assert error.stage == "parse"
    assert str(error) == (f"{error.field}: {error.message}" if error.field else error.message)
    return error.reason, error.field


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": QA}, [("user", "q"), ("assistant", "a")]),
        ({"traj": QA, "reward": 1.0}, [("user", "q"), ("assistant", "a")]),
        ({"messages": None, "dialog": QA}, [("user", "q"), ("assistant", "a")]),
        ({"messages": [], "trajectory": QA}, [("user", "q"), ("assistant", "a")]),
        ({"messages": json.dumps(QA)}, [("user", "q"), ("assistant", "a")]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            [("user", "q"), ("assistant", "a")],
        ),
        (
            {
                "conversation": [
                    {"system": "s", "input": "q", "output": "a"},
                    {"input": "r", "output": "b"},
                ]
            },
            [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")],
        ),
        (
            {"instruction": "i", "input": "x", "output": "a"},
            [("user", "i\nx"), ("assistant", "a")],
        ),
        ({"instruction": "i", "input": "", "output": ""}, [("user", "i"), ("assistant", "")]),
        ({"instruction": "", "input": "x", "output": "a"}, [("user", "x"), ("assistant", "a")]),
        ({"instruction": "i", "input": None, "output": "a"}, [("user", "i"), ("assistant", "a")]),
        (
            {
                "instruction": "i",
                "output": "a",
                "system": "s",
                "history": [["h", "k"]],
                "dialogue": "[not a list of messages",
            },
            [("system", "s"), ("user", "h"), ("assistant", "k"), ("user", "i"), ("assistant", "a")],
        ),
        (
            {"query": "q", "response": "a", "history": [["h", "k"]], "system": "s"},
            [("system", "s"), ("user", "h"), ("assistant", "k"), ("user", "q"), ("assistant", "a")],
        ),
        ({"query": "q", "response": "a", "history": None}, [("user", "q"), ("assistant", "a")]),
        ({"prompt": "q", "completion": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"prompt": "q", "response": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"prompt": "other", "messages": QA}, [("user", "q"), ("assistant", "a")]),
    ],
)
def test_auto_tells_the_schema_from_keys_and_shapes(
    record: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert roles_and_texts(read_conversation(record)) == expected


@pytest.mark.parametrize(
    ("schema", "record"),
    [
        ("messages", {"conversations": QA}),
        (
            "sharegpt",
            {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        ),
        ("alpaca", {"instruction": "q", "output": "a", "query": "no", "response": "no"}),
        ("query-response", {"instruction": "no", "output": "no", "query": "q", "response": "a"}),
        ("query-response", {"conversation": [{"input": "q", "output": "a"}]}),
    ],
)
def test_a_named_schema_reads_its_own_shape(schema: str, record: dict[str, Any]) -> None:
    conversation = read_conversation(record, schema=schema)
    assert roles_and_texts(conversation) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("schema", "record", "fault"),
    [
        ("messages", {"conversations": [{"from": "gpt"}]}, ("wrong_schema", "conversations[0]")),
        ("sharegpt", {"messages": QA}, ("wrong_schema", "messages[0]")),
        ("query-response", {"messages": QA}, ("wrong_schema", "messages[0]")),
        ("messages", {"instruction": "i", "output": "a"}, ("unknown_schema", "")),
        ("alpaca", {"messages": QA}, ("null_content", "instruction")),
        ("query-response", {"instruction": "i", "output": "a"}, ("unknown_schema", "")),
    ],
)
def test_a_named_schema_refuses_another_shape(
    schema: str, record: dict[str, Any], fault: tuple[str, str]
) -> None:
    assert fault_of(record, schema) == fault


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (None, ("not_an_object", "")),
        ([USER, ANSWER], ("not_an_object", "")),
        ({}, ("unknown_schema", "")),
        ({"text": "t"}, ("unknown_schema", "")),
        ({"prompt": QA, "completion": "a"}, ("unknown_schema", "")),
        ({"messages": []}, ("empty_conversation", "messages")),
        ({"messages": 3}, ("bad_messages", "messages")),
        ({"messages": "[1, 2"}, ("bad_messages", "messages")),
        ({"messages": [3]}, ("bad_message", "messages[0]")),
        ({"messages": [USER, None]}, ("bad_message", "messages[1]")),
        ({"messages": [{"speaker": "A"}]}, ("unknown_schema", "messages[0]")),
        ({"messages": [USER]}, ("no_assistant_turn", "")),
        ({"messages": QA, "system": 3}, ("bad_system", "system")),
        ({"messages": QA, "images": ["a.png"]}, ("unsupported_part", "images")),
        ({"messages": QA, "chat_template_kwargs": []}, ("bad_kwargs", "chat_template_kwargs")),
        (
            {"messages": QA, "chat_template_kwargs": {"tools": []}},
            ("bad_kwargs", "chat_template_kwargs.tools"),
        ),
        ({"instruction": "i", "output": ["a", "b"]}, ("bad_content", "output")),
        ({"instruction": "i", "output": None}, ("null_content", "output")),
        ({"instruction": 3, "output": "a"}, ("bad_content", "instruction")),
        ({"query": "q", "response": None}, ("null_content", "response")),
        ({"query": "q", "response": "a", "history": "h"}, ("bad_history", "history")),
        ({"query": "q", "response": "a", "history": ["h"]}, ("bad_history", "history[0]")),
        ({"query": "q", "response": "a", "history": [["h"]]}, ("bad_history", "history[0]")),
        ({"query": "q", "response": "a", "history": [["h", 1]]}, ("bad_history", "history[0][1]")),
        (
            {"conversation": [{"input": "q", "output": 1}]},
            ("bad_content", "conversation[0].output"),
        ),
    ],
)
def test_a_bad_record_is_blamed_on_its_field(record: Any, fault: tuple[str, str]) -> None:
    assert fault_of(record) == fault


def test_an_unknown_schema_names_the_keys_and_the_choices() -> None:
    with pytest.raises(RecordError) as caught:
        read_conversation({"chosen": [], "rejected": []})
    assert "chosen, rejected" in str(caught.value)
    assert all(schema in str(caught.value) for schema in SCHEMAS)


def test_a_null_content_says_what_to_do() -> None:
    with pytest.raises(RecordError) as caught:
        read_conversation({"messages": [USER, ANSWER, {"role": "user", "content": None}]})
    expected = 'messages[2].content: expected a string, found null; use "" or drop the message'
    assert str(caught.value) == expected


def test_a_schema_that_does_not_exist_is_the_callers_fault() -> None:
    with pytest.raises(ConfigurationError, match="sharegtp"):
        read_conversation({"messages": QA}, schema="sharegtp")


def test_one_dict_given_twice_becomes_two_messages() -> None:
    first, _, second, _ = read_conversation({"messages": [USER, ANSWER, USER, ANSWER]}).messages
    assert first == second
    assert first is not second


def test_a_system_text_beside_the_messages_comes_first() -> None:
    messages = read_conversation({"messages": QA, "system": "s"}).messages
    assert messages == [{"role": "system", "content": "s"}, *QA]


@pytest.mark.parametrize("system", ["s", "", None])
def test_a_system_text_that_adds_nothing_changes_nothing(system: str | None) -> None:
    messages = [{"role": "system", "content": "s"}, *QA]
    assert read_conversation({"messages": messages, "system": system}).messages == messages


def test_two_different_system_texts_conflict() -> None:
    messages = [{"role": "system", "content": "s"}, *QA]
    fault = fault_of({"messages": messages, "system": "t"})
    assert fault == ("conflicting_system", "system")


def test_template_variables_come_from_the_record() -> None:
    record = {"messages": QA, "chat_template_kwargs": {"enable_thinking": False}}
    assert read_conversation(record).kwargs == {"enable_thinking": False}
    assert read_conversation({"messages": QA, "chat_template_kwargs": None}).kwargs == {}


def test_keys_of_a_pair_go_to_the_assistant() -> None:
    record = {"conversation": [{"input": "q", "output": "a", "output_with_loss": False}]}
    assert read_conversation(record).messages[1] == {**ANSWER, "output_with_loss": False}


def test_calls_on_a_pair_are_read_as_on_any_message() -> None:
    call = {"name": "f", "arguments": {}}
    pair: dict[str, Any] = {"input": "q", "output": None, "tool_calls": [call]}
    answer = read_conversation({"conversation": [pair]}).messages[1]
    assert answer["tool_calls"][0]["function"] == call
    pair["tool_calls"] = 3
    assert fault_of({"conversation": [pair]}) == ("bad_tool_call", "conversation[0].tool_calls")
