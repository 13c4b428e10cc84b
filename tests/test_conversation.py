"""The other forms that some templates want, and that no byte of arguments is lost on the way."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.conversation import (
    Arguments,
    Conversation,
    with_empty_content,
    with_string_arguments,
)
from pipeline.errors import RecordError

WRITTEN = '{"b":1.10,  "a": "\\u00e9"}'


def conversation_of(arguments: Any, content: Any = None) -> Conversation:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": content, "tool_calls": [call]}
    return Conversation([{"role": "user", "content": "q"}, message])


def arguments_of(conversation: Conversation) -> Any:
    return conversation.messages[1]["tool_calls"][0]["function"]["arguments"]


def test_written_arguments_come_back_character_for_character() -> None:
    conversation = conversation_of(Arguments(json.loads(WRITTEN), written=WRITTEN))
    assert arguments_of(with_string_arguments(conversation)) == WRITTEN


def test_arguments_that_were_objects_are_written_as_plain_json() -> None:
    arguments = {"b": 1.1, "a": "é"}
    assert arguments_of(with_string_arguments(conversation_of(arguments))) == '{"b": 1.1, "a": "é"}'


def test_arguments_that_are_strings_stay() -> None:
    assert arguments_of(with_string_arguments(conversation_of("f(x)"))) == "f(x)"


@pytest.mark.parametrize("change", [with_string_arguments, with_empty_content])
def test_the_given_conversation_is_not_changed(
    change: Callable[[Conversation], Conversation],
) -> None:
    conversation = replace(conversation_of({"a": 1}), tools=[{"x": 1}], kwargs={"y": 2})
    before = copy.deepcopy(conversation)
    changed = change(conversation)
    assert conversation == before
    assert changed.messages != before.messages
    assert (changed.tools, changed.kwargs) == (before.tools, before.kwargs)


@pytest.mark.parametrize("change", [with_string_arguments, with_empty_content])
def test_a_conversation_without_need_is_returned_itself(
    change: Callable[[Conversation], Conversation],
) -> None:
    conversation = Conversation([{"role": "assistant", "content": "a"}])
    assert change(conversation) is conversation


def test_empty_content_takes_the_place_of_none() -> None:
    assert with_empty_content(conversation_of({})).messages[1]["content"] == ""


def test_a_hand_made_object_that_is_no_json_is_blamed_on_its_field() -> None:
    with pytest.raises(RecordError) as caught:
        with_string_arguments(conversation_of({"a": b"bytes"}))
    assert caught.value.field == "messages[1].tool_calls[0].function.arguments"


def test_arguments_survive_copies_and_pickles() -> None:
    arguments = Arguments({"a": {"b": 1}}, written=WRITTEN)
    for twin in (
        pickle.loads(pickle.dumps(arguments)),
        copy.deepcopy(arguments),
        copy.copy(arguments),
    ):
        assert (type(twin), twin, twin.written) == (Arguments, {"a": {"b": 1}}, WRITTEN)


def test_a_template_cannot_tell_arguments_from_a_dict() -> None:
    template = sandbox().from_string(
        "{{ a | tojson }} {{ a }} {{ a is mapping }} {{ a is string }} {{ a | length }}"
        "{{ a['b'] }}{% for k, v in a.items() %}{{ k }}{{ v }}{% endfor %}"
        "{% for k in a %}{{ k }}{% endfor %}"
        "{{ a | items | list }} {{ a | dictsort }}"
    )
    values = json.loads(WRITTEN)
    expected = template.render(a=values)
    assert template.render(a=Arguments(values, written=WRITTEN)) == expected


def sandbox() -> ImmutableSandboxedEnvironment:
    """As Hugging Face renders chat templates, written anew from its documentation."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, **{"ensure_ascii": False, **options}
    )

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    return environment


@pytest.mark.corpus
def test_every_real_template_that_prints_calls_prints_one_of_the_forms_well(shared: Path) -> None:
    """Objects and None serve most; the two helpers cover all of the rest."""
    lines = (shared / "templates" / "templates.jsonl").read_text().splitlines()
    printing = 0
    for record in map(json.loads, lines):
        if "{% generation" in record["template"] or "{%- generation" in record["template"]:
            continue
        template = sandbox().from_string(record["template"])
        literal = "None" in record["template"]
        texts = [render(template, form) for form in all_forms()]
        if not any("xé" in text for text in texts):
            continue
        printing += 1
        assert any(is_good(text, literal=literal) for text in texts), record["name"]
    assert printing >= 80


def all_forms() -> list[Conversation]:
    plain = conversation_of({"key": "xé"})
    plain.messages[1]["tool_calls"][0]["id"] = "call00001"
    tool = {"role": "tool", "tool_call_id": "call00001", "name": "f", "content": "r"}
    plain.messages.extend([tool, {"role": "assistant", "content": "a"}])
    strings = with_string_arguments(plain)
    return [plain, with_empty_content(plain), strings, with_empty_content(strings)]


def render(template: Any, conversation: Conversation) -> str:
    parameters = {"type": "object", "properties": {"key": {"type": "string", "description": "k"}}}
    function = {"name": "f", "description": "d", "parameters": {**parameters, "required": ["key"]}}
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "documents": None}
    try:
        text: str = template.render(
            messages=conversation.messages,
            tools=[{"type": "function", "function": function}],
            add_generation_prompt=False,
            **tokens,
        )
    except Exception:  # noqa: BLE001 - templates raise anything on a form that they do not take
        return ""
    return text


def is_good(text: str, *, literal: bool) -> bool:
    return "xé" in text and '\\"key' not in text and (literal or "None" not in text)
