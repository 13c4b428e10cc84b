"""Rows of columnar files as text where they have no JSON form: what a reject shows of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from pipeline.source.values import holds_json, is_binary, is_list, mapped

SHOWN = 32  # bytes of binary data


def write_row(row: dict[str, Any], faulty: Iterable[tuple[Any, Any]]) -> bytes:
    """JSON of *row*, then of each faulty column what it holds: no JSON, until a person mends it.

    *faulty* are fields and their columns of one value. Text that is not UTF-8 is written with its
    bytes as they are; other values without a JSON form are named between ``<`` and ``>``.
    """
    texts = [(name, _write(value)) for name, value in row.items()]
    texts += [(field.name, _write_cell(field, column)) for field, column in faulty]
    return b"{" + b", ".join(_write(name) + b": " + text for name, text in texts) + b"}"


def _write(value: Any) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return b"<nested too deep to be written>"
    return text.encode("utf-8", "surrogateescape")


def _write_cell(field: Any, column: Any) -> bytes:
    type_ = getattr(column.type, "storage_type", column.type)
    column = getattr(column, "storage", column)
    try:
        # Text as bytes, for it may be no UTF-8.
        value = column.view(mapped(type_, _undecoded)).to_pylist()[0]
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return _named(type_)
    return value if holds_json(field) else _write_value(value, type_)


def _undecoded(type_: Any) -> Any:
    if pt.is_dictionary(type_):
        return pa.dictionary(type_.index_type, _undecoded(type_.value_type))
    for known, bare in (
        (pt.is_string, pa.binary()),
        (pt.is_large_string, pa.large_binary()),
        (pt.is_string_view, pa.binary_view()),
    ):
        if known(type_):
            return bare
    return type_


def _write_value(value: Any, type_: Any) -> bytes:
    if value is None:
        return b"null"
    if pt.is_dictionary(type_):
        return _write_value(value, type_.value_type)
    if pt.is_struct(type_):
        inner = [(f.name, _write_value(value[f.name], f.type)) for f in type_]
        kept = [(name, text) for name, text in inner if text != b"null" or name == "content"]
        return b"{" + b", ".join(_write(name) + b": " + text for name, text in kept) + b"}"
    if pt.is_map(type_):
        pairs = [(_key(k, type_.key_type), _write_value(v, type_.item_type)) for k, v in value]
        return b"{" + b", ".join(key + b": " + text for key, text in pairs) + b"}"
    if is_list(type_):
        return b"[" + b", ".join(_write_value(v, type_.value_type) for v in value) + b"]"
    if isinstance(value, bytes):
        return _write_bytes(value, type_)
    if isinstance(value, (bool, int, float)):
        return _write(value)
    if pt.is_date(type_) or pt.is_time(type_) or pt.is_timestamp(type_) or pt.is_decimal(type_):
        return _write(str(value))
    return _named(type_)


def _key(value: Any, type_: Any) -> bytes:
    text = _write_value(value, type_)
    return text if text.startswith(b'"') else _write(text.decode("utf-8", "surrogateescape"))


def _write_bytes(value: bytes, type_: Any) -> bytes:
    text = value.decode("utf-8", "surrogateescape")
    if not is_binary(type_) or value == text.encode("utf-8", "replace"):
        return _write(text)
    shown = value[:SHOWN].hex(" ") + (" ..." if len(value) > SHOWN else "")
    return f"<{len(value):,} bytes that are no text: {shown}>".encode()


def _named(type_: Any) -> bytes:
    return f"<a value of type {type_}>".encode()
