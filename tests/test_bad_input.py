"""Whatever the data: an exact reject or one error with a remedy; no traceback, no silence."""

from __future__ import annotations

import bz2
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline import build, cli
from pipeline.errors import RecordError
from pipeline.recipe import BUNDLED
from pipeline.source import Record, decode
from pipeline.source.walk import find_doubled

TOKENIZER = ["--tokenizer", str(BUNDLED / "tokenizer")]


def run(*argv: str) -> int:
    every = ["--workers", "1", "--max-reject-rate", "1", "--json"]
    return cli.run(build.main, [*TOKENIZER, *every, *argv])


def talk(*messages: tuple[str, Any], **extra: Any) -> bytes:
    said = [{"role": role, "content": content} for role, content in messages]
    return json.dumps({"messages": said, **extra}).encode()


GOOD = talk(("user", "Hi."), ("assistant", "Yes."))
LATIN = '{"messages": [{"role": "user", "content": "é"}]}'.encode("latin-1")
TWICE = GOOD[:-1] + b', "messages": []}'
WEIGHT = b'"content": "Yes.", "weight": '

# Each line, and the reject it must become: stage, reason, field; None is a row.
RECORDS: dict[str, tuple[bytes, tuple[str, str, str] | None]] = {
    "good": (GOOD, None),
    "no JSON": (b"hello", ("read", "bad_json", "")),
    "cut off": (GOOD[:-2], ("read", "bad_json", "")),
    "two in one line": (GOOD + GOOD, ("read", "bad_json", "")),
    "Python's quotes": (b"{'messages': []}", ("read", "bad_json", "")),
    "Latin-1": (LATIN, ("read", "bad_utf8", "")),
    "UTF-16": ("{}".encode("utf-16"), ("read", "bad_utf8", "")),
    "a byte order mark inside the file": (b"\xef\xbb\xbf" + GOOD, None),
    "a lone surrogate": (
        talk(("user", "a"), ("assistant", "\ud83d")),
        ("read", "lone_surrogate", "messages[1].content"),
    ),
    "NUL bytes": (b"\0\0\0", ("read", "bad_json", "")),
    "a NUL byte in a string": (GOOD.replace(b"Hi", b"H\0i"), ("read", "bad_json", "")),
    "an escaped NUL": (talk(("user", "a\0"), ("assistant", "\0b")), None),
    "a carriage return": (GOOD + b"\r", None),
    "a key twice": (TWICE, ("read", "duplicate_key", "messages")),
    "a message's key twice": (
        GOOD.replace(b'"content": "Yes."', b'"content": "No.", "content": "Yes."'),
        ("read", "duplicate_key", "messages[1].content"),
    ),
    "a key twice with one value": (GOOD[:-1] + GOOD.replace(b"{", b", ", 1), None),
    "a number of 400 digits": (talk(("user", "a"), ("assistant", "b"), id=10**400), None),
    "a number of 5,000 digits": (b'{"id": ' + b"9" * 5000 + b"}", ("read", "bad_json", "")),
    "a weight beyond floats": (
        GOOD.replace(b'"content": "Yes."', WEIGHT + b"1e400"),
        ("parse", "bad_weight", "messages[1].weight"),
    ),
    "a weight of 400 digits": (
        GOOD.replace(b'"content": "Yes."', WEIGHT + b"9" * 400),
        ("parse", "bad_weight", "messages[1].weight"),
    ),
    "a weight that is no number": (
        GOOD.replace(b'"content": "Yes."', WEIGHT + b"NaN"),
        ("parse", "bad_weight", "messages[1].weight"),
    ),
    "deep nesting": (b'{"a": ' + b"[" * 99999 + b"]" * 99999 + b"}", ("read", "too_deep", "")),
    "an unknown role": (
        talk(("user", "a"), ("wizard", "b")),
        ("parse", "unknown_role", "messages[1].role"),
    ),
    "null content": (
        talk(("user", "a"), ("assistant", None)),
        ("parse", "null_content", "messages[1].content"),
    ),
    "an object as content": (
        talk(("user", {"a": 1}), ("assistant", "b")),
        ("parse", "bad_content", "messages[0].content"),
    ),
    "no messages": (b'{"messages": []}', ("parse", "empty_conversation", "messages")),
    "null messages": (b'{"messages": null}', ("parse", "empty_conversation", "messages")),
    "text as messages": (b'{"messages": "hi"}', ("parse", "bad_messages", "messages")),
    "an empty object": (b"{}", ("parse", "unknown_schema", "")),
    "a list": (b"[]", ("parse", "not_an_object", "")),
    "null": (b"null", ("parse", "not_an_object", "")),
    "a number": (b"1", ("parse", "not_an_object", "")),
    "no assistant": (talk(("user", "a")), ("parse", "no_assistant_turn", "")),
    "nothing left to train": (
        GOOD.replace(b'"content": "Yes."', WEIGHT + b"0"),
        ("weigh", "nothing_to_train", ""),
    ),
}


def test_each_bad_record_is_one_exact_reject(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "x.jsonl", tmp_path / "out"
    path.write_bytes(b"".join(raw + b"\n" for raw, _ in RECORDS.values()))
    assert run("--input", str(path), "--output", str(output)) == 0
    rejects = [json.loads(line) for line in (output / "rejects.jsonl").read_bytes().splitlines()]
    got = {r["row"]: (r["stage"], r["reason"], r["field"]) for r in rejects}
    names = list(RECORDS)
    assert {names[row]: told for row, told in got.items()} == {
        name: told for name, (_, told) in RECORDS.items() if told
    }
    # place: fact; remedy
    assert all(r["message"].startswith(f"x.jsonl:{r['row'] + 1}: ") for r in rejects)
    assert all("; " in r["message"] for r in rejects)
    rows = pq.read_table(output / "train-00000-of-00001.parquet")["row"].to_pylist()
    assert sorted([*rows, *got]) == list(range(len(RECORDS)))
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts["conversations"] == counts["rows"] + counts["rejects"] == len(RECORDS)


def test_a_line_of_100_mb_costs_itself_alone(tmp_path: Path) -> None:
    path, output = tmp_path / "x.jsonl", tmp_path / "out"
    broken = b'{"messages": "' + b"x" * 100_000_000
    path.write_bytes(GOOD + b"\n" + broken + b"\n" + GOOD)
    assert run("--input", str(path), "--output", str(output)) == 0
    (left,) = (output / "rejects.jsonl").read_bytes().splitlines()
    assert json.loads(left)["raw"].encode() == broken
    shards = [pq.read_table(path) for path in sorted(output.glob("*.parquet"))]
    assert pa.concat_tables(shards)["row"].to_pylist() == [0, 2]


def test_bad_bytes_in_a_long_line_are_told_in_no_time(tmp_path: Path) -> None:
    path, output = tmp_path / "x.jsonl", tmp_path / "out"
    path.write_bytes(GOOD + b"\n" + b'"\\' + b"x" * 20_000_000 + b'\xff"')
    started = time.monotonic()
    assert run("--input", str(path), "--output", str(output)) == 0
    assert time.monotonic() - started < 60  # quadratic would be hours


PARQUET = pa.BufferOutputStream()
pq.write_table(pa.table({"a": ["x" * 9999]}), PARQUET)
LINES = (GOOD + b"\n") * 99
SQUEEZE: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "lz4": lz4.frame.compress,
    "zst": zstandard.ZstdCompressor().compress,
}
FILES: dict[str, tuple[bytes, str]] = {
    "utf16.jsonl": (LINES.decode().encode("utf-16"), "text in UTF-16 or UTF-32; convert"),
    "unmarked.jsonl": (LINES.decode().encode("utf-16-le"), "neither JSON in UTF-8"),
    **{f"cut.jsonl.{c}": (f(LINES)[:-5], "data is cut off; fetch") for c, f in SQUEEZE.items()},
    "cut.parquet": (PARQUET.getvalue().to_pybytes()[:-9], "damaged or cut off as Parquet"),
    "begun.parquet": (b"PAR1", "damaged or cut off as Parquet"),
    "begun.arrow": (b"ARROW1\0\0", "damaged or cut off as Arrow"),
    "cut.arrow": (b"\xff\xff\xff\xff\x10\0\0\0", "damaged or cut off as Arrow"),
    **{
        f"empty.{c}": (b"", "does not begin as")
        for c in ("parquet", "arrow", "feather", "jsonl.gz", "jsonl.zst", "jsonl.bz2", "json.lz4")
    },
    "empty.jsonl": (b"", "no record in any input; check"),
    "empty.json": (b"[]", "no record in any input; check"),
    "blank.jsonl": (b"\n \n\r\n", "no record in any input; check"),
    "nothing.jsonl.gz": (gzip.compress(b""), "no record in any input; check"),
    "page.html": (b"<html></html>", "holds no JSON; write"),
    "table.csv": (b"a,b\n1,2\n", "holds no JSON; write"),
    "table.csv.gz": (gzip.compress(b"a,b\n1,2\n"), "holds no JSON; write"),
    "pickled.pkl": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.", "neither JSON in UTF-8"),
    "x.jsonl.xz": (b"\xfd7zXZ\0\0\4", "neither JSON in UTF-8"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_one_error_that_names_it(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, fact = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    assert run("--input", str(path), "--output", str(tmp_path / "out")) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert f"{name}: " in told
    assert fact in told


def test_an_empty_file_among_others_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(b"")
    (tmp_path / "in" / "b.jsonl").write_bytes(LINES)
    argv = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *TOKENIZER]
    assert cli.run(build.main, [*argv, "--workers", "1"]) == 0
    assert "a.jsonl, b.jsonl  (without any record: a.jsonl)" in capsys.readouterr().out


KEY = st.sampled_from(["a", "b", 'c":', "\\", "d\\", "messages"])
VALUE: st.SearchStrategy[Any] = st.recursive(
    st.integers(0, 2) | st.sampled_from(['":', '\\":', "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(KEY, inner), max_size=4),
    max_leaves=12,
)


def written(value: Any, colon: str) -> str:
    """JSON in which lists of pairs are objects, keys in them as often as they come."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return "{" + ",".join(f"{json.dumps(k)}{colon}{written(v, colon)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(written(v, colon) for v in value) + "]"
    return json.dumps(value)


def is_doubled(value: Any) -> bool:
    """Whether an object has a key with two values, by looking at each pair."""
    if not isinstance(value, list):
        return False
    pairs = [v for v in value if isinstance(v, tuple)]
    inner = [v[1] if isinstance(v, tuple) else v for v in value]
    plain = [(k, json.loads(written(v, ":"))) for k, v in pairs]
    last = dict(plain)
    return any(last[k] != v for k, v in plain) or any(map(is_doubled, inner))


@given(VALUE, st.sampled_from([":", ": ", " : ", "\t:\n"]))
def test_two_values_of_one_key_are_always_found(value: Any, colon: str) -> None:
    raw = written(value, colon).encode()
    found = find_doubled(raw, json.loads(raw))
    assert (found is not None) == is_doubled(value)


COLONS = st.sampled_from([":", ":a", '":', '\\":', '\\\\":', "x"])
LEADING: st.SearchStrategy[Any] = st.recursive(
    st.integers(0, 2) | COLONS,
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(COLONS, inner), max_size=4),
    max_leaves=12,
)


@given(LEADING, st.sampled_from([":", ": "]))
def test_strings_that_begin_with_a_colon_hide_no_doubled_key(value: Any, colon: str) -> None:
    raw = written(value, colon).encode()
    found = find_doubled(raw, json.loads(raw))
    assert (found is not None) == is_doubled(value)


def test_a_doubled_key_is_named_by_its_path() -> None:
    raw = rb'{"a": [{"\":": 1, "b": {"c": 1, "d": 2, "c": 3}}]}'
    with pytest.raises(RecordError, match=r"^a\[0\]\.b\.c: stands there twice") as caught:
        decode(Record("x", 0, 1, raw))
    assert caught.value.reason == "duplicate_key"
