"""The list of rejects: where it may be written, what it may replace, and what it gathers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import BuildError, ConfigurationError
from pipeline.files import WORK, file_digest, is_ours, put_file, write_json
from pipeline.plan import Plan
from pipeline.task import reject_file

_GATHERED = "gathered.json"


def require_rejects(rejects: Path, output: Path) -> None:
    """Raises ConfigurationError where rejects cannot be written, or not without a loss.

    They may not replace what is no file, nor a build's others; `require_own` looks at its contents.
    """
    if rejects.exists() and not rejects.is_file():
        raise ConfigurationError(
            f"--rejects {rejects}: is no regular file, and would be replaced by one; choose another"
        )
    # Not Path.resolve, which calls a link to itself a RuntimeError.
    where, home = Path(os.path.realpath(rejects)), Path(os.path.realpath(output))
    if where == home or (where != home / "rejects.jsonl" and is_ours(where, home)):
        raise ConfigurationError(
            f"--rejects {rejects}: is a name that the build itself uses; choose another"
        )
    if where.parent != home:
        _try_to_write(rejects)


def _try_to_write(rejects: Path) -> None:
    """A night's work is not done for rejects that cannot be written at its end."""
    trial = _unfinished(rejects)
    try:
        rejects.parent.mkdir(parents=True, exist_ok=True)
        trial.unlink(missing_ok=True)
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"--rejects {rejects}: cannot be written ({error.strerror}); choose another file"
        ) from error


def require_own(rejects: Path, output: Path) -> None:
    """BuildError where the file *rejects* holds what no build in *output* wrote, to be replaced.

    Rejects that somebody mends are the first that would be lost.
    """
    if not rejects.is_file() or not rejects.stat().st_size:
        return
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads((output / WORK / _GATHERED).read_text(encoding="utf-8"))
        if known["sha256"] == file_digest(rejects):
            return
    # Of an earlier version, or of a run that ended in between.
    joined = hashlib.sha256()
    for part in sorted((output / WORK).glob("[0-9]*.rejects.jsonl")):
        joined.update(part.read_bytes())
    if joined.hexdigest() != file_digest(rejects):
        raise BuildError(
            f"{rejects}: holds what this build did not write, mended rejects perhaps, and would be "
            "replaced; move it elsewhere, or replace it with --overwrite"
        )


def _unfinished(rejects: Path) -> Path:
    return rejects.with_name(f".{rejects.name}.tmp")


def require_unwritten(inputs: Iterable[Path], *, output: Path, rejects: Path) -> None:
    """Raises ConfigurationError where a build would replace or remove one of its *inputs*."""
    replaced, home = os.path.realpath(rejects), Path(os.path.realpath(output))
    for path in inputs:
        where, named = Path(os.path.realpath(path)), os.path.realpath(path.parent)
        if str(where) == replaced:
            raise ConfigurationError(
                f"{rejects}: is an input, and where the rejects would go; choose another --rejects "
                "or --output"
            )
        if is_ours(where, home) or is_ours(Path(named, path.name), home):
            raise ConfigurationError(
                f"--output {output}: the build would replace or remove {path.name} there, which is "
                "an input; choose another"
            )


def gather_rejects(output: Path, plan: Plan, target: Path) -> None:
    """Joins the tasks' rejects in the order of the tasks; no rejects, an empty file."""
    parts = [reject_file(output, task.index) for task in plan.tasks]
    whole = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while chunk := file.read(1 << 20):
                whole.update(chunk)
    told = {"sha256": whole.hexdigest()}
    if not (target.is_file() and file_digest(target) == told["sha256"]):
        temporary = _unfinished(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as joined:  # not through a link that somebody laid meanwhile
                for part in parts:
                    with part.open("rb") as file:
                        shutil.copyfileobj(file, joined)
            put_file(temporary, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise BuildError(
                f"{target}: cannot be written ({error.strerror}); make room, or choose another "
                "--rejects, and run the same command again"
            ) from error
    write_json(output / WORK / _GATHERED, told)
