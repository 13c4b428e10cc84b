"""Worker processes: started early, fed through a pipe each, replaced when they die.

Spawned, never forked: a tokenizer that has run before a fork can hang in the child. Nothing that
takes long to import is imported here, so that a command starts its workers first and loads its own
libraries while they load theirs.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from ctypes import c_int64
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import MetaPathFinder
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.order import Cells
    from pipeline.task import Ahead, Job

CELLS = 3  # of a worker's `Watch`
_QUOTA = "/sys/fs/cgroup/cpu.max"
EARLY = 8  # a short run needs no more, and a long one does not notice when the others come


@dataclass(slots=True)
class Worker:
    """One process; ``job`` is the one that it has loaded, ``cells`` are those of its `Watch`."""

    process: BaseProcess
    pipe: Connection
    cells: Cells
    job: Job | None = None


class Crew:
    """At most *size* workers, a context: at its end none of them lives.

    *room* is the module of the jobs that they will be given: they import it before. What *ahead*
    loads, if given, they begin with even before that. *early* are those that begin at once, the
    others when there are tasks for them: one that has nothing to do takes CPU from the rest.
    """

    def __init__(
        self, size: int, room: str, ahead: Ahead | None = None, *, early: int = EARLY
    ) -> None:
        self.size, self._room, self._ahead = size, room, ahead
        self._early = min(size, early)
        self._idle: list[Worker] = []

    def __enter__(self) -> Crew:
        self._idle = [self._start() for _ in range(self._early)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self._idle:  # all at once: to give its memory back takes each 20 ms
            worker.process.kill()
        while self._idle:
            self.dismiss(self._idle.pop())

    def take(self, job: Job) -> Worker:
        """A worker that has *job* or is loading it."""
        # The last that came back: it has loaded the job.
        worker = self._idle.pop() if self._idle else self._start()
        if worker.job is not job:
            worker.job = job
            with contextlib.suppress(BrokenPipeError):  # a dead worker is told by its own pipe
                worker.pipe.send(job)
        return worker

    def _start(self) -> Worker:
        return _start(self._room, self._ahead)

    def give_back(self, worker: Worker) -> None:
        """It has done what it was told and can do more."""
        self._idle.append(worker)

    def dismiss(self, worker: Worker) -> int | None:
        """Kills it, whatever it does; its exit code, or the signal that killed it, negative."""
        worker.pipe.close()
        worker.process.kill()
        worker.process.join()
        return worker.process.exitcode


@contextlib.contextmanager
def hire(workers: int | Crew, room: str) -> Iterator[Crew]:
    """A crew of so many, or the given one, whose end is somebody else's matter."""
    if isinstance(workers, Crew):
        yield workers
    else:
        with Crew(workers, room) as crew:
            yield crew


def cpus(quota: str = _QUOTA) -> int:
    """The CPUs that this process may use, which in a container are fewer than the machine's.

    *quota* is the file where Linux keeps how much time of them a container gets.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    # "150000 100000": 1.5 CPUs of time, which `docker run --cpus` sets. All CPUs are seen then, and
    # a worker for each would load what most never use, on the time of the others.
    with contextlib.suppress(OSError, ValueError), Path(quota).open(encoding="ascii") as file:
        share, period = map(int, file.read().split())
        count = min(count, max(1, -(-share // period)))
    return count


def _start(room: str, ahead: Ahead | None) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    cells = RawArray(c_int64, CELLS)
    cells[CELLS - 1] = -1  # at no record
    process = context.Process(target=_live, args=(theirs, cells, room, ahead), daemon=True)
    with _deaf():
        process.start()
    theirs.close()  # else the coordinator would hold the pipe of a dead worker open
    return Worker(process, ours, cells)


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


def _live(pipe: Connection, cells: Cells, room: str, ahead: Ahead | None) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator decides what Ctrl-C means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow, daemon=True).start()
    sys.meta_path.insert(0, _WithoutPandas())
    # Before the engines are imported: the processes are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["FASTOKENS_BPE_THREADS"] = "1"
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # What is imported and loaded stays.
    gc.disable()
    begun = None if ahead is None else ahead.begin()
    # Here, not above: the coordinator does not wait for it.
    from pipeline.engine.labour import labour

    import_module(room)
    gc.enable()
    labour(pipe, cells, begun)


class _WithoutPandas(MetaPathFinder):
    """pyarrow imports pandas, where that is installed, when it makes an array of a list: 0.12 s."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:  # noqa: ARG002 - as importlib asks
        if name == "pandas":
            raise ModuleNotFoundError("workers have no use for pandas", name=name)


def _follow() -> None:
    """Ends this process when its coordinator has: nothing may write to the folder after it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
