"""The folder a build writes to: what is there already, what is left to do, what is finished."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BuildError, ConfigurationError
from pipeline.lock import LOCK
from pipeline.manifest import NAME, Manifest, write_manifest
from pipeline.plan import Plan, Task, differences
from pipeline.shards import file_digest, put_file, shard_name, write_arrow_state, write_json
from pipeline.source.inputs import WORK
from pipeline.task import TaskDone, reject_file, sidecar

_OURS = re.compile(
    r"(train|data)-\d{5,}-of-\d{5,}\.(parquet|arrow)|manifest\.json|rejects\.jsonl|"
    r"state\.json|dataset_info\.json|\.(rejects|manifest|state|dataset_info)\.jsonl?\.tmp"
)
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
        if found and WORK not in found:
            raise BuildError(
                f"{output}: holds what no build wrote ({found[0]}); choose another --output, or "
                "empty it"
            )
        (output / WORK).mkdir(exist_ok=True)
        _refuse_links(output)
    except OSError as error:
        raise BuildError(f"{output}: cannot be used: {error}; choose another --output") from error


def _refuse_links(output: Path) -> None:
    """BuildError for a link where a build writes or removes: it would do so somewhere else.

    Finished shards may be links; they are replaced, never written through.
    """
    work = output / WORK
    inside = [work, *(work.iterdir() if not work.is_symlink() else ())]
    for path in [*inside, *output.glob(".*.tmp")]:
        if path.is_symlink():
            raise BuildError(
                f"{path}: is a symbolic link, where only a build's own files may lie; remove it"
            )


def require_rejects(rejects: Path, output: Path) -> None:
    """Raises ConfigurationError where rejects would replace what is no file, or a build's other."""
    if rejects.exists() and not rejects.is_file():
        raise ConfigurationError(
            f"--rejects {rejects}: is no regular file, and would be replaced by one; choose another"
        )
    # Not Path.resolve, which calls a link to itself a RuntimeError.
    where, home = Path(os.path.realpath(rejects)), Path(os.path.realpath(output))
    ours = where.parent == home and where.name != "rejects.jsonl" and _OURS.fullmatch(where.name)
    if ours or home / WORK in (where, *where.parents):
        raise ConfigurationError(
            f"--rejects {rejects}: is a name that the build itself uses; choose another"
        )


def discard_results(output: Path) -> None:
    """Removes what a build has written, by its names; the unpacked inputs stay."""
    for path in [*output.iterdir(), *(output / WORK).iterdir()]:
        ours = path.name != LOCK if path.parent.name == WORK else _OURS.fullmatch(path.name)
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
            known = json.loads(path.read_text(encoding="utf-8"))
            parts, fingerprint = known["parts"], known["fingerprint"]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BuildError(
                f"{path}: cannot be read: {error}; use --overwrite or choose another --output"
            ) from error
        if fingerprint != plan.fingerprint:
            changed = "; ".join(differences(parts, plan.parts)) or "its fingerprint differs"
            raise BuildError(
                f"{output}: holds another build: {changed}; choose another --output, or "
                "--overwrite it"
            )


def _from_sidecar(output: Path, task: Task, plan: Plan, *, verify: bool) -> TaskDone | None:
    """The task's result, if its shard and its rejects are there as the sidecar says."""
    try:
        done = TaskDone(**json.loads(sidecar(output, task.index).read_text(encoding="utf-8")))
        if done.file != shard_name(str(plan.parts["format"]), task.index, task.count):
            return None
        whole = (output / done.file).stat().st_size == done.bytes
        rejects = reject_file(output, task.index)
        if not (whole and rejects.exists() and done.fingerprint == plan.fingerprint):
            return None
        told = (done.sha256, done.rejects_sha256)
        if verify and (file_digest(output / done.file), file_digest(rejects)) != told:
            return None
    except (OSError, ValueError, TypeError):
        return None
    return done


def gather_rejects(output: Path, plan: Plan, target: Path) -> None:
    """Joins the tasks' rejects in the order of the tasks; no rejects, an empty file."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as joined:  # not through a link that somebody laid meanwhile
            for task in plan.tasks:
                with reject_file(output, task.index).open("rb") as part:
                    shutil.copyfileobj(part, joined)
        put_file(temporary, target)
    except OSError as error:
        raise BuildError(
            f"{target}: cannot be written: {error}; choose another --rejects"
        ) from error


def finish_output(output: Path, plan: Plan, manifest: Manifest, rejects: Path) -> None:
    """Gathers the tasks' rejects and writes what says that the build is whole, the manifest last.

    What only an unfinished build needs goes; sidecars stay, to build a lost shard anew alone.
    """
    gather_rejects(output, plan, rejects)
    if manifest.format == "arrow":
        write_arrow_state(output, [s["file"] for s in manifest.shards], plan.fingerprint)
    write_manifest(manifest, output)
    shutil.rmtree(output / WORK / SPOOL, ignore_errors=True)
    for left in (output / WORK).glob("*.tmp"):
        left.unlink()
