"""Tool calls and tool schemas: one envelope around values that nobody touches."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.conversation import Arguments
from pipeline.errors import RecordError
from pipeline.schema import read_conversation

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
BARE = {"name": "f", "arguments": {"b": 1, "a": None}}
CALL = {"type": "function", "function": BARE}
SCHEMA = {"name": "f", "parameters": {"type": "object", "properties": {"z": {}, "a": None}}}
TOOL = {"type": "function", "function": SCHEMA}


def read_calls(**keys: Any) -> Any:
    message = {"role": "assistant", "content": None, **keys}
    result = read_conversation({"messages": [USER, message]}).messages[1]
    assert "function_call" not in result
    assert result["content"] is None
    return result["tool_calls"]


def read_tools(**keys: Any) -> Any:
    return read_conversation({"messages": [USER, ANSWER], **keys}).tools


def fault_of(record: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(RecordError) as caught:
        read_conversation(record)
    return caught.value.reason, caught.value.field


@pytest.mark.parametrize(
    "keys",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": [BARE]},
        {"tool_calls": [{"function": BARE}]},
        {"tool_calls": [{**CALL, "type": None}]},
        {"tool_calls": [{**BARE, "function": None}]},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [json.dumps(CALL)]},
        {"function_call": BARE},
        {"function_call": json.dumps(BARE), "tool_calls": None},
        {"content": [{"type": "tool_call", "value": json.dumps(BARE)}]},
        {"content": [{"type": "tool_call", "value": BARE}], "tool_calls": []},
    ],
)
def test_every_spelling_of_a_call_gets_one_envelope(keys: dict[str, Any]) -> None:
    calls = read_calls(**keys)
    assert calls == [CALL]
    assert list(calls[0]) == ["type", "function"]
    assert list(calls[0]["function"]["arguments"]) == ["b", "a"]


def test_a_calls_own_keys_and_order_are_kept() -> None:
    call = {"id": "1", "function": {"arguments": {}, "name": "f"}, "type": "function", "index": 0}
    [result] = read_calls(tool_calls=[call])
    assert list(result.items()) == list(call.items())
    assert list(result["function"]) == ["arguments", "name"]
    [bare] = read_calls(tool_calls=[{**BARE, "id": "1"}])
    assert bare == {**CALL, "id": "1"}


def test_written_arguments_are_an_object_that_remembers_its_text() -> None:
    written = '{"b":1.10,  "a": "\\u00e9", "n": 123456789012345678901234567890}'
    [call] = read_calls(tool_calls=[{"name": "f", "arguments": written}])
    arguments = call["function"]["arguments"]
    assert isinstance(arguments, Arguments)
    assert arguments == json.loads(written)
    assert arguments.written == written


@pytest.mark.parametrize("written", ["", "x=1", "[1]", "null", '"{}"', "{", '{"a":' * 9999])
def test_arguments_that_are_no_object_stay_a_string(written: str) -> None:
    [call] = read_calls(tool_calls=[{"name": "f", "arguments": written}])
    assert call["function"]["arguments"] == written


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"tool_calls": 3}, ("bad_tool_call", ".tool_calls")),
        ({"tool_calls": "[{"}, ("bad_tool_call", ".tool_calls")),
        ({"tool_calls": [None]}, ("bad_tool_call", ".tool_calls[0]")),
        ({"tool_calls": [{}]}, ("bad_tool_call", ".tool_calls[0].name")),
        ({"tool_calls": [{"function": 3}]}, ("bad_tool_call", ".tool_calls[0].function")),
        (
            {"tool_calls": [CALL, {"function": {"name": None}}]},
            ("bad_tool_call", ".tool_calls[1].function.name"),
        ),
        ({"tool_calls": [{"name": "f"}]}, ("bad_tool_call", ".tool_calls[0].arguments")),
        (
            {"tool_calls": [{"name": "f", "arguments": 3}]},
            ("bad_tool_call", ".tool_calls[0].arguments"),
        ),
        ({"function_call": "f"}, ("bad_tool_call", ".function_call")),
        ({"tool_calls": [CALL], "function_call": BARE}, ("conflicting_tool_calls", "")),
        (
            {"content": [{"type": "tool_call", "value": "f()"}]},
            ("bad_tool_call", ".content[0].value"),
        ),
        (
            {"content": [{"type": "tool_call", "value": BARE}], "tool_calls": [CALL]},
            ("conflicting_tool_calls", ""),
        ),
        ({"role": "user", "content": "t", "tool_calls": [CALL]}, ("bad_tool_call", "")),
    ],
)
def test_a_bad_call_is_blamed_on_its_field(keys: dict[str, Any], fault: tuple[str, str]) -> None:
    message = {"role": "assistant", "content": "t", **keys}
    reason, field = fault
    assert fault_of({"messages": [USER, message]}) == (reason, f"messages[1]{field}")


@pytest.mark.parametrize("value", [json.dumps(BARE), json.dumps([BARE]), [CALL], BARE])
def test_a_sharegpt_function_call_is_an_assistants(value: Any) -> None:
    items = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": value},
        {"from": "observation", "value": "o"},
    ]
    assert read_conversation({"conversations": items}).messages == [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "o"},
    ]


@pytest.mark.parametrize("value", ["f(x)", "", "[]", "3", None, [], '"{}"'])
def test_a_function_call_that_is_none_is_refused(value: Any) -> None:
    items = [{"from": "human", "value": "q"}, {"from": "function_call", "value": value}]
    assert fault_of({"conversations": items}) == ("bad_tool_call", "conversations[1].value")


@pytest.mark.parametrize(
    "keys",
    [
        {"tools": [TOOL]},
        {"tools": [SCHEMA]},
        {"tools": SCHEMA},
        {"tools": json.dumps([SCHEMA])},
        {"tools": json.dumps(TOOL)},
        {"tools": [json.dumps(TOOL)]},
        {"tools": [{"type": "function", **SCHEMA}]},
        {"tools": [{"function": SCHEMA}]},
        {"functions": [SCHEMA]},
        {"functions": json.dumps([SCHEMA]), "tools": ""},
    ],
)
def test_every_spelling_of_a_tool_gets_one_envelope(keys: dict[str, Any]) -> None:
    tools = read_tools(**keys)
    assert tools == [TOOL]
    assert list(tools[0]["function"]["parameters"]["properties"]) == ["z", "a"]


@pytest.mark.parametrize("tools", [None, [], "", " ", "[]", "null"])
def test_no_tools_are_none(tools: Any) -> None:
    assert read_tools(tools=tools) is None
    assert read_tools(functions=tools) is None


def test_a_tool_with_its_own_type_keeps_it() -> None:
    tool = {"type": "builtin_function", "function": {"name": "$search"}}
    assert read_tools(tools=[tool]) == [tool]


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"tools": "[{"}, "tools"),
        ({"tools": 3}, "tools"),
        ({"tools": [3]}, "tools[0]"),
        ({"tools": ["search"]}, "tools[0]"),
        ({"tools": [TOOL, {"description": "d"}]}, "tools[1]"),
        ({"functions": "f"}, "functions"),
        ({"functions": [{"title": "f"}]}, "functions[0]"),
        ({"functions": [SCHEMA], "tools": [TOOL]}, "functions"),
        ({"functions": [{"name_for_model": "f"}]}, "functions[0]"),
    ],
)
def test_bad_tools_are_blamed_on_their_field(keys: dict[str, Any], field: str) -> None:
    assert fault_of({"messages": [USER, ANSWER], **keys}) == ("bad_tools", field)


def test_functions_that_the_messages_spell_out_are_not_given_twice() -> None:
    system = {"role": "system", "content": 'Tools: {"name": "f"}'}
    record = {"messages": [system, USER, ANSWER], "functions": [{"name_for_model": "f"}]}
    assert read_conversation(record).tools is None
