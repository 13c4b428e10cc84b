"""JSON lines: cutting and reading, against a reader that loads the whole file."""

from __future__ import annotations

import json
import pickle
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError, RecordError
from pipeline.source import Piece, Record, decode, lines, read, survey

BLANK = [b"", b" ", b"\t \r", b"\r"]
TEXT = st.one_of(
    st.sampled_from(BLANK),
    st.text(alphabet=st.characters(exclude_characters="\n", codec="utf-8"), max_size=12).map(
        str.encode
    ),
    st.sampled_from(["\u2028", "\x0b", "\x0c", "é\u2029", "\x85", '{"a": 1}', "  [1]"]).map(
        str.encode
    ),
)


def naive(content: bytes) -> list[tuple[int, int, bytes]]:
    """(row, line, raw) of every record, from the whole content at once."""
    kept = [
        (number, text.rstrip(b" \t\r"))
        for number, text in enumerate(content.split(b"\n"), 1)
        if text.strip(b" \t\r")
    ]
    return [(row, number, text) for row, (number, text) in enumerate(kept)]


def records(pieces: tuple[Piece, ...], **limits: int) -> list[tuple[int, int, bytes]]:
    return [
        (r.row, r.line, r.raw or b"") for p in pieces for batch in read(p, **limits) for r in batch
    ]


@settings(max_examples=300, deadline=None)
@given(
    texts=st.lists(TEXT, max_size=30),
    ended=st.booleans(),
    carriage=st.booleans(),
    piece_bytes=st.integers(1, 60),
    piece_rows=st.integers(1, 9),
    batch_records=st.integers(1, 5),
    batch_bytes=st.integers(1, 40),
)
def test_pieces_give_back_every_record_row_and_line(
    texts: list[bytes],
    ended: bool,
    carriage: bool,
    piece_bytes: int,
    piece_rows: int,
    batch_records: int,
    batch_bytes: int,
) -> None:
    newline = b"\r\n" if carriage else b"\n"
    # A first record that says "lines": what the sniffer makes of others is another test.
    content = b"{}" + newline + newline.join(texts) + (newline if ended else b"")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.jsonl")
        path.write_bytes(content)
        (source,) = survey(
            [str(path)], spool=Path(folder, "s"), piece_bytes=piece_bytes, piece_rows=piece_rows
        )
        limits = {"batch_records": batch_records, "batch_bytes": batch_bytes}
        got = records(source.pieces, **limits)
        assert got == naive(content)
        assert source.records == len(got)
        assert not Path(folder, "s").exists()
        for piece in source.pieces:
            batches = list(read(piece, **limits))
            count = sum(map(len, batches))
            assert 0 < count <= piece_rows
            assert max(map(len, batches)) <= batch_records


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TEXT, max_size=20), chunk=st.integers(1, 30), piece_bytes=st.integers(1, 50))
def test_how_the_stream_is_chunked_does_not_move_a_cut(
    texts: list[bytes], chunk: int, piece_bytes: int
) -> None:
    content = b"\n".join(texts)
    opened = Piece("x", "x", "lines", 0, 0, 0, 1, 0)
    parts = [content[i : i + chunk] for i in range(0, len(content), chunk)]
    limits = {"piece_bytes": piece_bytes, "piece_rows": 4}
    assert lines.cut(parts, opened, **limits) == lines.cut([content], opened, **limits)


def test_a_piece_ends_with_the_line_that_fills_it(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"{}\n\n{}\n{}\n{}\n\n\n\n\n")
    (source,) = survey([str(path)], spool=tmp_path / "s", piece_bytes=6, piece_rows=9)
    assert [(p.start, p.end, p.first, p.line) for p in source.pieces] == [
        (0, 7, 0, 1),
        (7, 13, 2, 4),
    ]


def test_trailing_blank_lines_make_no_piece(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n" * 50 + b"{}" + b"\n" * 50)
    (source,) = survey([str(path)], spool=tmp_path / "s", piece_bytes=4)
    assert records(source.pieces) == [(0, 51, b"{}")]
    assert len(source.pieces) == 1


@pytest.mark.parametrize("content", [b"", b"\n\n \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_a_file_without_records_is_a_source_without_pieces(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    (source,) = survey([str(path)], spool=tmp_path / "s", piece_bytes=4)
    assert (source.records, source.pieces, source.size) == (0, (), len(content))


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n')
    (source,) = survey([str(path)], spool=tmp_path / "s", piece_bytes=4)
    assert records(source.pieces) == [(0, 1, b'{"a": 1}'), (1, 2, b'{"a": 2}')]


def test_a_line_longer_than_every_buffer_is_one_record(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    long = b'"' + b"x" * 9_000_000 + b'"'
    path.write_bytes(b"1\n" + long + b"\n3\n")
    (source,) = survey([str(path)], spool=tmp_path / "s", piece_bytes=1)
    assert [raw for _, _, raw in records(source.pieces)] == [b"1", long, b"3"]


def test_a_record_too_long_for_memory_is_an_error_at_the_survey(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "LONGEST", 100)
    opened = Piece("x.jsonl", "x", "lines", 0, 0, 0, 1, 0)
    with pytest.raises(InputError, match=r"x\.jsonl: record 1 is longer"):
        lines.cut([b"1\n", b"2" * 60, b"2" * 60], opened, piece_bytes=9, piece_rows=9)


def test_pieces_survive_pickling() -> None:
    piece = Piece("x", "/x", "lines", 0, 9, 0, 1, 9)
    assert pickle.loads(pickle.dumps(piece)) == piece


def fault(raw: bytes) -> RecordError:
    with pytest.raises(RecordError) as caught:
        decode(Record("x.jsonl", 0, 1, raw))
    assert caught.value.stage == "read"
    return caught.value


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"",
        b"[1,]",
        b"{'a': 1}",
        b"[1] 2",
        b'["a\rb"]',
        b"[" + b"9" * 5000 + b"]",
    ],
    ids=["cut", "empty", "comma", "quotes", "more", "control", "digits"],
)
def test_broken_json_is_bad_json(raw: bytes) -> None:
    assert fault(raw).reason == "bad_json"


def test_what_is_nested_too_deep_is_told_so() -> None:
    assert fault(b"[" * 99999).reason == fault(b"[" * 99999 + b"]" * 99999).reason == "too_deep"


def test_broken_json_says_where() -> None:
    assert "column 9: Expecting ',' delimiter" in str(fault(b'{"a": 1 "b"}'))


@pytest.mark.parametrize("raw", [b'["\xff"]', b'["\xed\xa0\x80"]', b'["\xc0\x80"]', b'{"\xe4": 1}'])
def test_bad_bytes_are_bad_utf8(raw: bytes) -> None:
    assert fault(raw).reason == "bad_utf8"
    assert f"at byte {raw.index(34) + 2} is not" in str(fault(raw))


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (rb'{"m": [{"c": "ok"}, {"c": "\ud83d"}]}', "m[1].c"),
        (rb'["\udc00\ud800"]', "[0]"),
        (rb'{"a": {"\ud800": 1}}', "a"),
        (rb'"\udfff"', ""),
        (rb'{"a": "\ud800", "b": "\ud800"}', "a"),
    ],
)
def test_a_lone_surrogate_is_found_by_its_field(raw: bytes, field: str) -> None:
    assert (fault(raw).reason, fault(raw).field) == ("lone_surrogate", field)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=12)
    | st.text(alphabet='{}[]",:\\ud8001e.-tnN 9', max_size=14).map(str.encode)
)
def test_decode_takes_what_json_takes_and_nothing_else(raw: bytes) -> None:
    try:
        expected = json.loads(raw.decode())
        json.dumps(expected, ensure_ascii=False).encode()
    except ValueError:
        fault(raw)
    else:
        assert repr(decode(Record("x", 0, 1, raw))) == repr(expected)


def test_numbers_stay_as_written() -> None:
    raw = b"[123456789012345678901234567890, 0.1, 1e400, NaN, -0.0]"
    expected = "[123456789012345678901234567890, 0.1, inf, nan, -0.0]"
    assert repr(decode(Record("x", 0, 1, raw))) == expected


def test_a_place_is_a_line_or_a_number() -> None:
    assert Record("train.jsonl", 16, 17).place == "train.jsonl:17"
    assert Record("data.json", 16, 0).place == "data.json[16]"
