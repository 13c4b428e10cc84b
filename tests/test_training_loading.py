"""The instrument that compares loaders reads the same rows by each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.numbered import build_sample

pytest.importorskip("torch", reason="needs the extra: pip install '.[train]'")
pytest.importorskip("datasets")

from benchmarks import loading

pytestmark = pytest.mark.train


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_each_reader_reads_all_rows(form: str, tmp_path: Path) -> None:
    counts = build_sample(tmp_path / "shards", "--format", form).counts
    # datasets sleeps for 5 s after it shuffled a stream of Parquet.
    ways = [way for way in loading.WAYS if form == "arrow" or way != "shuffled"]
    found = loading.measure(tmp_path / "shards", tmp_path / "cache", 1, ways)
    passes = [one for readers in found.values() for runs in readers.values() for one in runs]
    assert len(passes) == 3 * len(ways)
    assert {(one.rows, one.tokens) for one in passes} == {(counts["rows"], counts["tokens"])}
    assert all(one.seconds > 0 for one in passes)


def test_the_command_tells_each_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_sample(tmp_path / "shards", "--format", "arrow")
    assert loading.main([str(tmp_path / "shards"), "--runs", "1"]) == 0
    told = capsys.readouterr().out
    assert all(f"{way}: {name}" in told for way in loading.WAYS for name in ("ours", "datasets, "))
