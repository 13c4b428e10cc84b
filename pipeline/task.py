"""One task done: its shard, its rejects, and a sidecar that says what they are."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.batch import EncodedBatch, Encoder
from pipeline.plan import Task
from pipeline.recipe import Recipe
from pipeline.shards import file_digest, open_shard, replace, shard_name, write_json
from pipeline.source import read_together
from pipeline.source.inputs import WORK
from pipeline.template import Template
from pipeline.tokens import Certificate, load_tokenizer

Progress = Callable[[int], None]  # is told numbers of records
Complete = Callable[[Task, Progress], "TaskDone"]


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

        def build(task: Task, progress: Progress) -> TaskDone:
            return complete(
                task,
                map(encoder.encode, read_together(task.pieces)),
                output=self.output,
                form=self.recipe.form,
                fingerprint=self.fingerprint,
                progress=progress,
            )

        return build


@dataclass(frozen=True, slots=True)
class TaskDone:
    """A finished shard as its sidecar tells it; ``counts`` are summed into the manifest."""

    index: int
    file: str
    rows: int
    bytes: int
    sha256: str
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
    """Writes one shard of *batches*; *progress* is told the number of records after each."""
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
            progress(batch.counts["conversations"])
    replace(unfinished, rejects)
    done = TaskDone(
        index=task.index,
        file=name,
        rows=counts["rows"],
        bytes=path.stat().st_size,
        sha256=file_digest(path),
        counts=dict(sorted(counts.items())),
        fingerprint=fingerprint,
    )
    write_json(sidecar(output, task.index), asdict(done))
    return done
