"""Parquet and Arrow: ranges against the whole table, values against the JSON they came from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.errors import InputError
from pipeline.source import Record, Source, decode, read, survey

FORMS = ["parquet", "parquet-group", "file", "stream", "file-lz4", "stream-zstd"]


def conversation(i: int) -> dict[str, Any]:
    call = {"id": f"c{i}", "function": {"name": "f", "arguments": {("a", "b")[i % 2]: i}}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"é{i}"}]
    if i % 3 == 0:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    return {"messages": messages, "n": i} if i % 5 != 3 else {"messages": messages}


ROWS = [conversation(i) for i in range(1000)]


def write(path: Path, table: Any, form: str) -> Path:
    kind, _, extra = form.partition("-")
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=10_000 if extra else 70)
        return path
    options = ipc.IpcWriteOptions(compression=extra or None)
    make = ipc.new_file if kind == "file" else ipc.new_stream
    with make(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=90)
    return path


def surveyed(path: Path, *, piece_bytes: int = 1 << 20, piece_rows: int = 64) -> Source:
    spool = path.parent / "spool"
    (source,) = survey([str(path)], spool=spool, piece_bytes=piece_bytes, piece_rows=piece_rows)
    return source


def records(source: Source, **limits: int) -> list[Record]:
    return [r for p in source.pieces for batch in read(p, **limits) for r in batch]


@pytest.mark.parametrize("form", FORMS)
def test_ranges_give_back_what_was_written(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "x.data", pa.Table.from_pylist(ROWS), form)
    for piece_rows, batch_records in [(64, 256), (1000, 7), (1, 1), (333, 100), (5000, 5000)]:
        source = surveyed(path, piece_rows=piece_rows)
        got = records(source, batch_records=batch_records)
        assert [decode(r) for r in got] == ROWS
        assert [r.row for r in got] == list(range(1000))
        assert source.records == 1000
        assert len(source.pieces) == -(-1000 // piece_rows)
    assert got[16].place == "x.data[16]"


@pytest.mark.parametrize("form", FORMS)
def test_pieces_and_batches_keep_to_their_bytes(tmp_path: Path, form: str) -> None:
    table = pa.table({"text": ["x" * 10_000] * 300})
    path = write(tmp_path / "x.data", table, form)
    if form.startswith("parquet"):
        pq.write_table(table, path, row_group_size=70, use_dictionary=False)
    source = surveyed(path, piece_bytes=200_000, piece_rows=9999)
    # A row is a little over 10,000 bytes.
    assert {p.end - p.start for p in source.pieces[:-1]} == {19}
    assert max(len(b) for p in source.pieces for b in read(p, batch_bytes=50_000)) == 4


@pytest.mark.parametrize("form", ["parquet-group", "file-lz4", "stream-zstd"])
def test_what_cannot_be_read_by_ranges_goes_to_the_spool(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "x.data", pa.Table.from_pylist(ROWS), form)
    many, few = surveyed(path, piece_rows=64), surveyed(path, piece_rows=500)
    assert {p.path for p in few.pieces} == {str(path)}
    assert {p.path for p in many.pieces} == {str(tmp_path / "spool" / "00000.stream")}


@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
def test_what_can_be_read_by_ranges_makes_no_spool(tmp_path: Path, form: str) -> None:
    surveyed(write(tmp_path / "x.data", pa.Table.from_pylist(ROWS), form))
    assert not (tmp_path / "spool").exists()


def test_finding_the_batches_of_a_stream_reads_no_data(tmp_path: Path) -> None:
    path = write(tmp_path / "x.data", pa.table({"text": ["x" * 1000] * 9000}), "stream")
    # A fresh process, since a pool does not forget its peak.
    program = (
        "import pyarrow, sys\n"
        "from pathlib import Path\n"
        "from pipeline.source import survey\n"
        "(source,) = survey([sys.argv[1]], spool=Path('none'), piece_bytes=1 << 20)\n"
        "print(source.records, pyarrow.default_memory_pool().max_memory())\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    root = Path(pipeline.__file__).parent.parent
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    rows, peak = map(int, done.stdout.split())
    assert rows == 9000
    assert peak < 50_000 < path.stat().st_size // 100


@pytest.mark.parametrize("form", FORMS)
def test_dictionaries_are_values(tmp_path: Path, form: str) -> None:
    batches = [pa.table({"t": pa.array([f"{i}", "x"] * 100).dictionary_encode()}) for i in range(3)]
    table = pa.concat_tables(batches)
    if form.startswith("file"):
        table = table.unify_dictionaries()
    source = surveyed(write(tmp_path / "x.data", table, form), piece_rows=30)
    assert [decode(r) for r in records(source)] == [
        {"t": t} for i in range(3) for t in [f"{i}", "x"] * 100
    ]


@pytest.mark.parametrize("form", FORMS)
def test_no_rows_no_pieces(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "x.data", pa.Table.from_pylist(ROWS[:1]).slice(0, 0), form)
    assert (surveyed(path).records, surveyed(path).pieces) == (0, ())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("left", [-1, -30, 2000, 40])
def test_a_cut_off_file_is_an_error_that_names_it(tmp_path: Path, form: str, left: int) -> None:
    path = write(tmp_path / "x.data", pa.Table.from_pylist(ROWS), form)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=r"x\.data: damaged or cut off"):
        surveyed(path)


def test_damage_inside_is_an_error_while_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "x.data", pa.Table.from_pylist(ROWS), "parquet")
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    source = surveyed(path)
    with pytest.raises(InputError, match=r"x\.data: damaged"):
        records(source)
