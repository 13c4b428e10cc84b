"""One build at a time in a folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import BuildError
from pipeline.files import WORK

LOCK = "lock"
# Lustre without its flock option, some network folders: there two builds are not kept apart.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})


def holder_of(output: Path) -> str:
    """Who is building in the folder now, as far as its lock tells; empty where nobody is."""
    path = output / WORK / LOCK
    with contextlib.suppress(OSError), path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "unknown"
    return ""


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Holds *output*, a folder that `prepare_output` made; BuildError where another process does.

    The kernel lets go of it when the process ends, however it ends.
    """
    path = output / WORK / LOCK
    try:
        opened = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise BuildError(
            f"{path}: cannot be opened ({error.strerror}); see to the permissions of {output}, or "
            "choose another --output"
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text(encoding="utf-8").strip() or "unknown"
            raise BuildError(
                f"{output}: another build writes there ({holder}); wait for its end or choose "
                "another --output"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        file.truncate(0)
        # A full disk takes no note of who holds the lock, which holds all the same.
        with contextlib.suppress(OSError):
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        try:
            yield
        finally:
            file.truncate(0)  # who built is no part of what is built
