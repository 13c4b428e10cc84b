"""Datasets of the Hugging Face hub, fetched by the package ``datasets``, as Arrow files."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
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
    try:
        data = datasets.load_dataset(name, split="train", revision=revision or None)
    except Exception as error:  # network, hub and parsing errors share no nearer ancestor
        fact = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise InputError(
            f"{word}: no such file, folder or glob match, and not loaded as a dataset of the hub "
            f"({fact}); check the name, or download it and pass its folder"
        ) from error
    files = [Path(entry["filename"]) for entry in data.cache_files]
    return files if files and data._indices is None else partial(_write, data)


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
