"""A stream gives each row once to whomever it is dealt, in one order, and goes on where it was."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import BuildError, ConfigurationError
from pipeline.manifest import Manifest
from tests.numbered import build_sample, number_of, numbers_of, write_build
from tests.trainers import run_with_trainers

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader

from pipeline.training import stream as stream_module
from pipeline.training.share import Share
from pipeline.training.stream import ShardStream

SIZES = [[5, 3], [], [4], [1, 1, 9]]
ROWS = 23
State = dict[str, Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same rows in both forms."""
    home = tmp_path_factory.mktemp("streams")
    like: Manifest = build_sample(home / "sample")
    return {form: write_build(home / form, like, SIZES, form) for form in ("parquet", "arrow")}


def pass_on(rows: list[Any]) -> list[Any]:
    return rows


def load(stream: ShardStream, batch: int, workers: int, **more: Any) -> Any:
    return DataLoader(stream, batch_size=batch, num_workers=workers, collate_fn=pass_on, **more)


def numbers(stream: ShardStream) -> list[int]:
    return [number_of(row) for row in stream]


def test_epochs_and_seeds_differ_and_forms_do_not(folders: dict[str, Path]) -> None:
    def ordered(form: str, seed: int, epoch: int) -> tuple[int, ...]:
        stream = ShardStream(folders[form], seed=seed, window=2)
        stream.set_epoch(epoch)
        return tuple(numbers(stream))

    keys = [(seed, epoch) for seed in range(3) for epoch in range(3)]
    found = {key: ordered("arrow", *key) for key in keys}
    assert len(set(found.values())) == len(keys)
    assert all(sorted(order) == list(range(ROWS)) for order in found.values())
    assert all(ordered("parquet", *key) == found[key] for key in keys)
    assert numbers(ShardStream(folders["arrow"], shuffle=False)) == list(range(ROWS))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_batches_are_the_same_for_any_number_of_workers(
    form: str, folders: dict[str, Path]
) -> None:
    stream = ShardStream(folders[form], batch_size=3, window=2, seed=4)
    order = numbers(stream)
    expected = [order[i : i + 3] for i in range(0, ROWS, 3)]
    for workers in (0, 1, 2, 3):
        assert numbers_of(load(stream, 3, workers)) == expected
    if form == "parquet":
        assert numbers_of(load(stream, 3, 2, multiprocessing_context="spawn")) == expected


@pytest.mark.parametrize("batch", [None, 2])
def test_ranks_and_workers_get_each_row_once(batch: int | None, folders: dict[str, Path]) -> None:
    found: list[int] = []
    for rank in range(3):
        stream = ShardStream(
            folders["parquet"], batch_size=batch, rank=rank, world=3, even="none", window=2
        )
        got = [number for one in numbers_of(load(stream, 2, 2)) for number in one]
        assert len(got) == len(stream)
        found += got
    assert sorted(found) == list(range(ROWS))


@pytest.mark.parametrize(
    ("even", "lengths"), [("drop", [4] * 5), ("pad", [5] * 5), ("none", [5, 5, 5, 4, 4])]
)
def test_ranks_get_as_many_rows(even: Any, lengths: list[int], folders: dict[str, Path]) -> None:
    streams = [ShardStream(folders["arrow"], rank=r, world=5, even=even) for r in range(5)]
    assert [len(stream) for stream in streams] == lengths
    found = [numbers(stream) for stream in streams]
    assert [len(rows) for rows in found] == lengths
    counts = np.bincount(np.concatenate(found), minlength=ROWS)
    assert (counts.sum(), counts.max(), len(counts)) == (sum(lengths), 1 + (even == "pad"), ROWS)


def test_an_epoch_reaches_workers_that_stay(folders: dict[str, Path]) -> None:
    stream = ShardStream(folders["arrow"], batch_size=4)
    loader = load(stream, 4, 2, persistent_workers=True)
    found = []
    for epoch in range(3):
        stream.set_epoch(epoch)
        found.append(numbers_of(loader))
        assert [number for batch in found[-1] for number in batch] == numbers(stream)
    assert found[0] != found[1] != found[2] != found[0]


def interrupted(
    make: Callable[[], ShardStream], workers: int, taken: int
) -> tuple[list[list[int]], State]:
    """What a trainer got before it was killed, and the state that it had saved."""
    stream = make()
    stream.set_epoch(2)
    loader: Iterator[Any] = iter(load(stream, 3, workers))
    return numbers_of(islice(loader, taken)), stream.state_dict(batches=taken)


@pytest.mark.parametrize("taken", [0, 1, 3, 8])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_goes_on_row_for_row(
    workers: int, taken: int, folders: dict[str, Path]
) -> None:
    def make() -> ShardStream:
        return ShardStream(folders["parquet"], batch_size=3, window=2, seed=9)

    whole = make()
    whole.set_epoch(2)
    before, state = interrupted(make, workers, taken)
    again = make()
    again.load_state_dict(pickle.loads(pickle.dumps(state)))
    again.set_epoch(2)  # as a loop over epochs does, whether resumed or not
    assert before + numbers_of(load(again, 3, workers)) == numbers_of(load(whole, 3, 0))
    again.set_epoch(3)
    whole.set_epoch(3)
    assert numbers_of(load(again, 3, workers)) == numbers_of(load(whole, 3, 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_other_ranks_go_on_where_these_were(workers: int, folders: dict[str, Path]) -> None:
    """2 ranks of batches of 3, then 3 ranks of batches of 2, then 1 to the end."""

    def make(rank: int, world: int, batch: int) -> ShardStream:
        return ShardStream(
            folders["arrow"], batch_size=batch, rank=rank, world=world, even="none", window=2
        )

    order = make(0, 1, 1)
    order.set_epoch(2)
    expected = numbers(order)
    state: State = {}
    found: list[list[int]] = []
    for world, batch, taken in ((2, 3, 2), (3, 2, 1)):
        ranks = []
        for rank in range(world):
            stream = make(rank, world, batch)
            stream.set_epoch(2)
            if state:
                stream.load_state_dict(state)
            ranks.append(numbers_of(islice(load(stream, batch, workers), taken)))
            told = stream.state_dict(batches=taken)
        state = told
        found += [[row for step in zip(*ranks, strict=True) for row in np.transpose(step).flat]]
    assert state["consumed"] == 12 + 6
    last = make(0, 1, 4)
    last.resume(epoch=2, consumed=18)
    assert found == [expected[:12], expected[12:18]]
    assert [n for batch in numbers_of(load(last, 4, workers)) for n in batch] == expected[18:]


def test_what_a_stream_itself_gave_out_is_its_state(folders: dict[str, Path]) -> None:
    """In this process, and in a worker as torchdata's StatefulDataLoader asks it there."""
    for info in (None, SimpleNamespace(id=1, num_workers=3)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stream_module, "get_worker_info", lambda info=info: info)
            stream = ShardStream(folders["arrow"], batch_size=2, rank=0, world=2)
            whole = numbers(stream)
            for taken in range(len(whole) + 1):
                rows = iter(stream)
                begun = [number_of(row) for row in islice(rows, taken)]
                again = ShardStream(folders["arrow"], batch_size=2, rank=0, world=2)
                again.load_state_dict(
                    stream.state_dict() if taken else stream.state_dict(batches=0)
                )
                assert begun + numbers(again) == whole


def test_a_stream_that_workers_read_wants_to_be_told_how_far_they_are(
    folders: dict[str, Path],
) -> None:
    stream = ShardStream(folders["arrow"], batch_size=2)
    next(iter(load(stream, 2, 1)))
    with pytest.raises(ConfigurationError, match="batches: is not told"):
        stream.state_dict()
    assert stream.state_dict(batches=1)["consumed"] == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_resumes_it(workers: int, folders: dict[str, Path]) -> None:
    result = run_with_trainers(
        """
        import json, sys, warnings
        from itertools import islice
        from torchdata.stateful_dataloader import StatefulDataLoader
        from pipeline.training.stream import ShardStream

        def collate(rows):
            return [int(row["input_ids"][0]) for row in rows]

        def make():
            stream = ShardStream(sys.argv[1], window=2)  # without its batch size
            loader = StatefulDataLoader(
                stream, batch_size=3, num_workers=int(sys.argv[2]), collate_fn=collate
            )
            stream.set_epoch(1)
            return loader

        whole, first, again = list(make()), make(), make()
        begun = list(islice(first, 3))
        again.load_state_dict(first.state_dict())
        print(json.dumps({"whole": whole, "resumed": begun + list(again)}))
        """,
        folders["parquet"],
        str(workers),
        needs=["torchdata"],
    )
    assert result["resumed"] == result["whole"]
    assert sorted(number for batch in result["whole"] for number in batch) == list(range(ROWS))


def test_the_environment_tells_ranks(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What another test's Trainer left behind is no accelerate at work here.
    monkeypatch.delitem(sys.modules, "accelerate.state", raising=False)
    stream = ShardStream(folders["arrow"])
    assert stream.split == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert stream.split == (1, 3)
    pickled = pickle.dumps(stream)
    monkeypatch.delenv("WORLD_SIZE")
    assert pickle.loads(pickled).split == (1, 3)
    assert ShardStream(folders["arrow"], rank=1, world=2).split == (1, 2)


@pytest.mark.parametrize(
    ("rank", "world"), [("5", "2"), ("x", "2"), ("1", ""), (None, "2"), ("-1", "2")]
)
def test_an_environment_that_contradicts_itself_is_told(
    rank: str | None, world: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ConfigurationError, match=r"RANK: is .* as torchrun does, or pass rank and"):
        len(ShardStream(folders["arrow"]))


@pytest.mark.parametrize("even", ["drop", "pad", "none"])
def test_beyond_the_end_of_an_epoch_nothing_is_left_and_nothing_takes_long(
    even: Any, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = ShardStream(folders["arrow"], rank=1, world=2, even=even)
    monkeypatch.setattr(Share, "places", lambda *_: pytest.fail("looks for places, lap by lap"))
    for consumed in (ROWS + 1, 10**12):  # rows counted over all epochs, as by mistake
        stream.resume(epoch=0, consumed=consumed)
        assert list(stream) == []


def test_a_shard_that_was_replaced_meanwhile_is_told(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    for path in folders["parquet"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    stream = ShardStream(tmp_path)
    other = (tmp_path / "train-00003-of-00004.parquet").read_bytes()
    (tmp_path / "train-00000-of-00004.parquet").write_bytes(other)
    with pytest.raises(BuildError, match=r"00000-of-00004\.parquet: holds other rows than it did"):
        list(stream)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rank": 2, "world": 2}, "rank: is 2 of world 2; give both"),
        ({"rank": 0}, "rank: is 0 of world None; give both"),
        ({"world": 2}, "rank: is None of world 2; give both"),
        ({"seed": -1}, "seed: is -1; give 0 or more"),
        ({"window": 0}, "window: is 0; give 1 or more"),
        ({"batch_size": 0}, "batch_size: is 0; give 1 or more"),
        ({"even": "odd"}, "even: is 'odd'; give one of drop, pad, none"),
        ({"columns": ["text"]}, "columns: 'text' is no column of numbers"),
    ],
)
def test_wrong_words_are_told(wrong: dict[str, Any], told: str, folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match=told):
        ShardStream(folders["arrow"], **wrong)


def test_a_state_of_another_order_is_refused(folders: dict[str, Path]) -> None:
    stream = ShardStream(folders["arrow"], batch_size=2)
    state = stream.state_dict(batches=1)
    for other in ({"seed": 1}, {"shuffle": False}, {"window": 3}):
        with pytest.raises(ConfigurationError, match="when the state was saved, is"):
            ShardStream(folders["arrow"], **other).load_state_dict(state)
    with pytest.raises(ConfigurationError, match="fingerprint: was x when the state was saved"):
        stream.load_state_dict({**state, "fingerprint": "x"})
    with pytest.raises(ConfigurationError, match=r"state: is of a worker among \[1, 4, 2\]"):
        stream.load_state_dict({**state, "given": 5, "split": [1, 4, 2]})
    with pytest.raises(ConfigurationError, match="batch_size: is not told; give that of the"):
        ShardStream(folders["arrow"]).state_dict(batches=1)


def test_a_shard_that_vanished_is_told_by_its_worker(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    for path in folders["parquet"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    stream = ShardStream(tmp_path)
    (tmp_path / "train-00002-of-00004.parquet").unlink()
    with pytest.raises(BuildError, match=r"00002-of-00004.parquet: cannot be read: .*; run the"):
        list(load(stream, 2, 1))
