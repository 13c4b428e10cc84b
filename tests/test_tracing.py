"""Traced renders: the origin of every character, wherever and whenever it is printed."""

from __future__ import annotations

import datetime
import itertools
import pickle
from typing import Any

import pytest

from pipeline.conversation import Conversation
from pipeline.errors import RecordError
from pipeline.rendered import Rendered
from pipeline.spans import Span
from pipeline.template import Template

DAY = datetime.date(2026, 3, 14)
ASK = {"role": "user", "content": "Hi"}
SAY = {"role": "assistant", "content": "Lo"}
CALL = {
    "type": "function",
    "id": "c1",
    "function": {"name": "look", "arguments": {"at": "x\ny", "n": 2}},
}


def trace(source: str, messages: list[dict[str, Any]], **more: Any) -> Rendered:
    given = {key: more.pop(key) for key in ("tools", "kwargs") if key in more}
    parts = more.pop("parts", None)
    template = Template(source, today=DAY, variables=more)
    return template.trace(Conversation(messages, **given), parts=parts)


def origins(rendered: Rendered) -> list[tuple[str, int, str]]:
    """(text, message, field) of each run of one origin."""
    runs, start = [], 0
    for origin, run in itertools.groupby(map(rendered.origin_at, range(len(rendered.text)))):
        end = start + len(list(run))
        runs.append((rendered.text[start:end], *origin))
        start = end
    return runs


def owners(rendered: Rendered) -> list[str]:
    return ["|".join(rendered.text[a:b] for a, b in ranges) for ranges in rendered.owned]


def test_each_character_is_the_templates_or_a_fields() -> None:
    source = "^{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}$"
    assert origins(trace(source, [ASK, SAY])) == [
        ("^", -1, ""),
        ("[user:", 0, ""),
        ("Hi", 0, "content"),
        ("]", 0, ""),
        ("[assistant:", 1, ""),
        ("Lo", 1, "content"),
        ("]", 1, ""),
        ("$", -1, ""),
    ]


@pytest.mark.parametrize(
    "build",
    [
        "{% set ns.out = ns.out + '[' + m.role + ':' + m.content.strip() + eos %}",
        "{% set ns.out = ns.out ~ '[' ~ m.role ~ ':' ~ m.content|trim ~ eos %}",
        "{% set text %}[{{ m.role }}:{{ m.content }}{{ eos }}{% endset %}"
        "{% set ns.out = ns.out + text %}",
        "{% set ns.out = [ns.out, '[', m.role, ':', m.content, eos]|join %}",
        "{% set ns.out = ns.out + say(m) %}",
        "{% set ns.out = ns.out + '[%s:%s'|format(m.role, m.content) + end %}",
    ],
)
def test_what_is_built_up_and_printed_after_the_loop_belongs_to_its_message(build: str) -> None:
    """Roles, literals, special tokens and names set before the loop too; hooks see none of it."""
    source = (
        "{% macro say(m) %}[{{ m.role }}:{{ m.content }}{{ eos }}{% endmacro %}{% set end = ']' %}"
        "{% set ns = namespace(out='^') %}{% for m in messages %}" + build + "{% endfor %}"
        "{{ ns.out }}$"
    )
    rendered = trace(source, [ASK, SAY], eos="]")
    assert rendered.text == "^[user:Hi][assistant:Lo]$"
    if "join" not in build:  # a list holds the special token as it was before any message
        assert owners(rendered) == ["[user:Hi]", "[assistant:Lo]"]
    assert [o[1:] for o in origins(rendered) if o[0] in ("Hi", "Lo")] == [
        (0, "content"),
        (1, "content"),
    ]
    hooked = Template(source, today=DAY, variables={"eos": "]"}).render(Conversation([ASK, SAY]))
    assert not any(hooked.owned)


def test_content_belongs_to_its_message_wherever_it_is_printed() -> None:
    source = (
        "{% for m in messages[1:] %}<{% if loop.first %}{{ messages[0].content }}{% endif %}"
        "|{{ m.content }}>{% endfor %}"
    )
    assert owners(trace(source, [ASK, SAY])) == ["Hi", "<||Lo>"]


def test_parts_of_content_have_fields_of_their_own() -> None:
    source = "{% for m in messages %}{{ m.content.strip() }};{% endfor %}"
    messages = [ASK, {"role": "assistant", "content": " one two\n"}]
    rendered = trace(source, messages, parts={1: [(0, 4), (5, 9)]})
    assert origins(rendered)[2:] == [
        ("one", 1, "content[0]"),
        (" ", 1, "content"),
        ("two", 1, "content[1]"),
        (";", 1, ""),
    ]
    assert owners(rendered)[1] == "one two;"


def test_a_call_is_traced_but_for_the_keys_of_its_form() -> None:
    source = "{% for m in messages %}{{ m.tool_calls|tojson }}{% endfor %}"
    said = origins(trace(source, [{"role": "assistant", "content": "", "tool_calls": [CALL]}]))
    assert {field for _, _, field in said} == {"?", "tool_calls"}
    assert [text for text, _, field in said if field == "tool_calls"] == [
        "function",
        "c1",
        "look",
        "at",
        "x\\ny",
        "n",
    ]


def test_content_parts_printed_as_a_list_are_traced() -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    said = origins(trace(source, [{"role": "user", "content": [{"type": "text", "text": "it's"}]}]))
    assert [text for text, _, field in said if field == "content"] == ["text", "it's"]


def test_reasoning_keeps_the_name_that_the_record_gave_it() -> None:
    source = "{{ messages[0].reasoning_content }}"
    assert origins(trace(source, [{**SAY, "thinking": "Hm"}])) == [("Hm", 0, "thinking")]


@pytest.mark.parametrize("key", ["", "?"])
def test_no_key_of_a_record_passes_for_the_template(key: str) -> None:
    source = "{% for m in messages %}{{ m[key] }}{% endfor %}"
    assert origins(trace(source, [{**ASK, key: "<s>"}], key=key)) == [("<s>", 0, repr(key))]


def test_tools_and_kwargs_belong_to_no_message() -> None:
    source = "{% for m in messages %}{{ tools[0].name }}{{ style }}{{ m.content }}{% endfor %}"
    rendered = trace(source, [ASK], tools=[{"name": "look"}], kwargs={"style": "kind"})
    assert origins(rendered) == [
        ("look", -1, "tools"),
        ("kind", -1, "chat_template_kwargs"),
        ("Hi", 0, "content"),
    ]


def test_special_tokens_are_the_templates() -> None:
    source = "{{ bos }}{% for m in messages %}{{ m.content }}{{ bos }}{% endfor %}"
    assert origins(trace(source, [ASK], bos="<s>")) == [
        ("<s>", -1, ""),
        ("Hi", 0, "content"),
        ("<s>", 0, ""),
    ]


def test_what_nobody_follows_is_unknown_and_of_the_running_message() -> None:
    source = "{% for m in messages %}{{ m.content|urlencode }}{{ loop.index }}{% endfor %}"
    assert origins(trace(source, [ASK])) == [("Hi1", 0, "?")]


def test_safe_text_is_traced_and_still_escapes_what_is_added() -> None:
    source = (
        "{% for m in messages %}{{ m.content|safe + '<' }}{{ m.content|safe ~ '<' }}{% endfor %}"
    )
    said = origins(trace(source, [ASK]))
    assert said == [("Hi&lt;", 0, "?"), ("Hi", 0, "content"), ("<", 0, "")]


def test_a_template_does_not_see_that_it_is_traced() -> None:
    source = (
        "{% for m in messages %}{{ m.content.marks is defined }}{{ m.content.marks }}"
        "{{ m.content is string }}{{ [m.content, ('x',), {'k': m.content}] }}"
        "{{ {'Hi': 1}[m.content] }}{{ m.content|safe|pprint }}{% endfor %}"
    )
    assert trace(source, [ASK]).text == (
        "FalseTrue['Hi', ('x',), {'k': 'Hi'}]1Markup('Hi')"  # equal to the plain render's, as well
    )


def test_a_traced_text_that_differs_is_a_reject() -> None:
    with pytest.raises(RecordError, match="the traced text is another") as caught:
        trace("{% set a = 'x' %}{{ a is sameas 'x' }}", [ASK])
    assert (caught.value.stage, caught.value.reason) == ("render", "trace_differs")


def test_what_the_template_refuses_is_refused_alike() -> None:
    with pytest.raises(RecordError, match="refuses it: no") as caught:
        trace("{{ raise_exception('no') }}", [ASK])
    assert caught.value.reason == "template_error"


def test_nesting_too_deep_to_trace_is_said_to_be() -> None:
    """The encoder makes it the reject ``too_deep``."""
    value: Any = "x"
    for _ in range(5000):
        value = [value]
    with pytest.raises(RecursionError):
        trace("{{ messages[0].content }}", [{**ASK, "extra": value}])


def test_generation_tags_are_where_they_are_in_the_plain_render() -> None:
    source = (
        "{% for m in messages %}<{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}!{% endgeneration %}{% endif %}>{% endfor %}"
    )
    assert trace(source, [ASK, SAY]).generated == [Span(3, 6)]


def test_a_template_that_traced_survives_pickling() -> None:
    template = Template("{% for m in messages %}{{ m.content }}{% endfor %}", today=DAY)
    first = template.trace(Conversation([ASK]))
    assert pickle.loads(pickle.dumps(template)).trace(Conversation([ASK])) == first


def test_marks_suffice_for_very_long_conversations() -> None:
    """Some marks are surrogates then, which no codec writes unless told to."""
    count = 20_000
    messages = [{"role": "user", "content": "ab"}] * count
    rendered = trace("{% for m in messages %}{{ m.content }}|{% endfor %}", messages)
    assert len(rendered.codes()) == len(rendered.text) == 3 * count
    assert rendered.owned == [[Span(3 * i, 3 * i + 3)] for i in range(count)]
    assert len(rendered.origins) > 0xD800


CALLED = (
    "{% for m in messages %}<{{ m.content }}"
    "{% for c in m.tool_calls %}[{{ c.id }}]{% endfor %}>{% endfor %}"
)


def test_where_tool_calls_are_printed_is_known() -> None:
    messages: list[dict[str, Any]] = [ASK, {**SAY, "tool_calls": [CALL, dict(CALL)]}, SAY]
    template = Template(CALLED, today=DAY)
    plain = template.render(Conversation(messages))
    assert plain.text == "<Hi><Lo[c1][c1]><Lo>"
    assert {i: plain.text[a:b] for i, (a, b) in plain.called.items()} == {1: "[c1][c1]"}
    assert owners(plain) == ["<Hi>", "<Lo[c1][c1]>", "<Lo>"]
    assert template.trace(Conversation(messages)).called == plain.called


def test_a_loop_inside_the_loop_over_calls_does_not_end_it() -> None:
    source = (
        "{% for m in messages %}<{% for c in m.tool_calls %}["
        "{% for k in c.function.arguments %}{{ c.function.arguments[k] }}{% endfor %}]"
        "{% endfor %}>{% endfor %}"
    )
    rendered = Template(source, today=DAY).render(Conversation([{**SAY, "tool_calls": [CALL]}]))
    assert rendered.text == "<[x\ny2]>"
    assert rendered.called == {0: Span(1, 7)}


def test_a_call_that_another_message_looks_up_is_not_printed_by_its_own() -> None:
    source = CALLED[: -len(">{% endfor %}")] + (
        "{% if m.role == 'tool' %}{% for c in messages[0].tool_calls %}({{ c.id }}){% endfor %}"
        "{% endif %}>{% endfor %}"
    )
    called = {**SAY, "tool_calls": [CALL]}
    messages: list[dict[str, Any]] = [called, {"role": "tool", "content": "7"}]
    rendered = Template(source, today=DAY).render(Conversation(messages))
    assert rendered.text == "<Lo[c1]><7(c1)>"
    assert rendered.called == {0: Span(3, 7)}


def test_a_branch_that_no_render_reaches_is_not_run_by_compiling_it() -> None:
    """Folding the constant would take ten gigabytes."""
    source = (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if messages[0].content == 'Die' %}{{ 'x' * 10000000000 }}{% endif %}"
    )
    assert trace(source, [ASK]).text == "Hi"
