"""Values written as JSON or as Python writes them, in strings that keep their marks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from pipeline.provenance import UNKNOWN, Traced, marks_of

# Every character that a notation may escape; a few that it does not cost only time.
_JSON = re.compile(r'[\x00-\x1f\\"]')
_JSON_ASCII = re.compile(r'[\\"]|[^ -~]')
_PYTHON = re.compile(r"[\\']|[^ -~]")


def trace_json(
    value: Any,
    *,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> Traced:
    """``json.dumps`` with these arguments, to the character; strings inside keep their marks.

    Punctuation, numbers and plain strings are ``UNKNOWN``. Raises what ``json.dumps`` raises.
    """
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    between, after = separators or (", " if indent is None else ",", ": ")
    writer = _Writer(
        partial(json.dumps, ensure_ascii=ensure_ascii),
        _JSON_ASCII if ensure_ascii else _JSON,
        step=" " * indent if isinstance(indent, int) else indent,
        between=between,
        after=after,
        sort_keys=sort_keys,
        key=lambda key: f'"{json.dumps(key)}"',
    )
    return writer.written(value, text)


def trace_str(value: Any) -> str:
    """``str`` of *value*, to the character; strings inside lists and dicts keep their marks."""
    text = str(value)
    if isinstance(value, str) or not isinstance(value, list | tuple | dict):
        return text
    return _Writer(repr, _PYTHON, between=", ", after=": ", key=repr).written(value, text)


class _Writer:
    """``json.encoder`` and ``repr`` again, keeping each string apart."""

    def __init__(
        self,
        spell: Callable[[Any], str],
        escaped: re.Pattern[str],
        *,
        between: str,
        after: str,
        key: Callable[[Any], str],
        step: str | None = None,
        sort_keys: bool = False,
    ) -> None:
        self.spell, self.escaped, self.key = spell, escaped, key
        self.between, self.after, self.step, self.sort_keys = between, after, step, sort_keys
        self.pieces: list[str] = []

    def written(self, value: Any, text: str) -> Traced:
        """*value* written here; *text* without marks should that be another text."""
        try:
            self._write(value, "\n")
        except RecursionError:  # C recurses further
            return Traced(text)
        traced = Traced().join(self.pieces)
        return traced if traced == text else Traced(text)

    def _write(self, value: Any, line: str) -> None:
        """*line* is a line break with the indentation that *value* stands in."""
        if isinstance(value, str):
            self._string(value)
        elif isinstance(value, dict):
            items = sorted(value.items()) if self.sort_keys else value.items()
            self._enclose("{}", items, self._item, line)
        elif isinstance(value, list | tuple):
            self._enclose("[]", value, self._write, line)
        else:
            self.pieces.append(self.spell(value))

    def _enclose(
        self, brackets: str, items: Iterable[Any], write: Callable[[Any, str], None], line: str
    ) -> None:
        inner, outer = ("", "") if self.step is None else (line + self.step, line)
        first = True
        for item in items:
            self.pieces.append((brackets[0] if first else self.between) + inner)
            write(item, inner)
            first = False
        self.pieces.append(brackets if first else outer + brackets[1])

    def _item(self, item: tuple[Any, Any], line: str) -> None:
        key, value = item
        if isinstance(key, str):
            self._string(key)
        else:
            self.pieces.append(self.key(key))
        self.pieces.append(self.after)
        self._write(value, line)

    def _string(self, value: str) -> None:
        text, marks = self.spell(value), marks_of(value)
        if len(text) != len(value) + 2:  # an escape is longer than what it stands for
            pieces, last = [], 0
            for match in self.escaped.finditer(value):
                at = match.start()
                length = len(self.spell(match.group())) - 2
                if match.group() == text[0] == "'":  # Python escapes it between its like only
                    length = 2
                pieces += [marks[last:at], marks[at] * length]
                last = at + 1
            marks = "".join(pieces) + marks[last:]
        self.pieces.append(Traced(text, UNKNOWN + marks + UNKNOWN))
