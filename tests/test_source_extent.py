"""How many workers begin before the inputs are read: what a look at the disk can tell."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import build
from pipeline.engine import crew as crews
from pipeline.engine.crew import Worker
from pipeline.plan import piece_size
from pipeline.source import survey
from pipeline.source.extent import count_data, count_tasks
from pipeline.task import Ahead

LINE = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
MOST = 500


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=4),
    st.integers(8 * len(LINE), 100 * len(LINE)),
)
@settings(max_examples=30, deadline=None)
def test_lines_fill_the_tasks_that_were_told(
    tmp_path_factory: pytest.TempPathFactory, lines: list[int], shard_size: int
) -> None:
    """The full ones of a plan, counted here; each is of the size asked for, or a little more."""
    folder = tmp_path_factory.mktemp("inputs")
    for number, count in enumerate(lines):
        (folder / f"{number}.jsonl").write_text(LINE * count)
    sources = survey([str(folder)], spool=folder, piece_bytes=piece_size(shard_size))
    held, tasks = 0, 0
    for piece in (piece for source in sources for piece in source.pieces):
        held += piece.size
        if held >= shard_size:
            held, tasks = 0, tasks + 1
    told = count_tasks([str(folder)], shard_size, MOST)
    # A task may be larger by less than a piece and a line.
    larger = shard_size + piece_size(shard_size) + len(LINE)
    assert told * shard_size // larger <= max(1, tasks)
    assert max(1, tasks) <= told


def test_files_folders_and_globs_tell_their_sizes(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "one.jsonl", 250)
    write(tmp_path / "a" / "b" / "two.parquet", 150)
    assert count_tasks([str(one)], 100, MOST) == 2
    assert count_tasks([str(tmp_path)], 100, MOST) == 4
    assert count_tasks([str(tmp_path / "a" / "*.jsonl")], 100, MOST) == 2
    assert count_tasks([str(tmp_path / "?")], 100, MOST) == 4
    assert count_tasks([str(one), str(tmp_path / "a" / "b")], 100, MOST) == 4
    assert count_tasks([str(tmp_path)], 100, 3) == 3


def test_what_only_reading_can_tell_is_one_task(tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl", 1000)
    os.mkfifo(tmp_path / "pipe.jsonl")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    unknown = ["-", "owner/set", "", "no\0name", "n" * 5000, f"{tmp_path}/**/*.jsonl", "none.jsonl"]
    for word in [*unknown, str(tmp_path / "pipe.jsonl"), str(closed)]:
        assert count_tasks([word], 100, MOST) == 1, word
    assert count_tasks([], 100, MOST) == 1


def test_compressed_files_tell_what_they_take(tmp_path: Path) -> None:
    """Random digits take at least 3.3 bits each: unpacked, they are more tasks, never fewer."""
    text = "".join(random.Random(1).choices("0123456789", k=10_000)).encode()
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(text))
    assert 4 <= count_tasks([str(path)], 1000, MOST) <= 10


def test_what_is_no_input_of_a_folder_is_not_counted(tmp_path: Path) -> None:
    for name in ("a.txt", "rejects.jsonl", ".hidden.jsonl", ".git/a.jsonl"):
        write(tmp_path / name, 1000)
    write(tmp_path / "shards" / "train-00000-of-00001.parquet", 1000)
    (tmp_path / "shards" / ".weighted-shards").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert count_tasks([str(tmp_path)], 100, MOST) == 1


def test_shards_are_counted_in_their_folder_alone(tmp_path: Path) -> None:
    write(tmp_path / "manifest.json", 10)
    write(tmp_path / ".weighted-shards" / "00000.json", 10)
    assert count_data(tmp_path / "none") == count_data(tmp_path) == 1
    for number in range(3):
        write(tmp_path / f"train-{number:05d}-of-00003.parquet", 10)
    assert count_data(tmp_path) == 3


@pytest.mark.parametrize(("lines", "started"), [(20, 1), (130, 2)])
def test_a_build_starts_no_worker_that_would_have_no_task(
    lines: int, started: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Worker] = []
    start = crews._start

    def count(room: str, ahead: Ahead | None) -> Worker:
        begun.append(start(room, ahead))
        return begun[-1]

    monkeypatch.setattr(crews, "_start", count)
    source = tmp_path / "a.jsonl"
    source.write_text(LINE * lines)
    size = str(100 * len(LINE))
    tokenizer = Path(build.__file__).parent / "bundled" / "tokenizer"
    words = ["--input", str(source), "--tokenizer", str(tokenizer), "--shard-size", size]
    assert build.main([*words, "--workers", "6", "--output", str(tmp_path / "s"), "--quiet"]) == 0
    assert len(begun) == started == len(list((tmp_path / "s").glob("*.parquet")))
