"""How much input there is, by a look at the disk alone: milliseconds, and no library.

What a command asks before it imports anything, to start no more workers than there will be tasks.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from pipeline.files import WORK
from pipeline.source.kinds import DATA, DESCRIPTIONS

_LOOKED_AT = 4096  # files


def count_tasks(words: Sequence[str], shard_size: int, most: int) -> int:
    """How many tasks of *shard_size* bytes the files fill that *words* name; from 1 to *most*.

    A plan mostly has one or more above that: the rest is a task as well, and what is compressed
    holds more than it takes. What only reading can tell (the hub, standard input, a pipe, ``**``)
    counts as nothing.
    """
    held = 0
    for size in islice((size for word in words for size in _sizes(word)), _LOOKED_AT):
        held += size
        if held >= shard_size * most:
            break
    return max(1, min(held // shard_size, most))


def count_data(folder: Path) -> int:
    """How many files of data lie in a folder itself; 1 where there are none, or no folder."""
    with contextlib.suppress(OSError, ValueError):
        return max(1, sum(1 for _ in islice(_members(str(folder), deep=False), _LOOKED_AT)))
    return 1


def _sizes(word: str) -> Iterator[int]:
    path = os.path.expanduser(word)  # noqa: PTH111 - Path's raises for an unknown user
    # Whoever reads the inputs says what is wrong with them.
    with contextlib.suppress(OSError, ValueError):
        if os.path.exists(path):  # noqa: PTH110 - so does Path's, for long names
            yield from _sizes_at(path)
        elif glob.has_magic(word) and "**" not in word:  # which a link can lead up for ever
            for match in glob.iglob(word):  # noqa: PTH207 - of text, a path or not
                yield from _sizes_at(match)


def _sizes_at(path: str) -> Iterator[int]:
    if os.path.isdir(path):  # noqa: PTH112
        yield from _members(path, deep=True)
    elif os.path.isfile(path):  # noqa: PTH113
        yield os.stat(path).st_size  # noqa: PTH116


def _members(folder: str, *, deep: bool) -> Iterator[int]:
    """Sizes of a folder's data files, of those that `resolve` would find or of fewer."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if deep and not os.path.isdir(f"{entry.path}/{WORK}"):  # noqa: PTH112
                    yield from _members(entry.path, deep=True)
            elif DATA.search(entry.name) and entry.name not in DESCRIPTIONS and entry.is_file():
                yield entry.stat().st_size
