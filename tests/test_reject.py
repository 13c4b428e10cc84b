"""Rejects: what they keep of a record, and that it can be mended and fed to a build again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import build, cli
from pipeline.errors import RecordError
from pipeline.recipe import BUNDLED
from pipeline.reject import reject
from pipeline.source import Record, decode, read, survey
from pipeline.source.record import REJECTED

TOKENIZER = ["--tokenizer", str(BUNDLED / "tokenizer")]
TALK = {"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": "ü."}]}
ERROR = RecordError("parse", "bad", "is bad; mend it", field="f")


def line_of(record: Record) -> bytes:
    return reject(record, ERROR).to_json().removesuffix(b"\n")


def fed_back(line: bytes) -> Any:
    return decode(Record("rejects.jsonl", 0, 1, line))


def fault(record: Record) -> RecordError:
    with pytest.raises(RecordError) as caught:
        decode(record)
    return caught.value


def run(*argv: str) -> int:
    return cli.run(build.main, [*TOKENIZER, "--workers", "1", "--quiet", *argv])


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_reject_has_the_keys_by_which_it_is_known() -> None:
    assert json.loads(line_of(Record("x", 0, 1, b"{}"))).keys() == REJECTED


def test_a_reject_stands_for_its_raw_record() -> None:
    raw = b'{"b": 1.50, "a": [12345678901234567890123, null], "messages": "\\u00e9\xc3\xa9"}'
    line = line_of(Record("x.jsonl", 7, 8, raw))
    assert json.loads(line)["raw"].encode() == raw
    assert repr(fed_back(line)) == repr(decode(Record("x.jsonl", 7, 8, raw)))


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(), st.lists))
def test_values_of_columnar_files_come_back(value: Any) -> None:
    line = line_of(Record("x.parquet", 0, 0, None, {"x": value}))
    assert repr(fed_back(line)) == repr({"x": value})


def test_a_raw_record_may_be_made_an_object() -> None:
    line = json.loads(line_of(Record("x", 0, 1, json.dumps(TALK).encode())))
    assert fed_back(json.dumps({**line, "raw": json.loads(line["raw"])}).encode()) == TALK


def test_a_record_with_other_keys_is_itself() -> None:
    line = json.loads(line_of(Record("x", 0, 1, b"{}")))
    for record in ({**line, "more": 1}, {k: v for k, v in line.items() if k != "row"}):
        assert fed_back(json.dumps(record).encode()) == record
    null = {**line, "raw": None}
    assert fed_back(json.dumps(null).encode()) == null


def test_a_reject_that_is_rejected_again_keeps_the_first_raw_record() -> None:
    raw = b'{"messages": "\\ud800'
    once = line_of(Record("x.jsonl", 7, 8, raw))
    twice = reject(Record("rejects.jsonl", 3, 4, once), ERROR)
    assert twice.raw.encode() == raw
    assert (twice.place, twice.row, twice.line) == ("rejects.jsonl:4", 3, 4)


def test_a_line_that_was_broken_by_hand_can_be_mended_in_its_own_reject() -> None:
    once = line_of(Record("x.jsonl", 7, 8, json.dumps(TALK).encode()))
    broken = once.replace(b'"row":7', b'"row":7,,')
    assert fault(Record("rejects.jsonl", 0, 1, broken)).reason == "bad_json"
    twice = json.loads(line_of(Record("rejects.jsonl", 0, 1, broken)))
    twice["raw"] = twice["raw"].replace('"row":7,,', '"row":7')
    assert fed_back(json.dumps(twice).encode()) == TALK


def test_bytes_that_are_not_utf8_are_readable_and_can_be_mended() -> None:
    raw = json.dumps(TALK, ensure_ascii=False).encode("latin-1")
    line = json.loads(line_of(Record("x.jsonl", 0, 1, raw)))
    assert line["raw"].count(r"\xe9") == line["raw"].count(r"\xfc") == 1
    assert fault(Record("r", 0, 1, json.dumps(line).encode())).reason == "bad_json"
    line["raw"] = line["raw"].replace(r"\xe9", "é").replace(r"\xfc", "ü")
    assert fed_back(json.dumps(line).encode()) == TALK


@given(st.lists(st.sampled_from([b"\\", b"\xff", b"\xc3", b"a", b'"', b"\xc3\xa9"])))
def test_bytes_that_are_not_utf8_never_become_json_unmended(parts: list[bytes]) -> None:
    record = Record("x", 0, 1, b'{"a": "' + b"".join(parts) + b'"}')
    try:
        expected: Any = decode(record)
    except RecordError:
        assert fault(Record("r", 0, 1, line_of(record))).stage == "read"
    else:
        assert fed_back(line_of(record)) == expected


def columnar(path: Path, table: Any, form: str) -> list[Record]:
    if form == "parquet":
        pq.write_table(table, path)
    else:
        with ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    (source,) = survey([str(path)], spool=path.parent / "spool", piece_bytes=1 << 20)
    return [r for p in source.pieces for batch in read(p) for r in batch]


def broken_talks() -> Any:
    """Two conversations in Arrow's form, the second one's text in Latin-1."""
    text = pa.array(["é", "ü.", b"\xe9", b"\xfc."], pa.binary()).view(pa.string())
    roles = pa.array(["user", "assistant"] * 2)
    messages = pa.StructArray.from_arrays([roles, text], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array([0, 2, 4], pa.int32()), messages)


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_faulty_columnar_record_is_shown_whole(tmp_path: Path, form: str) -> None:
    table = pa.table({"n": [1, 2], "messages": broken_talks()})
    good, bad = columnar(tmp_path / "x", table, form)
    assert decode(good) == {"n": 1, **TALK}
    assert fault(bad).reason == "bad_utf8"
    line = json.loads(line_of(bad))
    assert line["raw"].startswith('{"n": 2, "messages": [{"role": "user", "content": "\\xe9"}')
    assert fault(Record("r", 0, 1, json.dumps(line).encode())).reason == "bad_json"
    line["raw"] = line["raw"].replace(r"\xe9", "é").replace(r"\xfc", "ü")
    assert fed_back(json.dumps(line).encode()) == {"n": 2, **TALK}


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        (pa.array([b"\x89PNG\xff" * 9]), "<45 bytes that are no text: 89 50 4e 47 ff"),
        (pa.array([pa.MonthDayNano([1, 2, 3])]), "<a value of type month_day_nano_interval>"),
        (
            pa.array([{"a": b"\xff", "b": "é", "c": [1.5], "d": None}]),
            '{"a": <1 bytes that are no text: ff>, "b": "é", "c": [1.5]}',
        ),
        (pa.array([{"d": 10**6, "x": b"\xff"}]), '{"d": 1000000, "x": <1 bytes'),
    ],
    ids=["binary", "interval", "struct", "number"],
)
def test_what_has_no_json_form_is_named_and_never_json(
    tmp_path: Path, column: Any, shown: str
) -> None:
    (record,) = columnar(tmp_path / "x", pa.table({"n": [1], "x": column}), "arrow")
    raw = json.loads(line_of(record))["raw"]
    assert raw.startswith('{"n": 1, "x": ' + shown)
    assert fault(Record("r", 0, 1, line_of(record))).reason == "bad_json"


def test_bad_json_in_a_json_column_is_shown_as_it_stands(tmp_path: Path) -> None:
    field = pa.field("x", pa.string(), metadata={"ARROW:extension:name": "arrow.json"})
    table = pa.table([pa.array(['{"a": é,}'])], schema=pa.schema([field]))
    (record,) = columnar(tmp_path / "x", table, "arrow")
    assert json.loads(line_of(record))["raw"] == '{"x": {"a": é,}}'


def test_mended_rejects_are_the_only_input_that_a_build_needs(tmp_path: Path) -> None:
    raws = [
        json.dumps(TALK).encode(),
        json.dumps(TALK).encode()[:-1],
        json.dumps(TALK, ensure_ascii=False).encode("latin-1"),
        b'{"messages": []}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(raws))
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("--input", str(tmp_path / "x.jsonl"), "--output", str(first)) == 1
    left = lines_of(first / "rejects.jsonl")
    assert [r["reason"] for r in left] == ["bad_json", "bad_utf8", "empty_conversation"]
    left[0]["raw"] += "}"
    left[1]["raw"] = left[1]["raw"].replace(r"\xe9", "é").replace(r"\xfc", "ü")
    mended = "".join(json.dumps(r) + "\n" for r in left)
    (first / "rejects.jsonl").write_text(mended, encoding="utf-8")
    argv = ["--input", str(first / "rejects.jsonl"), "--output", str(second)]
    assert run(*argv, "--max-reject-rate", "0.5") == 0
    (again,) = lines_of(second / "rejects.jsonl")
    assert (again["place"], again["raw"]) == ("rejects.jsonl:3", '{"messages": []}')
    before = pq.read_table(first / "train-00000-of-00001.parquet").to_pylist()
    after = pq.read_table(second / "train-00000-of-00001.parquet").to_pylist()
    assert [r["input_ids"] for r in after] == [before[0]["input_ids"]] * 2
    assert [(r["source"], r["row"]) for r in after] == [("rejects.jsonl", 0), ("rejects.jsonl", 1)]


@pytest.fixture
def rejecting(tmp_path: Path) -> list[str]:
    """The words of a build that leaves one reject, in ``o`` below the test's folder."""
    (tmp_path / "x.jsonl").write_text(f"{json.dumps(TALK)}\n{{\n", encoding="utf-8")
    words = ["--input", str(tmp_path / "x.jsonl"), "--output", str(tmp_path / "o")]
    return [*words, "--max-reject-rate", "1"]


def test_rejects_that_were_mended_in_place_are_not_replaced(
    tmp_path: Path, rejecting: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*rejecting) == 0
    path = tmp_path / "o" / "rejects.jsonl"
    made = path.read_bytes()
    for mended in (made.replace(b'"raw":"{"', b'"raw":"mended"'), b"", made):
        path.write_bytes(mended)
        shard = next((tmp_path / "o").glob("*.parquet"))
        shard.unlink()  # a run that has something to do, too
        edited = mended not in (b"", made)
        assert run(*rejecting) == edited
        assert path.read_bytes() == (mended if edited else made)
        if edited:
            told = capsys.readouterr().err
            assert "rejects.jsonl: holds what this build did not write, mended rejects" in told
            path.write_bytes(made)
            assert run(*rejecting) == 0
    path.write_bytes(b"notes")
    assert run(*rejecting, "--overwrite") == 0
    assert path.read_bytes() == made


def test_a_file_of_somebody_else_is_not_replaced_by_rejects(
    tmp_path: Path, rejecting: list[str]
) -> None:
    notes = tmp_path / "notes.jsonl"
    notes.write_text("years of work")
    assert run(*rejecting, "--rejects", str(notes)) == 1
    assert notes.read_text() == "years of work"
    assert not list((tmp_path / "o").glob("*.parquet"))  # told before the work
    other = [*rejecting, "--rejects", str(tmp_path / "shared.jsonl")]
    assert run(*other) == 0
    assert run(*other) == 0  # its own it may write again
    other[other.index("--output") + 1] = str(tmp_path / "p")
    (tmp_path / "x.jsonl").write_text(f"{json.dumps(TALK)}\n[\n", encoding="utf-8")
    assert run(*other) == 1
    assert run(*other, "--overwrite") == 0


def test_rejects_that_cannot_be_written_are_told_before_the_work(
    tmp_path: Path, rejecting: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for words in (["--rejects", str(tmp_path / "file" / "r")], ["--rejects", str(tmp_path / "o")]):
        assert run(*rejecting, *words) == 1
        assert f"--rejects {words[1]}: " in capsys.readouterr().err
        assert not list(tmp_path.glob("**/*.parquet"))
        assert not list(tmp_path.glob(".*.tmp"))
