"""How fast a trainer gets rows of finished shards: our runtime beside ``datasets``, turn about.

CPU seconds of this process, for every row once. For random rows of Parquet ``datasets`` and we
make a copy first, and that is not counted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from benchmarks.measurement import Timing, alternate, describe_machine, machine_line, print_table
from pipeline import cli, flags
from pipeline.training.dataset import ShardDataset
from pipeline.training.stream import ShardStream

_COLUMNS = ["input_ids", "labels", "loss_scale"]
_BATCH = 32
WAYS = ("in order", "shuffled", "random rows", f"random {_BATCH}")


@dataclass(frozen=True, slots=True)
class Pass:
    """All rows read once."""

    seconds: float
    rows: int
    tokens: int


def measure(
    folder: Path, cache: Path, runs: int, ways: Sequence[str] = WAYS
) -> dict[str, dict[str, list[Pass]]]:
    """By way and reader; every reader makes arrays or tensors of the three columns."""
    readers: dict[str, Callable[[str], Iterable[Mapping[str, Any]]]] = {
        "ours": partial(_read_ours, folder, cache),
        "datasets, numpy": partial(_read_theirs, folder, cache, "numpy"),
        "datasets, torch": partial(_read_theirs, folder, cache, "torch"),
    }
    return {
        way: alternate({name: partial(_time, read, way) for name, read in readers.items()}, runs)
        for way in ways
    }


def _time(read: Callable[[str], Iterable[Mapping[str, Any]]], way: str) -> Pass:
    rows = read(way)
    started = time.process_time()
    lengths = [len(row["loss_scale"]) for row in rows]
    return Pass(time.process_time() - started, len(lengths), sum(lengths))


def _read_ours(folder: Path, cache: Path, way: str) -> Iterable[Mapping[str, Any]]:
    if way in WAYS[:2]:
        return ShardStream(folder, shuffle=way == WAYS[1], rank=0, world=1)
    return _read_random(ShardDataset(folder, cache=cache), way)


def _read_theirs(folder: Path, cache: Path, form: str, way: str) -> Iterable[Mapping[str, Any]]:
    streamed = way in WAYS[:2]
    if (folder / "state.json").exists():
        rows = datasets.load_from_disk(str(folder))
        rows = rows.to_iterable_dataset() if way == WAYS[1] else rows
    else:
        rows = datasets.load_dataset(
            "parquet",
            data_files=str(folder / "*.parquet"),
            split="train",
            streaming=streamed,
            cache_dir=str(cache),
        )
    rows = rows.select_columns(_COLUMNS).with_format(form)
    if way == WAYS[1]:
        rows = rows.shuffle(seed=0, buffer_size=10_000)
    return rows if streamed else _read_random(rows, way)


def _read_random(rows: Any, way: str) -> Iterator[Mapping[str, Any]]:
    places = np.random.default_rng(0).permutation(len(rows)).tolist()
    if way == WAYS[2]:
        return (rows[place] for place in places)
    batches = (places[first : first + _BATCH] for first in range(0, len(places), _BATCH))
    return (row for batch in batches for row in rows.__getitems__(batch))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table of medians, and how many times as fast as each reader of theirs ours is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("shards", type=Path, help="the folder of a finished build")
    parser.add_argument("--runs", type=flags.positive, default=3)
    args = parser.parse_args(argv)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        found = measure(args.shards, Path(cache), args.runs)
    print(f"{machine_line(describe_machine())}\n")
    lines = []
    for way, readers in found.items():
        ours = Timing(tuple(one.seconds for one in readers["ours"])).median
        for name, passes in readers.items():
            timing, one = Timing(tuple(one.seconds for one in passes)), passes[0]
            speeds = (one.rows / timing.median, one.tokens / timing.median / 1e6)
            told = (f"{speeds[0]:,.0f}", f"{speeds[1]:.1f}", f"{timing.median / ours:.1f}")
            lines.append((f"{way}: {name}", *told))
    print_table(("", "rows/s", "M tokens/s", "times as long"), lines)
    return 0


if __name__ == "__main__":
    cli.leave(main)
