"""Finished shards in a trainer's own layout: whole or not at all, with what was done to them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BuildError, ConfigurationError
from pipeline.files import WORK, file_digest, sync_folder, write_json
from pipeline.lock import locked
from pipeline.targets import TARGETS, Target, takers
from pipeline.targets.conversion import Conversion
from pipeline.targets.rows import Rows, Wishes, open_rows

NAME = "export.json"
VERSION = 1
# What reading leaves there: of Python, of Megatron-Bridge's recipe; `cache-*` are of datasets.
_LEFT = ("__pycache__", "packed.npy")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written; ``receipt`` is what export.json holds, ``recipe`` how it is loaded."""

    folder: Path
    receipt: Mapping[str, Any]
    recipe: str
    seconds: float


def export_dataset(
    shards: Path,
    target: str,
    output: Path,
    *,
    binarize: float | None = None,
    uncount: bool = False,
    pack: int | None = None,
    validation: float | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes the finished build *shards* as *target* reads it into the folder *output*.

    *output* is absent or empty, or with *overwrite* an earlier export, and appears whole or stays
    as it is. *binarize* and *uncount* allow what `Conversion` tells, *pack* and *validation* what
    `Wishes` does. Raises ConfigurationError, and BuildError where the shards are damaged or hold
    what the target cannot.
    """
    started = time.monotonic()
    known = _require_target(target, Wishes(pack, validation))
    if binarize is not None and not 0 < binarize < np.inf:
        raise ConfigurationError(f"--binarize {binarize}: not a number above 0; give one")
    conversion = Conversion(known, binarize, uncount)
    rows = open_rows(shards, conversion, Wishes(pack, validation))
    if not rows.rows:
        raise BuildError(f"{shards}: has no rows; build with inputs of which something is left")
    if pack is not None:
        _require_fit(rows, pack)
    module = import_module(known.module)
    with _put_together(output, shards, overwrite=overwrite) as folder:
        told = module.write(rows, folder, rows.wishes)
        receipt = _receipt(known, rows, conversion, told, folder)
        write_json(folder / NAME, receipt)
    recipe = module.recipe(output, told)
    return Exported(output, receipt, recipe, time.monotonic() - started)


def _require_target(name: str, wishes: Wishes) -> Target:
    target = TARGETS.get(name)
    if target is None:
        raise ConfigurationError(f"--to {name}: no such target; choose {', '.join(TARGETS)}")
    for flag in ("pack", "validation"):
        given = getattr(wishes, flag) is not None
        if given and flag not in target.takes:
            raise ConfigurationError(
                f"--{flag}: nothing that {name} has a use for; leave it out (it is for "
                f"{takers(flag)})"
            )
        if flag in target.needs and not given:
            raise ConfigurationError(f"--{flag}: missing, which {name} needs; give it")
    if wishes.pack is not None and wishes.pack < 1:
        raise ConfigurationError(f"--pack {wishes.pack}: not a number above 0; give one")
    if wishes.validation is not None and not 0 < wishes.validation < 1:
        raise ConfigurationError(
            f"--validation {wishes.validation}: not a share between 0 and 1; give one such as 0.01"
        )
    return target


def _require_fit(rows: Rows, capacity: int) -> None:
    lengths = rows.lengths()
    over = int((lengths > capacity).sum())
    if over:
        raise BuildError(
            f"{rows.folder}: {over:,} of {len(lengths):,} rows are longer than --pack "
            f"{capacity:,}, the longest {int(lengths.max()):,} tokens; pack to more, or build "
            f"with --max-length {capacity}"
        )


def _receipt(
    target: Target, rows: Rows, conversion: Conversion, told: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    counts = rows.manifest.counts
    kept = (path for path in folder.rglob("*") if WORK not in path.relative_to(folder).parts)
    files = sorted(path for path in kept if path.is_file())
    return {
        "version": VERSION,
        "target": target.name,
        "fingerprint": rows.manifest.fingerprint,
        "rows": rows.rows,
        "tokens": rows.tokens,
        "weights": target.weights,
        "binarized_at": conversion.threshold,
        "changed": {name: n for name, n in sorted(conversion.counts.items()) if n},
        "built": {name: counts.get(name, 0) for name in ("rows", "tokens", "targets")},
        "denominator": rows.manifest.denominator,
        "pack": rows.wishes.pack,
        "validation": rows.wishes.validation,
        "told": dict(told),
        "files": [
            {
                "file": path.relative_to(folder).as_posix(),
                "bytes": path.stat().st_size,
                "sha256": file_digest(path),
            }
            for path in files
        ],
    }


@contextmanager
def _put_together(output: Path, shards: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside *output* that takes its place when the block ends well, else vanishes."""
    # Links stay, as the user sees them, but where `..` would lead past one elsewhere.
    settled = os.path.realpath if ".." in output.parts else os.path.abspath
    output = Path(settled(output))
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
