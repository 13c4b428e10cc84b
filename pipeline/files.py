"""Files that are whole or absent, their digests, and the names that a build gives its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import BuildError

SPLIT = "train"
OURS = re.compile(
    r"(train|data)-\d{5,}-of-\d{5,}\.(parquet|arrow)|manifest\.json|rejects\.jsonl|"
    r"state\.json|dataset_info\.json|\.(rejects|manifest|state|dataset_info)\.jsonl?\.tmp"
)
WORK = ".weighted-shards"  # what a build keeps in its output: by it, one is told


def shard_name(form: str, index: int, count: int) -> str:
    """The name that ``datasets`` expects: the hub's for Parquet, save_to_disk's for Arrow."""
    stem, ending = (SPLIT, "parquet") if form == "parquet" else ("data", "arrow")
    return f"{stem}-{index:05d}-of-{count:05d}.{ending}"


def put_file(temporary: Path, path: Path) -> None:
    """*path* is the old file or the new one, never a part, whatever happens to the machine."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A rename survives a power cut only when its folder was synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Sorted keys and a final newline, whole or absent; what is there already stays.

    BuildError where the disk refuses it.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with contextlib.suppress(OSError, ValueError):
        if path.read_text(encoding="utf-8") == text:  # a finished build can be run on a full disk
            sync_folder(path.parent)
            return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        put_file(temporary, path)
    except OSError as error:
        raise BuildError(
            f"{path}: cannot be written ({error.strerror}); make room, and run the same command "
            "again"
        ) from error


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_arrow_state(folder: Path, files: list[str], fingerprint: str, split: str = SPLIT) -> None:
    """The two files beside Arrow shards that make ``datasets.load_from_disk`` read them."""
    for name, value in arrow_state(files, fingerprint, split).items():
        write_json(folder / name, value)


def arrow_state(
    files: Sequence[str], fingerprint: str, split: str = SPLIT
) -> dict[str, dict[str, Any]]:
    """What these two files hold, by their names."""
    return {
        "dataset_info.json": {},
        "state.json": {
            "_data_files": [{"filename": name} for name in files],
            "_fingerprint": fingerprint[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        },
    }


def is_ours(path: Path, home: Path) -> bool:
    """Whether builds in the folder *home* keep files of that name; both without links."""
    named = path.parent == home and OURS.fullmatch(path.name) is not None
    return named or home / WORK in (path, *path.parents)
