"""What a record's field holds, in the words of JSON, and the error when it should hold another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from pipeline.errors import RecordError

NOTHING: Any = object()  # stands for a key that is not there, where null would be something else

KEYS_SHOWN = 12
TEXT_SHOWN = 40


def fault(reason: str, field: str, message: str) -> RecordError:
    """The error of a record that does not say what its schema asks for."""
    return RecordError("parse", reason, message, field=field)


def misfit(reason: str, field: str, wanted: str, found: Any, *, remedy: str) -> RecordError:
    """``field: expected WANTED, found WHAT; remedy``; *found* is the value, or `NOTHING`."""
    return fault(reason, field, f"expected {wanted}, found {describe(found)}; {remedy}")


def describe(value: Any) -> str:
    """A value's kind with its article; never the value, which may be long, deep or private."""
    if value is NOTHING:
        return "nothing"
    if value is None:
        return "null"
    for kinds, name in (
        (bool, "a boolean"),
        ((int, float), "a number"),
        (str, "a string"),
        ((list, tuple), "a list"),
        (dict, "an object"),
    ):
        if isinstance(value, kinds):
            return name
    return f"a value of type {type(value).__name__}"


def name_keys(keys: Iterable[Any]) -> str:
    """Keys as a person reads them, cut where there are many."""
    shown = [str(key)[:TEXT_SHOWN] for key in keys]
    if not shown:
        return "none"
    rest = len(shown) - KEYS_SHOWN
    return ", ".join(shown[:KEYS_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def decode_text(text: str) -> Any:
    """The JSON value that *text* holds, or `NOTHING` where it is no JSON or too deep to read."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):  # ValueError: bad JSON, and a lone surrogate
        return NOTHING
