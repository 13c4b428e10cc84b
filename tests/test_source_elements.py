"""JSON arrays and objects over many lines, against ``json.loads`` of the whole text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError, RecordError
from pipeline.source import Record, decode, read, survey
from pipeline.source.elements import split_array, split_values

TRICKY = st.text(alphabet=st.sampled_from('\\"[]{},:\n aé'), max_size=8)
VALUE: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TRICKY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TRICKY, inner, max_size=3),
    max_leaves=8,
)
BAD = "bad"


def chunked(content: bytes, size: int) -> list[bytes]:
    return [content[i : i + size] for i in range(0, len(content), size)]


def split(content: bytes, size: int = 7) -> list[bytes]:
    """The lines that ``split_array`` makes, without the white space at their ends."""
    lines = b"".join(split_array(chunked(content, size), label="x.json")).split(b"\n")
    assert not lines.pop().strip()
    return [line.strip() for line in lines]


def values(lines: list[bytes]) -> list[Any]:
    """Decoded, with BAD for what is no JSON."""
    out = []
    for line in lines:
        try:
            out.append(decode(Record("x", 0, 0, line)))
        except RecordError:
            out.append(BAD)
    return out


@settings(max_examples=400, deadline=None)
@given(
    items=st.lists(VALUE, max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    plain=st.booleans(),
    size=st.integers(1, 40),
    around=st.sampled_from([b"", b" ", b"\n\n", b"\r\n\t"]),
)
def test_elements_are_those_of_json_loads(
    items: list[Any], indent: int | None, plain: bool, size: int, around: bytes
) -> None:
    content = around + json.dumps(items, indent=indent, ensure_ascii=plain).encode() + around
    assert repr(values(split(content, size))) == repr(json.loads(content))


@settings(max_examples=300, deadline=None)
@given(items=st.lists(VALUE, max_size=4), size=st.integers(1, 9), data=st.data())
def test_an_array_that_is_cut_anywhere_is_an_error(
    items: list[Any], size: int, data: st.DataObject
) -> None:
    content = json.dumps(items).encode()
    cut = content[: data.draw(st.integers(1, len(content) - 1))]
    with pytest.raises(InputError, match=r"^x\.json: its JSON array is not closed"):
        split(cut, size)


@settings(max_examples=100, deadline=None)
@given(items=st.lists(VALUE, max_size=4), more=st.lists(VALUE, max_size=4), size=st.integers(1, 9))
def test_an_array_after_an_array_is_an_error(items: list[Any], more: list[Any], size: int) -> None:
    content = json.dumps(items).encode() + b"\n" + json.dumps(more).encode()
    with pytest.raises(InputError, match="is not all that the file holds"):
        split(content, size)


def test_exact_bytes_stay() -> None:
    content = b'[{"b":1.50,"a":1e+02,"b":12345678901234567890123}, "\\u00e9\\/" ]'
    expected = [b'{"b":1.50,"a":1e+02,"b":12345678901234567890123}', b'"\\u00e9\\/"']
    assert split(content) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[]", []),
        (b" [ \n ] \n", []),
        (b"[1,]", [1, BAD]),
        (b"[,1]", [BAD, 1]),
        (b"[1,,2]", [1, BAD, 2]),
        (b"[1,oops {},3]", [1, BAD, 3]),
        (b'["a\nb"]', [BAD]),
    ],
)
def test_damage_is_a_bad_record_in_its_place(content: bytes, expected: list[Any]) -> None:
    for size in range(1, len(content) + 1):
        assert values(split(content, size)) == expected


@pytest.mark.parametrize(
    "content",
    [b"[", b"[1", b"[1,", b'[1,{"a":', b'[1,"a', b"[1]x", b'[1] {"a": 1}', b"[] [2,3]", b"[1}"],
)
def test_an_array_that_does_not_end_with_its_file_is_an_error(content: bytes) -> None:
    for size in range(1, len(content) + 1):
        with pytest.raises(InputError):
            split(content, size)


@settings(max_examples=200, deadline=None)
@given(
    items=st.lists(st.dictionaries(TRICKY, VALUE, max_size=3), max_size=4),
    size=st.integers(1, 30),
    between=st.sampled_from([b"", b"\n", b" \n\n"]),
)
def test_objects_printed_over_many_lines_are_one_record_each(
    items: list[Any], size: int, between: bytes
) -> None:
    content = between.join(json.dumps(item, indent=1).encode() for item in items)
    lines = b"".join(split_values(chunked(content, size))).split(b"\n")[:-1]
    assert repr(values(lines)) == repr(items)


def test_an_object_that_is_cut_off_is_one_bad_record() -> None:
    lines = b"".join(split_values([b'{\n"a": 1}\n{\n"b"', b": [\n"])).split(b"\n")
    assert values(lines) == [{"a": 1}, BAD, BAD]
    assert lines[2] == b""


def test_elements_are_placed_by_number(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"a": i} for i in range(9)], indent=2), encoding="utf-8")
    (source,) = survey([str(path)], spool=tmp_path / "spool", piece_bytes=20)
    got = [r for p in source.pieces for batch in read(p) for r in batch]
    assert [(r.row, r.line, r.place) for r in got] == [(i, 0, f"data.json[{i}]") for i in range(9)]
    assert [decode(r) for r in got] == [{"a": i} for i in range(9)]
    assert len(source.pieces) > 2
