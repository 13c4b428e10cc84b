"""What the workers of a build do: tasks of records to shards of rows."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.batch import Encoder
from pipeline.order import Order, Rows, Watch
from pipeline.plan import Task
from pipeline.recipe import Recipe
from pipeline.rows import EncodedBatch
from pipeline.source import Record, read_together
from pipeline.task import Complete, Progress, TaskDone, complete
from pipeline.template import Template
from pipeline.tokens.fast import Loading
from pipeline.tokens.tokenizer import load_tokenizer
from pipeline.tokens.trust import Certificate


def begin(
    recipe: Recipe,
    certificate: Certificate,
    loading: Loading | None,
    *,
    output: Path,
    fingerprint: str,
) -> Complete:
    """Loads the tokenizer and the templates; what makes one shard after another."""
    encoder = make_encoder(recipe, certificate, loading)
    encoder.tokenizer.load()

    def build(order: Order, watch: Watch, progress: Progress) -> TaskDone | None:
        if order.only is not None:
            try_rows(order.task, order.only, encoder, watch)
            return None
        return complete(
            order.task,
            encode_task(order, encoder, watch),
            output=output,
            form=recipe.form,
            fingerprint=fingerprint,
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
                record._replace(fault=errors.get(row, record.fault))
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


def make_encoder(
    recipe: Recipe, certificate: Certificate | None = None, loading: Loading | None = None
) -> Encoder:
    """Loads the tokenizer and compiles the templates; no certificate, the reference engine.

    *loading* may have begun with the tokenizer.
    """
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
        load_tokenizer(recipe.vocabulary, certificate=certificate, loading=loading),
        templates["default"],
        recipe.rules,
        tool_template=templates.get("tool_use"),
        schema=recipe.schema,
        policy=recipe.policy,
    )
