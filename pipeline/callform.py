"""How a template wants tool calls: found by a probe, not by the template's name.

Most templates take a call's arguments as an object and print nothing for content null. Some
concatenate arguments as a string and fail on an object (DeepSeek-R1), some print the word *None*
for null content (GLM-4.7). Of the forms that a probe prints well, the first is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from pipeline.conversation import Conversation, with_empty_content, with_string_arguments
from pipeline.errors import RecordError, TemplateError

Form: TypeAlias = tuple[Callable[[Conversation], Conversation], ...]

# An object before a string: a template that takes both would double-encode the string.
_FORMS: tuple[Form, ...] = (
    (),
    (with_empty_content,),
    (with_string_arguments,),
    (with_string_arguments, with_empty_content),
)
_VALUE = "probe-7351"


def choose_form(render: Callable[[Conversation], str], source: str) -> Form:
    """What to apply to each conversation before *render*; nothing where no form prints a call."""
    none_is_meant = "None" in source
    for form in _FORMS:
        try:
            text = render(apply(form, _probe()))
        except RecordError as error:
            if error.reason == "template_limit":
                raise TemplateError(f"chat template: {error}") from error
            continue
        if _VALUE in text and '\\"' not in text and (none_is_meant or "None" not in text):
            return form
    return ()


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
