"""What a worker does: load a job, then one order after the other."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import operator
import os
import time
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from pipeline.errors import BuildError, WeightedShardsError
from pipeline.order import Cells, Order, Step, Watch

if TYPE_CHECKING:
    from pipeline.task import Complete

OUT_OF_MEMORY = 71  # the exit code of a worker that got no more: Python's and Arrow's own error
DONE = "done"  # what answers an order that gives no shard
_PAUSE = 0.25  # seconds between two messages of a task
_NOTHING = Step(0)
_YOUNG = 100_000  # objects; within a batch, should one leave that many
_COLLECTED = 4  # batches: 0.6 ms for 200 ms of work


def labour(pipe: Connection, cells: Cells, ahead: object = None) -> None:
    """Jobs and orders come through *pipe*, progress and results go back, errors too.

    *ahead* is what has been begun for the first job.
    """
    watch = Watch(cells)
    place = "a job"
    complete: Complete | None = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            while True:
                message = pipe.recv()
                if isinstance(message, Order):
                    place = f"shard {message.task.index}"
                    assert complete is not None
                    teller = Teller(pipe)
                    done = complete(message, watch, _Batches(teller))
                    teller.flush()
                    pipe.send(done or DONE)
                else:
                    complete, ahead = message.begin(ahead), None
                    # What was loaded lives as long as the process: the collector need not look at
                    # it again and again (8 % of a worker's time with Qwen3), nor by itself at what
                    # rows leave, which is no cycle (5 % more): `_Batches` has it look.
                    gc.freeze()
                    gc.set_threshold(_YOUNG)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the coordinator must know
            pipe.send(_told(error, place))


class Teller:
    """Sends the first step at once, then sums: a coordinator listens to many."""

    def __init__(self, pipe: Connection, *, pause: float = _PAUSE) -> None:
        self._pipe, self._pause = pipe, pause
        self._untold, self._due = _NOTHING, 0.0

    def __call__(self, step: Step) -> None:
        self._untold = Step(*map(operator.add, self._untold, step))
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._pause
            self.flush()

    def flush(self) -> None:
        """Sends what is left."""
        if self._untold != _NOTHING:
            self._pipe.send(self._untold)
            self._untold = _NOTHING


class _Batches:
    """Is told after each batch, tells that, and now and then collects garbage.

    Rows leave no cycle (of 4,799 conversations not an object), but libraries and exceptions may. A
    batch is about a megabyte of input, so this, and not the number of objects alone, bounds them.
    """

    def __init__(self, teller: Teller) -> None:
        self._teller, self._done = teller, 0

    def __call__(self, step: Step) -> None:
        self._teller(step)
        self._done += 1
        if self._done % _COLLECTED == 0:
            gc.collect()
        if self._done == 1:
            _give_back_memory()


def _give_back_memory() -> None:
    """What loading has freed, which the C library keeps: 70 MB with Qwen3, for 9 ms.

    Not before the first batch, as a thread may load until then. Only glibc has and needs the call.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _told(error: BaseException, place: str) -> BaseException:
    """The error as it can cross a pipe, with the worker's traceback as a note on a bug."""
    if isinstance(error, WeightedShardsError):
        return error
    if isinstance(error, OSError):  # a full disk, mostly: Arrow's own errors are of this kind too
        remedy = "see to the folder" if error.errno == errno.ENOENT else "make room"
        return BuildError(
            f"{place}: cannot be written: {error}; {remedy}, and run the same command again to go "
            "on from the finished shards"
        )
    return RuntimeError("".join(traceback.format_exception(error)))
