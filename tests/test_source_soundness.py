"""Damaged Arrow files: an error or a record's fault, never a dead process."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.source import read, survey
from pipeline.source.soundness import require_sound

ROWS: list[dict[str, Any]] = [
    {
        "messages": [{"role": "user", "content": "hello " * (i % 7), "n": [[i], []]}],
        "text": str(i),
    }
    for i in range(300)
]


def table() -> Any:
    rows = len(ROWS)
    columns: dict[str, Any] = {
        "dictionary": pa.array([str(i % 5) for i in range(rows)]).dictionary_encode(),
        "map": pa.array([[("a", "b")]] * rows, pa.map_(pa.string(), pa.string())),
        "binary": pa.array([b"abc"] * rows),
        "large": pa.array([["q"]] * rows, pa.large_list(pa.large_string())),
        "view": pa.array(["q" * (i % 20) for i in range(rows)], pa.string_view()),
        "fixed": pa.array([["a", "b"]] * rows, pa.list_(pa.string(), 2)),
        "number": pa.array([None, 1.5, 2.5] * (rows // 3)),
    }
    made = pa.Table.from_pylist(ROWS)
    for name, column in columns.items():
        made = made.append_column(name, column)
    return made


def one_batch() -> Any:
    return table().combine_chunks().to_batches()[0]


@pytest.mark.parametrize("start", [0, 1, 100, 299])
def test_sound_data_is_sound_however_it_is_sliced(start: int) -> None:
    require_sound(one_batch().slice(start))
    require_sound(one_batch().slice(start, 7).slice(1))
    require_sound(one_batch().slice(start, 0))


def test_text_that_is_not_utf8_is_sound() -> None:
    text = pa.array([b"\xff"], pa.binary())
    for column in (text.view(pa.string()), text.cast(pa.binary_view()).view(pa.string_view())):
        require_sound(pa.record_batch({"x": column}))


def with_offsets(offsets: list[int]) -> Any:
    """Strings in a list of structs, with those offsets."""
    held = pa.py_buffer(np.array(offsets, np.int32))
    text = pa.StringArray.from_buffers(len(offsets) - 1, held, pa.py_buffer(b"abc"))
    structs = pa.StructArray.from_arrays([text], ["x"])
    ends = np.array([0, len(text)], np.int32)
    return pa.record_batch({"l": pa.ListArray.from_arrays(pa.array(ends), structs)})


@pytest.mark.parametrize("offsets", [[0, 9, 3], [0, 2, 1, 3], [0, -5, 3]])
def test_offsets_that_fall_or_leave_the_data_are_not_sound(offsets: list[int]) -> None:
    require_sound(with_offsets([0, 1, 3]))
    with pytest.raises(pa.ArrowInvalid, match=r"column l: "):
        require_sound(with_offsets(offsets))


def test_an_index_outside_of_its_dictionary_is_not_sound() -> None:
    array = pa.DictionaryArray.from_arrays(pa.array([0, 7]), pa.array(["a"]), safe=False)
    with pytest.raises(pa.ArrowInvalid, match="column d: "):
        require_sound(pa.record_batch({"d": array}))


@pytest.mark.parametrize("form", ["file", "stream", "lz4"])
def test_a_damaged_file_kills_no_process(tmp_path: Path, form: str) -> None:
    path = tmp_path / "whole"
    make = ipc.new_stream if form == "stream" else ipc.new_file
    options = ipc.IpcWriteOptions(compression="lz4" if form == "lz4" else None)
    with make(str(path), table().schema, options=options) as writer:
        writer.write_table(table(), max_chunksize=100)
    chance = random.Random(form)
    for number in range(250):
        content = bytearray(path.read_bytes())
        for _ in range(chance.choice([1, 2, 8])):
            at = chance.randrange(len(content) // 4) * 4
            content[at : at + 4] = chance.choice([b"\xff" * 4, bytes(4), chance.randbytes(4)])
        (tmp_path / f"{number}.arrow").write_bytes(content)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.errors import InputError, RecordError\n"
        "from pipeline.source import decode, read, survey\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.arrow')):\n"
        "    print(path, flush=True)\n"
        "    try:\n"
        "        (s,) = survey([str(path)], spool=path.with_suffix('.spool'), piece_bytes=3000)\n"
        "        records = [r for p in s.pieces for batch in read(p) for r in batch]\n"
        "        assert len(records) == s.records\n"
        "    except InputError as error:\n"
        "        assert str(error).startswith(str(path.name)) or str(error).startswith(str(path))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, (ran.stdout[-200:], ran.stderr)
    assert ran.stdout.count("\n") == 250


def test_damage_between_pieces_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    with ipc.new_file(str(path), with_offsets([0, 1, 3]).schema) as writer:
        writer.write_batch(with_offsets([0, 2, 1, 3]))
    (source,) = survey([str(path)], spool=tmp_path / "s", piece_bytes=99)
    with pytest.raises(InputError, match=r"^x\.arrow: damaged or cut off as Arrow \(column l"):
        list(read(source.pieces[0]))


def test_two_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    made = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(made, tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet: has two columns 'a'; rename"):
        survey([str(tmp_path / "x.parquet")], spool=tmp_path / "s", piece_bytes=99)


def test_two_fields_of_one_name_cost_their_records(tmp_path: Path) -> None:
    inner = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with ipc.new_file(str(tmp_path / "x.arrow"), pa.schema([("s", inner.type)])) as writer:
        writer.write_batch(pa.record_batch({"s": inner}))
    (source,) = survey([str(tmp_path / "x.arrow")], spool=tmp_path / "s", piece_bytes=99)
    ((record,),) = read(source.pieces[0])
    assert record.fault is not None
    assert record.fault.reason == "unsupported_type"
