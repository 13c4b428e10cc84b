"""The folder a build writes to: what is there already, what is left to do, what is finished."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline.errors import BuildError
from pipeline.files import (
    OURS,
    WORK,
    file_digest,
    shard_name,
    write_arrow_state,
    write_json,
)
from pipeline.lock import LOCK
from pipeline.manifest import NAME, Manifest, read_state, write_manifest
from pipeline.plan import Plan, Task, differences
from pipeline.rejection import gather_rejects
from pipeline.task import TaskDone, reject_file, sidecar

_PLAN = "plan.json"
# Bytes of shards for a byte of JSON.
_SHARE = {"parquet": 0.45, "arrow": 3.6}
SPOOL = "spool"


@dataclass(frozen=True, slots=True)
class Opened:
    """``done`` are finished shards of this same build, ``left`` the tasks still to do."""

    done: list[TaskDone]
    left: list[Task]


def prepare_output(output: Path) -> None:
    """Makes the folder; BuildError where it holds something and no build of ours has been there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        found = sorted(p.name for p in output.iterdir())
        if NAME in found and WORK not in found:
            raise BuildError(
                f"{output}: holds a build without its folder {WORK}, which tells what is finished "
                "(a copy leaves it out?); copy that too, or choose another --output"
            )
        if found and WORK not in found:
            raise BuildError(
                f"{output}: holds what no build wrote ({found[0]}); choose another --output, or "
                "empty it"
            )
        (output / WORK).mkdir(exist_ok=True)
        _refuse_strange(output)
    except OSError as error:
        fact = "is no folder" if isinstance(error, FileExistsError) else f"cannot be used: {error}"
        raise BuildError(f"{output}: {fact}; choose another --output") from error


def _refuse_strange(output: Path) -> None:
    """BuildError for a link where a build writes or removes: it would do so somewhere else.

    And for a named pipe or a device where it reads: it would wait for ever. Finished shards may be
    links; they are replaced, never written through.
    """
    work = output / WORK
    for path in [work, *_inside(work), *_inside(work / SPOOL), *output.glob(".*.tmp")]:
        if path.is_symlink():
            raise BuildError(
                f"{path}: is a symbolic link, where only a build's own files may lie; remove it"
            )
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise BuildError(
                f"{path}: is a pipe or a device, where only a build's own files may lie; remove it"
            )


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def discard_results(output: Path) -> None:
    """Removes what a build has written, by its names; the unpacked inputs stay."""
    for path in [*output.iterdir(), *(output / WORK).iterdir()]:
        ours = path.name != LOCK if path.parent.name == WORK else OURS.fullmatch(path.name)
        if path.is_file() and ours:
            path.unlink()


def open_output(output: Path, plan: Plan, *, verify: bool = False) -> Opened:
    """What an earlier run of the same build has finished; BuildError where it was another build.

    A shard counts as finished when its sidecar is of this fingerprint and its size is as told; with
    *verify*, its sha256 too.
    """
    _refuse_another(output, plan)
    done = [d for task in plan.tasks if (d := _from_sidecar(output, task, plan, verify=verify))]
    built = {d.index for d in done}
    left = [task for task in plan.tasks if task.index not in built]
    if left:
        # Its presence means finished.
        (output / NAME).unlink(missing_ok=True)
    write_json(output / WORK / _PLAN, {"fingerprint": plan.fingerprint, "parts": plan.parts})
    return Opened(done, left)


@contextlib.contextmanager
def unpacking(output: Path) -> Iterator[Path]:
    """Where inputs are unpacked; however the build ends, it does not keep its disk full of them."""
    spool = output / WORK / SPOOL
    try:
        yield spool
    finally:
        shutil.rmtree(spool, ignore_errors=True)


def require_space(output: Path, left: Sequence[Task], form: str) -> None:
    """BuildError where the disk has less room than the shards to come usually take."""
    needed = int(sum(task.size for task in left) * _SHARE[form])
    free = shutil.disk_usage(output).free
    if needed > free:
        raise BuildError(
            f"{output}: its disk has {free / 1e6:,.0f} MB free, and the shards will take about "
            f"{needed / 1e6:,.0f} MB; make room, choose another --output, or try all the same "
            "with --no-space-check"
        )


def _refuse_another(output: Path, plan: Plan) -> None:
    """Raises BuildError, naming each difference, where the folder holds another build."""
    for path in (output / NAME, output / WORK / _PLAN):
        try:
            known = json.loads(read_state(path))
            parts, fingerprint = known["parts"], known["fingerprint"]
            if not isinstance(parts, dict):
                raise TypeError("its parts are no object")
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise BuildError(
                f"{path}: cannot be read: {error}; use --overwrite or choose another --output"
            ) from error
        if fingerprint != plan.fingerprint and (path.name == NAME or _any_finished(output)):
            changed = differences(parts, plan.parts)
            remedy = "choose another --output, or --overwrite it"
            if path.name == NAME and all(one.startswith("rules.") for one in changed):
                remedy += ", or weigh its shards anew with python -m pipeline.reweight"
            told = "; ".join(changed) or "its fingerprint differs"
            raise BuildError(f"{output}: holds another build: {told}; {remedy}")


def _any_finished(output: Path) -> bool:
    """Whether there is anything to lose; of a plan alone, nothing was built."""
    return any((output / WORK).glob("[0-9]*[0-9].json"))


def _from_sidecar(output: Path, task: Task, plan: Plan, *, verify: bool) -> TaskDone | None:
    """The task's result, if its shard and its rejects are there as the sidecar says."""
    try:
        done = msgspec.json.decode(sidecar(output, task.index).read_bytes(), type=TaskDone)
        msgspec.convert(done.counts, dict[str, int | float])
        name = shard_name(str(plan.parts["format"]), task.index, task.count)
        # Shards are found by their names, tasks by their numbers, and the manifest sums both.
        if (done.file, done.index, done.rows) != (name, task.index, done.counts.get("rows", 0)):
            return None
        whole = (output / done.file).stat().st_size == done.bytes
        rejects = reject_file(output, task.index)
        if not (whole and rejects.exists() and done.fingerprint == plan.fingerprint):
            return None
        told = (done.sha256, done.rejects_sha256)
        if verify and (file_digest(output / done.file), file_digest(rejects)) != told:
            return None
    except (OSError, ValueError, RecursionError):
        return None
    return done


def finish_output(output: Path, plan: Plan, manifest: Manifest, rejects: Path) -> None:
    """Gathers the tasks' rejects and writes what says that the build is whole, the manifest last.

    What only an unfinished build needs goes; sidecars stay, to build a lost shard anew alone.
    """
    gather_rejects(output, plan, rejects)
    if manifest.format == "arrow":
        write_arrow_state(output, [s["file"] for s in manifest.shards], plan.fingerprint)
    write_manifest(manifest, output)
    for left in (output / WORK).glob("*.tmp"):
        left.unlink()
