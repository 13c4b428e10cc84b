"""Renders that know who wrote what, and change nothing."""

from __future__ import annotations

import datetime
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.callform import apply
from pipeline.conversation import Conversation
from pipeline.errors import RecordError, TemplateError
from pipeline.rendered import Rendered
from pipeline.template import Template
from tests.reference import plain_template, render_plainly

DAY = datetime.date(2026, 3, 14)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]


def render(source: str, messages: list[dict[str, Any]] | None = None, **more: Any) -> Rendered:
    template = Template(source, today=DAY, variables=more)
    return template.render(Conversation(TALK if messages is None else messages))


def owners(rendered: Rendered) -> list[str]:
    return ["|".join(rendered.text[a:b] for a, b in ranges) for ranges in rendered.owned]


CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"


def test_each_message_owns_what_its_iteration_printed() -> None:
    rendered = render("start " + CHATML + " end")
    assert owners(rendered) == [f"<{m['role']}>{m['content']}</>" for m in TALK]


@pytest.mark.parametrize(
    "loop",
    [
        "{% for i in range(messages|length) %}[{{ messages[i].content }}]{% endfor %}",
        "{% for m in messages[0:] %}[{{ m.content }}]{% endfor %}",
        "{% for m in messages if m.content %}[{{ m.content }}]{% endfor %}",
        "{% for m in messages|selectattr('content') %}[{{ m['content'] }}]{% endfor %}",
        "{% set ns = namespace(all=messages) %}{% for m in ns.all %}[{{ m.content }}]{% endfor %}",
    ],
)
def test_messages_are_known_however_the_template_loops(loop: str) -> None:
    assert owners(render(loop)) == [f"[{m['content']}]" for m in TALK]


def test_a_message_in_a_pair_is_known() -> None:
    source = "{% for n, m in pairs %}[{{ m.content }}]{% endfor %}"
    template = Template(
        "{% set ns = namespace(p=[]) %}{% for m in messages %}"
        "{% set ns.p = ns.p + [(loop.index, m)] %}{% endfor %}" + source.replace("pairs", "ns.p"),
        today=DAY,
    )
    assert owners(template.render(Conversation(TALK))) == [f"[{m['content']}]" for m in TALK]


def test_an_inner_loop_returns_the_text_to_its_message() -> None:
    messages = [{"role": "assistant", "content": "a", "tool_calls": [1, 2]}]
    source = (
        "{% for m in messages %}({% for c in m.tool_calls %}{{ c }}{% endfor %}){% endfor %}after"
    )
    assert owners(render(source, messages)) == ["(12)"]


def test_a_message_printed_inside_another_splits_its_range() -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}{% if loop.first %}"
        "{% for n in messages[1:2] %}[{{ n.content }}]{% endfor %}{% endif %}>{% endfor %}"
    )
    rendered = render(source, TALK[:2])
    assert owners(rendered) == ["<system|>", "[Hi]|<user>"]


def test_equal_messages_are_told_apart() -> None:
    rendered = render(CHATML, [dict(TALK[1]), dict(TALK[1])])
    first, second = rendered.owned
    assert first[0].end == second[0].start


def test_break_and_continue_leave_no_owner_behind() -> None:
    source = (
        "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}"
        "{% if loop.index0 == 3 %}{% break %}{% endif %}[{{ m.content }}]{% endfor %}tail"
    )
    rendered = render(source)
    assert owners(rendered) == ["[Be brief.]", "", "[Hello]", "", ""]
    assert rendered.text.endswith("tail")


def test_generation_tags_are_recorded() -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}!{% endgeneration %}{% endif %}{% endfor %}"
    )
    rendered = render(source)
    assert rendered.generated is not None
    assert [rendered.text[a:b] for a, b in rendered.generated] == ["Hello!", "So long!"]
    assert render(CHATML).generated is None


def test_the_clock_stands_at_the_day_of_the_build() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}").text == "14 Mar 2026"


def test_json_is_written_as_transformers_writes_it() -> None:
    value = {"b": "é<>", "a": [1, 2.0, None, True]}
    rendered = render("{{ v|tojson }}\n{{ v|tojson(indent=1) }}", v=value)
    assert rendered.text == json.dumps(value, ensure_ascii=False) + "\n" + json.dumps(
        value, ensure_ascii=False, indent=1
    )


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_read_under_every_name_that_templates_use(key: str) -> None:
    messages = [{"role": "assistant", "content": "", key: "Hm"}]
    source = "{{ messages[0].reasoning_content }}{{ messages[0].thinking }}"
    assert render(source, messages).text == "HmHm"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('only two roles') }}", "refuses it: only two roles"),
        ("{{ messages[9].role.x }}", "fails on it: UndefinedError"),
        ("{{ 1 + 'a' }}", "fails on it: TypeError"),
        ("{{ ''.__class__.__mro__ }}", "refuses it: access to attribute"),
        ("{{ messages.append(1) }}", "refuses it: access to attribute"),
    ],
)
def test_a_template_that_fails_is_a_record_error(source: str, said: str) -> None:
    with pytest.raises(RecordError) as caught:
        render(source)
    assert (caught.value.stage, caught.value.reason) == ("render", "template_error")
    assert said in str(caught.value)


def test_a_template_that_does_not_compile_is_told_by_line() -> None:
    with pytest.raises(TemplateError, match=r"^f\.jinja:2: "):
        Template("a\n{% if %}", today=DAY, place="f.jinja")


def test_a_template_survives_pickling() -> None:
    template = pickle.loads(pickle.dumps(Template(CHATML, today=DAY)))
    assert template.render(Conversation(TALK)).text == render(CHATML).text


def test_a_template_cannot_change_the_conversation() -> None:
    messages = [dict(m) for m in TALK]
    with pytest.raises(RecordError):
        render("{{ messages.pop() }}", messages)
    assert messages == TALK


@pytest.mark.corpus
def test_hooks_change_no_character_of_any_real_template(shared: Path) -> None:
    """Nor what a template refuses; and every assistant message of plain loops is owned."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": None}}}
    shapes: dict[str, list[dict[str, Any]]] = {
        "single": TALK[1:3],
        "multi": TALK[1:],
        "system": TALK,
        "reasoning": [
            TALK[1],
            {"role": "assistant", "content": "So", "reasoning_content": "Hm"},
            TALK[3],
            {"role": "assistant", "content": "<think>\nAh\n</think>\n\nYes"},
        ],
        "tools": [
            TALK[1],
            {"role": "assistant", "content": "Wait", "tool_calls": [call]},
            {"role": "tool", "content": "7", "name": "f", "tool_call_id": "1"},
            {"role": "assistant", "content": "Seven"},
        ],
    }
    lines = (shared / "templates" / "templates.jsonl").read_text(encoding="utf-8").splitlines()
    compared = 0
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    for line in lines:
        source = json.loads(line)["template"]
        plain = plain_template(source, DAY)
        template = Template(source, today=DAY, variables=special)
        for messages, prompt in itertools.product(shapes.values(), (False, True)):
            conversation = Conversation(messages)
            try:
                given = apply(template.form, conversation).messages
                text = render_plainly(plain, given, add_generation_prompt=prompt, **special)
            except Exception:  # noqa: BLE001 - a template can raise anything
                with pytest.raises(RecordError):
                    template.render(conversation, prompt=prompt)
                continue
            assert template.render(conversation, prompt=prompt).text == text, source[:200]
            compared += 1
    assert compared > 2000


CALL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "arguments": {"city": "Oslo"}},
}
ASKED: list[dict[str, Any]] = [
    TALK[1],
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
]


def test_a_template_that_joins_arguments_as_text_is_given_text() -> None:
    source = (
        "{% for m in messages %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "{{ '<' + c.function.arguments + '>' }}{% endfor %}{% endfor %}"
    )
    assert render(source, ASKED).text == 'Hi<{"city": "Oslo"}>'


def test_a_template_that_prints_none_is_given_empty_content() -> None:
    source = (
        "{% for m in messages %}({{ m.content }}){% for c in m.tool_calls or [] %}"
        "{{ c.function.arguments|tojson }}{% endfor %}{% endfor %}"
    )
    assert render(source, ASKED).text == '(Hi)(){"city": "Oslo"}'


def test_a_template_that_takes_objects_is_given_objects_and_none() -> None:
    source = (
        "{% for m in messages %}{% if m.content is none %}-{% else %}{{ m.content }}{% endif %}"
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments.items()|list }}{% endfor %}"
        "{% endfor %}"
    )
    assert render(source, ASKED).text == "Hi-[('city', 'Oslo')]"


def test_a_template_that_reads_parts_only_gets_parts() -> None:
    """Idefics 3 prints nothing of a string."""
    source = (
        "{% for m in messages %}{{ m.role }}:{% for part in m.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %};{% endfor %}"
    )
    template = Template(source, today=datetime.date(2026, 3, 14))
    talk = Conversation([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}])
    assert template.render(talk).text == "user:Hi;assistant:Yo;"
    traced = template.trace(talk, parts={1: [(0, 1)]})
    assert [traced.origin_at(traced.text.index(c)).field for c in "HYo"[:2]] == [
        "content",
        "content[0]",
    ]
    # A list would be printed as Python writes it, and prose after the talk makes it a quotation.
    for other in (
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        source + "Is that safe?",
    ):
        assert Template(other, today=datetime.date(2026, 3, 14)).form == ()
