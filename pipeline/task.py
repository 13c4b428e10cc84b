"""One task done: its shard, its rejects, and a sidecar that says what they are."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.batch import Encoder
from pipeline.plan import Task
from pipeline.recipe import Recipe
from pipeline.shards import file_digest, open_shard, replace, shard_name, write_json
from pipeline.source import read
from pipeline.source.inputs import WORK
from pipeline.template import Template
from pipeline.tokens import Certificate, load_tokenizer


@dataclass(frozen=True, slots=True)
class Job:
    """What every task of a build shares; picklable, sent to each worker once."""

    recipe: Recipe
    certificate: Certificate
    output: Path
    fingerprint: str


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
    task: Task, job: Job, encoder: Encoder, *, progress: Callable[[int], None]
) -> TaskDone:
    """Builds one shard; *progress* is told the number of records after each batch."""
    name = shard_name(job.recipe.form, task.index, task.count)
    work = job.output / WORK
    path, rejects = job.output / name, reject_file(job.output, task.index)
    counts: Counter[str] = Counter()
    unfinished = rejects.with_suffix(".tmp")
    with (
        open_shard(path, job.recipe.form, temporary=work / f"{name}.tmp") as shard,
        unfinished.open("wb") as left_out,
    ):
        for piece in task.pieces:
            for records in read(piece):
                encoded = encoder.encode(records)
                shard.write(encoded.rows)
                left_out.writelines(r.to_json() for r in encoded.rejects)
                counts.update(encoded.counts)
                progress(len(records))
    replace(unfinished, rejects)
    done = TaskDone(
        index=task.index,
        file=name,
        rows=counts["rows"],
        bytes=path.stat().st_size,
        sha256=file_digest(path),
        counts=dict(sorted(counts.items())),
        fingerprint=job.fingerprint,
    )
    write_json(sidecar(job.output, task.index), asdict(done))
    return done
