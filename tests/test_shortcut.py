"""A template's shortcut writes and reports what its own code does, or leaves the talk to it."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.conversation import Arguments, Conversation
from pipeline.errors import RecordError, TemplateError
from pipeline.limits import Limits
from pipeline.recipe import BUNDLED, load_template
from pipeline.rendered import Rendered
from pipeline.template import Template
from pipeline.tokens.vocabulary import read_vocabulary
from tests.reference import plain_template, render_plainly

DAY = datetime.date(2026, 3, 14)
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "items": 2}}}
        ],
    },
    {"role": "tool", "content": "x" * 5000},
]
VARIABLES: dict[str, Any] = {"bos": "<s>", "no": False, "minus": -2, "pairs": {"a": 1}}


def take(template: Template, conversation: Conversation) -> Rendered | None:
    return template.shortcut.render(conversation, tagged=template.tagged)


def agree(source: str, messages: list[dict[str, Any]], *, tools: Any = None, **more: Any) -> str:
    """What the shortcut writes, which is what the template's own code does; or ``own code``."""
    template = Template(source, today=DAY, variables={**VARIABLES, **more})
    conversation = Conversation(messages, tools)
    short = take(template, conversation)
    if short is None:
        return "own code"
    full = template.render_fully(conversation)
    assert short.text == full.text
    assert short.owned == full.owned
    assert short.generated == full.generated
    assert short.called == full.called
    plain = render_plainly(
        plain_template(source, DAY),
        messages,
        tools=tools,
        documents=None,
        add_generation_prompt=False,
        **{**VARIABLES, **more},
    )
    assert short.text == plain
    return short.text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        # What is fixed for a build.
        ("{% if true %}a{% else %}b{% endif %}{% if 0 %}c{% else %}d{% endif %}", "ad"),
        ("{% if tools is none %}none{% endif %} {{ add_generation_prompt }}", "none False"),
        ("{% if true %}{% generation %}a{% endgeneration %}{% endif %}b", "ab"),
        ("{{ minus ** 2 }} {{ -minus }} {{ 3 - minus }} {{ minus % 3 }}", "4 2 5 1"),
        ("{{ no == 0 }} {{ 1 == true }} {{ bos < 'z' }}", "True True True"),
        ("{% set bos = 1 %}{{ bos }}", "1"),
        ("{% set messages = messages[1:] %}{% for m in messages %}{{ m.role }} {% endfor %}", None),
        # Names of the lowered code are no names of the template.
        ("{% set append = 1 %}{% set pieces = 2 %}{{ append }}{{ pieces }}", "12"),
        ("{{ nothing }}{{ missing }}{{ given_bos }}{{ recorder }}{{ environment }}", ""),
        ("{% macro append(x) %}{{ x }}{% endmacro %}{{ append(1) }}", "1"),
        (
            "{% for m in messages %}{% set m__content = 1 %}{{ m.role }}{{ m.role }}"
            "{{ m__content }}{{ m.content is none }}{{ m.content is string }} {% endfor %}",
            "useruser1FalseTrue assistantassistant1TrueFalse tooltool1FalseTrue ",
        ),
        # Loops.
        (
            "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}"
            "{{ loop.first }}{{ loop.last }}{{ loop.length }} {% endfor %}",
            "103TrueFalse3 212FalseFalse3 321FalseTrue3 ",
        ),
        (
            "{% for m in messages %}{{ loop.previtem.role if loop.previtem }}-"
            "{{ loop.nextitem.role if loop.nextitem is defined }} {% endfor %}",
            "-assistant user-tool assistant- ",
        ),
        (
            "{% for m in messages %}{% if loop.first %}{% set m = {'role': 'x'} %}{% endif %}"
            "{{ m.role }}{{ m.role }} {% endfor %}",
            "xx assistantassistant tooltool ",
        ),
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}.", "user."),
        ("{% for m in [] %}{{ m }}{% else %}empty{% endfor %}", "empty"),
        ("{% for m in messages %}{{ loop.cycle('a', 'b') }}{% endfor %}", "aba"),
        # Values that are not there.
        ("{% for m in messages %}{{ m.x is defined }}{{ m['x'] == nobody }} {% endfor %}", None),
        ("{% if no %}{% set q = 1 %}{% endif %}{{ q is defined }}{{ q }}", "False"),
        ("{% for m in messages %}{{ m.x is sameas none }}{% endfor %}", "FalseFalseFalse"),
        # Namespaces and macros.
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
            "{% endfor %}{{ ns.n }}{{ ns.x is defined }}",
            "3False",
        ),
        ("{% macro f(m) %}{{ m.role }}{{ m.role }}{% endmacro %}{{ f(messages[0]) }}", "useruser"),
        ("{{ (bos|safe) is string }}{{ messages[0].role is string }}{{ no is string }}", None),
        # Owners of what later loops print.
        ("{% for m in messages %}a{% endfor %}{% for m in messages[:1] %}b{% endfor %}", "aaab"),
        (
            "{% macro f(a, b=2, c=b) %}{{ a }}{{ b }}{{ c }} {% endmacro %}{{ f(1) }}"
            "{{ f(1, c=3) }}{{ f(a=2, c=1) }}{{ f(b=1, c=3) }}{{ f(1, 2, 3) }}{{ f() }}",
            "122 123 221 13 123 22 ",
        ),
        (
            "{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}"
            "{% macro g(x) %}<{{ f(x)|trim }}>{% endmacro %}{{ g(2) }}",
            "<210>",
        ),
        (
            "{% for m in messages %}{% macro f(x) %}{{ x }}{{ m.role }}{% endmacro %}"
            "{{ f(loop.index) }} {% endfor %}{{ f is defined }}",
            "1user 2assistant 3tool False",
        ),
        ("{{ ' a '|trim }}{{ 5|trim }}{{ ('x' ~ bos ~ ' ')|trim }}{{ bos|trim('<') }}", None),
        (
            "{% for m in messages %}{{ loop.index0 > 0 }}{{ loop.index < loop.length }}"
            "{{ loop.index == '1' }} {% endfor %}",
            "FalseTrueFalse TrueTrueFalse TrueFalseFalse ",
        ),
        # Keys that are called like a dict's attributes.
        ("{{ messages[1].tool_calls[0].function.arguments['items'] }}", "2"),
        ("{{ messages[1].tool_calls[0].function.arguments.items is callable }}", "True"),
    ],
)  # fmt: skip
def test_the_shortcut_writes_what_the_template_means(source: str, text: str | None) -> None:
    written = agree(source, TALK)
    assert written != "own code"
    assert text is None or written == text


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.foo is sameas m.bar }}{% endfor %}",
        "{{ [messages[0].foo]|select('sameas', messages[0].bar)|list|length }}",
        "{% set ns = namespace(_x=1) %}{{ ns._x }}",
        "{% set ns = namespace(a=1) %}{% set ns._x = 2 %}{{ ns._x is defined }}",
        "{% set ns = namespace({'get': pairs.get}) %}{% for n in [ns] %}{{ n.a }}{% endfor %}",
        "{% set ns = namespace(**{'get': pairs.get}) %}{% for n in [ns] %}{{ n.a }}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.get = pairs.get %}"
        "{% for n in [ns] %}{{ n.a }}{% endfor %}",
        "{% set f = namespace %}{% set ns = f({'get': pairs.get}) %}{{ [ns][0].a }}",
        "{% set ns = [namespace][0]({'get': pairs.get}) %}{{ [ns][0].a }}",
        "{% for m in messages %}{% set outer = loop %}{% for x in [1, 2] %}"
        "{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}",
        "{% macro f(v) %}{{ v.index }}{% endmacro %}{% for m in messages %}{{ f(loop) }}"
        "{% endfor %}",
        "{% macro f(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, c=3) }}",
        "{% macro f(a) %}{{ a }}{{ caller() }}{% endmacro %}{% call f(1) %}x{% endcall %}",
        "{% macro f(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ f(b=1, a=2) }}",
        "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}",
        "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}",
        "{% macro f() %}a{% endmacro %}{% macro g() %}{{ f() }}{% macro f() %}b{% endmacro %}"
        "{{ f() }}{% endmacro %}{{ g() }}{{ f() }}",
        "{% if no %}{% macro f() %}a{% endmacro %}{% endif %}{{ f() }}",
        "{% macro f(x) %}a{% endmacro %}{% set f = range %}{{ f(2)|list }}",
        "{% for m in messages %}{% if loop.first %}{% macro f() %}a{% endmacro %}{% endif %}"
        "{{ f() }}{% endfor %}",
        "{% for m in messages %}{% macro f() %}a{% endmacro %}{% endfor %}{{ f() }}",
        "{% autoescape true %}{{ bos + '<' }}{{ bos|safe|replace('s', '<') }}{% endautoescape %}",
        "{% set x %}{% include 'x' %}{% endset %}",
        "{% block b %}a{% endblock %}",
        "{{ bos.nothing }}{{ messages[9] }}",
        "{% for m in messages recursive %}{{ m.role }}{{ loop(m.x or []) }}{% endfor %}",
    ],
)
def test_what_it_might_answer_otherwise_it_leaves_to_the_template(source: str) -> None:
    agree(source, TALK)


ESCAPES = [
    *("m.__class__", "m['__class__']", "m.content.__class__", "bos.__class__", "tools.__class__"),
    *("m.get.__self__", "m.keys.__func__", "messages.append", "messages.__class__.__mro__"),
    *("ns.__class__", "ns.__init__", "ns['__class__']", "ns.__dict__", "ns._Namespace__attrs"),
    *("loop.__class__", "loop._iterator", "loop['_iterable']", "f.__globals__", "f._func"),
    *("namespace.__init__", "cycler.__init__.__globals__", "namespace.mro", "dict.mro"),
    *("m|attr('__class__')", "nobody.__class__", "m.x.__class__", "m.x._undefined_message"),
    *("'{0.__class__}'.format(m)", "'{0.__class__}'.format_map({'0': m})", "bos.format.__self__"),
    *("m.update({'a': 1})", "m.pop('role')", "messages.pop()", "messages.sort()", "m.clear()"),
    *("self.__class__", "self._TemplateReference__context", "range.__call__.__self__"),
    *("[m][0].__class__", "{'a': m}.a.__class__", "(m if m else m).__class__", "m.items.__self__"),
    *("('' ~ m.x).__class__", "m.a.b", "a.__class__", "a.written.__class__", "a.__slots__"),
]  # fmt: skip


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("form", ["{{ %s }}", "{%% set v = %s %%}{{ v }}", "{{ f(%s) }}"])
def test_no_lowered_form_lets_a_template_out_of_its_sandbox(escape: str, form: str) -> None:
    source = (
        "{% macro f(v) %}{{ v }}{% endmacro %}{% set ns = namespace(a=1) %}"
        "{% for m in messages %}{% set a = m.a %}" + form % escape + "{{ loop.index }}{% endfor %}"
    )
    messages = [{**m, "a": Arguments({"b": 1}, written="{}")} for m in TALK]
    kept = [dict(m) for m in messages]
    text = agree(source, messages)
    assert messages == kept, "the record was changed"
    assert text == "own code" or text.replace("{'b': 1}", "").strip("{}").isdigit()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text("a <{%\n")
    | st.just("y" * 4097),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(("a", "items", "get", "text", "type", "x")), inner)
    | st.dictionaries(st.sampled_from(("a", "items", "copy")), inner).map(
        lambda found: Arguments(found, written="{}")
    ),
    max_leaves=6,
)  # fmt: skip
messages_of_any_kind = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(("system", "user", "assistant", "tool")), "content": values},
        optional={"x": values, "items": values, "tool_calls": st.lists(values, max_size=2)},
    ),
    max_size=4,
)
ODD = [
    "{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.x }}{{ m['items'] }}{% endfor %}",
    "{% for m in messages %}{% if m.content is string %}{{ m.content|trim }}{% else %}"
    "{% for p in m.content %}{{ p.text or p.a or p }}{% endfor %}{% endif %}{% endfor %}",
    "{% set ns = namespace(a=none, b='') %}{% for m in messages %}{% set ns.a = m.x %}"
    "{% set ns.b = ns.b ~ m.content %}{{ ns.a or ns.b }}{% endfor %}{{ ns.a is defined }}",
    "{% macro f(v, d=1) %}{% if v is mapping %}{{ v.a }}{% elif v is iterable %}{{ v|length }}"
    "{% else %}{{ v }}{{ d }}{% endif %}{% endmacro %}"
    "{% for m in messages %}{{ f(m.content) }}{{ f(m.x, m['items']) }}{% endfor %}",
    "{% for m in messages[::-1] %}{{ m.content == messages[0].content }}{{ m.x in [1, 'a'] }}"
    "{{ (m.x is not none and m.x) or loop.last }}{% endfor %}{{ messages[0].role }}",
    "{% for m in messages %}{% generation %}{{ m.content['a'] }}{{ m.content[0] }}"
    "{{ m['x'] is defined }}{% endgeneration %}{% endfor %}",
    "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ (c.a or c)|tojson }}{% endfor %}{% endif %}{{ m.content.split('<')[-1].strip() }}"
    "{% endfor %}",
]


@given(messages=messages_of_any_kind, source=st.sampled_from(ODD))
def test_odd_values_are_rendered_alike_or_refused(
    messages: list[dict[str, Any]], source: str
) -> None:
    agree(source, messages)


def test_a_render_that_fails_leaves_nothing_to_the_next() -> None:
    source = (
        "{% for m in messages %}{% autoescape true %}{{ m.content + '<' }}{% endautoescape %}"
        "{{ ['<']|join }}{% endfor %}"
    )
    template = Template(source, today=DAY)
    with pytest.raises(RecordError):
        template.render(Conversation([{"role": "user", "content": 1}]))
    talk = Conversation([{"role": "user", "content": "a"}])
    assert template.render(talk).text == template.render_fully(talk).text == "a&lt;<"


@pytest.mark.parametrize(
    "body",
    [
        "{% set ns = namespace(a=1) %}{{ ns.a }}",
        "{% set ns = namespace(a=m.content) %}",
        "{{ f(3) }}",
        "{{ g(m.content) }}",
        "{% set v = [m.content, m.content] %}{{ v == [v] }}",
        "{% for x in m.content %}{% endfor %}",
        "{% set v = v ~ m.content ~ m.content %}",
        "{{ m.content ~ m.content }}",
        "{{ 2 ** loop.index }}",
    ],
)
@given(data=st.data())
def test_no_limit_lets_more_pass_by_the_shortcut(body: str, data: st.DataObject) -> None:
    source = (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% endif %}a{% endmacro %}{% set v = 'b' %}"
        "{% macro g(x) %}{{ x is string }}{% endmacro %}"
        "{% for m in messages %}" + body + "{% endfor %}"
    )
    limits = Limits(
        characters=data.draw(st.integers(10, 40_000)),
        steps=data.draw(st.integers(5, 60)),
        depth=data.draw(st.integers(1, 5)),
        bits=data.draw(st.integers(2, 8)),
        per_character=0,
    )
    try:
        template = Template(source, today=DAY, limits=limits)
    except TemplateError:  # even two messages are too many
        return
    size = data.draw(st.integers(0, 6_000))
    conversation = Conversation([{"role": "user", "content": "x" * size}] * 3)
    short = take(template, conversation)
    if short is not None:
        assert template.render_fully(conversation).text == short.text


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f"}}]])
def test_the_bundled_template_takes_its_shortcut(tools: Any) -> None:
    """Else all of this would be slow, and nobody see it."""
    template = load_template(read_vocabulary(BUNDLED / "tokenizer"), today=DAY)
    conversation = Conversation(TALK, tools)
    short = take(template, conversation)
    assert short is not None
    assert short == template.render_fully(conversation)


def test_a_macro_may_be_called_for_each_of_many_messages() -> None:
    source = "{% macro f() %}a{% endmacro %}{% for m in messages %}{{ f() }}{% endfor %}"
    assert agree(source, [{"role": "user", "content": "Hi"}] * 500) == "a" * 500


def test_a_template_on_which_most_renders_fail_is_not_tried_for_a_while() -> None:
    template = Template("{% for m in messages %}{{ m.x.y }}{% endfor %}", today=DAY)
    good, bad = (Conversation([{"role": "user", "x": x}]) for x in ({"y": "a"}, "a"))
    for conversation in [bad, good, good] * 100:
        template.render(conversation)
    assert take(template, good) is not None, "a third of them is not most"
    for _ in range(200):
        assert template.render(bad).text == ""
    assert take(template, good) is None
    assert template.render(good).text == "a"
    for _ in range(1000):
        template.render(good)
    assert take(template, good) is not None


def test_what_would_take_long_to_lower_keeps_its_own_code() -> None:
    deep = "{% for m in messages %}" * 9 + "a" + "{% endfor %}" * 9
    long = "{% for m in messages %}" + "{{ m.role }}" * 3000 + "{% endfor %}"
    for source in (deep, long):
        template = Template(source, today=DAY)
        assert take(template, Conversation(TALK[:1])) is None


def test_a_records_own_variables_are_no_constants() -> None:
    template = Template("{{ bos }}{{ add_generation_prompt }}", today=DAY, variables=VARIABLES)
    assert template.render(Conversation(TALK, kwargs={"bos": "<b>"})).text == "<b>False"
    assert template.render(Conversation(TALK), prompt=True).text == "<s>True"
    assert template.render(Conversation(TALK)).text == "<s>False"
