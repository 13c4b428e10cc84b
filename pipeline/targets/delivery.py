"""A folder that appears whole or not at all, in the place of nothing but an earlier one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import BuildError, ConfigurationError
from pipeline.files import WORK, sync_folder
from pipeline.lock import locked

NAME = "export.json"
# What reading leaves there: of Python, of Megatron-Bridge's recipe; `cache-*` are of datasets.
_LEFT = ("__pycache__", "packed.npy")


@contextmanager
def put_together(output: Path, shards: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside *output* that takes its place when the block ends well, else vanishes."""
    output = settle(output)
    _require_room(output, shards, overwrite=overwrite)
    made, old = (output.with_name(f".{output.name}.{word}") for word in ("exporting", "replaced"))
    try:
        (made / WORK).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(
            f"{made}: cannot be made ({error.strerror}); choose another --output, whose parent "
            "can be written"
        ) from error
    with locked(made):
        try:
            if old.is_dir() and not os.path.lexists(output):  # killed between the two renames
                old.rename(output)
            # Another export may have ended between the first look and the lock.
            _require_room(output, shards, overwrite=overwrite)
            _empty(made)
            yield made
            _sync(made)
            _put_in_place(made, output, old)
        except OSError as error:
            raise BuildError(
                f"{output}: cannot be written ({error.strerror or error}); make room, or choose "
                "another --output: a folder that is no mount of its own"
            ) from error
        finally:
            shutil.rmtree(made, ignore_errors=True)


def settle(output: Path) -> Path:
    """Its absolute path; links stay, as the user sees them, but where `..` would lead past one."""
    settled = os.path.realpath if ".." in output.parts else os.path.abspath
    return Path(settled(output))


def _put_in_place(made: Path, output: Path, old: Path) -> None:
    """*made* becomes *output*; what was there stays if that fails or is interrupted."""
    if old.is_dir():
        shutil.rmtree(old)
    if (output / NAME).is_file():
        output.rename(old)
    try:
        made.rename(output)
    except BaseException:
        if old.is_dir() and not output.exists():
            old.rename(output)
        raise
    # Only now: whoever comes earlier must find the lock, or would empty what is finished.
    shutil.rmtree(output / WORK)
    sync_folder(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def _require_room(output: Path, shards: Path, *, overwrite: bool) -> None:
    """BuildError where *output* holds what an export may not replace."""
    home = Path(os.path.realpath(shards))
    if home in (path := Path(os.path.realpath(output)), *path.parents):
        raise ConfigurationError(f"--output {output}: lies among the shards; choose another")
    if path in home.parents:
        raise ConfigurationError(f"--output {output}: the shards lie in it; choose another")
    if not os.path.lexists(output):
        return
    if output.is_symlink() or not output.is_dir():
        raise BuildError(f"{output}: is no folder; choose another --output")
    found = sorted(path.name for path in output.iterdir())
    if NAME in found and not overwrite:
        raise BuildError(f"{output}: holds an export already; choose another, or --overwrite it")
    strange = _strangers(output, found)
    if strange:
        raise BuildError(
            f"{output}: holds what no export wrote ({strange[0]}); choose another --output, or "
            "move it away"
        )


def _strangers(output: Path, found: list[str]) -> list[str]:
    """What an earlier export did not write, nor those who read it: perhaps somebody's only copy."""
    try:
        told = json.loads((output / NAME).read_text(encoding="utf-8"))["files"]
        ours = {NAME, WORK, *_LEFT, *(Path(file["file"]).parts[0] for file in told)}
    except (OSError, ValueError, LookupError, TypeError):
        ours = set()
    return [name for name in found if name not in ours and not name.startswith("cache-")]


def _empty(folder: Path) -> None:
    """Removes what an export that was killed has left."""
    for path in folder.iterdir():
        if path.name == WORK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
