"""From the words of a command line to input files, each with a name that no path decides."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath

from pipeline.errors import InputError
from pipeline.files import WORK
from pipeline.source.kinds import DATA, DESCRIPTIONS, EXTENSIONS
from pipeline.source.saved import fault, saved_files
from pipeline.source.spool import CHUNK, kept
from pipeline.terminal import printable

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?(?:@[\w./-]+)?")


@dataclass(frozen=True, slots=True)
class Input:
    """One file to read: *label* as errors call it, and the last *shown* of its *parts* as its name.

    Both are printable. ``fetch``, where there is one, writes what is no seekable file into the
    spool.
    """

    label: str
    parts: tuple[str, ...]
    shown: int
    path: Path | None
    fetch: Callable[[Path], None] | None = None

    @property
    def name(self) -> str:
        """A path below what was given; never absolute, no ``..``."""
        return printable("/".join(self.parts[-self.shown :]))


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
        if len(names) == len(found):
            return found
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
            magic = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
            root = Path(*path.parts[:magic])
            return _members(root, _matches(root, path.parts[magic:], word))
    except OSError as error:
        place = error.filename or word
        fact = f"cannot be read ({error.strerror}); change its permissions or leave it out"
        raise fault(place, fact) from error
    if HUB_ID.fullmatch(word) and not DATA.search(word):
        return _dataset(word)
    raise fault(word, "no such file, folder or glob match; check the path")


def _dataset(word: str) -> list[Input]:
    from pipeline.source.hub import fetch_dataset  # Arrow and a client, which files do without

    got = fetch_dataset(word)
    parts = tuple(word.split("/"))
    if callable(got):
        return [Input(printable(word), parts, len(parts), None, got)]
    return [Input(printable(word), (*parts, path.name), len(parts) + 1, path) for path in got]


def _file(path: Path, shown: int) -> Input:
    # Lexical, not resolved: snapshots of the hub are links to files that are named by their hash.
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps ".."
    fetch = None if path.is_file() else partial(_copy, path)  # a named pipe
    return Input(printable(str(path)), absolute.parts[1:], shown, absolute, fetch)


def _members(root: Path, paths: list[Path]) -> list[Input]:
    for path in paths:
        # Who names a pipe wants it read; one that lies in a folder would be waited for, for ever.
        if path.exists() and not path.is_file():
            raise fault(path, "is a pipe, a socket or a device; remove it, or name it as an input")
    return [_file(path, len(path.relative_to(root).parts)) for path in paths]


def _files_of(folder: Path) -> list[Path]:
    """A folder's data files; in the order of its list if ``datasets`` saved it, else by path."""
    files = saved_files(folder)
    if files is None:
        files = sorted(_walk(folder, frozenset()), key=PurePath.as_posix)
    if not files:
        raise fault(folder, f"holds no data file; looked for {EXTENSIONS}")
    return files


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    here = os.path.realpath(folder)
    if here in above:  # a link may lead back up
        return
    # Of 50,000 files scandir knows without a call each that they are no folders.
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            # Shards are no conversations: a build into a folder inside its input reads none.
            if entry.name.startswith(".") or (entry.is_dir() and (path / WORK).is_dir()):
                continue
            if entry.is_dir():
                saved = saved_files(path)
                yield from _walk(path, above | {here}) if saved is None else saved
            elif DATA.search(entry.name) and entry.name not in DESCRIPTIONS:
                yield path


def _matches(root: Path, parts: Sequence[str], word: str) -> list[Path]:
    """Data files that match or lie in a matching folder; if none is named as data, any file."""
    files: set[Path] = set()
    for path in _expand(root, parts, frozenset()):
        if path.is_dir():
            files.update(saved_files(path) or _walk(path, frozenset()))
        elif path.is_file() and path.name not in DESCRIPTIONS:
            files.add(path)
    named = {path for path in files if DATA.search(path.name)}
    if not files:
        raise fault(word, f"the glob matches no data file; looked for {EXTENSIONS}")
    return sorted(named or files, key=PurePath.as_posix)


def _expand(folder: Path, parts: Sequence[str], above: frozenset[str]) -> Iterator[Path]:
    """What is there below *folder* under the names or patterns *parts*.

    As ``glob``, which follows links upwards again and again, and passes over folders that it may
    not read. Folders that a build wrote to match no pattern.
    """
    if all(part == "**" for part in parts):
        yield folder
        return
    name, rest = parts[0], parts[1:]
    if not glob.has_magic(name):
        if (folder / name).exists():
            yield from _expand(folder / name, rest, above)
        return
    if name == "**":
        above = above | {os.path.realpath(folder)}
        yield from _expand(folder, rest, above)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (path.name.startswith(".") and not name.startswith(".")) or (path / WORK).is_dir():
            continue
        if above and path.is_dir() and os.path.realpath(path) in above:
            continue
        if name == "**":
            if path.is_dir():
                yield from _expand(path, parts, above)
        elif fnmatch.fnmatchcase(path.name, name):
            yield from _expand(path, rest, above)


def _copy_standard_input(target: Path) -> None:
    for _ in kept(iter(lambda: sys.stdin.buffer.read(CHUNK), b""), target):
        pass


def _copy(path: Path, target: Path) -> None:
    with path.open("rb") as file:
        for _ in kept(iter(lambda: file.read(CHUNK), b""), target):
            pass
