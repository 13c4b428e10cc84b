"""Many small files, and pieces that share batches."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import build, cli
from pipeline.recipe import BUNDLED
from pipeline.source import Piece, Record, read, read_together, survey
from pipeline.source import reading as sources


def pieces_of(folder: Path, sizes: list[int]) -> list[Piece]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes):
        lines = b"".join(b"%d\n" % i for i in range(size))
        (folder / f"{number:03d}.jsonl").write_bytes(lines)
    found = survey([str(folder)], spool=folder / "spool", piece_bytes=60)
    return [piece for source in found for piece in source.pieces]


def flat(batches: list[list[Record]]) -> list[Record]:
    return [record for batch in batches for record in batch]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 30), st.integers(2, 90))
def test_records_are_those_of_the_pieces_in_bounded_batches(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], records: int, size: int
) -> None:
    pieces = pieces_of(tmp_path_factory.mktemp("in"), sizes)
    limits = {"batch_records": records, "batch_bytes": size}
    together = list(read_together(pieces, **limits))
    apart = [list(read(piece, **limits)) for piece in pieces]
    assert flat(together) == flat([batch for batches in apart for batch in batches])
    assert max(map(len, together)) <= records
    assert len(together) <= sum(map(len, apart))
    assert all(together)


def test_a_thousand_files_of_a_line_are_few_batches(tmp_path: Path) -> None:
    assert len(list(read_together(pieces_of(tmp_path / "in", [1] * 1000)))) == 4


def test_pieces_of_the_usual_size_keep_their_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "TINY", 20)
    pieces = pieces_of(tmp_path / "in", [30, 30, 3, 30, 3, 3])
    apart = [list(read(piece, batch_records=7)) for piece in pieces]
    got = list(read_together(pieces, batch_records=7))
    tiny = [i for i, piece in enumerate(pieces) if piece.size < 20]
    last = tiny[-2:]
    assert last == [len(pieces) - 2, len(pieces) - 1]
    expected = [batch for i, batches in enumerate(apart) if i not in last for batch in batches]
    assert got == [*expected, apart[-2][0] + apart[-1][0]]


def test_rejects_of_several_files_stay_in_the_order_of_their_records(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    good = json.dumps({"messages": said})
    for name, lines in {"a": [good, "x"], "b": ["x", good], "c": ["x", good, "x"]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    files = [str(tmp_path / f"{name}.jsonl") for name in "abc"]
    output = tmp_path / "out"
    argv = ["--input", *files, "--output", str(output), "--workers", "1", "--quiet"]
    tokenizer = ["--tokenizer", str(BUNDLED / "tokenizer"), "--max-reject-rate", "1"]
    assert cli.run(build.main, [*argv, *tokenizer]) == 0
    rejects = [json.loads(line) for line in (output / "rejects.jsonl").read_bytes().splitlines()]
    assert [r["place"] for r in rejects] == ["a.jsonl:2", "b.jsonl:1", "c.jsonl:1", "c.jsonl:3"]
    rows = pq.read_table(output / "train-00000-of-00001.parquet")
    assert rows["source"].to_pylist() == ["a.jsonl", "b.jsonl", "c.jsonl"]
