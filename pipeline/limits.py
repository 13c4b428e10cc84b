"""Bounds on what a chat template may take, so that a hostile one is stopped and named.

A template is somebody's program: it can loop for ever, double a string forty times, or ask for ten
billion spaces in one call. Whatever makes or repeats something tells a `Meter` first. Guards look
at values and never change one. All limits but the clock are counts, so that a record is accepted
or rejected alike on every machine; they grow with the record, whose size is only computed when a
count passes what any small record may take.
"""

from __future__ import annotations

import datetime
import functools
import re
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.sandbox
from jinja2 import nodes
from jinja2.compiler import Frame
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.utils import Namespace, _PassArg
from jinja2.visitor import NodeTransformer

from pipeline.environment import Generator, HookedEnvironment
from pipeline.errors import RecordError

_ITEM = 4  # what an item of a list counts, in characters
_SMALL = 4096  # shorter strings are not worth a count of their own: a source names only so many
_WIDE = 32  # operands of + that may meet in one expression before each sum is looked at
_NESTED_TUPLE = 4096  # hashing is not cached for tuples, and one hash cannot be interrupted
_SCALARS = frozenset({str, int, bool, float, type(None)})
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one render may take; a record of n characters may take ``per_character`` * n more.

    *characters* bounds the text and each value (an item of a list counts 4), ``16 * characters``
    everything made in a render, *steps* loop iterations and calls (a call counts 4), *depth*
    calls inside calls, *bits* one integer. *seconds* is a last resort: where it decides, a slower
    machine can reject what a faster one accepts. *source* bounds the template's own text.
    """

    characters: int = 2_000_000
    steps: int = 1_000_000
    per_character: int = 16
    depth: int = 100
    bits: int = 65_536
    seconds: float = 60.0
    source: int = 200_000


def stopped(fact: str) -> RecordError:
    """The error for a render that a limit ended: stage ``render``, reason ``template_limit``."""
    message = f"the chat template {fact}; change the template, or leave the record out"
    return RecordError("render", "template_limit", message)


def measure(value: Any, *, cutoff: int, indent: int = 0) -> int:
    """Characters that writing *value* out takes, near enough; stops soon after *cutoff*.

    A value that is reached twice counts twice: ``[a, a]`` of ``[b, b]`` of ... is small in memory
    and endless in print. *indent* counts for each item at each level, as JSON's does.
    """
    total, depth, level = 0, 0, [value]
    while level and total <= cutoff:
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                total += len(item)
            elif kind is dict:
                below += item
                below += item.values()
            elif kind is list:
                below += item
            else:
                inside = _inside(item)
                total += inside if isinstance(inside, int) else 0
                below += () if isinstance(inside, int) else inside
            if total + len(below) * _ITEM > cutoff:
                return total + len(below) * _ITEM
        depth += 1
        total += len(below) * (_ITEM + indent * depth)
        level = below
    return total


def _inside(item: Any) -> Any:
    """What a value of a rarer kind holds, or how many characters it has itself."""
    if isinstance(item, (str, bytes)):
        return len(item)
    if isinstance(item, int):
        return _ITEM if -1_000_000 < item < 1_000_000 else item.bit_length()
    if isinstance(item, dict):
        return [*item, *item.values()]
    if isinstance(item, Namespace):
        # There is no public way, and a namespace answers for no other name.
        return list(object.__getattribute__(item, "_Namespace__attrs").values())
    return item if isinstance(item, (list, tuple, set, frozenset, *_VIEWS)) else _ITEM


class Meter:
    """What one render has taken so far, against *limits* that grow with the size of *record*."""

    __slots__ = (
        "_deadline",
        "_record",
        "_scaled",
        "_sites",
        "_steps_limit",
        "ceiling",
        "depth",
        "limits",
        "made",
        "next_look",
        "next_weighing",
        "steps",
    )

    def __init__(self, limits: Limits, record: Any) -> None:
        self.limits, self._record, self._scaled = limits, record, False
        self.ceiling = limits.characters  # of one value, and of the text
        self.steps = self.made = self.depth = 0
        self._steps_limit = limits.steps
        self.next_look = 256 if limits.steps > 256 else limits.steps
        self.next_weighing = limits.characters
        self._sites: dict[tuple[int, int], int] | None = None
        self._deadline = 0.0  # from the first look on: most renders are over before it

    def spend(self, steps: int) -> None:
        """Counts *steps* that the template takes."""
        self.steps += steps
        if self.steps > self.next_look:
            self.look()

    def make(self, characters: int) -> None:
        """Counts a value of *characters*, before it is made where it can be big."""
        made = self.made + characters
        if characters > self.ceiling or made > self.next_weighing:
            self.weigh(characters)
        self.made = made

    def watch(self, pieces: Iterable[str]) -> Iterator[str]:
        """The *pieces* of a render, until they are too long together."""
        printed, room = 0, self.ceiling
        for piece in pieces:
            printed += len(piece)
            if printed > room:
                self.allow(printed)
                room = self.ceiling
            yield piece

    def allow(self, characters: int) -> None:
        """Stops the render where a value of *characters* is too big; counts nothing."""
        if characters > self.ceiling:
            self._scale()
            if characters > self.ceiling:
                raise stopped(f"makes more than {self.ceiling:,} characters")

    def keep(self, site: int, characters: int) -> None:
        """Counts what an assignment keeps: only growth, for it lets go of what it kept before."""
        key = (site, self.depth)
        if self._sites is None:
            self._sites = {}
        before = self._sites.get(key, 0)
        if characters > before:
            self._sites[key] = characters
            self.allow(characters)
            self.make(characters - before)

    def number(self, bits: float) -> None:
        """Stops the render where an integer of *bits* is too big."""
        if bits > self.limits.bits:
            raise stopped(f"makes a number of more than {self.limits.bits:,} bits")

    def enter(self) -> None:
        """One call deeper; the caller takes ``depth`` back."""
        self.spend(4)
        self.depth += 1
        if self.depth > self.limits.depth:
            raise stopped(f"calls itself more than {self.limits.depth} deep")

    def look(self) -> None:
        if self.steps > self._steps_limit:
            self._scale()
            if self.steps > self._steps_limit:
                raise stopped(f"takes more than {self._steps_limit:,} steps")
        self._watch()
        self.next_look = min(self.steps + 256, self._steps_limit)

    def weigh(self, characters: int) -> None:
        self.allow(characters)
        made = self.made + characters
        if made > 16 * self.ceiling:
            self._scale()
            if made > 16 * self.ceiling:
                raise stopped(f"makes more than {16 * self.ceiling:,} characters in all")
        self._watch()
        self.next_weighing = min(made + (1 << 20), 16 * self.ceiling)

    def _watch(self) -> None:
        now = time.monotonic()
        if not self._deadline:
            self._deadline = now + self.limits.seconds
        if now >= self._deadline:
            raise stopped(f"runs for more than {self.limits.seconds:g} seconds")

    def _scale(self) -> None:
        if not self._scaled:
            self._scaled = True
            # JSON is a tree, so its size is finite: no cutoff is needed, only a number.
            more = self.limits.per_character * measure(self._record, cutoff=1 << 60)
            self.ceiling += more
            self._steps_limit += more


def size(meter: Meter, value: Any, *, indent: int = 0) -> int:
    """`measure` of a value that gets written out, or an error where that is too much."""
    n = (
        len(value)
        if isinstance(value, str)
        else measure(value, cutoff=meter.ceiling, indent=indent)
    )
    if n > meter.ceiling:
        meter.allow(n)  # a bigger record has a higher ceiling: measure up to that
        n = measure(value, cutoff=meter.ceiling, indent=indent)
        meter.allow(n)
    return n


# What a call makes, from its arguments: as wide as its widest field, as often as its separator.


def _width(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    return max(int(value), 0) if isinstance(value, int) else 0


def _formatted(text: Any, values: tuple[Any, ...], named: Any, meter: Meter) -> int:
    """A format: each field as long as all values, or as the widest number among them or in it."""
    text = text if isinstance(text, str) else str(text, "latin-1")
    fields = text.count("%") + text.count("{")
    digits = max((int(d) if len(d) < 18 else 1 << 60 for d in re.findall(r"\d+", text)), default=0)
    given = [*values, *(named.values() if isinstance(named, Mapping) else ())]
    widest = digits
    if "*" in text or text.count("{") > 1:  # a width can be a value itself: "%*d", "{:{}}"
        whole = (abs(v) for v in given if isinstance(v, int) and v.bit_length() < 64)
        widest = max([digits, *whole])
    total: int = len(text) + fields * (size(meter, given) + widest)
    return total


def _replaced(text: Any, old: Any = "", new: Any = "", count: Any = None) -> int:
    more, length = _width(new) - _width(old), _width(text)
    if more <= 0 or length == 0:
        return length
    times: int = text.count(old)
    return length + (min(times, count) if isinstance(count, int) and count >= 0 else times) * more


def _expanded(text: Any, tabsize: Any = 8) -> int:
    tabs: int = text.count(b"\t" if isinstance(text, bytes) else "\t")
    return _width(text) + tabs * _width(tabsize)


_METHODS: dict[str, Callable[..., int]] = {
    "center": lambda text, width=0, *_: max(len(text), _width(width)),
    "ljust": lambda text, width=0, *_: max(len(text), _width(width)),
    "rjust": lambda text, width=0, *_: max(len(text), _width(width)),
    "zfill": lambda text, width=0: max(len(text), _width(width)),
    "expandtabs": _expanded,
    "replace": _replaced,
    "translate": lambda text, table, *_: (
        len(text) * max(map(_width, table.values()), default=1)
        if isinstance(table, dict)
        else len(text)
    ),
    "to_bytes": lambda _, length=1, *__, **___: _width(length),
    "fromkeys": lambda _, keys, *__: _ITEM * len(keys) if hasattr(keys, "__len__") else 0,
    "strftime": lambda _, text: 256 * _width(text),  # glibc pads: CPython gives up at 256 times
}
# Methods that look and make nothing, which templates call for every message.
_FREE = frozenset({"startswith", "endswith", "get", "items", "keys", "values", "index", "count"})


def _indented(n: int, _: Meter, text: Any, width: Any = 4, *__: Any, **___: Any) -> int:
    lines = len(text.splitlines()) + 1 if isinstance(text, str) else 1
    return n + lines * _width(width)


def _as_json(n: int, meter: Meter, value: Any, *args: Any, **kwargs: Any) -> int:
    given = {**dict(zip(("ensure_ascii", "indent", "separators"), args, strict=False)), **kwargs}
    indent, separators = given.get("indent"), given.get("separators")
    if indent:
        n = size(meter, value, indent=_width(indent))
    if isinstance(separators, (tuple, list)):
        n += n // _ITEM * sum(map(_width, separators))
    return n


def _rounded(n: int, meter: Meter, _: Any, precision: Any = 0, *__: Any) -> int:
    if isinstance(precision, int):
        meter.number(abs(precision))
    return n


def _wrapped(n: int, _: Meter, *args: Any, wrapstring: Any = None, **__: Any) -> int:
    return n * (1 + _width(args[3] if len(args) > 3 else wrapstring))


def _squared(n: int, *_: Any, **__: Any) -> int:
    return n + n * n // 1000


# Filters that write their value out and make no more of it: only lists in lists can be too much.
_PLAIN = frozenset(
    {"capitalize", "dictsort", "e", "escape", "filesizeformat", "float", "forceescape", "groupby"}
    | {"int", "lower", "max", "min", "safe", "sort", "string", "title", "trim", "truncate"}
    | {"unique", "upper", "urlencode", "wordcount"}
)
# Filters that can make more, and what they make of n characters.
_FILTERS: dict[str, Callable[..., int]] = {
    # Loops in Python that copy the rest of the text for each tag or bracket.
    **dict.fromkeys(("pprint", "striptags", "urlize", "xmlattr"), _squared),
    "center": lambda n, _, __, width=80: max(n, _width(width)),
    "indent": _indented,
    "wordwrap": _wrapped,
    "replace": lambda _, __, value, *args, **kw: _replaced(str(value), *args, **kw),
    "format": lambda _, meter, value, *args, **kw: _formatted(str(value), args, kw, meter),
    "tojson": _as_json,
    "round": _rounded,
}


def _filled(meter: Meter, count: Any = 0, fill_with: Any = None) -> int:
    each = 0 if fill_with is None else size(meter, fill_with)
    return _width(count) * (_ITEM + each)


_SHALLOW: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("items", "list", "reverse"), lambda _: 0),
    **dict.fromkeys(("batch", "slice"), _filled),
}
_COMPARING = (
    *("==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", "ge", ">="),
    *("<", "lt", "lessthan", "<=", "le", "in", "lower", "upper"),
)


_GROWING: tuple[type[nodes.Expr], ...] = (nodes.Add, nodes.Concat, nodes.Slice)


class _Guards(NodeTransformer):
    """Wraps what can grow in calls of the environment's guards; see _LimitedGenerator."""

    def __init__(self) -> None:
        self._site = 0
        self._operands = 0  # of the + and ~ seen so far

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja's visitor names
        self.generic_visit(node)
        leaves = any(statement.find(nodes.Break) for statement in node.body)
        leaves = leaves or any(isinstance(statement, nodes.Break) for statement in node.body)
        node.iter = _guarded("limit_search" if leaves else "limit_loop", node.iter)
        return node

    def _keep(self, value: Any) -> Any:
        if not any(isinstance(value, kind) or value.find(kind) for kind in _GROWING):
            return value
        self._site += 1
        return _guarded("limit_kept", value, nodes.Const(self._site))

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.node = self._keep(node.node)
        return node

    def visit_With(self, node: nodes.With) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.values = [self._keep(value) for value in node.values]
        return node

    def _build(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load" or all(map(_is_constant, node.items)):
            return node  # type: ignore[no-any-return] # one of three kinds of node
        return _guarded("limit_built", node)

    visit_List = visit_Tuple = visit_Dict = _build  # noqa: N815

    def visit_Name(self, node: nodes.Name) -> nodes.Node:  # noqa: N802
        special = node.name in ("varargs", "kwargs") and node.ctx == "load"
        return _guarded("limit_built", node) if special else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not any(_is_constant(e) for e in (node.expr, *(o.expr for o in node.ops))):
            # One side is enough: no comparison reads more of the other.
            if node.ops[0].op not in ("in", "notin"):
                node.expr = _guarded("limit_compared", node.expr)
            for operand in node.ops:
                if operand.op in ("in", "notin") or len(node.ops) > 1:
                    operand.expr = _guarded("limit_compared", operand.expr)
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.name in _PLAIN and node.node is not None:
            node.node = _guarded("limit_sized", node.node)
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:  # noqa: N802
        before = self._operands
        self.generic_visit(node)
        self._operands += 1
        return _guarded("limit_sum", node) if self._operands - before > _WIDE else node


def _is_constant(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Pair):
        return _is_constant(node.key) and _is_constant(node.value)
    # A list that is not constant is a call of `built` by now.
    return isinstance(node, (nodes.Const, nodes.List, nodes.Tuple, nodes.Dict))


def _guarded(name: str, *args: Any) -> nodes.Call:
    called = nodes.EnvironmentAttribute(_PREFIX + name)
    call = nodes.Call(called, list(args), [], None, None)
    return call.set_lineno(args[0].lineno)  # type: ignore[return-value] # returns itself


_PREFIX = "guard:"  # no name that a template or an extension could write
# Guards that let a string pass, or a short one: a call for each would cost more than the rest.
_IN_LINE = {
    "limit_sized": "",
    "limit_compared": "",
    "limit_kept": f" and len(shown) <= {_SMALL}",
}


class _LimitedGenerator(Generator):
    """Writes guards as plain calls: the sandbox's check of each call would double their cost."""

    def visit_Call(  # noqa: N802
        self, node: nodes.Call, frame: Frame, forward_caller: bool = False
    ) -> None:
        called = node.node
        if isinstance(called, nodes.EnvironmentAttribute) and called.name.startswith(_PREFIX):
            name = called.name[len(_PREFIX) :]
            in_line = _IN_LINE.get(name)
            if in_line is not None:
                self.write("(shown if type(shown := ")
                self.visit(node.args[0], frame)
                self.write(f") is str{in_line} else environment.{name}(shown")
            else:
                self.write(f"environment.{name}(")
                self.visit(node.args[0], frame)
            for argument in node.args[1:]:
                self.write(", ")
                self.visit(argument, frame)
            self.write("))" if in_line is not None else ")")
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("environment.limit_joined((")
        for argument in node.nodes:
            self.visit(argument, frame)
            self.write(", ")
        self.write("))")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super()._output_child_pre(node, frame, finalize)
            self.write("environment.limit_sized(")
        elif frame.buffer is not None:
            self.write("environment.limit_printed(")
        else:
            # As fast as the str() that it replaces.
            self.write("(shown if type(shown := ")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            self.write(")")
            super()._output_child_post(node, frame, finalize)
        elif frame.buffer is not None:
            self.write(")")
        else:
            self.write(") is str else environment.limit_shown(shown))")


class LimitedEnvironment(HookedEnvironment):
    """The hooked environment, whose renders report what they take to ``meter``.

    Set a fresh `Meter` before each render; values and text stay what they are without it.
    """

    # A 31st attribute in ``__dict__`` ends Python's cached look-ups of all of them: a tenth of a
    # small render was lost by it.
    __slots__ = ("meter",)

    code_generator_class = _LimitedGenerator
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, today: datetime.date, limits: Limits) -> None:
        super().__init__(today)
        self.meter = Meter(limits, ())
        for name, cost in _FILTERS.items():
            self.filters[name] = _guard_writing(self, self.filters[name], cost)
        for name, cost in _SHALLOW.items():
            self.filters[name] = _guard_shallow(self, self.filters[name], cost)
        for name, guard in (("join", _guard_join), ("map", _guard_map), ("sum", _guard_sum)):
            self.filters[name] = guard(self, self.filters[name])
        for name in _COMPARING:
            self.tests[name] = _guard_test(self, self.tests[name])

    def from_string(self, source: Any, *args: Any, **kwargs: Any) -> jinja2.Template:
        """As Jinja's; a source too long or too deep is a TemplateSyntaxError too."""
        if isinstance(source, str) and len(source) > self.meter.limits.source:
            raise jinja2.TemplateSyntaxError(
                f"the chat template is longer than {self.meter.limits.source:,} characters", 1
            )
        self.meter = Meter(self.meter.limits, ())
        try:
            return super().from_string(source, *args, **kwargs)
        except jinja2.TemplateError:
            raise
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
            raise jinja2.TemplateSyntaxError(
                f"the chat template nests too deeply, or has too long a number, to be compiled "
                f"({type(error).__name__})",
                getattr(error, "lineno", 1) or 1,
            ) from error

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        guarded: nodes.Template = _Guards().visit(tree)
        return guarded

    # Called by the code that _Guards and _LimitedGenerator write.

    def limit_loop(self, values: Any) -> Any:
        """*values* of a loop: a step for each, before the first."""
        try:
            count = len(values)
        except TypeError:
            return self.limit_search(values)
        meter = self.meter  # `spend`, written out: every loop comes here
        meter.steps += count + 1
        if meter.steps > meter.next_look:
            meter.look()
        return values

    def limit_search(self, values: Any) -> Iterator[Any]:
        """*values* of a loop that may not take all of them: a step for each it takes."""
        return _count(self.meter, iter(values))

    def limit_kept(self, value: Any, site: int) -> Any:
        if isinstance(value, str):
            if len(value) > _SMALL:
                self.meter.keep(site, len(value))
        elif isinstance(value, (list, tuple)) and len(value) > _SMALL // _ITEM:
            self.meter.keep(site, len(value) * _ITEM)
        return value

    def limit_built(self, value: Any) -> Any:
        made = size(self.meter, value)
        if (
            made > _NESTED_TUPLE
            and type(value) is tuple
            and any(isinstance(v, tuple) for v in value)
        ):
            raise stopped(f"nests more than {_NESTED_TUPLE:,} characters of tuples")
        self.meter.make(made)
        return value

    def limit_compared(self, value: Any) -> Any:
        if type(value) not in _SCALARS:
            self.meter.spend(size(self.meter, value) >> 6)
        return value

    def limit_joined(self, parts: tuple[Any, ...]) -> str:
        total = 0
        for part in parts:
            total += len(part) if type(part) is str else size(self.meter, part)
        self.meter.allow(total)
        return "".join(map(str, parts))

    def limit_sum(self, value: Any) -> Any:
        if isinstance(value, (str, list, tuple)):
            self.meter.allow(len(value) if isinstance(value, str) else len(value) * _ITEM)
        return value

    def limit_shown(self, value: Any) -> str:
        if value is None or isinstance(value, (bool, float)):
            return str(value)
        size(self.meter, value)
        return str(value)

    def limit_sized(self, value: Any) -> Any:
        size(self.meter, value)
        return value

    def limit_printed(self, value: Any) -> str:
        text = value if type(value) is str else self.limit_shown(value)
        meter = self.meter
        meter.made += len(text)
        if meter.made > meter.next_weighing:
            meter.weigh(0)
        return text

    def concat(self, pieces: Iterable[str]) -> str:
        if type(pieces) is not list:
            pieces = list(_metered(self.meter, pieces))
        if len(pieces) > 32:
            self.meter.allow(sum(map(len, pieces)))
        text = "".join(pieces)
        if len(text) > self.meter.ceiling:
            self.meter.allow(len(text))
        return text

    # Called by the sandbox's own code.

    def call_binop(self, _: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%":
            if type(left) is int:
                return left % right
            if isinstance(left, (str, bytes)):
                values = right if isinstance(right, tuple) else (right,)
                self.meter.make(_formatted(left, values, right, self.meter))
        elif isinstance(left, int) and isinstance(right, int):
            if operator == "*":
                self.meter.number(left.bit_length() + right.bit_length())
            elif right > 0 and abs(left) > 1:
                self.meter.number(left.bit_length() * right)
        elif operator == "*" and (isinstance(left, int) or isinstance(right, int)):
            times, value = (left, right) if isinstance(left, int) else (right, left)
            if times > 0 and isinstance(value, (str, bytes, list, tuple)):
                self.meter.make((size(self.meter, value) + _ITEM) * times)
        return self.binop_table[operator](left, right)

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As the sandbox's; a method of a string or dict is called without its four checks,
        which only Python functions can fail."""
        kind, meter = type(called), self.meter
        if kind is types.BuiltinMethodType:
            if kwargs:
                kwargs.pop("_loop_vars", None)
                kwargs.pop("_block_vars", None)
            name = called.__name__
            if name not in _FREE:
                args = self._charge(called.__self__, name, args, kwargs)
            return called(*args, **kwargs)
        for value in (*args, *kwargs.values()) if kwargs else args:
            if type(value) is str and len(value) > _SMALL:
                meter.make(len(value))
        meter.enter()
        try:
            if kind is Macro:  # as Context.call does, without asking what a macro is
                kwargs.pop("_loop_vars", None)
                kwargs.pop("_block_vars", None)
                return called(context.eval_ctx, *args, **kwargs)
            args = self._charge_other(called, args, kwargs)
            return super().call(context, called, *args, **kwargs)
        finally:
            meter.depth -= 1

    def _charge(
        self, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        text = isinstance(owner, (str, bytes))
        if name == "join" and text and args:
            return ([*_metered(self.meter, args[0], len(owner))], *args[1:])
        cost = _METHODS.get(name)
        if cost is not None:
            self.meter.make(cost(owner, *args, **kwargs))
        elif text:
            self.meter.make(len(owner))
        return args

    def _charge_other(
        self, called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        kind = type(called)  # asking an object for what it lacks costs more than the call
        if kind is types.MethodType:
            if isinstance(called.__self__, str):  # Markup's methods are Python functions
                return self._charge(called.__self__, called.__name__, args, _own(kwargs))
        elif kind is LoopContext:
            return (self.limit_loop(args[0]), *args[1:]) if args else args
        elif kind is types.FunctionType:
            form = getattr(getattr(called, "__wrapped__", None), "__self__", None)
            if isinstance(form, str):  # the sandbox's own str.format
                named = args[0] if called.__name__ == "format_map" and args else _own(kwargs)
                self.meter.make(_formatted(form, args, named, self.meter))
            elif called is jinja2.defaults.DEFAULT_NAMESPACE["lipsum"]:
                count = args[0] if args else kwargs.get("n", 5)
                most = args[3] if len(args) > 3 else kwargs.get("max", 100)
                self.meter.make(_width(count) * _width(most) * 16)
        return args


def _own(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keywords without those that Jinja's compiler adds."""
    return {k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")}


def _count(meter: Meter, values: Iterator[Any]) -> Iterator[Any]:
    for value in values:
        meter.spend(1)
        yield value


def _metered(meter: Meter, values: Iterable[Any], extra: int = 0) -> Iterator[Any]:
    total = 0
    for value in values:
        n = size(meter, value) + extra
        meter.spend(1)
        meter.make(n)
        total += n
        meter.allow(total)
        yield value


def _lead(function: Callable[..., Any]) -> int:
    return 0 if _PassArg.from_obj(function) is None else 1


def _guard_writing(
    environment: LimitedEnvironment, function: Callable[..., Any], cost: Callable[..., int]
) -> Callable[..., Any]:
    lead = _lead(function)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        meter, value = environment.meter, args[lead]
        n = len(value) if type(value) is str else size(meter, value)
        meter.make(cost(n, meter, *args[lead:], **kwargs))
        return function(*args, **kwargs)

    return guarded


def _guard_shallow(
    environment: LimitedEnvironment, function: Callable[..., Any], cost: Callable[..., int]
) -> Callable[..., Any]:
    lead = _lead(function)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        meter, value = environment.meter, args[lead]
        items = len(value) * _ITEM if hasattr(value, "__len__") else 0
        meter.make(items + cost(meter, *args[lead + 1 :], **kwargs))
        return function(*args, **kwargs)

    return guarded


def _guard_map(environment: LimitedEnvironment, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if args and value:  # Jinja does not even read the filter's name where there is nothing
            value = _metered(environment.meter, value)
        return function(context, value, *args, **kwargs)

    return guarded


def _guard_join(
    environment: LimitedEnvironment, function: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(context: Any, value: Any, d: Any = "", attribute: Any = None) -> Any:
        value = _metered(environment.meter, value, size(environment.meter, d))
        return function(context, value, d, attribute)

    return guarded


def _guard_test(environment: LimitedEnvironment, function: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*args: Any) -> Any:
        for value in args:
            if type(value) not in _SCALARS:
                environment.limit_compared(value)
        return function(*args)

    return guarded


def _guard_sum(environment: LimitedEnvironment, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(context: Any, values: Any, attribute: Any = None, start: Any = 0) -> Any:
        if not isinstance(start, (int, float)):
            # Lists are added one to another: the whole is copied for each of them.
            values = list(_metered(environment.meter, values))
            environment.meter.make(len(values) * size(environment.meter, values) // 1000)
        return function(context, values, attribute, start)

    return guarded
