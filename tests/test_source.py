"""From files as people have them to records: forms, codecs, sniffing, names, errors."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import os
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.errors import InputError
from pipeline.source import Source, decode, read, survey
from pipeline.source.spool import chunks

ROWS = [{"messages": [{"role": "user", "content": f"é{i}\n"}]} for i in range(50)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "lz4": lz4.frame.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def surveyed(*words: Path | str, piece_bytes: int = 500) -> list[Source]:
    spool = Path(tempfile.gettempdir(), uuid.uuid4().hex)
    return survey([str(word) for word in words], spool=spool, piece_bytes=piece_bytes)


@pytest.fixture(autouse=True)
def _spools(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("spools")))


def values(source: Source) -> list[Any]:
    return [decode(r) for p in source.pieces for batch in read(p) for r in batch]


def error(*words: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        surveyed(*words)
    return str(caught.value)


def written(path: Path, content: bytes = b"{}\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("codec", CODECS)
def test_a_compressed_file_has_the_plain_files_records_and_hash(tmp_path: Path, codec: str) -> None:
    plain, packed = surveyed(
        written(tmp_path / "x.jsonl", LINES),
        written(tmp_path / f"x.jsonl.{codec}", CODECS[codec](LINES)),
    )
    assert values(packed) == ROWS
    assert plain.sha256 == hashlib.sha256(LINES).hexdigest()
    assert (packed.sha256, packed.size) == (plain.sha256, plain.size)
    assert [(p.start, p.end, p.first, p.line) for p in packed.pieces] == [
        (p.start, p.end, p.first, p.line) for p in plain.pieces
    ]


@pytest.mark.parametrize("codec", CODECS)
def test_frames_one_after_another_are_one_file(tmp_path: Path, codec: str) -> None:
    pack = CODECS[codec]
    packed = pack(LINES[:777]) + pack(b"") + pack(LINES[777:])
    (source,) = surveyed(written(tmp_path / f"x.jsonl.{codec}", packed))
    assert values(source) == ROWS


def test_what_other_tools_write_is_read(tmp_path: Path) -> None:
    wide = zstandard.ZstdCompressionParameters(window_log=28)  # zstd --long=28
    long = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0size"  # pzstd
    packed = {
        "padded.gz": gzip.compress(LINES) + bytes(512),
        "long.zst": long.compress(LINES) + long.flush(),
        "pzstd.zst": skippable + CODECS["zst"](LINES),
    }
    for name, content in packed.items():
        (source,) = surveyed(written(tmp_path / name, content))
        assert values(source) == ROWS, name


@pytest.mark.parametrize("codec", CODECS)
def test_a_cut_off_file_is_an_error_that_names_it(tmp_path: Path, codec: str) -> None:
    path = written(tmp_path / f"x.jsonl.{codec}", CODECS[codec](os.urandom(99_999))[:-3])
    assert "cut off" in error(path)
    assert error(path).startswith(f"{path}: ")


@pytest.mark.parametrize("codec", CODECS)
def test_garbage_after_the_last_frame_is_an_error(tmp_path: Path, codec: str) -> None:
    path = written(tmp_path / f"x.jsonl.{codec}", CODECS[codec](LINES) + b"garbage")
    assert "damaged" in error(path)


def test_a_damaged_gzip_file_is_an_error(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(LINES))
    packed[-6] ^= 1  # in the checksum
    assert "damaged gzip data" in error(written(tmp_path / "x.jsonl.gz", bytes(packed)))


def test_content_goes_before_names(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2]})
    pq.write_table(table, tmp_path / "x.json")
    expected: dict[str, tuple[bytes, list[Any]]] = {
        "gzip.jsonl": (gzip.compress(LINES), ROWS),
        "plain.jsonl.gz": (LINES, ROWS),
        "array.jsonl": (json.dumps(ROWS).encode(), ROWS),
        "lines.json": (LINES, ROWS),
        "array.txt": (b" \n" + json.dumps(ROWS, indent=1).encode(), ROWS),
        "object.json": (json.dumps(ROWS[0], indent=1).encode(), ROWS[:1]),
        "objects.json": (b"\n".join(json.dumps(r, indent=1).encode() for r in ROWS), ROWS),
        "object": (json.dumps(ROWS[0]).encode(), ROWS[:1]),
        "arrays.jsonl": (b"[1]\n[2]\n", [[1], [2]]),
        "mark.json": (b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), ROWS),
        "mark.jsonl.gz": (gzip.compress(b"\xef\xbb\xbf" + LINES), ROWS),
        "parquet.jsonl": ((tmp_path / "x.json").read_bytes(), [{"a": 1}, {"a": 2}]),
        "x.parquet.gz": (gzip.compress((tmp_path / "x.json").read_bytes()), [{"a": 1}, {"a": 2}]),
    }
    for name, (content, rows) in expected.items():
        (source,) = surveyed(written(tmp_path / "in" / name, content))
        assert (source.name, values(source)) == (name, rows)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x"])
@pytest.mark.parametrize("first", [b'{"messages": [{"role":', b"[{", b"[oops]", b"[" * 9999])
def test_a_broken_first_line_costs_one_record(first: bytes, tmp_path: Path, name: str) -> None:
    (source,) = surveyed(written(tmp_path / name, first + b"\n" + LINES))
    got = [r.raw for p in source.pieces for batch in read(p) for r in batch]
    assert source.records == len(got) == len(ROWS) + 1
    assert got[0] == first


def test_a_nul_byte_costs_one_record(tmp_path: Path) -> None:
    for content in (b'{"a": "\0"}\n' + LINES, LINES + b"\0\0\0\n"):
        (source,) = surveyed(written(tmp_path / "x.jsonl", content))
        assert source.records == len(ROWS) + 1


def test_a_printed_object_larger_than_a_chunk_is_one_record(tmp_path: Path) -> None:
    value = {"text": ["x" * 100] * 60_000}
    (source,) = surveyed(written(tmp_path / "x.json", json.dumps(value, indent=1).encode()))
    assert values(source) == [value]


def test_standard_input_is_read_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (LINES, gzip.compress(LINES), json.dumps(ROWS).encode()):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        (source,) = surveyed("-")
        assert (source.name, values(source)) == ("stdin", ROWS)
    assert "given 2 times" in error("-", "-")


def test_a_named_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(LINES,))
    writer.start()
    (source,) = surveyed(pipe)
    writer.join()
    assert values(source) == ROWS


@pytest.mark.parametrize("codec", ["", *CODECS])
def test_chunks_are_bounded_and_whole(tmp_path: Path, codec: str) -> None:
    content = LINES * 40
    path = written(tmp_path / "x", CODECS[codec](content) if codec else content)
    name = {"gz": "gzip", "zst": "zstd"}.get(codec, codec)
    parts = list(chunks(path, name, label="x", size=4096))
    assert b"".join(parts) == content
    assert {len(part) for part in parts[:-1]} == {4096}


@pytest.mark.corpus
def test_every_real_file_reads_as_json_reads_it(shared: Path) -> None:
    paths = sorted((shared / "data" / "formats").iterdir())
    assert len(paths) >= 9
    for path in paths:
        (source,) = surveyed(path, piece_bytes=100_000)
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            expected = json.loads(text)
        else:
            expected = [json.loads(line) for line in text.split("\n") if line.strip()]
        assert values(source) == expected, path.name


@pytest.mark.corpus
def test_the_large_file_is_whole(shared: Path) -> None:
    (source,) = surveyed(shared / "data" / "bench_messages.jsonl.zst", piece_bytes=1 << 23)
    got = [r for p in source.pieces for batch in read(p) for r in batch]
    assert source.records == len(got) == 50_000
    assert [r.row for r in got] == list(range(50_000))
    content = b"".join((r.raw or b"") + b"\n" for r in got)
    assert hashlib.sha256(content).hexdigest() == source.sha256
