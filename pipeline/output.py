"""The folder a build writes to: what is there already, what is left to do, what is finished."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline.errors import BuildError, ConfigurationError
from pipeline.files import WORK, file_digest, put_file, shard_name, write_arrow_state, write_json
from pipeline.lock import LOCK
from pipeline.manifest import NAME, Manifest, read_state, write_manifest
from pipeline.plan import Plan, Task, differences
from pipeline.task import TaskDone, reject_file, sidecar

_OURS = re.compile(
    r"(train|data)-\d{5,}-of-\d{5,}\.(parquet|arrow)|manifest\.json|rejects\.jsonl|"
    r"state\.json|dataset_info\.json|\.(rejects|manifest|state|dataset_info)\.jsonl?\.tmp"
)
_PLAN, _GATHERED = "plan.json", "gathered.json"
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
    if where == home or (where != home / "rejects.jsonl" and _is_ours(where, home)):
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
        if _is_ours(where, home) or _is_ours(Path(named, path.name), home):
            raise ConfigurationError(
                f"--output {output}: the build would replace or remove {path.name} there, which is "
                "an input; choose another"
            )


def _is_ours(path: Path, home: Path) -> bool:
    """Whether builds in the folder *home* keep files of that name; both without links."""
    named = path.parent == home and _OURS.fullmatch(path.name) is not None
    return named or home / WORK in (path, *path.parents)


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
