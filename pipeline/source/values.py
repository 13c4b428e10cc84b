"""Arrow's values as JSON would have them: what a template sees must not depend on the file form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.types as pt

from pipeline.errors import RecordError
from pipeline.source.record import decode_json

Convert: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Column:
    """How to read one column: cast to each of *types* in turn, then ``convert`` each value."""

    name: str
    index: int
    types: tuple[Any, ...]
    convert: Convert | None

    def values(self, batch: Any) -> list[Any]:
        """One value a row; a RecordError in the place of a value that cannot be had."""
        try:
            return self._convert(batch.column(self.index))
        except (RecordError, pa.ArrowException, ValueError, OverflowError):
            column = batch.column(self.index)
            return [self._convert_one(column.slice(i, 1)) for i in range(len(column))]

    def _convert(self, column: Any) -> list[Any]:
        for type_ in self.types:
            column = column.cast(type_)
        values: list[Any] = column.to_pylist()
        return values if self.convert is None else [self.convert(value) for value in values]

    def _convert_one(self, column: Any) -> Any:
        try:
            return self._convert(column)[0]
        except RecordError as error:
            return error
        except UnicodeDecodeError:
            fact = "text that is not UTF-8; write the column again as UTF-8"
            return RecordError("read", "bad_utf8", fact, field=self.name)
        except (pa.ArrowException, ValueError, OverflowError) as error:
            fact = f"{str(error).partition(chr(10))[0]}; drop the column"
            return RecordError("read", "unsupported_type", fact, field=self.name)


def plan_columns(schema: Any) -> list[Column]:
    """How to read the columns of *schema*.

    - Arrow fills every struct of a column to the same fields, so a null in a struct is dropped:
      a template asks ``'tool_calls' in message``. Only a message (a struct with ``role``) keeps
      ``content: null``, which means something there. Nulls in lists and maps stay.
    - A map becomes a dict; text of Arrow's JSON type is decoded, and nothing is dropped in it.
    - Decimals, dates, times and timestamps become text as Arrow prints them (a timestamp with a
      zone in UTC), durations a whole number of their unit: no pandas, no zone table decides.
    - Binary is text if it is UTF-8. Other types are refused, record by record
      (``unsupported_type``), where they are not null.
    """
    return [_plan_column(field, index) for index, field in enumerate(schema)]


def _plan_column(field: Any, index: int) -> Column:
    zoneless = mapped(field.type, _zoneless)
    textual = mapped(zoneless, _textual)
    types = [b for a, b in ((field.type, zoneless), (zoneless, textual)) if a != b]
    return Column(field.name, index, tuple(types), _converter(field.with_type(textual), field.name))


def mapped(type_: Any, leaf: Convert) -> Any:
    """The type with every leaf replaced; lists, structs and maps as they were."""
    if pt.is_struct(type_):
        return pa.struct([f.with_type(mapped(f.type, leaf)) for f in _fields(type_)])
    if pt.is_map(type_):
        return pa.map_(type_.key_type, type_.item_field.with_type(mapped(type_.item_type, leaf)))
    for known, make in ((pt.is_list, pa.list_), (pt.is_large_list, pa.large_list)):
        if known(type_):
            return make(type_.value_field.with_type(mapped(type_.value_type, leaf)))
    return leaf(type_)


def _zoneless(type_: Any) -> Any:
    return pa.timestamp(type_.unit) if pt.is_timestamp(type_) else type_


def _textual(type_: Any) -> Any:
    if pt.is_timestamp(type_) or pt.is_date(type_) or pt.is_time(type_) or pt.is_decimal(type_):
        return pa.string()
    return pa.int64() if pt.is_duration(type_) else type_


def _fields(type_: Any) -> list[Any]:
    return [type_.field(i) for i in range(type_.num_fields)]


def _converter(field: Any, path: str) -> Convert | None:
    """What turns a value of ``to_pylist`` into JSON's; None if nothing has to be done."""
    type_ = field.type
    if holds_json(field):
        return lambda text: None if text is None else decode_json(text.encode(), field=path)
    if pt.is_dictionary(type_):
        return _converter(field.with_type(type_.value_type), path)
    if pt.is_struct(type_):
        return _struct_converter(type_, path)
    if pt.is_map(type_):
        inner = _converter(type_.item_field, f"{path}.*") or _same
        return lambda pairs: None if pairs is None else {str(k): inner(v) for k, v in pairs}
    if is_list(type_):
        item = _converter(type_.value_field, f"{path}[]")
        if item is None:
            return None
        return lambda values: None if values is None else [item(value) for value in values]
    if pt.is_float16(type_):
        return lambda value: None if value is None else float(value)  # numpy's, before pyarrow 21
    if _is_plain(type_):
        return None
    return _binary_converter(path) if is_binary(type_) else _refuser(type_, path)


def _struct_converter(type_: Any, path: str) -> Convert:
    fields = [(f.name, _converter(f, f"{path}.{f.name}")) for f in _fields(type_)]
    kept = {"content"} if any(name == "role" for name, _ in fields) else set()

    def convert(value: Any) -> Any:
        if value is None:
            return None
        out = {}
        for name, inner in fields:
            item = value[name]
            if item is not None:
                out[name] = item if inner is None else inner(item)
            elif name in kept:
                out[name] = None
        return out

    return convert


def _binary_converter(path: str) -> Convert:
    def convert(value: Any) -> Any:
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            fact = "binary data that is no UTF-8 text; drop the column, or store text"
            raise RecordError("read", "unsupported_type", fact, field=path) from None

    return convert


def _refuser(type_: Any, path: str) -> Convert:
    def convert(value: Any) -> Any:
        if value is None:
            return None
        fact = f"values of type {type_} have no JSON form; drop or cast the column"
        raise RecordError("read", "unsupported_type", fact, field=path)

    return convert


def _same(value: Any) -> Any:
    return value


def holds_json(field: Any) -> bool:
    """Arrow's JSON type; pyarrow before 19 does not know it and leaves its name beside the text."""
    if getattr(field.type, "extension_name", "") == "arrow.json":
        return True
    marks = field.metadata or {}
    return bool(marks.get(b"ARROW:extension:name") == b"arrow.json")


def is_list(type_: Any) -> bool:
    return bool(pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_))


def _is_plain(type_: Any) -> bool:
    return bool(
        pt.is_null(type_)
        or pt.is_boolean(type_)
        or pt.is_integer(type_)
        or pt.is_floating(type_)
        or pt.is_string(type_)
        or pt.is_large_string(type_)
        or pt.is_string_view(type_)
    )


def is_binary(type_: Any) -> bool:
    return bool(
        pt.is_binary(type_)
        or pt.is_large_binary(type_)
        or pt.is_fixed_size_binary(type_)
        or pt.is_binary_view(type_)
    )
