"""Values of Arrow as JSON would have them."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from pipeline.errors import RecordError
from pipeline.source import Record, decode, read, survey


def records(path: Path, table: Any) -> list[Record]:
    """The rows of *table*, after a stream on disk."""
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    (source,) = survey([str(path)], spool=path.parent / "spool", piece_bytes=1 << 20)
    return [r for p in source.pieces for batch in read(p) for r in batch]


def one(tmp_path: Path, array: Any) -> Any:
    """The value of a one-row column ``x``."""
    return decode(records(tmp_path / "x.data", pa.table({"x": array}))[0])


def test_padding_is_dropped_and_a_messages_empty_content_is_not(tmp_path: Path) -> None:
    type_ = pa.list_(
        pa.struct(
            [
                ("role", pa.string()),
                ("content", pa.string()),
                (
                    "tool_calls",
                    pa.list_(pa.struct([("id", pa.string()), ("content", pa.string())])),
                ),
            ]
        )
    )
    row = [
        {"role": "user", "content": "hi", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "content": None}, None]},
    ]
    assert one(tmp_path, pa.array([row], type_)) == {
        "x": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}, None]},
        ]
    }


def test_a_null_column_is_left_out(tmp_path: Path) -> None:
    assert one(tmp_path, pa.array([None], pa.list_(pa.string()))) == {}


def test_a_map_is_a_dict(tmp_path: Path) -> None:
    type_ = pa.list_(pa.map_(pa.string(), pa.int64()))
    assert one(tmp_path, pa.array([[[("k", 1), ("n", None)], []]], type_)) == {
        "x": [{"k": 1, "n": None}, {}]
    }


def test_json_text_is_decoded_and_nothing_in_it_dropped(tmp_path: Path) -> None:
    text = '{"default": null, "n": 123456789012345678901234567890}'
    field = pa.field("x", pa.string(), metadata={"ARROW:extension:name": "arrow.json"})
    table = pa.table([pa.array([text])], schema=pa.schema([field]))
    assert decode(records(tmp_path / "x.data", table)[0]) == {"x": json.loads(text)}


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([dt.date(2024, 2, 3)]), "2024-02-03"),
        (pa.array([dt.datetime(2024, 2, 3, 4, 5, 6)]), "2024-02-03 04:05:06.000000"),
        (pa.array([1], pa.timestamp("ns", tz="Europe/Berlin")), "1970-01-01 00:00:00.000000001"),
        (pa.array([[dt.time(1, 2)]]), ["01:02:00.000000"]),
        (pa.array([5], pa.duration("ms")), 5),
        (pa.array([[{"d": decimal.Decimal("1.20")}]]), [{"d": "1.20"}]),
        (pa.array([b"\xc3\xa9"]), "é"),
        (pa.array([[1.5]], pa.list_(pa.float32())), [1.5]),
        (pa.array([["a"]], pa.large_list(pa.large_string())), ["a"]),
        (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
        (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), [1, 2]),
    ],
    ids=str,
)
def test_values_are_what_json_would_have(tmp_path: Path, array: Any, expected: Any) -> None:
    value = one(tmp_path, array)
    assert value == {"x": expected}
    assert json.loads(json.dumps(value)) == value


def test_a_value_without_json_form_costs_its_record_alone(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, 3], "b": [{"c": b"x"}, {"c": b"\xff"}, None]})
    got = records(tmp_path / "x.data", table)
    assert [decode(got[0]), decode(got[2])] == [{"a": 1, "b": {"c": "x"}}, {"a": 3}]
    with pytest.raises(RecordError, match=r"b\.c: binary data") as caught:
        decode(got[1])
    assert (caught.value.stage, caught.value.reason) == ("read", "unsupported_type")
    assert got[1].value == {"a": 2}


def test_bad_utf8_in_a_column_costs_its_record_alone(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 2], pa.int32()).buffers()[1]
    array = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"\xffa"))
    got = records(tmp_path / "x.data", pa.table({"x": array}))
    assert decode(got[1]) == {"x": "a"}
    with pytest.raises(RecordError, match="not UTF-8") as caught:
        decode(got[0])
    assert caught.value.reason == "bad_utf8"


def test_other_types_are_refused_where_they_hold_something(tmp_path: Path) -> None:
    array = pa.array([None, pa.MonthDayNano([1, 2, 3])])
    got = records(tmp_path / "x.data", pa.table({"x": array}))
    assert decode(got[0]) == {}
    with pytest.raises(RecordError, match="no JSON form"):
        decode(got[1])
