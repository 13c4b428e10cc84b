"""Tasks on this machine: a worker per core, fed one order at a time.

Each worker has a pipe of its own, so the coordinator always knows who does what, and notices a
dead one at once. It looks after those that are silent as well: one that is at the same record for
too long is killed.
"""

from __future__ import annotations

import contextlib
import operator
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from pipeline.engine.attempt import Attempt, Failure
from pipeline.engine.crew import Crew, Worker
from pipeline.engine.labour import OUT_OF_MEMORY
from pipeline.order import Step, Watch
from pipeline.plan import Task
from pipeline.policy import ROW_TIMEOUT
from pipeline.task import Job, TaskDone

# What became of a worker, and what is done about it.
Replaced = Callable[[str], None]

_LOOK = 1.0  # seconds between two looks at silent workers
_PAUSED = 10.0


def _unheard(told: str) -> None: ...


@dataclass(slots=True)
class _Post:
    """A worker with an order: what it has ``told`` of it, its last ``beats`` and when they came."""

    worker: Worker
    attempt: Attempt
    told: Step
    beats: int
    since: float

    @property
    def watch(self) -> Watch:
        return Watch(self.worker.cells)


def run(
    tasks: Sequence[Task],
    job: Job,
    *,
    crew: Crew,
    progress: Callable[[Step], None],
    row_timeout: float = ROW_TIMEOUT,
    replaced: Replaced = _unheard,
) -> Iterator[TaskDone]:
    """Yields each task as it is done, in any order.

    *progress* is told what was done, and the negative of it where that was lost; *replaced*, of
    each worker that died or hung. Raises what a task raised, and BuildError where workers die
    whatever they are given. Finished shards stay.
    """
    waiting = deque(Attempt(task) for task in tasks)
    posts: dict[Connection, _Post] = {}
    looked = time.monotonic()
    try:
        while waiting or posts:
            while waiting and len(posts) < crew.size:
                post = _assign(crew.take(job), waiting.popleft())
                posts[post.worker.pipe] = post
            for pipe in wait([*posts], timeout=_LOOK):
                assert isinstance(pipe, Connection)
                message = _receive(posts[pipe], crew)
                if isinstance(message, Step):
                    _tell(posts[pipe], message, progress)
                    continue
                post = posts.pop(pipe)
                if isinstance(message, Failure):
                    waiting.appendleft(_failed(post, message, progress, replaced))
                elif isinstance(message, BaseException):
                    crew.dismiss(post.worker)
                    raise message
                else:
                    crew.give_back(post.worker)
                    if isinstance(message, TaskDone):
                        yield message
                    else:
                        post.attempt.acquit()
                        waiting.appendleft(post.attempt)
            before, looked = looked, time.monotonic()
            if looked - before > _PAUSED:  # we were stopped ourselves, and perhaps they too
                for post in posts.values():
                    post.since = looked
            for post in _hung(posts.values(), looked, row_timeout):
                del posts[post.worker.pipe]
                crew.dismiss(post.worker)
                failure = Failure(hung=True, told=f"took over {row_timeout:g} s at it")
                waiting.appendleft(_failed(post, failure, progress, replaced))
    finally:
        for post in posts.values():
            crew.dismiss(post.worker)


def _assign(worker: Worker, attempt: Attempt) -> _Post:
    post = _Post(worker, attempt, Step(0), -1, time.monotonic())
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead: its pipe tells
        worker.pipe.send(attempt.order())
    return post


def _receive(post: _Post, crew: Crew) -> object:
    """What the worker says; a Failure of one that says nothing more."""
    try:
        return post.worker.pipe.recv()
    except (EOFError, OSError):
        return Failure(hung=False, told=_death(crew.dismiss(post.worker)))


def _death(code: int | None) -> str:
    if code == OUT_OF_MEMORY:
        return "ran out of memory"
    if code is not None and code < 0:
        return f"died (signal {signal.Signals(-code).name})"
    return f"died (exit code {code})"


def _tell(post: _Post, step: Step, progress: Callable[[Step], None]) -> None:
    post.told = Step(*map(operator.add, post.told, step))
    progress(step)


def _failed(
    post: _Post, failure: Failure, progress: Callable[[Step], None], replaced: Replaced
) -> Attempt:
    """The attempt, knowing what happened to it."""
    progress(Step(*map(operator.neg, post.told)))
    attempt, left_out = post.attempt, len(post.attempt.left_out)
    attempt.fail(failure, post.watch.suspects())
    then = "the task is done again"
    if len(attempt.left_out) > left_out:
        then = f"its record {attempt.left_out[-1].row:,} is rejected"
    elif attempt.suspects:
        rows = attempt.suspects[-1]
        then = f"its records {rows.first:,} to {rows.stop - 1:,} are tried alone"
        if rows.stop - rows.first == 1:
            then = f"its record {rows.first:,} is tried alone"
    replaced(f"task {attempt.task.index}: its worker {failure.told}; {then}")
    return attempt


def _hung(posts: Iterable[_Post], now: float, row_timeout: float) -> list[_Post]:
    """Those whose worker has been at one record for too long."""
    hung: list[_Post] = []
    for post in posts:
        beats = post.watch.beats
        if beats != post.beats or post.watch.resting:
            post.beats, post.since = beats, now
        elif now - post.since > row_timeout:
            hung.append(post)
    return hung
