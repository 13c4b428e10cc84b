"""Chat templates that nobody wrote, with talks for them: from a grammar, made by choices.

Most statements are of the kinds that real templates are made of, each in combinations that those
have not; names are few, so that they meet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.fuzz_choices import Choices, once_in, pick

_NAMES = (
    *(
        "m",
        "m",
        "m",
        "messages",
        "tools",
        "bos",
        "flag",
        "number",
        "items",
        "pairs",
        "nobody",
        "ns",
    ),
    *(
        "v",
        "w",
        "loop",
        "loop",
        "i",
        "none",
        "true",
        "false",
        "0",
        "1",
        "-1",
        "2",
        "3.5",
        "1000000",
    ),
    *("''", "'a'", "'user'", "'assistant'", "'<t>'", "'\\n'", "'%s'", "'{}'", "[]", "{}"),
)
_USUAL = (
    *("m.role", "m.content", "m['role']", "m.x", "m.a", "ns.a", "loop.index0", "loop.first", "bos"),
    *("loop.last", "messages[0].role", "(m.content is string)", "(m.x is defined)", "m.get('x')"),
    *("m.content|trim", "(v or '')|string", "messages|length", "(m.role == 'user')"),
    *("m.content|tojson", "(m.role in ['user', 'tool'])", "messages[loop.index0 - 1].role"),
)
_ATTRIBUTES = (
    *("role", "content", "content", "tool_calls", "x", "a", "b", "items", "keys", "get", "values"),
    *(
        "_x",
        "__class__",
        "format",
        "first",
        "last",
        "index0",
        "index",
        "function",
        "name",
        "length",
    ),
    *("previtem", "nextitem", "count", "cycle", "copy", "mro", "marks", "written", "arguments"),
)
_METHODS = (
    *("strip", "lstrip", "rstrip", "split", "upper", "startswith", "replace", "format", "join"),
    *("get", "items", "keys", "endswith", "find", "lower", "title", "count", "pop", "update"),
    *("append", "splitlines", "format_map", "copy", "index"),
)
_FILTERS = (
    *("trim", "length", "upper", "lower", "tojson", "string", "default('d')", "first", "last"),
    *("list", "join", "join('-')", "int", "e", "safe", "reverse", "map(attribute='role')", "abs"),
    *("selectattr('role')", "selectattr('role', 'equalto', 'user')", "rejectattr('x')", "items"),
    *("selectattr('x', 'sameas', m.x)", "replace('a', 'b')", "dictsort", "unique", "batch(2)"),
    *("sort", "sum", "attr('role')", "attr('__class__')", "indent", "capitalize", "float", "title"),
    *("select", "groupby('role')", "wordcount", "max", "min", "slice(2)", "format('x')", "round"),
)
_TESTS = (
    *("string", "defined", "undefined", "none", "true", "false", "mapping", "iterable", "sequence"),
    *(
        "number",
        "integer",
        "boolean",
        "callable",
        "sameas none",
        "sameas m.x",
        "sameas true",
        "odd",
    ),
    *("even", "in messages", "eq 'user'", "eq 1", "lower", "divisibleby 2", "float", "escaped"),
)
_OPERATORS = (
    *("+", "+", "~", "~", "-", "*", "==", "!=", "<", ">", "<=", "in", "not in", "and", "or", "and"),
    *("or", "%", "//", "**", "/"),
)
_MADE = (
    *("range(3)", "dict(a=1)", "namespace(a=1)", "cycler('a', 'b').next()", "joiner('-')()"),
    *("caller()", "self", "varargs", "namespace", "strftime_now('%Y')", "range", "joiner", "super"),
)
_SLICES = ("0", "1", "-1", "i", "9", "v", "true", "'x'", "'items'", "1:", "::-1", ":2", "-1:", "v:")
_LOOPED = (
    *("messages", "messages", "messages", "messages[1:]", "messages[::-1]", "messages|reverse"),
    *("m.tool_calls", "m.content", "tools", "range(3)", "range(messages|length)", "items", "pairs"),
    *("pairs.items()", "m.items()", "m|items", "[1, 2]", "ns", "[ns]"),
)
_LOOPING = (
    *(
        "{% break %}",
        "{% continue %}",
        "{% if loop.first %}{% continue %}{% endif %}",
        "{{ loop }}",
    ),
    *("{% if loop.index > 1 %}{% break %}{% endif %}", "{{ loop(m.x) }}", "{{ loop.changed(m) }}"),
    *("{{ loop.cycle('a', 'b') }}", "{{ loop.length }}{{ loop.revindex }}{{ loop.depth }}"),
)
_TARGETS = (
    *("v", "v", "w", "i", "m", "messages", "ns.a", "ns.b", "ns._x", "ns.items", "ns.get", "ns.c"),
    *("a, b", "flag", "bos", "tools", "namespace", "m__content", "pieces"),
)
_SPACES = (
    *("a=1", "a=false, b='s'", "", "a=messages", "a=m", "_x=1", "items=1", "get=2", "{'a': 1}"),
    *("{'get': pairs.get}", "**pairs", "a=nobody"),
)
_CUT_SHORT = (
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% if m %}{{ raise_exception(v) }}{% endif %}",
)
_TEXTS = ("", "hi", " user ", "assistant", "a-b", "x" * 5000, "<t>", "%s", "{}", "\n")


def template_case(choices: Choices) -> bytes:
    """JSON: a template, its variables, and the messages and tools of some talks."""
    source = _body(choices, 3)
    if choices.below(2):
        source = "{% for m in messages %}" + source + "{% endfor %}"
    if once_in(choices, 3):
        source = "{% macro said(v) %}" + _body(choices, 2) + "{% endmacro %}" + source
    if once_in(choices, 3):
        source = "{% set ns = namespace(a=1, b=messages) %}" + source
    variables = {
        "bos": pick(choices, ("<s>", "", None)),
        "flag": bool(choices.below(2)),
        "number": pick(choices, (1, -2, 2.5, 10**19)),
        "items": _value(choices, 2),
        "pairs": {"a": 1, "b": _value(choices, 2)},
    }
    talks = [
        {"messages": [_message(choices) for _ in range(choices.below(4))], "tools": tools}
        for tools in (None, pick(choices, (None, [], [{"function": {"name": "f"}}])))
    ]
    return json.dumps({"template": source, "variables": variables, "talks": talks}).encode()


def _body(choices: Choices, depth: int) -> str:
    return "".join(_statement(choices, depth) for _ in range(1 + choices.below(3)))


def _statement(choices: Choices, depth: int) -> str:
    kind = choices.below(32) if depth else choices.below(10)
    if kind < 8:
        return "{{ " + _expression(choices, 3) + " }}"
    if kind < 10:
        return pick(choices, ("text", "<x>\n", " y "))
    if kind < 15:
        return _branches(choices, depth)
    if kind < 21:
        return _loop(choices, depth)
    if kind < 24:
        return "{% set " + pick(choices, _TARGETS) + " = " + _expression(choices, 3) + " %}"
    if kind < 26:
        return "{% set ns = namespace(" + pick(choices, _SPACES) + ") %}"
    if kind == 26:
        return pick(choices, _CUT_SHORT)
    opened, closed = pick(
        choices,
        (
            ("generation", "generation"),
            ("generation", "generation"),
            ("set v", "set"),
            ("set ns.a", "set"),
            ("macro said(v, w=1)", "macro"),
            ("macro said(m)", "macro"),
            ("call said(m)", "call"),
            ("filter upper", "filter"),
            ("with v = m.x", "with"),
            ("autoescape true", "autoescape"),
            ("block b", "block"),
        ),
    )
    return "{% " + opened + " %}" + _body(choices, depth - 1) + "{% end" + closed + " %}"


def _branches(choices: Choices, depth: int) -> str:
    source = "{% if " + _expression(choices, 2) + " %}" + _body(choices, depth - 1)
    if once_in(choices, 3):
        source += "{% elif " + _expression(choices, 2) + " %}" + _body(choices, depth - 1)
    if choices.below(2):
        source += "{% else %}" + _body(choices, depth - 1)
    return source + "{% endif %}"


def _loop(choices: Choices, depth: int) -> str:
    values = pick(choices, _LOOPED)
    pairs = values.endswith("items()") or values.endswith("items")
    name = pick(choices, ("m", "m", "i", "v", "k, v", "ns", "messages"))
    source = "{% for " + ("k, v" if pairs and choices.below(4) else name) + " in " + values
    if once_in(choices, 6):
        source += " if " + _expression(choices, 2)
    if once_in(choices, 16):
        source += " recursive"
    source += " %}" + _body(choices, depth - 1)
    if once_in(choices, 5):
        source += pick(choices, _LOOPING) + _body(choices, depth - 1)
    if once_in(choices, 6):
        source += "{% else %}" + _body(choices, depth - 1)
    return source + "{% endfor %}"


def _expression(choices: Choices, depth: int) -> str:
    kind = choices.below(40)
    if kind < 12:
        return pick(choices, _USUAL)
    if kind < 17 or not depth:
        return pick(choices, _NAMES)
    inner = _expression(choices, depth - 1)
    closed = inner if inner.isidentifier() else f"({inner})"
    if kind < 22:
        return f"{closed}.{pick(choices, _ATTRIBUTES)}"
    if kind < 25:
        return f"{closed}[{pick(choices, _SLICES)}]"
    if kind < 28:
        given = ", ".join(_expression(choices, depth - 1) for _ in range(choices.below(3)))
        return f"{closed}.{pick(choices, _METHODS)}({given})"
    if kind < 31:
        return f"{closed}|{pick(choices, _FILTERS)}"
    if kind < 34:
        return f"({closed} is {pick(choices, ('', 'not '))}{pick(choices, _TESTS)})"
    if kind < 37:
        return f"({inner} {pick(choices, _OPERATORS)} {_expression(choices, depth - 1)})"
    if kind == 37:
        other = pick(choices, ("", " else " + _expression(choices, depth - 1)))
        return f"({inner} if {_expression(choices, depth - 1)}{other})"
    forms = (f"(not {inner})", f"(-{inner})", f"[{inner}]", f"{{'a': {inner}}}", f"said({inner})")
    return pick(choices, forms) if kind == 38 else pick(choices, _MADE)


def _value(choices: Choices, depth: int) -> Any:
    kind = choices.below(10)
    if kind < 5 or not depth:
        return pick(choices, _TEXTS)
    if kind < 7:
        return pick(choices, (None, True, False, 0, 1, 7, -3, 2.5, 10**20))
    if kind < 8:
        return [_value(choices, depth - 1) for _ in range(choices.below(3))]
    return {pick(choices, _ATTRIBUTES): _value(choices, depth - 1) for _ in range(choices.below(4))}


def _message(choices: Choices) -> dict[str, Any]:
    content: Sequence[Any] = ("Hi", "<t>a</t>", "", " x ", "y" * 4097)
    message = {
        "role": pick(choices, ("user", "assistant", "system", "tool")),
        "content": pick(choices, content) if choices.below(3) else _value(choices, 3),
    }
    if once_in(choices, 4):
        call = {"type": "function", "function": {"name": "f", "arguments": _value(choices, 2)}}
        message["tool_calls"] = [call] * choices.below(3)
    for _ in range(choices.below(3)):
        message[pick(choices, _ATTRIBUTES)] = _value(choices, 2)
    return message
