"""Parquet shards decoded once into Arrow files that all processes of a machine map."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import BuildError, ConfigurationError
from pipeline.files import file_digest, put_file
from pipeline.manifest import NAME
from pipeline.training.blocks import Blocks, read_group

_TOKEN = 12  # bytes of input_ids, labels and loss_scale
_CHOOSE = "pass cache=DIR, build with --format arrow, or read with ShardStream, which needs no copy"


def decode(blocks: Blocks, cache: Path | None) -> Blocks:
    """The same rows in Arrow files named by the shards' sha256, which is checked on the way.

    *cache* is ``$XDG_CACHE_HOME/weighted-shards/decoded`` where None. Of several processes that
    ask at once one decodes, the others wait. BuildError where there is no room.
    """
    folder = _folder(cache)
    copies = tuple(folder / f"{digest}.arrow" for digest in blocks.digests)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _missing(blocks, copies):
            with _alone(folder) as alone:
                if alone:
                    _remove_halves(copies)
                _decode_missing(blocks, copies, folder)
    except OSError as error:
        raise BuildError(f"{folder}: cannot be written ({error.strerror}); {_CHOOSE}") from error
    remedy = "remove it, and it is decoded again"
    return replace(blocks, files=copies, form="arrow", remedy=remedy, _mapped={})


def _folder(cache: Path | None) -> Path:
    if cache is not None:
        return cache
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - Path's raises for a user without a home
    if home.startswith("~"):
        raise ConfigurationError(f"cache: this user has no home for decoded shards; {_CHOOSE}")
    return Path(home) / "weighted-shards" / "decoded"


def _missing(blocks: Blocks, copies: tuple[Path, ...]) -> list[int]:
    """Shards with rows that have no copy."""
    return [n for n in np.unique(blocks.shard).tolist() if not copies[n].exists()]


def _decode_missing(blocks: Blocks, copies: tuple[Path, ...], folder: Path) -> None:
    missing = _missing(blocks, copies)
    needed = blocks.tokens * _TOKEN * len(missing) // len(copies)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BuildError(
            f"{folder}: its disk has {free / 1e6:,.0f} MB free, decoded shards take about "
            f"{needed / 1e6:,.0f} MB; {_CHOOSE}"
        )
    for number in missing:
        if not copies[number].exists():  # two shards may be equal
            _decode_shard(blocks, number, copies[number])


def _decode_shard(blocks: Blocks, number: int, copy: Path) -> None:
    """Writes the copy, whole or not at all."""
    path = blocks.files[number]
    if file_digest(path) != blocks.digests[number]:
        raise BuildError(
            f"{path}: its sha256 is not that of {NAME}; run the build's command again with "
            "--verify, which makes it anew"
        )
    temporary = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
    first, *others = blocks.number[blocks.shard == number].tolist()
    batch = read_group(path, first)
    try:
        with pa.ipc.new_stream(str(temporary), batch.schema) as sink:
            sink.write_batch(batch)
            for group in others:
                sink.write_batch(read_group(path, group))
        put_file(temporary, copy)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_halves(copies: tuple[Path, ...]) -> None:
    """What processes that were killed have left, which is as large as a shard."""
    for copy in copies:
        for half in copy.parent.glob(f".{copy.name}.*.tmp"):
            half.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no other process decodes there meanwhile."""
    alone = False
    with (folder / "lock").open("a") as file:
        with contextlib.suppress(OSError):  # a folder without locks: each decodes, to equal files
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        yield alone
