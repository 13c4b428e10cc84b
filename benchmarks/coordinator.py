"""What a coordinator costs where many workers do nothing: its CPU a task, a message and a second.

One process plays all workers: it answers orders as they would, through the same pipes, at the pace
of real ones. So the coordinator's CPU time is all that is measured, on any machine.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from pipeline import cli, flags
from pipeline.engine import local
from pipeline.engine.crew import CELLS, Crew, Worker
from pipeline.engine.labour import Teller
from pipeline.order import Order, Step
from pipeline.plan import Task
from pipeline.policy import SHARD_SIZE
from pipeline.progress import Progress
from pipeline.source.record import Piece
from pipeline.task import Complete, Job, TaskDone

_BATCH = 256  # records
_PIECES = 8  # of a task
_COUNTS = {f"reject.read.reason_{number}": number for number in range(40)}  # as a sidecar has


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU of the coordinator in ``seconds``; ``share`` is that of one core."""

    workers: int
    tasks: int
    messages: int
    seconds: float
    cpu: float
    tasks_per_second: float
    us_per_task: float
    share: float


class NullJob:
    """What the played workers are given."""

    def begin(self, ahead: object = None) -> Complete:
        """Nobody calls it: whoever plays a worker does no task."""
        raise NotImplementedError


class Played(Crew):
    """Workers that another process plays, *pace* being the seconds of a batch and the batches."""

    def __init__(self, size: int, pace: tuple[float, int]) -> None:
        super().__init__(size, "")
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(size)]
        process = context.Process(target=_play, args=([b for _, b in pipes], pace), daemon=True)
        process.start()
        self.process: BaseProcess = process
        self._idle = [Worker(process, ours, [0] * (CELLS - 1) + [-1]) for ours, _ in pipes]

    def __enter__(self) -> Played:
        return self

    def take(self, job: Job) -> Worker:  # noqa: ARG002 - as of a crew
        """One that has nothing to do."""
        return self._idle.pop()


def _play(pipes: list[Connection], pace: tuple[float, int]) -> None:
    """Answers each order with steps and a finished task."""
    pause, batches = pace
    due: list[tuple[float, int, int, Order]] = []
    tellers = [Teller(pipe) for pipe in pipes]
    numbers = {pipe: number for number, pipe in enumerate(pipes)}
    while True:
        late = due[0][0] - time.monotonic() if due else None
        for pipe in wait(pipes, timeout=None if late is None else max(late, 0)):
            assert isinstance(pipe, Connection)
            try:
                order = pipe.recv()
            except EOFError:
                return
            heapq.heappush(due, (time.monotonic() + pause, numbers[pipe], 0, order))
        while due and due[0][0] <= time.monotonic():
            when, number, done, order = heapq.heappop(due)
            tellers[number](Step(_BATCH, 440 * _BATCH, 1))
            if done + 1 < batches:
                heapq.heappush(due, (when + pause, number, done + 1, order))
                continue
            tellers[number].flush()
            task = order.task
            name = f"train-{task.index:05d}-of-{task.count:05d}.parquet"
            rows, size = batches * _BATCH, task.size
            pipes[number].send(
                TaskDone(task.index, name, rows, size, "0" * 64, "0" * 64, _COUNTS, "0" * 64)
            )


def measure(workers: int, *, seconds: float, speed: float, size: int) -> Cost:
    """*speed* is a worker's in records a second, *size* the bytes of a record."""
    batches = max(1, round(SHARD_SIZE / size / _BATCH))
    count = max(workers, round(workers * seconds * speed / (batches * _BATCH)))
    span = SHARD_SIZE // _PIECES
    pieces = [
        Piece("a.jsonl", "/a.jsonl", "lines", i, i + span, 0, 1, span) for i in range(_PIECES)
    ]
    tasks = [Task(index, count, tuple(pieces)) for index in range(count)]
    told: list[Step] = []
    with Played(workers, (_BATCH / speed, batches)) as crew:
        next(local.run(tasks[:1], NullJob(), crew=crew, progress=told.append))  # it is up
        told.clear()

        def heard(step: Step) -> None:
            tell(step)
            told.append(step)

        started, cpu = time.perf_counter(), time.process_time()
        with Progress(None).stage("building", unit="conversations") as tell:
            done = list(local.run(tasks, NullJob(), crew=crew, progress=heard))
        cpu, taken = time.process_time() - cpu, time.perf_counter() - started
        crew.process.kill()
    assert sorted(d.index for d in done) == list(range(count))
    assert sum(step.records for step in told) == count * batches * _BATCH
    return Cost(
        workers,
        count,
        count + len(told),
        round(taken, 3),
        round(cpu, 4),
        round(count / taken, 1),
        round(1e6 * cpu / count, 1),
        round(cpu / taken, 5),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, or with ``--json`` one line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coordinator", description=__doc__)
    parser.add_argument("--workers", nargs="+", type=flags.positive, default=[1, 8, 64])
    parser.add_argument("--seconds", type=flags.positive, default=10)
    parser.add_argument("--speed", type=flags.positive, default=7000, help="records/s of a worker")
    parser.add_argument("--size", type=flags.positive, default=2000, help="bytes of a record")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    costs = [
        measure(n, seconds=args.seconds, speed=args.speed, size=args.size) for n in args.workers
    ]
    if args.json:
        cli.say(json.dumps([asdict(cost) for cost in costs]))
        return 0
    names = ("workers", "tasks/s", "messages/s", "us/task", "% of a core")
    print(" ".join(f"{name:>12}" for name in names))
    for c in costs:
        told = (c.workers, c.tasks_per_second, c.messages / c.seconds, c.us_per_task, 100 * c.share)
        print(" ".join(f"{value:>12,.{2 * (value != round(value))}f}" for value in told))
    return 0


if __name__ == "__main__":
    cli.leave(main)
