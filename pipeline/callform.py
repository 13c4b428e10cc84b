"""How a template wants tool calls: found by a probe, not by the template's name.

Most templates take a call's arguments as an object and print nothing for content null. Some
concatenate arguments as a string and fail on an object (DeepSeek-R1), some print the word *None*
for null content (GLM-4.7). Of the forms that a probe prints well, the first is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

from pipeline.conversation import (
    Conversation,
    with_empty_content,
    with_string_arguments,
    with_text_parts,
)
from pipeline.errors import RecordError, TemplateError

Form: TypeAlias = tuple[Callable[[Conversation], Conversation], ...]

# An object before a string: a template that takes both would double-encode the string.
_FORMS: tuple[Form, ...] = (
    (),
    (with_empty_content,),
    (with_string_arguments,),
    (with_string_arguments, with_empty_content),
)
_TAGS = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")
_VALUE = "probe-7351"


def choose_form(render: Callable[[Conversation], str], source: str) -> Form:
    """What to apply to each conversation before *render*; no call form where none prints a call."""
    none_is_meant = "None" in source
    parts = _choose_parts(render)
    for calls in _FORMS:
        form = (*calls, *parts)
        try:
            text = render(apply(form, _probe()))
        except RecordError as error:
            _require_bounded(error)
            continue
        if _VALUE in text and '\\"' not in text and (none_is_meant or "None" not in text):
            return form
    return parts


def _choose_parts(render: Callable[[Conversation], str]) -> Form:
    """Parts instead of a string, for templates that print nothing of a string (Idefics 3).

    Not where prose follows the assistant's last words: Llama Guard's talk is a part of a question.
    """
    talk = Conversation(
        [{"role": "user", "content": "Q"}, {"role": "assistant", "content": _VALUE}]
    )
    try:
        if _VALUE in render(talk):
            return ()
    except RecordError as error:
        _require_bounded(error)
        return ()
    try:
        _, said, tail = render(with_text_parts(talk)).partition(_VALUE)
    except RecordError:
        return ()
    return (with_text_parts,) if said and not has_prose(tail) else ()


def has_prose(text: str) -> bool:
    """Whether words stand in it outside of what looks like markup."""
    return any(map(str.isalpha, _TAGS.sub("", text)))


def _require_bounded(error: RecordError) -> None:
    """A template that no probe can finish is nobody's."""
    if error.reason == "template_limit":
        fact = str(error).partition(";")[0]
        raise TemplateError(f"{fact}, even for a talk of two messages; change it") from error


def apply(form: Form, conversation: Conversation) -> Conversation:
    """The conversation in *form*; itself where it has nothing that the form changes."""
    for change in form:
        conversation = change(conversation)
    return conversation


def _probe() -> Conversation:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": _VALUE}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "R", "name": "look", "tool_call_id": "123456789"},
        {"role": "assistant", "content": "A"},
    ]
    return Conversation(messages)
