"""A build as an indexed dataset: the shards' own rows, by any loader, and errors with remedies."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import BuildError, ConfigurationError
from pipeline.files import file_digest, put_file
from pipeline.manifest import Manifest, read_manifest
from tests.numbered import build_sample, number_of, numbers_of, write_build

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, DistributedSampler

from pipeline.training import decoded
from pipeline.training.dataset import ShardDataset

FORMS = ("parquet", "arrow")
SIZES = [[5, 3], [], [4], [1, 1, 9]]
ROWS = 23


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded sample in several shards of each form."""
    folder = tmp_path_factory.mktemp("samples")
    for form in FORMS:
        build_sample(folder / form, "--format", form, "--shard-size", "50000")
    return {form: folder / form for form in FORMS}


@pytest.fixture(scope="module")
def manifest(samples: dict[str, Path]) -> Manifest:
    found = read_manifest(samples["parquet"])
    assert found is not None
    return found


@pytest.fixture
def made(tmp_path: Path, manifest: Manifest) -> Callable[[str], Path]:
    return lambda form: write_build(tmp_path / form, manifest, SIZES, form)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weighted-shards" / "decoded"


def pass_on(rows: list[Any]) -> list[Any]:
    return rows


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_those_of_the_shards(form: str, samples: dict[str, Path]) -> None:
    paths = sorted(samples[form].glob("*-of-*"))
    tables = [
        pq.read_table(path)
        if form == "parquet"
        else pa.ipc.open_stream(path.read_bytes()).read_all()
        for path in paths
    ]
    expected = pa.concat_tables(tables).to_pylist()
    names = (
        "input_ids",
        "labels",
        "loss_scale",
        "length",
        "num_target_tokens",
        "weight_sum",
        "row",
    )
    dataset = ShardDataset(samples[form], columns=names)
    assert len(paths) > 3
    assert len(dataset) == len(expected) > 300
    found = [{k: v.tolist() if k in names[:3] else v for k, v in row.items()} for row in dataset]
    assert found == [{name: row[name] for name in names} for row in expected]
    assert dataset.lengths.tolist() == [len(row["input_ids"]) for row in expected]
    assert dataset.lengths.dtype == np.int32


@pytest.mark.parametrize("form", FORMS)
def test_a_row_is_its_takers_own(form: str, made: Callable[[str], Path]) -> None:
    dataset = ShardDataset(made(form))
    row = dataset[7]
    assert {name: values.dtype for name, values in row.items()} == {
        "input_ids": np.int64,
        "labels": np.int64,
        "loss_scale": np.float32,
    }
    for values in row.values():
        assert torch.from_numpy(values).add_(1).numel() == len(values)  # warns of what is read-only
    assert number_of(dataset[7]) == 7


def test_an_index_counts_from_either_end(made: Callable[[str], Path]) -> None:
    dataset = ShardDataset(made("arrow"))
    expected = list(range(ROWS))
    for index in (0, 8, -1, -ROWS, np.int32(11), np.uint8(12), torch.tensor(22)):
        assert number_of(dataset[index]) == expected[int(index)]
    assert [number_of(row) for row in dataset.__getitems__([22, 0, -2, 8, 8])] == [22, 0, 21, 8, 8]
    assert dataset.__getitems__([]) == []
    for beyond in (ROWS, -ROWS - 1, 1 << 40):
        with pytest.raises(IndexError, match=f"row {beyond}: there are 23"):
            dataset[beyond]
    with pytest.raises(TypeError):
        dataset[1.0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("form", "context", "world"),
    [("arrow", "fork", 2), ("parquet", "fork", 3), ("parquet", "spawn", 1)],
)
def test_ranks_and_workers_share_all_rows(
    form: str, context: str, world: int, made: Callable[[str], Path]
) -> None:
    dataset = ShardDataset(made(form))
    dataset[3]  # what is open here must do no harm there
    found: list[int] = []
    for rank in range(world):
        sampler: DistributedSampler[Any] = DistributedSampler(
            dataset, num_replicas=world, rank=rank, drop_last=False
        )
        loader = DataLoader(
            dataset,
            batch_size=4,
            sampler=sampler,
            num_workers=2,
            multiprocessing_context=context,
            collate_fn=pass_on,
        )
        found += [number for batch in numbers_of(loader) for number in batch]
    assert len(found) == ROWS + -ROWS % world  # the sampler repeats some, to give each as many
    assert sorted(set(found)) == list(range(ROWS))


def test_it_pickles_to_where_things_are(samples: dict[str, Path]) -> None:
    dataset = ShardDataset(samples["arrow"])
    rows = list(dataset)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 3000
    dataset = pickle.loads(pickled)
    for row, again in zip(rows, (dataset[i] for i in range(len(rows))), strict=True):
        assert all(np.array_equal(row[name], again[name]) for name in row)


def test_no_file_stays_open(made: Callable[[str], Path]) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("descriptors cannot be counted here")
    before = len(list(descriptors.iterdir()))
    datasets = [ShardDataset(made(form)) for form in FORMS]
    assert sum(len(list(dataset)) for dataset in datasets) == 2 * ROWS
    assert len(list(descriptors.iterdir())) == before


def test_parquet_is_decoded_once(made: Callable[[str], Path], cache: Path) -> None:
    folder = made("parquet")
    assert len(ShardDataset(folder)) == ROWS
    copies = {path: path.stat() for path in cache.glob("*.arrow")}
    assert len(copies) == 3  # of the shards with rows
    assert [number_of(row) for row in ShardDataset(folder)] == list(range(ROWS))
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.arrow")} == {
        path: stat.st_mtime_ns for path, stat in copies.items()
    }
    assert not list(cache.glob(".*"))


def test_of_several_that_ask_at_once_one_decodes(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made("parquet")
    written: list[Path] = []

    def put_slowly(temporary: Path, path: Path) -> None:
        time.sleep(0.05)
        put_file(temporary, path)
        written.append(path)

    monkeypatch.setattr(decoded, "put_file", put_slowly)
    with ThreadPoolExecutor(4) as threads:
        datasets = list(threads.map(ShardDataset, [folder] * 4))
    assert len(written) == len(set(written)) == 3
    assert all([number_of(row) for row in one] == list(range(ROWS)) for one in datasets)


def test_the_folder_of_the_copy_can_be_chosen(
    made: Callable[[str], Path], tmp_path: Path, cache: Path
) -> None:
    assert number_of(ShardDataset(made("parquet"), cache=tmp_path / "here")[22]) == 22
    assert list((tmp_path / "here").glob("*.arrow"))
    assert not cache.exists()


def test_a_copy_that_cannot_be_is_told_with_what_to_do(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made("parquet")
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match=r"file: cannot be written .*; pass cache=DIR, build with"):
        ShardDataset(folder, cache=tmp_path / "file")
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigurationError, match="has no home for decoded shards; pass cache=DIR"):
        ShardDataset(folder)


def test_a_shard_whose_bytes_changed_is_not_decoded(
    made: Callable[[str], Path], cache: Path
) -> None:
    path = made("parquet") / "train-00003-of-00004.parquet"
    data = bytearray(path.read_bytes())
    data[60] ^= 255
    path.write_bytes(data)
    with pytest.raises(
        BuildError, match=r"00003-of.*: its sha256 is not that of manifest.json; run"
    ):
        ShardDataset(path.parent)
    assert len(list(cache.glob("*.arrow"))) == 2


def test_a_damaged_copy_is_told_with_what_to_do(made: Callable[[str], Path], cache: Path) -> None:
    dataset = ShardDataset(made("parquet"))
    for copy in cache.glob("*.arrow"):
        os.truncate(copy, copy.stat().st_size // 2)
    with pytest.raises(
        BuildError, match=r"arrow: cannot be read: .*; remove it, and it is decoded"
    ):
        dataset[0]


def test_a_copy_with_other_rows_is_told_with_what_to_do(
    made: Callable[[str], Path], cache: Path
) -> None:
    folder = made("parquet")
    dataset = ShardDataset(folder)
    digests = {path.name: file_digest(path) for path in folder.glob("*.parquet")}
    first, last = (cache / f"{digests[f'train-0000{n}-of-00004.parquet']}.arrow" for n in (0, 3))
    first.write_bytes(last.read_bytes())
    with pytest.raises(BuildError, match="holds other rows than it did; remove it, and it is dec"):
        dataset[0]


def test_what_a_killed_process_decoded_by_half_is_removed(
    made: Callable[[str], Path], cache: Path
) -> None:
    folder = made("parquet")
    names = [file_digest(path) for path in folder.glob("*.parquet")]
    cache.mkdir(parents=True)
    for name in [*names, "of-another-build"]:
        (cache / f".{name}.arrow.4194305.tmp").write_bytes(b"half")  # no process has that number
    ShardDataset(folder)
    assert [path.name for path in cache.glob(".*")] == [".of-another-build.arrow.4194305.tmp"]


def test_columns_of_texts_are_refused(samples: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match="columns: 'spans' is no column of numbers; known"):
        ShardDataset(samples["arrow"], columns=["input_ids", "spans"])
