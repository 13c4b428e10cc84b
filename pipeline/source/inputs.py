"""From the words of a command line to input files, each with a name that no path decides."""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from pipeline.errors import InputError
from pipeline.source.hub import fetch_dataset
from pipeline.source.spool import CHUNK, kept

EXTENSIONS = ".jsonl .ndjson .json (also with .gz .zst .bz2 .lz4), .parquet, .arrow, .feather"
DATA = re.compile(
    r"\.(?:(?:jsonl|ndjson|json)(?:\.(?:gz|zst|zstd|bz2|bz|lz4))?|parquet|arrow|feather)$",
    re.IGNORECASE,
)
# JSON files that describe data, as datasets, LLaMA-Factory and this program write them.
DESCRIPTIONS = frozenset(
    {
        "dataset_dict.json",
        "dataset_info.json",
        "dataset_infos.json",
        "manifest.json",
        "rejects.jsonl",
        "state.json",
    }
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?(?:@[\w./-]+)?")


@dataclass(frozen=True, slots=True)
class Input:
    """One file to read: *label* as errors call it, and the last *shown* of its *parts* as its name.

    ``fetch``, where there is one, writes what is no seekable file into the spool.
    """

    label: str
    parts: tuple[str, ...]
    shown: int
    path: Path | None
    fetch: Callable[[Path], None] | None = None

    @property
    def name(self) -> str:
        return "/".join(self.parts[-self.shown :])


def resolve(words: Sequence[str]) -> list[Input]:
    """Every file that *words* stand for, in their order; raises InputError for a word that is none.

    A word is ``-``, a file, a folder, a glob, or a dataset id of the hub. A file's name is its own,
    a folder's or glob's member's its path below that; equal names grow by parent folders.
    """
    found = [item for word in words for item in _find(word)]
    for parts, times in Counter(item.parts for item in found).items():
        if times > 1:
            label = next(item.label for item in found if item.parts == parts)
            raise InputError(f"{label}: given {times} times; give each input once")
    while True:
        names = Counter(item.name for item in found)
        grown = [
            replace(item, shown=min(item.shown + (names[item.name] > 1), len(item.parts)))
            for item in found
        ]
        if grown == found:
            return found
        found = grown


def _find(word: str) -> list[Input]:
    if word == "-":
        return [Input("standard input", ("stdin",), 1, None, _copy_standard_input)]
    if not word:  # Path("") is the working folder
        raise InputError("'': an empty input; pass a file, a folder, a glob or a dataset id")
    path = Path(os.path.expanduser(word))  # noqa: PTH111 - Path's raises for an unknown user
    try:
        if path.is_dir():
            return _members(path, _files_of(path))
        if path.exists():
            return [_file(path, 1)]
        if glob.has_magic(word):
            return _members(_root(path), _matches(path, word))
    except OSError as error:
        place = error.filename or word
        raise InputError(
            f"{place}: cannot be read ({error.strerror}); change its permissions or leave it out"
        ) from error
    if HUB_ID.fullmatch(word) and not DATA.search(word):
        return _dataset(word)
    raise InputError(f"{word}: no such file, folder or glob match; check the path")


def _dataset(word: str) -> list[Input]:
    got = fetch_dataset(word)
    parts = tuple(word.split("/"))
    if callable(got):
        return [Input(word, parts, len(parts), None, got)]
    return [Input(word, (*parts, path.name), len(parts) + 1, path) for path in got]


def _file(path: Path, shown: int) -> Input:
    # Lexical, not resolved: snapshots of the hub are links to files that are named by their hash.
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps ".."
    fetch = None if path.is_file() else partial(_copy, path)  # a named pipe
    return Input(str(path), absolute.parts[1:], shown, absolute, fetch)


def _members(root: Path, paths: list[Path]) -> list[Input]:
    return [_file(path, len(path.relative_to(root).parts)) for path in paths]


def _files_of(folder: Path) -> list[Path]:
    """A folder's data files; in the order of its list if ``datasets`` saved it, else by path."""
    files = _saved(folder)
    if files is None:
        files = sorted(_walk(folder, frozenset()), key=PurePath.as_posix)
    if not files:
        raise InputError(f"{folder}: holds no data file; looked for {EXTENSIONS}")
    return files


WORK = ".weighted-shards"  # what a build keeps in its output: by it, one is told


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    here = os.path.realpath(folder)
    for path in folder.iterdir() if here not in above else ():  # a link may lead back up
        # Shards are no conversations: a build into a folder inside its input reads none of them.
        if path.name.startswith(".") or (path / WORK).is_dir():
            continue
        if path.is_dir():
            saved = _saved(path)
            yield from _walk(path, above | {here}) if saved is None else saved
        elif DATA.search(path.name) and path.name not in DESCRIPTIONS:
            yield path


def _root(pattern: Path) -> Path:
    magic = next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))
    return Path(*pattern.parts[:magic])


def _matches(pattern: Path, word: str) -> list[Path]:
    """Data files that match or lie in a matching folder; if none is named as data, any file."""
    found = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - Path's takes no absolute one
    matched = [Path(match) for match in found]
    files = {path for path in matched if path.is_file() and path.name not in DESCRIPTIONS}
    for folder in matched:
        if folder.is_dir():
            files.update(_saved(folder) or _walk(folder, frozenset()))
    named = {path for path in files if DATA.search(path.name)}
    if not files:
        raise InputError(f"{word}: the glob matches no data file; looked for {EXTENSIONS}")
    return sorted(named or files, key=PurePath.as_posix)


def _saved(folder: Path) -> list[Path] | None:
    """What ``datasets.save_to_disk`` wrote into a folder, in its order; None for other folders."""
    splits = _described(folder / "dataset_dict.json").get("splits")
    if splits:
        splits = _plain_names(splits, folder)
        split = "train" if "train" in splits else splits[0]
        if split != "train" and len(splits) > 1:
            raise InputError(
                f"{folder}: has the splits {', '.join(splits)} and no train; "
                f"pass one, such as {folder / split}"
            )
        return _saved(folder / split)
    state = _described(folder / "state.json")
    if "_data_files" not in state:
        return None
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise InputError(
            f"{folder}: its rows are chosen by an indices file; "
            "call flatten_indices() on the dataset and save it again"
        )
    entries = state["_data_files"]
    entries = entries if isinstance(entries, list) else [entries]
    names = [e.get("filename") if isinstance(e, dict) else e for e in entries]
    files = [folder / name for name in _plain_names(names, folder)]
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: listed in state.json, but absent; save the dataset again")
    return files


_FOLDERS = ("", ".", "..")


def _plain_names(names: Any, folder: Path) -> list[str]:
    """What a saved dataset lists; a name that leads out of its folder is an InputError."""
    found: list[str] = []
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or Path(name).name != name or name in _FOLDERS:
            raise InputError(
                f"{folder}: lists {name!r}, which is no name in that folder; save the dataset again"
            )
        found.append(name)
    return found


def _described(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _copy_standard_input(target: Path) -> None:
    for _ in kept(iter(lambda: sys.stdin.buffer.read(CHUNK), b""), target):
        pass


def _copy(path: Path, target: Path) -> None:
    with path.open("rb") as file:
        for _ in kept(iter(lambda: file.read(CHUNK), b""), target):
            pass
