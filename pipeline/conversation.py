"""Conversations as templates want them, and the two forms that some templates want otherwise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.errors import RecordError


@dataclass(frozen=True, slots=True)
class Weights:
    """What a record says of its own weights, each finite and from 0 to 1,000,000.

    ``messages`` is by index in ``Conversation.messages``, of any role; ``parts`` gives, by the same
    index, ``(start, end, weight)`` in characters of the message's content, which is then a string:
    one range for each part with a weight and some text, sorted and disjoint. ``row`` is the whole
    record's. What has no weight is in none of them.
    """

    messages: dict[int, float]
    parts: dict[int, list[tuple[int, int, float]]]
    row: float = 1.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a content: a text, or token ids that stand for one, as a model sampled them.

    ``weights`` are one number each for ids, one in all for a text; empty without any. ``field`` is
    the path of the ids in the record.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    field: str = ""


@dataclass(frozen=True, slots=True)
class SampledContent:
    """A content some of which is token ids; `sampled.spell` makes text of it before a render."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in OpenAI form, ready to render.

    ``messages`` are fresh dicts, one object per message (hooks know a message by identity);
    ``tools`` is None where the record has none; ``kwargs`` are the record's own template
    variables (``chat_template_kwargs``); ``weights`` is None where the record names none. The
    keys that name them stay in the messages, as templates may read them.

    Arguments of tool calls are objects (`Arguments` where the record wrote a string), and an
    assistant without text has content None: see `with_string_arguments`, `with_empty_content`.
    Content that holds token ids is a `SampledContent`. ``plain``: each message is a role and a
    string and nothing more, and there are no tools, kwargs or weights; most need no other look.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    weights: Weights | None = None
    plain: bool = False


class Arguments(dict[str, Any]):
    """Arguments of a call that the record wrote as a JSON string, which stays in ``written``.

    A plain dict to Jinja and JSON, so that templates may walk it; never change it in place.
    """

    __slots__ = ("written",)

    def __init__(self, values: Mapping[str, Any], *, written: str) -> None:
        super().__init__(values)
        self.written = written

    def __reduce__(self) -> tuple[object, ...]:
        # dict's own way to copy and pickle calls __init__ without the keyword.
        return (_arguments, (dict(self), self.written))


def _arguments(values: dict[str, Any], written: str) -> Arguments:
    return Arguments(values, written=written)


def with_string_arguments(conversation: Conversation) -> Conversation:
    """Every call's arguments as a JSON string, for templates that concatenate it (DeepSeek-R1).

    A string that the record wrote comes back character for character. The given conversation is
    not changed; without calls it is returned itself. RecordError where a hand-made object is no
    JSON.
    """
    if not any(message.get("tool_calls") for message in conversation.messages):
        return conversation
    messages = [
        {**message, "tool_calls": _with_strings(message["tool_calls"], f"messages[{i}].tool_calls")}
        if message.get("tool_calls")
        else message
        for i, message in enumerate(conversation.messages)
    ]
    return replace(conversation, messages=messages)


def _with_strings(calls: list[dict[str, Any]], place: str) -> list[dict[str, Any]]:
    return [_with_string(call, f"{place}[{j}]") for j, call in enumerate(calls)]


def _with_string(call: dict[str, Any], place: str) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, Arguments):
        arguments = arguments.written
    elif not isinstance(arguments, str):
        try:
            arguments = json.dumps(arguments, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            field = f"{place}.function.arguments"
            message = f"cannot be written as JSON ({error}); use plain JSON values"
            raise RecordError("parse", "bad_tool_call", message, field=field) from error
    return {**call, "function": {**function, "arguments": arguments}}


def with_empty_content(conversation: Conversation) -> Conversation:
    """Content None as ``""``, for templates that would print the word *None* or fail (GLM-4.6).

    The given conversation is not changed; without such a message it is returned itself.
    """
    if all(message["content"] is not None for message in conversation.messages):
        return conversation
    messages = [
        {**message, "content": ""} if message["content"] is None else message
        for message in conversation.messages
    ]
    return replace(conversation, messages=messages)


def with_text_parts(conversation: Conversation) -> Conversation:
    """Content as a list of one text part, for templates that read nothing else (Idefics 3)."""
    messages = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in conversation.messages
    ]
    return replace(conversation, messages=messages)
