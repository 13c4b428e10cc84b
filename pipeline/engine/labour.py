"""What a worker does: load a job, then one order after the other."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from pipeline.errors import BuildError, WeightedShardsError
from pipeline.order import Cells, Order, Watch

if TYPE_CHECKING:
    from pipeline.task import Complete

OUT_OF_MEMORY = 71  # the exit code of a worker that got no more: Python's and Arrow's own error
DONE = "done"  # what answers an order that gives no shard


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
                    pipe.send(complete(message, watch, pipe.send) or DONE)
                else:
                    complete, ahead = message.begin(ahead), None
                    # What was loaded lives as long as the process: the collector need not look at
                    # it again and again (8 % of a worker's time with Qwen3).
                    gc.freeze()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the coordinator must know
            pipe.send(_told(error, place))


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
