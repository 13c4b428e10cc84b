"""Decoded JSON item by item, and what in it cannot stay: half characters, keys given twice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

_BACKSLASHES = re.compile(rb'(\\+)":')


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every item in the order of the text, with its path; no recursion: JSON may be deep."""
    stack = [("", value)]
    while stack:
        path, item = stack.pop()
        yield path, item
        if isinstance(item, dict):
            stack.extend((join(path, key), item[key]) for key in reversed(item))
        elif isinstance(item, list):
            stack.extend((f"{path}[{i}]", item[i]) for i in reversed(range(len(item))))


def join(*parts: str) -> str:
    """A path from its parts, some of which may be empty."""
    return ".".join(part for part in parts if part)


def find_surrogate(value: Any) -> str | None:
    """Path of the first string, or of the object with the first key, that has a lone surrogate."""
    for path, item in walk(value):
        texts = (item,) if isinstance(item, str) else item if isinstance(item, dict) else ()
        if not all(map(_encodable, texts)):
            return path
    return None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_doubled(raw: bytes, value: Any) -> str | None:
    """Path of the first key that an object of *raw* has twice with two values.

    Decoders keep the last and say nothing. *value* is what they made of *raw*, and as many keys in
    both is proof enough (8 us a conversation, 0.9 % of a build), unless white space stands before
    some of the colons and not before others. Texts in which the counts differ are decoded again.
    """
    # After an escaped quote a colon is within a string, unless the backslash is escaped itself.
    escaped = raw.count(b'\\":')
    if escaped and b'\\\\":' in raw:  # JSON in a string in JSON
        escaped = sum(len(run) % 2 for run in _BACKSLASHES.findall(raw))
    more = raw.count(b'":') - escaped - count_keys(value)
    # What is left may be the first quotes of strings that begin with a colon.
    if more == 0 or (more > 0 and more == _count_leading_colons(value)):
        return None
    return _find_slowly(raw)


def _count_leading_colons(value: Any) -> int:
    found, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            found += item.startswith(":")
        elif isinstance(item, dict):
            found += sum(key.startswith(":") for key in item)
            stack += item.values()
        elif isinstance(item, list):
            stack += item
    return found


class _Doubled(dict[str, Any]):
    key = ""


def _find_slowly(raw: bytes) -> str | None:
    value = json.loads(raw.decode(), object_pairs_hook=_pair)
    return next((join(p, item.key) for p, item in walk(value) if type(item) is _Doubled), None)


def _pair(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if value != found[key]:
                doubled = _Doubled(found)
                doubled.key = key
                return doubled
    return found


def count_keys(value: Any) -> int:
    """How many keys all objects within *value* have; RecursionError where it is too deep."""
    # A loop with a stack of its own takes one and a half times as long; a call for each message
    # is a third of the time.
    count = len(value) if type(value) is dict else 0
    items: Iterable[Any] = value.values() if count else value if type(value) is list else ()
    for item in items:
        kind = type(item)
        if kind is dict:
            count += len(item)
            for inner in item.values():
                if type(inner) is list or type(inner) is dict:
                    count += count_keys(inner)
        elif kind is list:
            count += count_keys(item)
    return count
