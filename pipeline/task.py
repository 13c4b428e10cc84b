"""One task done: its shard, its rejects, and a sidecar that says what they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.files import WORK, file_digest, put_file, shard_name, write_json
from pipeline.order import Order, Step, Watch
from pipeline.plan import Task

if TYPE_CHECKING:
    from pipeline.rows import EncodedBatch

Progress = Callable[[Step], None]
# The shard of an order; None where it is for some of the records only.
Complete = Callable[[Order, Watch, Progress], "TaskDone | None"]


class Ahead(Protocol):
    """What workers begin to load before their job is known; picklable."""

    def begin(self) -> object:
        """Begins, in a thread of its own; what it gives is for `Job.begin`."""
        ...


class Job(Protocol):
    """What the tasks of one run share; picklable, sent to each worker once."""

    def begin(self, ahead: object = None) -> Complete:
        """What does one task after another; a worker calls it once, to load what takes long.

        *ahead* is what its `Ahead` has begun, if there was one.
        """
        ...


@dataclass(frozen=True, slots=True)
class TaskDone:
    """A finished shard as its sidecar tells it; ``counts`` are summed into the manifest.

    ``rejects_sha256`` is of the task's part of rejects.jsonl.
    """

    index: int
    file: str
    rows: int
    bytes: int
    sha256: str
    rejects_sha256: str
    counts: dict[str, Any]
    fingerprint: str


def sidecar(output: Path, index: int) -> Path:
    """Where the task's result is told; its presence means that the shard is whole."""
    return output / WORK / f"{index:05d}.json"


def reject_file(output: Path, index: int) -> Path:
    """The task's part of rejects.jsonl."""
    return output / WORK / f"{index:05d}.rejects.jsonl"


def complete(
    task: Task,
    batches: Iterable[EncodedBatch],
    *,
    output: Path,
    form: str,
    fingerprint: str,
    progress: Progress,
) -> TaskDone:
    """Writes one shard of *batches*; *progress* is told after each."""
    from pipeline.shards import open_shard  # Arrow, which a coordinator does without

    name = shard_name(form, task.index, task.count)
    work = output / WORK
    path, rejects = output / name, reject_file(output, task.index)
    counts: Counter[str] = Counter()
    unfinished = rejects.with_suffix(".tmp")
    with (
        open_shard(path, form, temporary=work / f"{name}.tmp") as shard,
        unfinished.open("wb") as left_out,
    ):
        for batch in batches:
            shard.write(batch.rows)
            left_out.writelines(r.to_json() for r in batch.rejects)
            counts.update(batch.counts)
            told = batch.counts
            progress(Step(told["conversations"], told["tokens"], told["rejects"]))
    put_file(unfinished, rejects)
    done = TaskDone(
        index=task.index,
        file=name,
        rows=counts["rows"],
        bytes=path.stat().st_size,
        sha256=file_digest(path),
        rejects_sha256=file_digest(rejects),
        counts=dict(sorted(counts.items())),
        fingerprint=fingerprint,
    )
    write_json(sidecar(output, task.index), asdict(done))
    return done
