"""One task done: its shard, its rejects, and a sidecar that says what they are."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipeline.batch import EncodedBatch, Encoder
from pipeline.order import Order, Rows, Step, Watch
from pipeline.plan import Task
from pipeline.recipe import Recipe
from pipeline.shards import file_digest, open_shard, put_file, shard_name, write_json
from pipeline.source import Record, read_together
from pipeline.source.inputs import WORK
from pipeline.template import Template
from pipeline.tokens import Certificate, load_tokenizer

Progress = Callable[[Step], None]
# The shard of an order; None where it is for some of the records only.
Complete = Callable[[Order, Watch, Progress], "TaskDone | None"]


class Job(Protocol):
    """What the tasks of one run share; picklable, sent to each worker once."""

    def begin(self) -> Complete:
        """What does one task after another; a worker calls it once, to load what takes long."""
        ...


@dataclass(frozen=True, slots=True)
class BuildJob:
    """Shards from conversations."""

    recipe: Recipe
    certificate: Certificate
    output: Path
    fingerprint: str

    def begin(self) -> Complete:
        """Loads the tokenizer and the templates."""
        encoder = make_encoder(self.recipe, self.certificate)

        def build(order: Order, watch: Watch, progress: Progress) -> TaskDone | None:
            if order.only is not None:
                try_rows(order.task, order.only, encoder, watch)
                return None
            return complete(
                order.task,
                encode_task(order, encoder, watch),
                output=self.output,
                form=self.recipe.form,
                fingerprint=self.fingerprint,
                progress=progress,
            )

        return build


def encode_task(order: Order, encoder: Encoder, watch: Watch) -> Iterator[EncodedBatch]:
    """The task's records, batch by batch; what is left out becomes a reject unread."""
    errors = {out.row: out.error for out in order.left_out}
    for first, records in _batches(order.task):
        kept = records
        if errors:
            kept = [
                replace(record, fault=errors.get(row, record.fault))
                for row, record in enumerate(records, first)
            ]
        encoded = encoder.encode(kept, at=partial(watch.at, first))
        watch.rest()
        yield encoded


def try_rows(task: Task, rows: Rows, encoder: Encoder, watch: Watch) -> None:
    """Encodes some of the task's records and forgets them: whether they can be is the question."""
    tried: list[Record] = []
    for first, records in _batches(task):
        if first >= rows.stop:
            break
        tried += records[max(rows.first - first, 0) : rows.stop - first]
    encoder.encode(tried, at=partial(watch.at, rows.first))
    watch.rest()


def _batches(task: Task) -> Iterator[tuple[int, list[Record]]]:
    """The records, and how many of the task there were before them."""
    first = 0
    for records in read_together(task.pieces):
        yield first, records
        first += len(records)


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


def make_encoder(recipe: Recipe, certificate: Certificate | None = None) -> Encoder:
    """Loads the tokenizer and compiles the templates; no certificate, the reference engine."""
    templates = {
        name: Template(
            text,
            variables=recipe.variables,
            today=datetime.date.fromisoformat(recipe.date),
            place=f"chat template {name}",
        )
        for name, text in recipe.templates.items()
    }
    return Encoder(
        load_tokenizer(recipe.vocabulary, certificate=certificate),
        templates["default"],
        recipe.rules,
        tool_template=templates.get("tool_use"),
        schema=recipe.schema,
        policy=recipe.policy,
    )


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
