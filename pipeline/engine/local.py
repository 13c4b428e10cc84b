"""Tasks on this machine: one spawned process per worker, fed one task at a time.

Spawned, never forked: a tokenizer that has run before a fork can hang in the child. Each worker
has a pipe of its own, so the coordinator always knows who holds which task, and notices a dead one
at once.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from pipeline.errors import BuildError
from pipeline.plan import Task
from pipeline.task import Job, TaskDone


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: Task | None = None


def run(
    tasks: Sequence[Task], job: Job, *, workers: int, progress: Callable[[int], None]
) -> Iterator[TaskDone]:
    """Yields each task as it is done, in any order; *progress* is told numbers of records.

    Raises what a task raised, and BuildError where a worker died. Finished shards stay.
    """
    waiting = list(reversed(tasks))
    crew = [_start(job) for _ in range(min(workers, len(tasks)))]
    try:
        for worker in crew:
            _give(worker, waiting)
        busy = {worker.pipe: worker for worker in crew if worker.task}
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                worker = busy[pipe]
                message = _receive(worker)
                if isinstance(message, int):
                    progress(message)
                elif isinstance(message, TaskDone):
                    _give(worker, waiting)
                    if worker.task is None:
                        del busy[pipe]
                    yield message
                elif isinstance(message, BaseException):
                    raise message
    finally:
        for worker in crew:
            _stop(worker)


def cpus() -> int:
    """The CPUs that this process may use, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(job: Job) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, job), daemon=True)
    with _deaf():
        process.start()
    theirs.close()  # else the coordinator would hold the pipe of a dead worker open
    return _Worker(process, ours)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A child started meanwhile ignores Ctrl-C from its first instruction on, imports included.

    Only the main thread may set signals; elsewhere the child sets its own a little later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _give(worker: _Worker, waiting: list[Task]) -> None:
    """The next task, or none: then the worker ends."""
    worker.task = waiting.pop() if waiting else None
    with contextlib.suppress(BrokenPipeError):  # a dead worker is told by its own pipe
        worker.pipe.send(worker.task)


def _receive(worker: _Worker) -> object:
    try:
        return worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode
        task = worker.task.index if worker.task else 0
        raise BuildError(
            f"task {task}: its worker died ({_death(code)}); run the same command again to go on "
            "from the finished shards, with fewer --workers if memory ran out"
        ) from None


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _stop(worker: _Worker) -> None:
    worker.pipe.close()
    if worker.task is not None:
        worker.process.terminate()
    worker.process.join()


def _serve(pipe: Connection, job: Job) -> None:
    """A worker's life: load, then one task after the other until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator decides what Ctrl-C means
    # Before the engines are imported: the processes are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["FASTOKENS_BPE_THREADS"] = "1"
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            complete = job.begin()
            # What was loaded lives as long as the process: the collector need not look at it again
            # and again (8 % of a worker's time with Qwen3).
            gc.freeze()
            while (task := pipe.recv()) is not None:
                pipe.send(complete(task, pipe.send))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, the coordinator must know
            pipe.send(_told(error))


def _told(error: BaseException) -> BaseException:
    """The error as it can cross a pipe, with the worker's traceback as a note on a bug."""
    import traceback

    from pipeline.errors import WeightedShardsError

    if isinstance(error, WeightedShardsError):
        return error
    if isinstance(error, OSError):  # a full disk, mostly: Arrow's own errors are of this kind too
        return BuildError(
            f"a shard cannot be written: {error}; make room or choose another --output, and run "
            "the same command again to go on from the finished shards"
        )
    return RuntimeError("".join(traceback.format_exception(error)))
