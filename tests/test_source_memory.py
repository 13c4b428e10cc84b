"""Peak memory of surveying and reading does not grow with a file, in whatever form."""

from __future__ import annotations

import bz2
import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lz4.frame
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
import zstandard

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="tells no peak of a process")

ROWS = 4000  # 4.3 MB
SIZE = 4.3

# The peak of this program alone: resource's ru_maxrss has that of the process that started it.
PROGRAM = """
import sys
from pathlib import Path
from pipeline.errors import InputError
from pipeline.source import read, survey

def peak():
    told = Path("/proc/self/status").read_text()
    return int(told.partition("VmHWM:")[2].split()[0]) // 1024

records = 0
try:
    (source,) = survey([sys.argv[1]], spool=Path(sys.argv[2]), piece_bytes=1 << 18)
    for piece in source.pieces:
        for batch in read(piece, batch_bytes=1 << 18):
            records += len(batch)
except InputError as error:
    print(error, file=sys.stderr)
print(records, peak())
"""


def measured(path: Path) -> tuple[int, int, str]:
    """Records, peak in MB, and the error if there was one."""
    spool = path.with_suffix(".spool")
    argv = [sys.executable, "-c", PROGRAM, str(path), str(spool)]
    ran = subprocess.run(argv, capture_output=True, text=True, check=True)
    records, peak = ran.stdout.split()
    return int(records), int(peak), ran.stderr


def rows(times: int) -> Iterator[dict[str, Any]]:
    chance = random.Random(times)
    for _ in range(ROWS * times):
        said = [chance.randbytes(256).hex() for _ in range(2)]
        yield {"messages": [{"role": "user", "content": text} for text in said]}


SCHEMA = pa.Table.from_pylist(list(rows(1))[:1]).schema


def batches(times: int) -> Iterator[Any]:
    found = iter(rows(times))
    while batch := [row for _, row in zip(range(500), found, strict=False)]:
        yield pa.RecordBatch.from_pylist(batch, schema=SCHEMA)


def write_text(path: Path, times: int, opened: Callable[[Path], Any]) -> None:
    with opened(path) as file:
        for row in rows(times):
            file.write(json.dumps(row).encode() + b"\n")


def write_array(path: Path, times: int) -> None:
    with path.open("wb") as file:
        file.write(b"[")
        for row in rows(times):
            file.write(json.dumps(row).encode() + b",\n")
        file.write(b"{}]")


def write_parquet(path: Path, times: int, *, together: bool) -> None:
    with pq.ParquetWriter(path, SCHEMA, compression="none") as writer:
        if together:
            writer.write_table(pa.Table.from_batches(batches(times)), row_group_size=10**9)
        else:
            for batch in batches(times):
                writer.write_batch(batch)


def write_arrow(path: Path, times: int, *, make: Any, compression: str | None = None) -> None:
    options = ipc.IpcWriteOptions(compression=compression)
    with make(str(path), SCHEMA, options=options) as writer:
        for batch in batches(times):
            writer.write_batch(batch)


def write_one_batch(path: Path, times: int) -> None:
    table = pa.Table.from_batches(batches(times)).combine_chunks()
    with ipc.new_file(str(path), SCHEMA) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "lines": lambda path, times: write_text(path, times, lambda p: p.open("wb")),
    "array": write_array,
    "gzip": lambda p, t: write_text(p, t, lambda p: gzip.GzipFile(p, "wb", compresslevel=1)),
    "bz2": lambda p, t: write_text(p, t, lambda p: bz2.BZ2File(p, "wb", compresslevel=1)),
    "lz4": lambda p, t: write_text(p, t, lambda p: lz4.frame.open(str(p), "wb")),
    "zstd": lambda p, t: write_text(p, t, lambda p: zstandard.open(p, "wb")),
    "parquet": lambda path, times: write_parquet(path, times, together=False),
    "parquet of one group": lambda path, times: write_parquet(path, times, together=True),
    "arrow file": lambda path, times: write_arrow(path, times, make=ipc.new_file),
    "arrow stream": lambda path, times: write_arrow(path, times, make=ipc.new_stream),
    "arrow of one batch": write_one_batch,
    "arrow, compressed": lambda path, times: write_arrow(
        path, times, make=ipc.new_file, compression="lz4"
    ),
}


@pytest.mark.parametrize("form", WRITERS)
def test_ten_times_the_data_needs_no_more_memory(tmp_path: Path, form: str) -> None:
    # Allocators keep what they were given: of one group 102 MB, 113 of three times as many rows,
    # 140 of ten, 122 of thirty.
    most = 30 if form == "parquet of one group" else 10
    peaks = []
    for times in (1, most):
        path = tmp_path / f"{times}.data"
        WRITERS[form](path, times)
        records, peak, error = measured(path)
        assert (records, error) == (ROWS * times + (form == "array"), "")
        peaks.append(peak)
    assert peaks[1] - peaks[0] < most * SIZE / 2, peaks


@pytest.mark.parametrize("codec", ["gzip", "bz2", "zstd", "lz4"])
def test_a_compressed_file_that_unpacks_to_one_endless_line_is_an_error(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jsonl"
    line = b"{" + b'"' * (300 << 20)
    squeeze: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "bz2": bz2.compress,
        "zstd": zstandard.ZstdCompressor().compress,
        "lz4": lz4.frame.compress,
    }
    path.write_bytes(squeeze[codec](line))
    program = PROGRAM.replace(
        "records = 0", "from pipeline.source import lines\nlines.LONGEST = 1 << 26\nrecords = 0"
    )
    monkeypatch.setattr(sys.modules[__name__], "PROGRAM", program)
    records, peak, error = measured(path)
    assert records == 0
    assert "record 0 is longer than" in error
    assert peak < 250
