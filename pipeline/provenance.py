"""Strings that know where each of their characters comes from.

Beside the text runs a *shadow* of the same length with one mark character per character: whatever
slices, repeats or joins the text does the same to the shadow, at the speed of C.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

from markupsafe import Markup

UNKNOWN = "\0"  # the mark of a character that nobody followed
_CONVERSION = re.compile(r"%(?:\(([^()]*)\))?[-#0 +]*\d*(?:\.\d*)?[hlL]?([diouxXeEfFgGcrsa%])")


def marks_of(text: str) -> str:
    """One mark per character of any string; ``UNKNOWN`` where it keeps none."""
    if isinstance(text, (Traced, TracedMarkup)):
        return text.marks
    return UNKNOWN * len(text)


class Traced(str):
    """A str to everybody, whose ``marks`` go wherever its characters go.

    What an operation cannot follow comes out as a plain str or with ``UNKNOWN`` marks, never with
    another character's.
    """

    __slots__ = ("marks",)
    marks: str

    def __new__(cls, text: object = "", marks: str | None = None) -> Traced:
        self = str.__new__(cls, text)
        if marks is None:
            self.marks = marks_of(text) if isinstance(text, str) else UNKNOWN * len(self)
        else:
            self.marks = marks
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: str, /) -> Traced:
        if type(other) is Traced:
            return Traced(str.__add__(self, other), self.marks + other.marks)
        if isinstance(other, Markup) or not isinstance(other, str):
            return NotImplemented
        return Traced(str.__add__(self, other), self.marks + UNKNOWN * len(other))

    def __radd__(self, other: str, /) -> Traced:
        if not isinstance(other, str):
            return NotImplemented
        return Traced(str.__add__(other, self), UNKNOWN * len(other) + self.marks)

    def __mul__(self, count: SupportsIndex, /) -> Traced:
        return Traced(str.__mul__(self, count), self.marks * count)

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice, /) -> Traced:
        return Traced(str.__getitem__(self, key), self.marks[key])

    def __iter__(self) -> Iterator[Traced]:
        return map(Traced, str.__iter__(self), self.marks)

    def __mod__(self, values: Any, /) -> Traced:
        text = str.__mod__(self, values)
        try:
            traced = _interpolated(self, values)
        except (TypeError, ValueError):  # a width of * takes a value of its own
            return Traced(text)
        return traced if traced == text else Traced(text)

    def join(self, parts: Iterable[str], /) -> Traced:
        parts = list(parts)
        return Traced(str.join(self, parts), self.marks.join([marks_of(part) for part in parts]))

    def replace(self, old: str, new: str, /, count: SupportsIndex = -1) -> Traced:
        text = str.replace(self, old, new, count)
        if not old:
            return Traced(text)
        return Traced(text, marks_of(new).join(p.marks for p in self.split(old, count)))

    def strip(self, chars: str | None = None, /) -> Traced:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Traced:
        text = str.lstrip(self, chars)
        return Traced(text, self.marks[len(self) - len(text) :])

    def rstrip(self, chars: str | None = None, /) -> Traced:
        text = str.rstrip(self, chars)
        return Traced(text, self.marks[: len(text)])

    def removeprefix(self, prefix: str, /) -> Traced:
        text = str.removeprefix(self, prefix)
        return Traced(text, self.marks[len(self) - len(text) :])

    def removesuffix(self, suffix: str, /) -> Traced:
        text = str.removesuffix(self, suffix)
        return Traced(text, self.marks[: len(text)])

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Traced]:  # type: ignore[override]  # list is invariant
        parts = str.split(self, sep, maxsplit)
        if sep is not None:
            return self._laid(parts, gap=len(sep))
        traced, end = [], 0
        for part in parts:  # each starts at the first character that is no white space
            start = str.find(self, part, end)
            end = start + len(part)
            traced.append(Traced(part, self.marks[start:end]))
        return traced

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Traced]:  # type: ignore[override]  # list is invariant
        parts = str.rsplit(self, sep, maxsplit)
        if sep is not None:
            return self._laid(parts, gap=len(sep))
        traced, start = [], len(self)
        for part in reversed(parts):  # each ends at the last character that is no white space
            start = str.rfind(self, part, 0, start)
            traced.append(Traced(part, self.marks[start : start + len(part)]))
        return traced[::-1]

    def splitlines(self, keepends: bool = False) -> list[Traced]:  # type: ignore[override]  # list is invariant
        lines = self._laid(str.splitlines(self, True), gap=0)
        if keepends:
            return lines
        return [line[: len(bare)] for line, bare in zip(lines, str.splitlines(self), strict=True)]

    def partition(self, sep: str, /) -> tuple[Traced, Traced, Traced]:
        first, middle, last = self._laid(str.partition(self, sep), gap=0)
        return first, middle, last

    def rpartition(self, sep: str, /) -> tuple[Traced, Traced, Traced]:
        first, middle, last = self._laid(str.rpartition(self, sep), gap=0)
        return first, middle, last

    def lower(self) -> Traced:
        return self._cased(str.lower(self), str.lower)

    def upper(self) -> Traced:
        return self._cased(str.upper(self), str.upper)

    def casefold(self) -> Traced:
        return self._cased(str.casefold(self), str.casefold)

    def swapcase(self) -> Traced:
        return self._cased(str.swapcase(self), str.swapcase)

    def title(self) -> Traced:
        return self._cased(str.title(self), None)

    def capitalize(self) -> Traced:
        return self._cased(str.capitalize(self), None)

    def ljust(self, width: SupportsIndex, fillchar: str = " ", /) -> Traced:
        text = str.ljust(self, width, fillchar)
        return Traced(text, self.marks + marks_of(fillchar) * (len(text) - len(self)))

    def rjust(self, width: SupportsIndex, fillchar: str = " ", /) -> Traced:
        text = str.rjust(self, width, fillchar)
        return Traced(text, marks_of(fillchar) * (len(text) - len(self)) + self.marks)

    def center(self, width: SupportsIndex, fillchar: str = " ", /) -> Traced:
        text = str.center(self, width, fillchar)
        pad, fill = len(text) - len(self), marks_of(fillchar)
        left = pad // 2 + (pad & len(text) & 1)  # CPython's: an odd pad of an odd width leans left
        return Traced(text, fill * left + self.marks + fill * (pad - left))

    def zfill(self, width: SupportsIndex, /) -> Traced:
        text = str.zfill(self, width)
        sign = 1 if str.startswith(self, ("+", "-")) else 0
        zeros = UNKNOWN * (len(text) - len(self))
        return Traced(text, self.marks[:sign] + zeros + self.marks[sign:])

    def _laid(self, parts: Iterable[str], *, gap: int) -> list[Traced]:
        """Parts that follow one another in this text, *gap* characters apart."""
        traced, start = [], 0
        for part in parts:
            end = start + len(part)
            traced.append(Traced(part, self.marks[start:end]))
            start = end + gap
        return traced

    def _cased(self, text: str, change: Callable[[str], str] | None) -> Traced:
        """No character vanishes by its case, so equal lengths mean one for one."""
        if len(text) == len(self):
            return Traced(text, self.marks)
        if change is None:
            return Traced(text)
        lengths = map(len, map(change, str.__iter__(self)))
        return Traced(text, "".join(map(str.__mul__, self.marks, lengths)))


class TracedMarkup(Markup):
    """What ``|safe`` gives: it escapes what is added to it, and keeps marks until it is printed."""

    __slots__ = ("marks",)
    marks: str

    def __new__(cls, text: object = "", marks: str | None = None) -> TracedMarkup:
        self = str.__new__(cls, text)
        self.marks = UNKNOWN * len(self) if marks is None else marks
        return self

    def __str__(self) -> str:
        return Traced(str.__str__(self), self.marks)

    def __repr__(self) -> str:
        return f"Markup({str.__repr__(self)})"

    def __add__(self, other: Any, /) -> Markup:  # type: ignore[override]  # Markup says Self
        text = Markup.__add__(self, other)
        return text if text is NotImplemented else _unescaped(text, self, other)

    def __radd__(self, other: Any, /) -> Markup:  # type: ignore[override]  # Markup says Self
        text = Markup.__radd__(self, other)
        return text if text is NotImplemented else _unescaped(text, other, self)


def _unescaped(text: Markup, left: Any, right: Any) -> Markup:
    """Escapes only lengthen: where the sum is as long as its parts, nothing was escaped."""
    if isinstance(left, str) and isinstance(right, str) and len(text) == len(left) + len(right):
        return TracedMarkup(text, marks_of(left) + marks_of(right))
    return text


def _interpolated(form: Traced, values: Any) -> Traced:
    """*form* ``%`` *values*, piece by piece; what is not simple comes out as another text."""
    named = isinstance(values, Mapping)
    following = iter(values if isinstance(values, tuple) else (values,))
    pieces, last = [], 0
    for match in _CONVERSION.finditer(form):
        pieces.append(form[last : match.start()])
        last = match.end()
        key, kind = match.groups()
        if kind == "%":
            pieces.append(form[last - 1 : last])
            continue
        value = values[key] if named and key is not None else next(following, "")
        alone = match.group() == "%s" or (key is not None and match.group() == f"%({key})s")
        pieces.append(Traced(str(value)) if alone else Traced(_converted(match, key, value)))
    pieces.append(form[last:])
    return Traced().join(pieces)


def _converted(match: re.Match[str], key: str | None, value: Any) -> str:
    given = (value,) if key is None else {key: value}
    return str.__mod__(match.group(), given)
