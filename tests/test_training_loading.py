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
def test_each_reader_reads_all_rows(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = build_sample(tmp_path / "shards", "--format", form).counts
    found = loading.measure(tmp_path / "shards", tmp_path / "cache", 1)
    passes = [one for readers in found.values() for runs in readers.values() for one in runs]
    assert len(passes) == 12
    assert {(one.rows, one.tokens) for one in passes} == {(counts["rows"], counts["tokens"])}
    assert all(one.seconds > 0 for one in passes)
    assert loading.main([str(tmp_path / "shards"), "--runs", "1"]) == 0
    assert "shuffled: datasets, torch" in capsys.readouterr().out
