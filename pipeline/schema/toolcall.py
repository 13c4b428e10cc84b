"""Tool calls and tool schemas in the one envelope that chat templates expect; values untouched."""

from __future__ import annotations

from typing import Any

from pipeline.conversation import Arguments
from pipeline.schema.field import NOTHING, decode_text, fault, misfit

CALL_REMEDY = 'write {"name": ..., "arguments": {...}}'
TOOL_REMEDY = 'write {"type": "function", "function": {"name": ..., "parameters": ...}}'


def read_calls(value: Any, place: str) -> list[dict[str, Any]]:
    """Calls of one message, from a list, a single call, or a JSON string of either, maybe empty."""
    if isinstance(value, str):
        if not value.strip():
            return []
        value = _decoded(value, place, "bad_tool_call", CALL_REMEDY)
    if isinstance(value, dict):
        return [read_call(value, place)]
    if not isinstance(value, list):
        raise misfit("bad_tool_call", place, "a list of calls", value, remedy=CALL_REMEDY)
    return [read_call(call, f"{place}[{i}]") for i, call in enumerate(value)]


def read_call(value: Any, place: str) -> dict[str, Any]:
    """``{"type": "function", ..., "function": {"name", "arguments"}}``; other keys stay in place.

    Takes this form, the bare ``{"name", "arguments"}`` (or ``parameters``, as ms-swift does), and
    a JSON string of either.
    """
    if isinstance(value, str):
        value = _decoded(value, place, "bad_tool_call", CALL_REMEDY)
    if not isinstance(value, dict):
        raise misfit("bad_tool_call", place, "a call", value, remedy=CALL_REMEDY)
    function = value.get("function")
    if function is None:
        if value.get("arguments") is None and value.get("parameters") is not None:
            value = {**value, "arguments": value["parameters"]}
            del value["parameters"]
        function = {key: value[key] for key in value if key in ("name", "arguments")}
        value = {key: value[key] for key in value if key not in ("name", "arguments")}
        field = place
    else:
        field = f"{place}.function"
    if not isinstance(function, dict):
        raise misfit("bad_tool_call", field, "an object", function, remedy=CALL_REMEDY)
    name = function.get("name", NOTHING)
    if not isinstance(name, str):
        raise misfit("bad_tool_call", f"{field}.name", "a string", name, remedy=CALL_REMEDY)
    arguments = read_arguments(function.get("arguments", NOTHING), f"{field}.arguments")
    if value.get("type") is None:
        value = {"type": "function", **{key: value[key] for key in value if key != "type"}}
    return {**value, "function": {**function, "arguments": arguments}}


def read_arguments(value: Any, place: str) -> dict[str, Any] | str:
    """An object as it is; a JSON string of an object as `Arguments`; any other string as it is.

    Objects, because of 105 real templates that print calls 32 fail on a string or lose it and 43
    print it encoded twice, while 4 want the string: `conversation.with_string_arguments`.
    """
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        values = decode_text(value)
        return Arguments(values, written=value) if isinstance(values, dict) else value
    raise misfit("bad_tool_call", place, "an object or a JSON string", value, remedy="use {}")


def read_tools(value: Any, place: str) -> list[dict[str, Any]] | None:
    """Tool schemas from a list, a single one, or a JSON string of either; None where there is none.

    A bare schema (``{"name", "description", "parameters"}``) is wrapped: 27 of 108 real templates
    that print tools lose or refuse bare ones, none prefers them.
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        value = _decoded(value, place, "bad_tools", TOOL_REMEDY)
    if isinstance(value, dict):
        return [_read_tool(value, place)]
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise misfit("bad_tools", place, "a list of tool schemas", value, remedy=TOOL_REMEDY)
    return [_read_tool(tool, f"{place}[{i}]") for i, tool in enumerate(value)]


def _read_tool(value: Any, place: str) -> dict[str, Any]:
    if isinstance(value, str):
        value = _decoded(value, place, "bad_tools", TOOL_REMEDY)
    if not isinstance(value, dict):
        raise misfit("bad_tools", place, "a tool schema", value, remedy=TOOL_REMEDY)
    if isinstance(value.get("function"), dict):
        if value.get("type") is not None:
            return value
        return {"type": "function", **{key: value[key] for key in value if key != "type"}}
    if not isinstance(value.get("name"), str):
        raise fault("bad_tools", place, f"has no function and no name; {TOOL_REMEDY}")
    flat = value.get("type") in ("function", None)  # the form of OpenAI's Responses, or a null
    bare = {key: value[key] for key in value if not (flat and key == "type")}
    return {"type": "function", "function": bare}


def _decoded(text: str, place: str, reason: str, remedy: str) -> Any:
    value = decode_text(text)
    if value is NOTHING or isinstance(value, str):  # a string within a string is no call either
        raise fault(reason, place, f"is a string that is not JSON of an object or list; {remedy}")
    return value
