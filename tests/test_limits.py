"""Hostile templates are stopped soon and named; big records that mean no harm pass."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import jinja2
import pytest

from pipeline import build, cli
from pipeline.conversation import Conversation
from pipeline.environment import HookedEnvironment, Recorder
from pipeline.errors import RecordError, TemplateError
from pipeline.limits import Limits, measure, stopped
from pipeline.recipe import BUNDLED
from pipeline.sandbox import LimitedEnvironment
from pipeline.template import Template

DAY = datetime.date(2026, 3, 14)
SMALL = Limits(characters=100_000, steps=20_000, seconds=20.0)
PAUSE = 20  # seconds: attacks take hours or gigabytes unguarded; a shared machine may pause
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
    meter = environment.meter
    meter.begin((messages, tools))
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
MANY = 300  # big values: more than may be made in all
MIDDLE = "{% set x = 'x' * 20000 %}"
BIG = "{% set x = 'x' * 90000 %}"
STEPS = {
    "nested_ranges": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}"
    "{% endfor %}",
    "a_loop_whose_filter_refuses_all": "{% for i in range(9999) %}"
    "{% for j in range(9999) if false %}{% endfor %}{% endfor %}",
    "a_loop_that_breaks": "{% set r = range(9999) %}{% for i in range(900) %}{% for j in r %}"
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
    "a_macro_that_prints_nothing": "{% macro f() %}{% for i in range(9999) %}"
    + "{{ messages[9] }}" * 999
    + "{% endfor %}{% endmacro %}{{ f() }}",
    "a_recursive_loop_with_a_long_body": "{% for i in [range(9999)] recursive %}"
    "{% if i is iterable %}{{ loop(i) }}{% endif %}" + "{{ messages[9] }}" * 999 + "{% endfor %}",
    "a_search_in_a_long_text": BIG + "{% for i in range(99) %}{{ 'xy' in x }}{% endfor %}",
    "a_text_that_grows_by_little": "{% set ns = namespace(t='x' * 16384) %}"
    "{% for i in range(5000) %}{% set ns.t = ns.t + 'y' %}{% endfor %}",
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
    "short_strings_in_a_macro": "{% set s = 'x' * 4000 %}{% macro f() %}"
    "{% for i in range(9999) %}{{ s.upper() }}{{ s.title() }}{% endfor %}{% endmacro %}"
    "{% set x = f() %}",
    "short_strings": "{% set s = 'x' * 4000 %}{% for i in range(9999) %}{{ s ~ i }}{{ i ~ s }}"
    "{% endfor %}",
    "the_same_string": BIG + "{% for i in range(99) %}{{ x }}{% endfor %}",
    "the_same_string_in_a_macro": BIG
    + "{% macro f() %}{% for i in range(900) %}{{ x }}{% endfor %}{% endmacro %}{% set y = f() %}",
    "different_strings": BIG + "{% for i in range(900) %}{{ x + 'y' }}{% endfor %}",
    "a_value_that_is_never_printed": MIDDLE + "{% set ns = namespace(t='') %}"
    "{% for i in range(9) %}{% set ns.t = ns.t + x %}{% endfor %}",
    "results_of_a_macro": BIG
    + "{% macro f() %}a{{ x }}{% endmacro %}"
    + "".join(f"{{% set x{i} = f() %}}" for i in range(MANY)),
    "results_of_a_method": MIDDLE + "".join(f"{{% set x{i} = x.title() %}}" for i in range(MANY)),
    "results_of_reverse": BIG + "".join(f"{{% set x{i} = x|reverse %}}" for i in range(MANY)),
    "results_of_join": "{% set l = ['x' * 20000, 'y' * 20000] %}"
    + "".join(f"{{% set x{i} = l|join %}}" for i in range(MANY)),
    "results_of_keys": "{% set d = dict.fromkeys(range(99999)) %}",
    "json_of_a_neighbour": "{% set loop = messages %}{% set ns = namespace(l=[1]) %}"
    + DOUBLING.replace("%s", "{% set ns.l = dict(a=ns.l, b=ns.l) %}")
    + "{% for v in dict(k=1, v=ns.l).values() %}{{ loop.nextitem|tojson }}{% endfor %}",
    "comparison_by_in": "{% set ns = namespace(a=[1], b=[1]) %}"
    + DOUBLING.replace(
        "%s", "{% set ns.a = dict(a=ns.a,b=ns.a) %}{% set ns.b = dict(a=ns.b,b=ns.b) %}"
    )
    + "{{ ns.a in dict(k=ns.b).values() }}",
    "lower_by_a_test": "{% set ns = namespace(l=[1]) %}"
    + DOUBLING.replace("%s", "{% set ns.l = dict(a=ns.l, b=ns.l) %}")
    + "{{ ns.l is lower }}",
    "copies_of_a_dict": "{% set d = dict.fromkeys(range(9999)) %}"
    + "".join(f"{{% set x{i} = d.copy() %}}" for i in range(300)),
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
    "method_replace": MIDDLE + "{{ x.replace('x', x)|length }}",
    "method_replace_of_nothing": BIG + "{{ x.replace('', x)|length }}",
    "method_join": MIDDLE + "{{ x.join(x)|length }}",
    "method_join_of_a_generator": MIDDLE + "{{ x.join(range(9999)|map('string'))|length }}",
    "method_translate": MIDDLE + "{{ x.translate({120: x})|length }}",
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
    "percent_by_a_test": "{{ '%10000000000d' is odd }}",
    "percent_by_a_divisor": "{{ '%*d' is divisibleby((10000000000, 1)) }}",
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
    "filter_sum": BIG + "{{ ([[1]] * 6000)|sum(start=[])|length }}",
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
    with pytest.raises(RecordError) as caught:
        render(source, limits=limits)
    assert (caught.value.stage, caught.value.reason) == ("render", "template_limit")
    return str(caught.value)


@pytest.mark.parametrize("attack", STEPS)
def test_steps_without_end_are_stopped(attack: str) -> None:
    started = time.perf_counter()
    assert "takes more than 2" in stop(STEPS[attack])
    assert time.perf_counter() - started < PAUSE


@pytest.mark.parametrize("attack", DEPTH)
def test_calls_without_end_are_stopped(attack: str) -> None:
    assert "more than 100 deep" in stop(DEPTH[attack])


@pytest.mark.parametrize("attack", NUMBERS)
def test_numbers_without_end_are_stopped(attack: str) -> None:
    assert "bits" in stop(NUMBERS[attack])


@pytest.mark.parametrize("attack", CHARACTERS)
def test_characters_without_end_are_stopped(attack: str) -> None:
    started = time.perf_counter()
    assert "characters" in stop(CHARACTERS[attack])
    assert time.perf_counter() - started < PAUSE


@pytest.mark.parametrize("attack", CHARACTERS)
def test_what_is_stopped_took_little_memory(attack: str) -> None:
    tracemalloc.start()
    try:
        stop(CHARACTERS[attack])
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()


def test_what_attacks_start_from_is_allowed() -> None:
    """Otherwise they would be stopped before they come to their point."""
    assert len(render(BIG + "{{ x }}")) == 90_000


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


@pytest.mark.parametrize("nest", ["(a % " * 14 + "a" + ")" * 14, "a.strip(" * 14 + "a" + ")" * 14])
def test_compiled_code_grows_with_the_source(nest: str) -> None:
    """Written twice at each level, the operands would make half a million characters."""
    compiled = LimitedEnvironment(DAY, SMALL).compile("{{ " + nest + " }}", raw=True)
    assert len(compiled) < 10_000


def test_a_chain_of_names_compiles_in_seconds() -> None:
    started = time.perf_counter()
    chain = "".join(f"{{% set a{i} = a{i + 1} %}}" for i in range(7_000))
    assert render(chain + "{% set a7000 = [messages] %}") == ""
    assert time.perf_counter() - started < 20


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


def test_json_of_the_record_is_counted() -> None:
    source = "".join(f"{{% set x{i} = messages|tojson %}}" for i in range(400))
    with pytest.raises(RecordError, match="characters in all"):
        render(source, [{"role": "user", "content": "x" * 50_000}])


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


# Only beyond the probes, which ask "Q" and want an answer printed: else there is no template.
LATE = "{% if messages[0].content != 'Q' %}%s{% else %}{{ messages[1].content }}{% endif %}"
HOSTILE = "{{ 'x' * 10000000000 }}"


def test_a_limit_is_a_reject_of_the_record_that_names_it() -> None:
    template = Template(LATE.replace("%s", HOSTILE), today=DAY)
    with pytest.raises(RecordError, match="makes more than 2,0") as caught:
        template.render(Conversation(TALK))
    assert (caught.value.stage, caught.value.reason) == ("render", "template_limit")


def test_a_template_that_is_hostile_to_everybody_is_no_template() -> None:
    started = time.perf_counter()
    with pytest.raises(TemplateError, match="takes more than 1,0"):
        Template(STEPS["nested_ranges"].replace("100000", "99999"), today=DAY)
    assert time.perf_counter() - started < PAUSE


def test_a_build_goes_on_after_a_limit(tmp_path: Path) -> None:
    body = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    body += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    late = "{% if messages[0].content == 'Die' %}%s{% endif %}".replace("%s", HOSTILE)
    (tmp_path / "t.jinja").write_text(late + body, encoding="utf-8")
    talks = [[{**TALK[0], "content": said}, TALK[1]] for said in ("Hi", "Die", "Ho")]
    records = "".join(json.dumps({"messages": talk}) + "\n" for talk in talks)
    (tmp_path / "a.jsonl").write_text(records, encoding="utf-8")
    flags = ["--tokenizer", str(BUNDLED / "tokenizer"), "--rules", "ignore_empty_think.yaml"]
    flags += ["--workers", "1", "--max-reject-rate", "1"]
    paths = {"--input": "a.jsonl", "--chat-template": "t.jinja", "--output": "out"}
    flags += [word for flag, name in paths.items() for word in (flag, str(tmp_path / name))]
    assert cli.run(build.main, flags) == 0
    rejects = (tmp_path / "out" / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["reason"] for line in rejects] == ["template_limit"]


PEAK = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
from tests.test_limits import LATE, DAY, TALK, Conversation, RecordError, Template
template = Template(LATE.replace("%s", json.load(sys.stdin)), today=DAY)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    template.render(Conversation(TALK))
except RecordError as error:
    print(error.reason, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
WIDE = "{% set w = '\U0001f600' * 1900000 %}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        WIDE + "{% for i in range(9999) %}{{ w ~ i }}{% endfor %}",
        WIDE + "".join(f"{{% set x{i} = w + '{i}' %}}" for i in range(3000)),
        "{% set s = '\U0001f600' * 4000 %}{% macro f() %}{% for i in range(99999) %}{{ s ~ i }}"
        "{% endfor %}{% endmacro %}{{ f() }}",
        "".join(f"{{% set v{i} = range(99999)|list %}}" for i in range(3000)),
        "{% macro f() %}{% for i in range(99999) %}"
        + "{{ messages[9] }}" * 9000
        + "{% endfor %}{% endmacro %}{{ f() }}",
        WIDE + "{% for i in range(99999) %}" + "{{ 'xxxy' in w }}" * 9000 + "{% endfor %}",
        "{% set ns = namespace(t='') %}{% for i in range(99999) %}{% set ns.t = ns.t + 'abcde' %}"
        "{% endfor %}",
    ],
    ids=["pieces", "variables", "macro", "lists", "nothing", "search", "growth"],
)
def test_default_limits_stop_attacks_in_seconds_and_megabytes(attack: str) -> None:
    root = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-c", PEAK, root]
    run = subprocess.run(
        command, input=json.dumps(attack), capture_output=True, text=True, timeout=120, check=True
    )
    reason, megabytes = run.stdout.split()
    assert reason == "template_limit"
    assert int(megabytes) < 600


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["trl-qwen3", "lcpp-GLM-4.6", "trl-gptoss", "unsloth-llama31"])
@pytest.mark.parametrize("shape", ["long message", "many turns", "big tool"])
def test_big_records_pass_through_real_templates(shared: Path, name: str, shape: str) -> None:
    lines = (shared / "templates" / "templates.jsonl").read_text(encoding="utf-8").splitlines()
    source = {entry["name"]: entry["template"] for entry in map(json.loads, lines)}[name]
    properties = {f"p{i}": {"type": "string", "description": "One."} for i in range(20_000)}
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    tool = {"type": "function", "function": function}
    function["parameters"] = {"type": "object", "properties": properties, "required": []}
    given = {
        "long message": Conversation([{**TALK[0], "content": "word " * 2_000_000 + "."}, TALK[1]]),
        "many turns": Conversation([dict(m) for _ in range(5_000) for m in TALK]),
        "big tool": Conversation(TALK, tools=[tool]),
    }[shape]
    text = Template(source, variables={"bos_token": "<s>"}, today=DAY).render(given).text
    assert (
        len(text) > {"long message": 10_000_000, "many turns": 10_000, "big tool": 200_000}[shape]
    )
