"""Hostile templates are stopped soon and named; big records that mean no harm pass."""

from __future__ import annotations

import datetime
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import jinja2
import pytest

from pipeline.environment import HookedEnvironment, Recorder
from pipeline.errors import RecordError
from pipeline.limits import Limits, Meter, measure, stopped
from pipeline.sandbox import LimitedEnvironment

DAY = datetime.date(2026, 3, 14)
SMALL = Limits(characters=100_000, steps=20_000, seconds=20.0)
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}"
)


def render(
    source: str,
    messages: list[dict[str, Any]] | None = None,
    *,
    limits: Limits = SMALL,
    tools: list[Any] | None = None,
) -> str:
    """As Template renders: the same loop, the same names in the context."""
    environment = LimitedEnvironment(DAY, limits)
    compiled = environment.from_string(source)
    messages = TALK if messages is None else messages
    meter = environment.meter = Meter(limits, (messages, tools))
    recorder = environment.recorder = Recorder()
    recorder.own(messages)
    context = compiled.new_context({"messages": messages, "tools": tools})
    try:
        meter.collect(compiled.root_render_func(context), recorder.pieces)
        meter.allow(sum(map(len, recorder.pieces)))
    except (RecursionError, MemoryError) as error:
        raise stopped("nests too deeply") from error
    return "".join(recorder.pieces)


def render_plainly(source: str, messages: list[dict[str, Any]] | None = None) -> str:
    environment = HookedEnvironment(DAY)
    compiled = environment.from_string(source)
    context = compiled.new_context({"messages": messages or TALK, "tools": None})
    return "".join(compiled.root_render_func(context))


DOUBLING = "{% for i in range(60) %}%s{% endfor %}"
TWINS = "{% set ns.a = dict(a=ns.a, b=ns.a) %}{% set ns.b = dict(a=ns.b, b=ns.b) %}"
BIG = "{% set x = 'x' * 90000 %}"
STEPS = {
    "nested_ranges": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}"
    "{% endfor %}",
    "a_loop_whose_filter_refuses_all": "{% for i in range(9999) %}"
    "{% for j in range(9999) if false %}{% endfor %}{% endfor %}",
    "a_loop_that_breaks": "{% for i in range(9999) %}{% for j in range(9999) %}"
    "{% if j > 90 %}{% break %}{% endif %}{% endfor %}{% endfor %}",
    "a_macro_that_calls_itself_twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}"
    "{% endif %}{% endmacro %}{{ f(60) }}",
    "a_recursive_loop": "{% for i in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 60 }}"
    "{% endfor %}",
    "a_caller_that_calls_twice": "{% macro f(n) %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f(1) %}" * 30
    + "x"
    + "{% endcall %}" * 30,
    "a_map_of_maps": "{% for i in range(900) %}{{ range(9999)|map('string')|list|length }}"
    "{% endfor %}",
    "a_loop_over_a_generator": "{% for i in range(9999) %}{% for j in range(9999)|select %}"
    "{% endfor %}{% endfor %}",
}
DEPTH = {
    "a_macro_that_calls_itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a_block_that_calls_itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "a_loop_that_recurs_for_ever": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
}
NUMBERS = {
    "a_tower_of_powers": "{{ 9**(9**9) }}",
    "squares": "{% set ns = namespace(n=9) %}"
    + DOUBLING.replace("%s", "{% set ns.n = ns.n*ns.n %}"),
    "a_rounding": "{{ 5|round(-1000000000) }}",
}
CHARACTERS = {
    "print_for_ever": "{% for i in range(9999) %}{{ 'twenty characters...' }}{% endfor %}",
    "constants_in_a_macro": "{% macro f() %}{% for i in range(9999) %}twenty characters..."
    "{% endfor %}{% endmacro %}{% set x = f() %}",
    "different_strings_in_a_macro": BIG + "{% macro f() %}{% for i in range(9999) %}{{ x ~ i }}"
    "{% endfor %}{% endmacro %}{% set x = f() %}",
    "a_set_block": "{% set x %}{% for i in range(9999) %}twenty characters...{% endfor %}"
    "{% endset %}",
    "a_filter_block": "{% filter upper %}{% for i in range(9999) %}twenty characters...{% endfor %}"
    "{% endfilter %}",
    "product": "{{ 'x' * 10000000000 }}",
    "product_the_other_way": "{{ 10000000000 * 'x' }}",
    "product_of_a_list": "{% set x = [1] * 10000000000 %}",
    "product_in_a_list": BIG + "{{ ([x] * 5000)|length }}",
    "concatenation": "{% set ns = namespace(x='xy') %}"
    + DOUBLING.replace("%s", "{% set ns.x = ns.x ~ ns.x %}"),
    "addition": "{% set ns = namespace(x='xy') %}"
    + DOUBLING.replace("%s", "{% set ns.x = ns.x + ns.x %}"),
    "addition_of_lists": "{% set ns = namespace(x=[1]) %}"
    + DOUBLING.replace("%s", "{% set ns.x = ns.x + ns.x %}"),
    "addition_in_straight_lines": "{% set x = 'xy' %}" + "{% set x = x + x %}" * 60,
    "addition_in_with": "{% set x = 'xy' %}"
    + "{% with x = x + x %}" * 60
    + "{{ x|length }}"
    + "{% endwith %}" * 60,
    "addition_in_arguments": "{% macro f(x) %}{{ f(x + x) }}{% endmacro %}{{ f('x' * 999) }}",
    "a_chain_of_tildes": BIG + "{{ (" + " ~ ".join(["x"] * 5000) + ")|length }}",
    "a_chain_of_additions": BIG + "{{ (" + "+".join(["x"] * 90) + ")|length }}",
    "many_big_variables": BIG + "".join(f"{{% set x{i} = x + '{i}' %}}" for i in range(2000)),
    "many_big_strings_in_a_list": BIG
    + "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + [x ~ i] %}"
    "{% endfor %}",
    "lists_in_lists": "{% set ns = namespace(l=[1]) %}"
    + DOUBLING.replace("%s", "{% set ns.l = [ns.l, ns.l] %}")
    + "{{ ns.l }}",
    "dicts_in_dicts": "{% set ns = namespace(l={}) %}"
    + DOUBLING.replace("%s", "{% set ns.l = dict(a=ns.l, b=ns.l) %}")
    + "{{ ns.l|tojson }}",
    "namespaces_in_namespaces": "{% set n0 = namespace(a=1) %}"
    + "".join(f"{{% set n{i + 1} = namespace(a=n{i}, b=n{i}) %}}" for i in range(60))
    + "{{ n60 }}",
    "tuples_in_tuples": "{% set ns = namespace(l=(1,)) %}"
    + DOUBLING.replace("%s", "{% set ns.l = (ns.l, ns.l) %}")
    + "{{ {ns.l: 1} }}",
    "arguments_in_arguments": "{% macro f() %}{% if varargs %}{{ f(varargs, varargs) }}{% endif %}"
    "{% endmacro %}{{ f(1) }}",
    "comparison": "{% set ns = namespace(a=[1], b=[1]) %}"
    + DOUBLING.replace(
        "%s", "{% set ns.a = dict(a=ns.a,b=ns.a) %}{% set ns.b = dict(a=ns.b,b=ns.b) %}"
    )
    + "{{ ns.a == ns.b }}",
    "comparison_by_a_test": "{% set ns = namespace(a=[1], b=[1]) %}"
    + DOUBLING.replace(
        "%s", "{% set ns.a = dict(a=ns.a,b=ns.a) %}{% set ns.b = dict(a=ns.b,b=ns.b) %}"
    )
    + "{{ ns.a is eq ns.b }}",
    **{
        f"method_{name}": "{{ 'x'." + name + "(10000000000) }}"
        for name in ("center", "ljust", "rjust", "zfill")
    },
    "method_of_a_constant_of_bytes": "{{ 'x'.encode().center(10000000000) }}",
    "method_expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "method_replace": BIG + "{{ x.replace('x', x)|length }}",
    "method_replace_of_nothing": BIG + "{{ x.replace('', x)|length }}",
    "method_join": BIG + "{{ x.join(x)|length }}",
    "method_join_of_a_generator": BIG + "{{ x.join(range(9999)|map('string'))|length }}",
    "method_translate": BIG + "{{ x.translate({120: x})|length }}",
    "method_to_bytes": "{{ (1).to_bytes(10000000000, 'big') }}",
    "method_format_wide": "{{ '{:10000000000}'.format(1) }}",
    "method_format_wide_by_value": "{{ '{:{}}'.format(1, 10000000000) }}",
    "method_format_often": BIG + "{{ ('{0}' * 999).format(x)|length }}",
    "method_format_map": BIG + "{{ ('{a}' * 999).format_map({'a': x})|length }}",
    "method_of_markup": "{{ ('x'|safe).center(10000000000) }}",
    "method_by_filter": "{{ ('x'|attr('center'))(10000000000) }}",
    "method_by_item": "{{ 'x'['center'](10000000000) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "percent_by_value": "{{ '%*d' % (10000000000, 1) }}",
    "percent_precise": "{{ '%.10000000000f' % 1.0 }}",
    "percent_often": BIG + "{{ (('%(a)s' * 999) % {'a': x})|length }}",
    "filter_center": "{{ 'x'|center(10000000000) }}",
    "filter_indent": "{{ 'x\ny'|indent(10000000000) }}",
    "filter_indent_first": "{{ ('\n' * 9999)|indent(9999, blank=true) }}",
    "filter_wordwrap": BIG + "{{ x|wordwrap(1, wrapstring=x)|length }}",
    "filter_batch": "{{ [1]|batch(10000000000, 0)|list }}",
    "filter_slice": "{{ [1]|slice(10000000000)|list }}",
    "filter_format": "{{ '%10000000000d'|format(1) }}",
    "filter_replace": BIG + "{{ x|replace('x', x)|length }}",
    "filter_join": BIG + "{{ range(9999)|join(x)|length }}",
    "filter_tojson": "{{ [1]|tojson(indent=10000000000) }}",
    "filter_tojson_separators": BIG + "{{ [1, 2]|tojson(separators=(x, x)) }}",
    "filter_sum": BIG + "{{ ([[1]] * 9999)|sum(start=[])|length }}",
    "filter_map": "{{ range(9999)|map('center', 90000)|list|length }}",
    "filter_urlize": "{{ ('(' * 90000)|urlize|length }}",
    "filter_striptags": "{{ ('<!---->' * 9999)|striptags }}",
    "filter_lower_of_lists": "{% set ns = namespace(l=[1]) %}"
    + DOUBLING.replace("%s", "{% set ns.l = dict(a=ns.l, b=ns.l) %}")
    + "{{ ns.l|lower }}",
    "lipsum": "{{ lipsum(n=1000000000) }}",
    "strftime": "{{ strftime_now('%1000000d' * 9999) }}",
    "generation": "{% generation %}{% for i in range(9999) %}twenty characters...{% endfor %}"
    "{% endgeneration %}",
}


def stop(source: str, limits: Limits = SMALL) -> str:
    started = time.perf_counter()
    with pytest.raises(RecordError) as caught:
        render(source, limits=limits)
    # Each takes hours or gigabytes unguarded; a shared machine is granted its pauses.
    assert time.perf_counter() - started < 10
    assert (caught.value.stage, caught.value.reason) == ("render", "template_limit")
    return str(caught.value)


@pytest.mark.parametrize("attack", STEPS)
def test_steps_without_end_are_stopped(attack: str) -> None:
    assert "takes more than 2" in stop(STEPS[attack])


@pytest.mark.parametrize("attack", DEPTH)
def test_calls_without_end_are_stopped(attack: str) -> None:
    assert "more than 100 deep" in stop(DEPTH[attack])


@pytest.mark.parametrize("attack", NUMBERS)
def test_numbers_without_end_are_stopped(attack: str) -> None:
    assert "bits" in stop(NUMBERS[attack])


@pytest.mark.parametrize("attack", CHARACTERS)
def test_characters_without_end_are_stopped(attack: str) -> None:
    assert "characters" in stop(CHARACTERS[attack])


@pytest.mark.parametrize("attack", CHARACTERS)
def test_what_is_stopped_took_little_memory(attack: str) -> None:
    tracemalloc.start()
    try:
        stop(CHARACTERS[attack])
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()


def test_time_is_the_last_resort() -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    limits = Limits(steps=1 << 60, seconds=0.2)
    assert "runs for more than 0.2 seconds" in stop(endless, limits)


def test_the_same_step_is_the_last_on_every_run() -> None:
    """999 and 1 for the loop: 1,000 steps pass, and not one more."""
    source = "{% for i in range(999) %}{% endfor %}"
    assert render(source, limits=Limits(steps=1000)) == ""
    with pytest.raises(RecordError, match="takes more than 999 steps"):
        render(source, limits=Limits(steps=999, per_character=0))


@pytest.mark.parametrize(
    "source",
    [
        "{% if a %}" * 10_000 + "{% endif %}" * 10_000,
        "{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}",
        "{{ " + "not " * 10_000 + "1 }}",
        "{{ " + "[" * 10_000 + "]" * 10_000 + " }}",
        "{{ " + "+".join(["a"] * 10_000) + " }}",
        "{{ a" + "|trim" * 10_000 + " }}",
        "{{ a" + ".b" * 10_000 + " }}",
        "{% for i in a %}" * 30 + "{% endfor %}" * 30,
        "{% if a %}{% elif b %}" + "{% elif c %}" * 10_000 + "{% endif %}",
        "{{ " + "9" * 5_000 + " }}",
        "x" * 200_001,
    ],
    ids=range(11),
)
def test_a_source_that_cannot_be_compiled_is_a_syntax_error(source: str) -> None:
    with pytest.raises(jinja2.TemplateSyntaxError, match="the chat template"):
        render(source)


def test_the_largest_source_compiles_in_seconds() -> None:
    started = time.perf_counter()
    assert render("{{ a }}" * 25_000) == ""
    assert time.perf_counter() - started < 30


def test_a_message_of_ten_megabytes_passes() -> None:
    content = "word " * 2_000_000 + "."
    text = render(CHATML, [{"role": "user", "content": content}], limits=Limits())
    assert text == f"<|im_start|>user\n{content}<|im_end|>\n"


def test_ten_thousand_turns_pass() -> None:
    turns = [{"role": "user", "content": f"turn {i}"} for i in range(10_000)]
    text = render(CHATML, turns, limits=Limits())
    assert text == "".join(f"<|im_start|>user\nturn {i}<|im_end|>\n" for i in range(10_000))


def test_ten_thousand_turns_that_are_built_up_pass() -> None:
    source = (
        "{% set ns = namespace(text='') %}{% for m in messages %}"
        "{% set ns.text = ns.text + m.content %}{% endfor %}{{ ns.text }}"
    )
    turns = [{"role": "user", "content": f"turn {i}"} for i in range(10_000)]
    text = render(source, turns, limits=Limits())
    assert text == "".join(f"turn {i}" for i in range(10_000))


@pytest.mark.parametrize("filtered", ["tojson", "tojson(indent=4)"])
def test_a_tool_of_a_megabyte_passes(filtered: str) -> None:
    tool = {"name": "t", "parameters": {f"p{i}": {"type": "string"} for i in range(40_000)}}
    source = "{% for tool in tools %}{{ tool|" + filtered + " }}{% endfor %}"
    text = render(source, limits=Limits(), tools=[tool])
    assert json.loads(text) == tool
    assert len(text) > 1_000_000


def test_limits_grow_with_the_record() -> None:
    source = "{% for m in messages %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}"
    limits = Limits(characters=1000, steps=1000)
    content = "x" * 50_000
    assert render(source, [{"role": "user", "content": content}], limits=limits) == content


@pytest.mark.parametrize("content", ["\ud800", "a\x00b", "é" * 10, "\U0001f600"])
def test_odd_characters_are_no_concern_of_limits(content: str) -> None:
    assert content in render(CHATML, [{"role": "user", "content": content}])


def test_deep_data_is_stopped_where_it_cannot_be_written() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecordError) as caught:
        render("{{ messages[0].content|tojson }}", [{"role": "user", "content": deep}])
    assert caught.value.reason == "template_limit"


ORDINARY = [
    "{{ [1, 'a', none, 2.5, true] }}{{ {'a': messages} }}{{ undefined_name }}{{ 1.0 }}{{ 7 % 4 }}",
    "{{ 'a' ~ 1 ~ none ~ [2] }}{{ '%s-%5d' % ('x', 3) }}"
    "{{ '%s' % 'y' }}{{ 3 * 'ab' }}{{ 2 ** 10 }}",
    "{{ '{} {:>5} {a}'.format('x', 3, a=messages) }}{{ '{a}'.format_map({'a': 1}) }}",
    "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}"
    "{{ f(1, 3, 4, c=5) }}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{% else %}none"
    "{% endfor %}",
    "{% for m in messages %}{{ loop.last }}{{ loop.revindex }}{% if loop.index == 1 %}{% break %}"
    "{% endif %}{% endfor %}",
    "{% for i in [1, [2, [3]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ ['a', 'b']|map('upper')|join }}",
    "{{ messages|join('-', attribute='role') }}{{ [[1], [2]]|sum(start=[]) }}{{ [1, 2]|sum }}",
    "{{ 'a\nb'|indent }}{{ 'ab'|center(9) }}{{ [1, 2, 3]|batch(2, 0)|list }}{{ 2.567|round(2) }}",
    "{{ [1, 2, 3]|slice(2)|list }}{{ 'a b'|title|replace('A', 'x', 1) }}"
    "{{ {'a': 1}|tojson(indent=2) }}",
    "{% autoescape true %}{{ '<' }}{{ '<' ~ 'b'|safe }}{% set x %}<{{ '>' }}{% endset %}{{ x }}"
    "{% endautoescape %}",
    "{{ 'x'.join(['a', 'b']) }}{{ ('<'|safe).join(['<', 'b']) }}{{ 'a,b'.split(',') }}",
    "{% set ns = namespace(a=[], t='') %}{% for m in messages %}{% set ns.a = ns.a + [m.role] %}"
    "{% set ns.t = ns.t ~ m.content %}{% endfor %}{{ ns.a }}{{ ns.t }}{{ ns.a == ['user'] }}",
    "{{ 'a' in ['a', messages] }}",
    "{% filter trim %} a {{ messages[0].content }} {% endfilter %}{% with a = 'x' + 'y' %}{{ a }}"
    "{% endwith %}{{ self.b() }}{% block b %}in{{ 'side' }}{% endblock %}",
    "{{ messages[0] == messages[0] }}{{ messages is eq messages }}{{ 'a' < 'b' }}"
    "{{ (1, 2) + (3,) }}",
]


@pytest.mark.parametrize("source", ORDINARY)
def test_guards_change_no_character(source: str) -> None:
    assert render(source) == render_plainly(source)


@pytest.mark.parametrize(
    ("value", "written"),
    [("abc", 3), (["abc", "de"], 5), ({"a": [1, 2]}, 2), ([["x"] * 10] * 10, 100)],
)
def test_a_measure_is_about_what_gets_written(value: Any, written: int) -> None:
    assert written <= measure(value, cutoff=10**9) <= 10 * written + 20


def test_a_measure_ends_where_writing_would_not() -> None:
    value: list[Any] = []
    for _ in range(200):
        value = [value, value]
    assert measure(value, cutoff=10_000) > 10_000


@pytest.mark.corpus
def test_real_templates_render_the_same_with_limits(shared: Path) -> None:
    lines = (shared / "templates" / "templates.jsonl").read_text(encoding="utf-8").splitlines()
    same = 0
    for line in lines:
        source = json.loads(line)["template"]
        try:
            plain = render_plainly(source)
        except Exception:  # noqa: BLE001 - some templates refuse everything, in their own ways
            continue
        assert render(source, limits=Limits()) == plain
        same += 1
    assert same > 150
