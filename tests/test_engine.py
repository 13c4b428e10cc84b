"""Whatever happens to workers, the same records are done and the same are left out."""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine import labour, local
from pipeline.engine.attempt import Attempt, Failure
from pipeline.engine.crew import Crew, cpus
from pipeline.engine.labour import Teller
from pipeline.errors import BuildError, InputError
from pipeline.order import Order, Rows, Step, Watch
from pipeline.plan import Task
from pipeline.task import Complete, Progress, TaskDone

RECORDS, BATCH = 40, 10


@dataclass(frozen=True)
class PretendedJob:
    """Tasks of RECORDS records; some of them do something to their worker."""

    killing: frozenset[tuple[int, int]] = frozenset()
    hanging: frozenset[tuple[int, int]] = frozenset()
    exhausting: frozenset[tuple[int, int]] = frozenset()
    pause: float = 0.0
    broken: str = ""
    slow: tuple[int, int] = (-1, -1)
    chance: tuple[str, int, int] = ("", 0, 0)

    def begin(self, ahead: object = None) -> Complete:  # noqa: ARG002
        return self._complete

    def _complete(self, order: Order, watch: Watch, progress: Progress) -> TaskDone | None:
        if self.broken == "in a task":
            raise InputError("in a task")
        if self.broken == "at rest":
            os.kill(os.getpid(), signal.SIGKILL)
        left_out = sorted(out.row for out in order.left_out)
        span = order.only or Rows(0, RECORDS)
        for first in range(span.first, span.stop, BATCH):
            for index in range(min(BATCH, span.stop - first)):
                watch.at(first, index)
                if first + index not in left_out:
                    self._meet(order.task.index, first + index)
            watch.rest()
            if not order.only:
                progress(Step(BATCH))
        if order.only:
            return None
        reasons = [f"{out.row}:{out.error.reason}" for out in order.left_out]
        counts = {"left out": " ".join(sorted(reasons))}
        return TaskDone(order.task.index, "", RECORDS, 0, "", "", counts, "")

    def _meet(self, task: int, row: int) -> None:
        time.sleep(5 if (task, row) == self.slow else self.pause)
        if (task, row) in self.killing:
            os.kill(os.getpid(), signal.SIGKILL)
        if (task, row) in self.hanging:
            time.sleep(1000)
        folder, unlucky, deaths = self.chance
        for death in range(deaths if row == unlucky else 0):
            marker = Path(folder) / f"{task}-{death}"
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if (task, row) in self.exhausting:
            raise MemoryError


def tasks(count: int) -> list[Task]:
    return [Task(index, count, ()) for index in range(count)]


def run(
    job: PretendedJob,
    count: int,
    *,
    workers: int = 2,
    row_timeout: float = 60.0,
) -> dict[int, str]:
    """What was left out, by task."""
    told = [0]

    def progress(step: Step) -> None:
        told[0] += step.records

    with Crew(workers, "pipeline.task") as crew:
        made = local.run(tasks(count), job, crew=crew, progress=progress, row_timeout=row_timeout)
        done = {d.index: d.counts["left out"] for d in made}
    assert sorted(done) == list(range(count))
    assert told[0] == RECORDS * count
    return done


def test_a_record_that_kills_its_worker_is_left_out_and_all_others_are_done() -> None:
    done = run(PretendedJob(killing=frozenset({(1, 17), (1, 29), (3, 0)})), 5)
    assert done == {0: "", 1: "17:worker_died 29:worker_died", 2: "", 3: "0:worker_died", 4: ""}


def test_a_record_that_takes_all_memory_is_left_out() -> None:
    assert run(PretendedJob(exhausting=frozenset({(0, 39)})), 1) == {0: "39:worker_died"}


def test_a_record_that_hangs_is_left_out_after_the_time_allowed() -> None:
    started = time.monotonic()
    done = run(PretendedJob(hanging=frozenset({(0, 12)})), 2, row_timeout=1.5)
    assert done == {0: "12:row_timeout", 1: ""}
    assert time.monotonic() - started < 30


def test_a_slow_task_of_quick_records_is_no_hang() -> None:
    assert run(PretendedJob(pause=0.1), 1, workers=1, row_timeout=1.0) == {0: ""}


@pytest.mark.parametrize("deaths", [1, 2])
def test_workers_that_die_by_chance_leave_no_trace(deaths: int, tmp_path: Path) -> None:
    """Once, and the task is done again; twice, and its records pass alone."""
    job = PretendedJob(chance=(str(tmp_path), 23, deaths))
    assert run(job, 3) == dict.fromkeys(range(3), "")
    assert len(list(tmp_path.iterdir())) == 3 * deaths


def test_progress_that_a_dead_worker_lost_is_taken_back() -> None:
    told: list[Step] = []
    job = PretendedJob(killing=frozenset({(0, 25)}))
    with Crew(1, "pipeline.task") as crew:
        list(local.run(tasks(1), job, crew=crew, progress=told.append))
    assert min(step.records for step in told) < 0
    assert sum(step.records for step in told) == RECORDS


def test_a_worker_that_dies_at_no_record_ends_the_build_with_a_reason() -> None:
    with pytest.raises(
        BuildError, match=r"task 0: its worker died \(signal SIGKILL\), 5 times, at no record"
    ):
        run(PretendedJob(broken="at rest"), 1)


def test_a_coordinator_that_was_stopped_takes_no_record_for_hanging(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped and continued (a laptop that slept, a paused container): its clock has jumped."""
    looks = [0]

    def clock() -> float:
        looks[0] += 1
        return time.monotonic() + (1000 if looks[0] > 6 else 0)

    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=clock))
    replaced: list[str] = []
    job = PretendedJob(slow=(0, 25))
    with Crew(1, "pipeline.task") as crew:
        done = local.run(
            tasks(1),
            job,
            crew=crew,
            progress=lambda _: None,
            row_timeout=60.0,
            replaced=replaced.append,
        )
        assert [d.counts["left out"] for d in done] == [""]
    assert looks[0] > 8
    assert replaced == []


def test_what_a_task_raises_is_raised() -> None:
    with pytest.raises(InputError, match="in a task"):
        run(PretendedJob(broken="in a task"), 3)


@pytest.mark.parametrize(
    ("told", "most"),
    [("50000 100000", 1), ("100000 100000", 1), ("150000 100000", 2), ("max 100000", 0), ("", 0)],
)
def test_a_container_has_the_cpus_whose_time_it_gets(told: str, most: int, tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    every = cpus(str(file))
    file.write_text(told)
    assert cpus(str(file)) == min(every, most or every)


def test_workers_that_do_not_begin_early_come_when_there_is_work(tmp_path: Path) -> None:
    """A task that waits for another one's mark is done only where two workers are."""

    with Crew(2, "pipeline.task", early=1) as crew:
        assert len(crew._idle) == 1
        list(local.run(tasks(2), MeetingJob(str(tmp_path)), crew=crew, progress=lambda _: None))
        assert len({worker.process.pid for worker in crew._idle}) == 2


def test_no_worker_outlives_its_crew() -> None:
    from multiprocessing import active_children

    run(PretendedJob(), 1, workers=3)
    assert not active_children()


class Cycle:
    """Refers to itself, as what only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


@dataclass(frozen=True)
class LitteringJob:
    """Each batch leaves a cycle; a task counts the most that lived at once, and what came ahead."""

    def begin(self, ahead: object = None) -> Complete:
        def complete(order: Order, watch: Watch, progress: Progress) -> TaskDone:  # noqa: ARG001
            left: weakref.WeakSet[Cycle] = weakref.WeakSet()
            most = 0
            for _ in range(50):
                left.add(Cycle())
                most = max(most, len(left))
                progress(Step(1))
            counts = {"most": most, "ahead": ahead}
            return TaskDone(order.task.index, "", 0, 0, "", "", counts, "")

        return complete


@dataclass(frozen=True)
class MeetingJob:
    """Each of two tasks waits until the other has begun."""

    folder: str

    def begin(self, ahead: object = None) -> Complete:  # noqa: ARG002
        def complete(order: Order, watch: Watch, progress: Progress) -> TaskDone:  # noqa: ARG001
            index = order.task.index
            Path(self.folder, str(index)).touch()
            deadline = time.monotonic() + 30
            while not Path(self.folder, str(1 - index)).exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return TaskDone(index, "", 0, 0, "", "", {}, "")

        return complete


@dataclass(frozen=True)
class Headstart:
    def begin(self) -> object:
        return f"begun in {os.getpid()}"


def test_what_batches_leave_is_collected_and_what_was_begun_ahead_arrives() -> None:
    with Crew(1, "pipeline.task", Headstart()) as crew:
        (worker,) = crew._idle
        (done,) = local.run(tasks(1), LitteringJob(), crew=crew, progress=lambda _: None)
    assert done.counts["most"] < 10
    assert done.counts["ahead"] == f"begun in {worker.process.pid}"


@dataclass(frozen=True)
class ArrowJob:
    """A task makes an array of a list, and says whether pandas was imported for that."""

    def begin(self, ahead: object = None) -> Complete:  # noqa: ARG002
        def complete(order: Order, watch: Watch, progress: Progress) -> TaskDone:  # noqa: ARG001
            import pyarrow as pa

            counts = {"made": pa.array(["a"]).to_pylist(), "pandas": "pandas" in sys.modules}
            return TaskDone(order.task.index, "", 0, 0, "", "", counts, "")

        return complete


def test_workers_make_arrays_without_pandas() -> None:
    pytest.importorskip("pandas")
    with Crew(1, "pipeline.task") as crew:
        (done,) = local.run(tasks(1), ArrowJob(), crew=crew, progress=lambda _: None)
    assert done.counts == {"made": ["a"], "pandas": False}


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9), st.integers(0, 9))))
def test_a_teller_loses_nothing_and_sends_at_most_once_in_its_pause(
    steps: list[tuple[int, int, int]],
) -> None:
    sent: list[tuple[float, Step]] = []
    clock = SimpleNamespace(now=100.0)
    pipe: Any = SimpleNamespace(send=lambda step: sent.append((clock.now, step)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labour, "time", SimpleNamespace(monotonic=lambda: clock.now))
        teller = Teller(pipe, pause=1.0)
        for wait, records, tokens in steps:
            clock.now += wait / 4  # a sum without rounding
            teller(Step(records, tokens))
        assert all(after - before >= 1 for (before, _), (after, _) in pairwise(sent))
        assert bool(sent) == bool(steps)  # the first at once
        teller.flush()
    assert sum(step.records for _, step in sent) == sum(records for _, records, _ in steps)
    assert sum(step.tokens for _, step in sent) == sum(tokens for _, _, tokens in steps)


def search(deadly: set[int], at: Rows, *, hung: bool = False) -> tuple[list[int], int]:
    """What an attempt leaves out where *deadly* records kill, and after how many failures."""
    attempt = Attempt(Task(0, 1, ()))
    failures = 0
    while True:
        order = attempt.order()
        rows = order.only or at
        alive = deadly - {out.row for out in order.left_out}
        met = sorted(row for row in alive if rows.first <= row < rows.stop)
        if met:
            failures += 1
            attempt.fail(Failure(hung, "died"), Rows(rows.first, met[0] + 1))
        elif order.only:
            attempt.acquit()
        else:
            return sorted(out.row for out in attempt.left_out), failures


@given(st.sets(st.integers(0, 255), max_size=6), st.booleans())
def test_the_search_finds_all_that_kill_and_nothing_else(deadly: set[int], hung: bool) -> None:
    found, failures = search(deadly, Rows(0, 256), hung=hung)
    assert found == sorted(deadly)
    assert failures <= 4 * max(len(deadly), 1)


@given(st.integers(0, 255), st.integers(0, 255), st.booleans())
def test_a_death_after_the_last_record_is_searched_by_halves(
    culprit: int, more: int, hung: bool
) -> None:
    """Where the batch is tokenized the worker is at its last record, whichever is at fault."""
    attempt = Attempt(Task(0, 1, ()))
    stop = max(culprit, more) + 1
    steps = 0
    while not attempt.left_out:
        rows = attempt.order().only or Rows(0, stop)
        if rows.first <= culprit < rows.stop:
            attempt.fail(Failure(hung, "died"), rows)
        else:
            attempt.acquit()
        steps += 1
        assert steps < 30
    assert [out.row for out in attempt.left_out] == [culprit]


def test_records_that_kill_only_together_end_the_build() -> None:
    attempt = Attempt(Task(7, 8, ()))

    def go_on() -> None:
        while True:
            if attempt.order().only is None:
                attempt.fail(Failure(hung=False, told="died"), Rows(0, 64))
            else:
                attempt.acquit()

    with pytest.raises(BuildError, match=r"task 7: .*though each of its records passes alone"):
        go_on()


def watched(values: Iterable[int]) -> Watch:
    return Watch(list(values))


def test_a_watch_tells_the_batch_up_to_its_record() -> None:
    watch = watched([0, 0, -1])
    assert watch.resting
    assert watch.suspects() is None
    watch.at(20, 3)
    assert watch.suspects() == Rows(20, 24)
    watch.rest()
    assert watch.suspects() is None
    assert watch.beats == 2


def test_orphans_end_with_their_coordinator(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = (
        "import os, signal, sys, time\n"
        "from multiprocessing import active_children\n"
        "from pipeline.engine.crew import Crew\n"
        "if __name__ == '__main__':\n"
        "    with Crew(2, 'pipeline.task'):\n"
        "        time.sleep(1)\n"
        "        print(*[c.pid for c in active_children()], flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "crew.py"
    path.write_text(script)
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": root},
    )
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlives its coordinator"
        time.sleep(0.1)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
