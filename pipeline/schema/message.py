"""One message of a record, brought to the form that chat templates read."""

from __future__ import annotations

import json
from typing import Any

from pipeline.conversation import SampledContent
from pipeline.schema.field import NOTHING, TEXT_SHOWN, fault, misfit
from pipeline.schema.part import read_parts
from pipeline.schema.tokenids import holds_ids, read_ids
from pipeline.schema.toolcall import read_call, read_calls
from pipeline.schema.weight import Weight, read_message_weight

# Names that people write, and the role that templates know. A developer stays one: the templates
# that read it (gpt-oss) treat it otherwise than a system message, and no text is to be guessed.
ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool_call": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
CALL_ROLES = frozenset(("tool_call", "function_call"))  # ms-swift's, and ShareGPT's
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
LEFT_OUT_IF_NULL = frozenset((*REASONING_KEYS, "tool_calls", "function_call"))
PLAIN_ROLES = frozenset(ROLES.values())


def copy_plain(item: Any) -> dict[str, Any] | None:
    """A copy of a message that needs no look: known role, content a string, no calls or reasoning.

    Most messages are such, and this takes a fifth of the time. None leaves the item to
    `read_message`, which must agree wherever this answers.
    """
    if type(item) is not dict or type(item.get("content")) is not str:
        return None
    role = item.get("role")
    if type(role) is not str or role not in PLAIN_ROLES:
        return None
    if len(item) > 2 and not LEFT_OUT_IF_NULL.isdisjoint(item):
        return None
    return item.copy()


def read_message(
    item: Any, place: str, *, role_key: str = "role", content_key: str = "content"
) -> tuple[dict[str, Any], Weight | None]:
    """A new dict with ``role`` and ``content``; unknown keys stay where and as they are.

    So do the keys of its own weight, which comes beside it; None where it and its parts have none.
    Role names, content parts, ``function_call`` and the envelope of calls are brought to one form.
    Null calls and null reasoning are left out, as are empty lists of calls: Arrow files pad with
    null, and of 238 real templates 29 fail on ``tool_calls: null``, 5 on ``thinking: null``, and
    10 fail and 20 print otherwise on an empty list.
    """
    if not isinstance(item, dict):
        raise misfit("bad_message", place, "an object", item, remedy="write one object per message")
    written = _read_role(item, place, role_key)
    message: dict[str, Any] = {}
    for key, value in item.items():
        if key == role_key:
            message["role"] = ROLES[written]
        elif key == content_key:
            message["content"] = value
        elif value is None and key in LEFT_OUT_IF_NULL:
            continue
        elif key in ("role", "content"):  # beside from/value; null where Arrow pads
            if value is not None:
                fact = f"stands beside {content_key if key == 'content' else role_key}; keep one"
                raise fault("bad_message", f"{place}.{key}", fact)
        else:
            message[key] = value
    calls, ranges = _unfold_content(message, written, f"{place}.{content_key}")
    _unify_calls(message, calls, place)
    _check_reasoning(message, place)
    _check_content(message, f"{place}.{content_key}")
    return message, read_message_weight(item, ranges, place)


def _read_role(item: dict[str, Any], place: str, role_key: str) -> str:
    role = item.get(role_key, NOTHING)
    if isinstance(role, str) and role in ROLES:
        return role
    field, known = f"{place}.{role_key}", f"known roles: {', '.join(ROLES)}"
    if isinstance(role, str):
        raise fault("unknown_role", field, f"{role[:TEXT_SHOWN]!r}; {known}")
    raise misfit("unknown_role", field, "a role", role, remedy=known)


def _unfold_content(
    message: dict[str, Any], written: str, field: str
) -> tuple[list[dict[str, Any]], list[tuple[int, int, float]]]:
    """Turn a content that is calls or parts into text and reasoning.

    Returns the calls it held, and the weighted ranges of the text.
    """
    content = message.get("content", NOTHING)
    if written in CALL_ROLES:
        calls = read_calls(content, field)
        if not calls:
            raise fault("bad_tool_call", field, "holds no call; drop the message")
        message["content"] = None
        return calls, []
    if written == "tool_response" and isinstance(content, dict) and not holds_ids(content):
        message["content"] = _write_json(content, field)
    if holds_ids(content):
        message["content"] = SampledContent((read_ids(content, field),))
        return [], []
    if not isinstance(content, list):
        return [], []
    parts = read_parts(content, field)
    message["content"] = parts.content
    if parts.reasoning is not None:
        if message["role"] != "assistant":
            raise fault("unsupported_part", field, "only an assistant reasons; drop the part")
        if any(message.get(key) for key in REASONING_KEYS):
            fact = "has reasoning in a part and under a key of the message; keep one"
            raise fault("conflicting_reasoning", field, fact)
        message["reasoning_content"] = parts.reasoning
    return parts.calls, parts.ranges


def _write_json(value: dict[str, Any], field: str) -> str:
    """As ms-swift writes what a tool answered as an object."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        fact = f"cannot be written as JSON ({error}); write a string"
        raise fault("bad_content", field, fact) from error


def _unify_calls(message: dict[str, Any], calls: list[dict[str, Any]], place: str) -> None:
    """All calls under ``tool_calls``, and the key gone where there are none."""
    sources = [calls]
    if "tool_calls" in message:
        sources.append(read_calls(message["tool_calls"], f"{place}.tool_calls"))
    if "function_call" in message:
        sources.append([read_call(message.pop("function_call"), f"{place}.function_call")])
    filled = [source for source in sources if source]
    if not filled:
        message.pop("tool_calls", None)
        return
    if len(filled) > 1:
        raise fault("conflicting_tool_calls", place, "has tool calls in two places; keep one")
    if message["role"] != "assistant":
        fact = f"only an assistant calls tools, and this is {message['role']}; correct the role"
        raise fault("bad_tool_call", place, fact)
    message["tool_calls"] = filled[0]


def _check_reasoning(message: dict[str, Any], place: str) -> None:
    for key in REASONING_KEYS:
        if not isinstance(value := message.get(key, ""), str):
            raise misfit("bad_reasoning", f"{place}.{key}", "a string", value, remedy='use ""')


def _check_content(message: dict[str, Any], field: str) -> None:
    """A string; None only where an assistant calls or reasons."""
    content = message.get("content", NOTHING)
    if isinstance(content, (str, SampledContent)):
        return
    if content is not None and content is not NOTHING:
        remedy = "write a string, or a list of parts"
        raise misfit("bad_content", field, "a string", content, remedy=remedy)
    assistant = message["role"] == "assistant"
    if assistant and ("tool_calls" in message or any(message.get(k) for k in REASONING_KEYS)):
        message["content"] = None
        return
    remedy = 'use "" or drop the message'
    raise misfit("null_content", field, "a string", content, remedy=remedy)
