"""What methods and filters can make of their arguments, counted before they run.

An estimate is never too small by more than a factor: a filter makes what it is given, as wide as
its width, as often as its separator. Filters that have no entry make nothing that is longer than
their input, or make it item by item.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jinja2.utils import _PassArg

from pipeline.limits import ITEM, Meter, size

SCALARS = frozenset({str, int, bool, float, type(None)})


class Metered(Protocol):
    """An environment whose current render is counted by ``meter``."""

    meter: Meter
    filters: dict[str, Any]
    tests: dict[str, Any]


def width(value: Any) -> int:
    """The length of a text, or a number that says how long something shall be."""
    if isinstance(value, (str, bytes)):
        return len(value)
    return max(int(value), 0) if isinstance(value, int) else 0


def formatted(text: Any, values: tuple[Any, ...], named: Any, meter: Meter) -> int:
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
    more, length = width(new) - width(old), width(text)
    if more <= 0 or length == 0:
        return length
    times: int = text.count(old)
    return length + (min(times, count) if isinstance(count, int) and count >= 0 else times) * more


def _padded(text: Any, columns: Any = 0, *_: Any) -> int:
    return max(width(text), width(columns))


def _expanded(text: Any, tabsize: Any = 8) -> int:
    tabs: int = text.count(b"\t" if isinstance(text, bytes) else "\t")
    return width(text) + tabs * width(tabsize)


def _translated(text: Any, table: Any, *_: Any) -> int:
    longest = max(map(width, table.values()), default=1) if isinstance(table, dict) else 1
    return width(text) * longest


METHODS: Mapping[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    "copy": lambda items: 16 * len(items),  # a dict's entry takes that many times its share
    "expandtabs": _expanded,
    "fromkeys": lambda _, keys, *__: ITEM * len(keys) if hasattr(keys, "__len__") else 0,
    "replace": _replaced,
    "strftime": lambda _, text: 256 * width(text),  # glibc pads: CPython gives up at 256 times
    "to_bytes": lambda _, length=1, *__, **___: width(length),
    "translate": _translated,
}


def _indented(n: int, _: Meter, text: Any, columns: Any = 4, *__: Any, **___: Any) -> int:
    lines = len(text.splitlines()) + 1 if isinstance(text, str) else 1
    return n + lines * width(columns)


def _as_json(n: int, meter: Meter, value: Any, *args: Any, **kwargs: Any) -> int:
    given = {**dict(zip(("ensure_ascii", "indent", "separators"), args, strict=False)), **kwargs}
    indent, separators = given.get("indent"), given.get("separators")
    if indent:
        n = size(meter, value, indent=width(indent))
    if isinstance(separators, (tuple, list)):
        n += n // ITEM * sum(map(width, separators))
    return n


def _rounded(n: int, meter: Meter, _: Any, precision: Any = 0, *__: Any) -> int:
    if isinstance(precision, int):
        meter.number(abs(precision))
    return n


def _wrapped(n: int, _: Meter, *args: Any, wrapstring: Any = None, **__: Any) -> int:
    return n * (1 + width(args[3] if len(args) > 3 else wrapstring))


def _squared(n: int, *_: Any, **__: Any) -> int:
    return n + n * n // 1000


# Filters that write their value out and make little more of it: only lists in lists are too much.
PLAIN = frozenset(
    {"capitalize", "dictsort", "e", "escape", "filesizeformat", "float", "forceescape", "groupby"}
    | {
        "int",
        "lower",
        "max",
        "min",
        "pprint",
        "safe",
        "sort",
        "string",
        "title",
        "trim",
        "truncate",
    }
    | {"unique", "upper", "urlencode", "wordcount", "xmlattr"}
)
_WRITING: Mapping[str, Callable[..., int]] = {
    # Loops in Python that copy the rest of the text for each tag or bracket.
    **dict.fromkeys(("striptags", "urlize"), _squared),
    "center": lambda n, _, __, width_=80: max(n, width(width_)),
    "format": lambda _, meter, value, *args, **kw: formatted(str(value), args, kw, meter),
    "indent": _indented,
    "replace": lambda _, __, value, *args, **kw: _replaced(str(value), *args, **kw),
    "round": _rounded,
    "tojson": _as_json,
    "wordwrap": _wrapped,
}


def _filled(meter: Meter, count: Any = 0, fill_with: Any = None) -> int:
    each = 0 if fill_with is None else size(meter, fill_with)
    return width(count) * (ITEM + each)


# Filters that take a list as it is, and never look into its items.
_SHALLOW: Mapping[str, Callable[..., int]] = {
    **dict.fromkeys(("list", "reverse"), lambda _: 0),
    **dict.fromkeys(("batch", "slice"), _filled),
}
_COMPARING = (
    *("==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", "ge", ">="),
    *("<", "lt", "lessthan", "<=", "le", "in"),
)


def charge_filters(environment: Metered) -> None:
    """Puts a charge before each filter and test that can make, or compare, too much."""
    filters, tests = environment.filters, environment.tests
    for name, cost in _WRITING.items():
        filters[name] = _charged(environment, filters[name], functools.partial(_written, cost))
    for name, cost in _SHALLOW.items():
        filters[name] = _charged(environment, filters[name], functools.partial(_held, cost))
    filters["join"] = _joined(environment, filters["join"])
    filters["map"] = _mapped(environment, filters["map"])
    filters["sum"] = _summed(environment, filters["sum"])
    for name in _COMPARING:
        tests[name] = _compared(environment, tests[name], reads_left=name != "in")
    for name in ("lower", "upper"):
        tests[name] = _charged(environment, tests[name], size)
    for name in ("divisibleby", "even", "odd"):
        tests[name] = _charged(environment, tests[name], _divided)


def _divided(meter: Meter, value: Any, number: Any = 2) -> int:
    values = number if isinstance(number, tuple) else (number,)
    return formatted(value, values, None, meter) if isinstance(value, (str, bytes)) else 0


def _written(cost: Callable[..., int], meter: Meter, value: Any, *args: Any, **kwargs: Any) -> int:
    return cost(size(meter, value), meter, value, *args, **kwargs)


def _held(cost: Callable[..., int], meter: Meter, value: Any, *args: Any, **kwargs: Any) -> int:
    items = len(value) * ITEM if hasattr(value, "__len__") else 0
    return items + cost(meter, *args, **kwargs)


def _charged(
    environment: Metered, function: Callable[..., Any], charge: Callable[..., int]
) -> Callable[..., Any]:
    lead = 0 if _PassArg.from_obj(function) is None else 1  # a context comes first

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        environment.meter.make(charge(environment.meter, *args[lead:], **kwargs))
        return function(*args, **kwargs)

    return guarded


def _mapped(environment: Metered, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if args and value:  # Jinja does not even read the filter's name where there is nothing
            value = environment.meter.metered(value)
        return function(context, value, *args, **kwargs)

    return guarded


def _joined(environment: Metered, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(context: Any, value: Any, d: Any = "", attribute: Any = None) -> Any:
        value = environment.meter.metered(value, size(environment.meter, d))
        return function(context, value, d, attribute)

    return guarded


def _summed(environment: Metered, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(context: Any, values: Any, attribute: Any = None, start: Any = 0) -> Any:
        if not isinstance(start, (int, float)):
            # Lists are added one to another: the whole is copied for each of them.
            values = list(environment.meter.metered(values))
            environment.meter.make(len(values) * size(environment.meter, values) // 1000)
        return function(context, values, attribute, start)

    return guarded


def _compared(
    environment: Metered, function: Callable[..., Any], *, reads_left: bool
) -> Callable[..., Any]:
    """No comparison reads more of one side than of the other, but ``in`` reads all of its right."""

    @functools.wraps(function)
    def guarded(left: Any, right: Any) -> Any:
        if type(right) not in SCALARS and not (reads_left and type(left) in SCALARS):
            environment.meter.spend(size(environment.meter, right) >> 6)
        return function(left, right)

    return guarded
