"""What ``datasets`` saved, and what it fetches from the hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.source import Record, Source, decode, read, survey

ROWS = [{"messages": [{"role": "user", "content": f"é{i}"}], "n": i} for i in range(100)]


def records(source: Source) -> list[Record]:
    return [r for p in source.pieces for batch in read(p) for r in batch]


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    datasets.disable_progress_bars()
    return datasets


def test_a_saved_dataset_is_the_files_that_it_lists(tmp_path: Path, datasets: Any) -> None:
    folder = tmp_path / "saved"
    datasets.Dataset.from_list([{"a": i} for i in range(9)]).save_to_disk(folder, num_shards=2)
    (folder / "cache-1234.arrow").write_bytes(b"not data")
    sources = survey([str(folder)], spool=tmp_path / "s", piece_bytes=9999)
    assert [s.name for s in sources] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert [decode(r)["a"] for s in sources for r in records(s)] == list(range(9))
    (outer,) = survey([str(tmp_path / "sav*")], spool=tmp_path / "s", piece_bytes=9999)[:1]
    assert outer.name == "saved/data-00000-of-00002.arrow"
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(
        InputError, match=r"00001-of-00002\.arrow: listed in state\.json, but absent"
    ):
        survey([str(folder)], spool=tmp_path / "s", piece_bytes=9999)


def test_of_several_splits_train_is_read(tmp_path: Path, datasets: Any) -> None:
    a, b = (datasets.Dataset.from_list([{"a": i}]) for i in range(2))
    datasets.DatasetDict(test=a, train=b).save_to_disk(tmp_path / "with")
    (source,) = survey([str(tmp_path / "with")], spool=tmp_path / "s", piece_bytes=9999)
    assert [decode(r) for r in records(source)] == [{"a": 1}]
    datasets.DatasetDict(dev=a).save_to_disk(tmp_path / "only")
    (source,) = survey([str(tmp_path / "only")], spool=tmp_path / "s", piece_bytes=9999)
    assert [decode(r) for r in records(source)] == [{"a": 0}]
    datasets.DatasetDict(dev=a, test=b).save_to_disk(tmp_path / "without")
    with pytest.raises(
        InputError, match=r"splits dev, test and no train; pass one, such as .*/dev"
    ):
        survey([str(tmp_path / "without")], spool=tmp_path / "s", piece_bytes=9999)


@pytest.mark.parametrize("key", ["_indices_files", "_indices_data_files"])
def test_rows_chosen_by_indices_are_an_error(tmp_path: Path, key: str) -> None:
    state = {"_data_files": [{"filename": "x.arrow"}], key: [{"filename": "indices.arrow"}]}
    (tmp_path / "state.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(InputError, match="flatten_indices"):
        survey([str(tmp_path)], spool=tmp_path / "s", piece_bytes=9999)


def test_a_dataset_of_the_hub_is_read_from_its_cache_or_through_the_spool(
    tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    cached = datasets.load_dataset(
        "json", data_files=str(tmp_path / "in.jsonl"), split="train", cache_dir=str(tmp_path / "c")
    )
    chosen = cached.select([5, 3])
    memory = datasets.Dataset.from_list(ROWS)
    asked: list[Any] = []
    for data, expected in [(cached, ROWS), (chosen, [ROWS[5], ROWS[3]]), (memory, ROWS)]:

        def load(name: str, *, split: str, revision: str | None, data: Any = data) -> Any:
            asked.append((name, split, revision))
            return data

        monkeypatch.setattr(datasets, "load_dataset", load)
        (source,) = survey(["org/na.me@v1"], spool=tmp_path / "s", piece_bytes=9999)
        assert [decode(r) for r in records(source)] == expected
        assert source.name.startswith("org/na.me@v1")
    assert set(asked) == {("org/na.me", "train", "v1")}


def test_a_hub_that_cannot_be_reached_is_one_error(
    tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match=r"org/name: no such file.*\(ConnectionError: no route\)"):
        survey(["org/name"], spool=tmp_path / "s", piece_bytes=9)


def test_without_datasets_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'weighted-shards\[hub\]'"):
        survey(["name"], spool=tmp_path / "s", piece_bytes=9)
