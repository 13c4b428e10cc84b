"""Single messages: roles, parts, reasoning, and what stays untouched."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import RecordError
from pipeline.schema import read_conversation
from pipeline.schema.message import ROLES

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def read_one(message: Any) -> dict[str, Any]:
    """The message as it comes out between a question and an answer."""
    return read_conversation({"messages": [USER, message, ANSWER]}).messages[1]


def fault_of(message: Any) -> tuple[str, str]:
    with pytest.raises(RecordError) as caught:
        read_one(message)
    return caught.value.reason, caught.value.field.removeprefix("messages[1]")


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


@pytest.mark.parametrize(
    ("written", "role"),
    [
        ("human", "user"),
        ("gpt", "assistant"),
        ("model", "assistant"),
        ("observation", "tool"),
        ("function", "tool"),
        ("function_response", "tool"),
        ("developer", "developer"),
    ],
)
def test_role_names_of_other_schemas_are_understood(written: str, role: str) -> None:
    assert read_one({"role": written, "content": "t"}) == {"role": role, "content": "t"}


def test_an_unknown_role_names_the_known_ones() -> None:
    with pytest.raises(RecordError) as caught:
        read_one({"role": "narrator", "content": "t"})
    assert (caught.value.reason, caught.value.field) == ("unknown_role", "messages[1].role")
    assert all(role in caught.value.message for role in ("narrator", *ROLES))


def test_keys_and_their_order_are_kept() -> None:
    message = {
        "weight": 0.5,
        "content": "t",
        "name": None,
        "role": "user",
        "note": {"b": 1, "a": 2},
    }
    assert list(read_one(message).items()) == list(message.items())
    plain = {**message, "thinking": "", "role": "human"}
    assert list(read_one(plain)) == list(plain)


@pytest.mark.parametrize("key", ["tool_calls", "function_call", "reasoning", "thinking"])
def test_a_null_that_means_absence_is_left_out(key: str) -> None:
    assert read_one({**ANSWER, key: None}) == ANSWER


@pytest.mark.parametrize("calls", [[], "[]", ""])
def test_an_empty_list_of_calls_is_left_out(calls: Any) -> None:
    assert read_one({**ANSWER, "tool_calls": calls}) == ANSWER


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_stands_in_for_content(key: str) -> None:
    message = {"role": "assistant", key: "hm"}
    assert read_one(message) == {**message, "content": None}
    assert fault_of({"role": "assistant", key: "", "content": None}) == ("null_content", ".content")
    assert fault_of({**ANSWER, key: ["hm"]}) == ("bad_reasoning", f".{key}")


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ({"content": "t"}, ("unknown_role", ".role")),
        ({"role": ["user"], "content": "t"}, ("unknown_role", ".role")),
        ({"role": "user"}, ("null_content", ".content")),
        ({"role": "assistant", "content": None}, ("null_content", ".content")),
        ({"role": "user", "content": None, "reasoning": "r"}, ("null_content", ".content")),
        ({"role": "user", "content": []}, ("null_content", ".content")),
        ({"role": "user", "content": 3}, ("bad_content", ".content")),
        ({"role": "tool", "content": {"a": 1}}, ("bad_content", ".content")),
        ({"role": "user", "content": ["t"]}, ("bad_content", ".content[0]")),
        ({"role": "user", "content": [{"type": "text"}]}, ("bad_content", ".content[0].text")),
        (
            {"role": "user", "content": [{"type": "text", "value": 3}]},
            ("bad_content", ".content[0].value"),
        ),
        ({"role": "user", "content": [{"type": 3}]}, ("unsupported_part", ".content[0].type")),
        (
            {"role": "user", "content": [text("t"), {"type": "image_url", "image_url": {}}]},
            ("unsupported_part", ".content[1].type"),
        ),
        (
            {"role": "user", "content": [{"type": "reasoning", "value": "r"}, text("t")]},
            ("unsupported_part", ".content"),
        ),
        (
            {"role": "assistant", "content": [text("t"), {"type": "reasoning", "value": "r"}]},
            ("part_order", ".content[1]"),
        ),
        (
            {"role": "assistant", "content": [{"type": "reasoning", "value": "r", "weight": 0}]},
            ("unsupported_weight", ".content[0]"),
        ),
        (
            {
                "role": "assistant",
                "thinking": "r",
                "content": [{"type": "reasoning", "value": "r"}],
            },
            ("conflicting_reasoning", ".content"),
        ),
    ],
)
def test_a_bad_message_is_blamed_on_its_field(message: Any, fault: tuple[str, str]) -> None:
    assert fault_of(message) == fault


def test_a_refused_part_is_named() -> None:
    with pytest.raises(RecordError, match="'input_audio'"):
        read_one({"role": "user", "content": [{"type": "input_audio"}]})


def test_text_parts_are_joined_with_nothing() -> None:
    parts = [text("a"), {"type": "text", "value": "b"}, {"text": "c"}, text("d", image_url=None)]
    assert read_one({"role": "user", "content": parts}) == {"role": "user", "content": "abcd"}


def test_reasoning_parts_become_reasoning_content() -> None:
    parts = [{"type": "reasoning", "value": "r"}, {"type": "thinking", "thinking": "s"}]
    message = {"role": "assistant", "content": [*parts, text("t")]}
    expected = {"role": "assistant", "content": "t", "reasoning_content": "rs"}
    assert read_one(message) == expected
    assert read_one({"role": "assistant", "content": parts}) == {**expected, "content": None}


def test_sharegpt_items_keep_their_other_keys() -> None:
    items = [
        {"from": "system", "value": "s"},
        {"value": "q", "from": "human"},
        {"from": "chatgpt", "value": "a", "loss": False},
    ]
    messages = read_conversation({"conversations": items}).messages
    assert [list(message.items()) for message in messages] == [
        [("role", "system"), ("content", "s")],
        [("content", "q"), ("role", "user")],
        [("role", "assistant"), ("content", "a"), ("loss", False)],
    ]


def test_a_sharegpt_item_with_two_texts_is_refused() -> None:
    item = {"from": "gpt", "value": "a", "content": "b"}
    with pytest.raises(RecordError) as caught:
        read_conversation({"conversations": [item]})
    assert (caught.value.reason, caught.value.field) == ("bad_message", "conversations[0].content")
    assert read_conversation({"conversations": [{**item, "content": None}]}).messages == [ANSWER]


@pytest.mark.parametrize(("value", "reason"), [(None, "null_content"), (3, "bad_content")])
def test_a_sharegpt_value_must_be_text(value: Any, reason: str) -> None:
    items = [{"from": "human", "value": "q"}, {"from": "gpt", "value": value}]
    with pytest.raises(RecordError) as caught:
        read_conversation({"conversations": items})
    assert (caught.value.reason, caught.value.field) == (reason, "conversations[1].value")
