"""Datasets of the Hugging Face hub, fetched by the package ``datasets``, as Arrow files."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.source.spool import writing

_PATIENCE = 5.0  # seconds for a connection


def fetch_dataset(word: str) -> list[Path] | Callable[[Path], None]:
    """The Arrow files of the split ``train`` of the dataset ``name`` or ``name@revision``.

    They lie in the cache of ``datasets`` and stay there. For a dataset that is not just its files,
    a function that writes its rows to one. Whatever goes wrong becomes one InputError.
    """
    if not _is_reachable():
        # What the cache has, and no half minute of retries. `datasets` reads it when imported.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import datasets  # optional, and slow to import
    except ImportError:
        raise InputError(
            f"{word}: no such file, folder or glob match, and the package that loads datasets "
            "of the hub is absent; pip install 'weighted-shards[hub]'"
        ) from None
    name, _, revision = word.partition("@")
    if "/" not in name and name in _builders():
        raise InputError(
            f"{word}: no such file, folder or glob match; as a dataset of the hub it would be a "
            "loader of `datasets` that reads the working folder; give the files"
        )
    try:
        data = datasets.load_dataset(
            name, split="train", revision=revision or None, **_without_code(datasets.__version__)
        )
    except Exception as error:  # network, hub and parsing errors share no nearer ancestor
        fact = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise InputError(
            f"{word}: no such file, folder or glob match, and not loaded as a dataset of the hub "
            f"({fact}); check the name, or download it and pass its folder"
        ) from error
    files = [Path(entry["filename"]) for entry in data.cache_files]
    return files if files and data._indices is None else partial(_write, data)


def _builders() -> Collection[str]:
    """Names that ``load_dataset`` takes for loaders, ``pandas`` among them, which unpickles."""
    try:
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    except ImportError:
        return ("pandas",)
    return {"pandas", *_PACKAGED_DATASETS_MODULES}


def _without_code(version: str) -> dict[str, bool]:
    """Before release 4 ``datasets`` could run a script of the dataset, and would ask on a tty."""
    return {"trust_remote_code": False} if int(version.partition(".")[0]) < 4 else {}


def _is_reachable() -> bool:
    """Whether the hub's host takes a connection; through a proxy, nobody knows but by trying."""
    if getproxies():
        return True
    place = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = 80 if place.scheme == "http" else 443
    try:
        socket.create_connection((place.hostname or "", place.port or port), _PATIENCE).close()
    except (OSError, ValueError):
        return False
    return True


def _write(data: Any, target: Path) -> None:
    """The rows in their order as an Arrow stream, a thousand at a time."""
    schema = data.features.arrow_schema
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with pa.ipc.new_stream(str(target), schema) as writer:
            for part in data.with_format("arrow").iter(batch_size=1000):
                writer.write_table(part.cast(schema))
