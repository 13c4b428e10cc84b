"""Inputs that change while a build reads them."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build, cli
from pipeline.errors import InputError
from pipeline.output import open_output
from pipeline.recipe import BUNDLED
from pipeline.source import Source, lines, read, survey

LINES = b'{"a": 1}\n{"a": 2}\n'


def surveyed(path: Path) -> Source:
    (source,) = survey([str(path)], spool=path.parent / "spool", piece_bytes=9)
    return source


def records(source: Source) -> list[bytes | None]:
    return [r.raw for piece in source.pieces for batch in read(piece) for r in batch]


def rewritten(path: Path, content: bytes) -> None:
    """Other bytes, later."""
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before, before + 1_000_000))


@pytest.mark.parametrize(
    "content", [LINES.replace(b"1", b"3"), LINES * 2, LINES[:9]], ids=["other", "longer", "shorter"]
)
def test_a_change_after_the_survey_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINES)
    source = surveyed(path)
    rewritten(path, content)
    with pytest.raises(InputError, match=r"^x\.jsonl: changed during the build; run it "):
        records(source)


def test_a_change_while_a_piece_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINES)
    batches = read(surveyed(path).pieces[0])
    next(batches)
    rewritten(path, LINES.replace(b"1", b"3"))
    with pytest.raises(InputError, match="changed during the build"):
        next(batches)


def test_a_change_during_the_survey_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(LINES))
    cut = lines.cut

    def slow_cut(*args: object, **limits: int) -> object:
        found = cut(*args, **limits)  # type: ignore[arg-type] # passed on as they come
        rewritten(path, gzip.compress(LINES.replace(b"1", b"3")))
        return found

    monkeypatch.setattr("pipeline.source.reading.cut_lines", slow_cut)
    with pytest.raises(InputError, match=r"x\.jsonl\.gz: changed during the build"):
        surveyed(path)


def test_a_columnar_file_that_changes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1, 2]}), path)
    source = surveyed(path)
    content = path.read_bytes()
    rewritten(path, content)
    with pytest.raises(InputError, match="changed during the build"):
        records(source)


def test_a_build_whose_input_grew_goes_on_where_nothing_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "a.jsonl", tmp_path / "o"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path.write_text(json.dumps({"messages": talk}) + "\n")
    words = ["--input", str(path), "--output", str(output), "--workers", "1"]
    words += ["--tokenizer", str(BUNDLED / "tokenizer")]

    def growing(*args: Any, **more: Any) -> Any:
        opened = open_output(*args, **more)
        path.write_text(path.read_text() * 2)
        return opened

    monkeypatch.setattr("pipeline.dataset.open_output", growing)
    assert cli.run(build.main, words) == 1
    assert "a.jsonl: changed during the build; run it again" in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.run(build.main, words) == 0
    path.write_text(path.read_text() * 2)
    assert cli.run(build.main, words) == 1  # now there is something to lose
    assert "holds another build: inputs.a.jsonl.records: 2 is now 4" in capsys.readouterr().err


def test_an_input_that_is_gone_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINES)
    source = surveyed(path)
    path.unlink()
    with pytest.raises(InputError, match=r"^x\.jsonl: cannot be read any more \(No such file"):
        records(source)


def test_an_unchanged_file_is_read_however_often_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(LINES))
    source = surveyed(path)
    rewritten(path, b"what was unpacked is not read again")
    assert records(source) == records(source) == [b'{"a": 1}', b'{"a": 2}']


def test_times_are_no_part_of_what_a_source_is(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINES)
    before = surveyed(path)
    rewritten(path, LINES)
    after = surveyed(path)
    assert after != before
    for source in (before, after):
        assert {piece.stamp for piece in source.pieces} != {None}
    bare = [[replace(p, stamp=None) for p in s.pieces] for s in (before, after)]
    assert bare[0] == bare[1]
    assert replace(before, pieces=()) == replace(after, pieces=())
