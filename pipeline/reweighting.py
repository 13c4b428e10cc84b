"""Finished shards under other rules, without their source, their template, or tokenizing."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.batch import NOTHING_TO_TRAIN, EncodedBatch
from pipeline.columns import column, list_column, row_sums
from pipeline.dataset import Built, Losses, progress_of, tell_kept, timed
from pipeline.engine import local
from pipeline.engine.crew import Crew, hire
from pipeline.errors import ConfigurationError, RecordError
from pipeline.lineage import (
    plan_reweighting,
    read_finished,
    require_digest,
    require_same_ids,
    succeed,
)
from pipeline.lock import locked
from pipeline.order import Order, Watch
from pipeline.output import (
    discard_results,
    finish_output,
    open_output,
    prepare_output,
    require_rejects,
)
from pipeline.policy import Policy
from pipeline.preparation import Prepared
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.reject import reject
from pipeline.restoration import Restoration
from pipeline.rules import RuleSet, load_rules
from pipeline.shards import SCHEMA, read_groups
from pipeline.source.record import Record
from pipeline.stored import recipe_of_manifest
from pipeline.task import Complete, TaskDone, complete
from pipeline.task import Progress as Tell
from pipeline.weighing import count_weights, weigh_rows
from pipeline.weights import IGNORED, Weighed

_WEIGHED = ("labels", "loss_scale", "num_target_tokens", "weight_sum")
_KEPT = [name for name in SCHEMA.names if name not in _WEIGHED]


def reweight_dataset(
    shards: Path,
    rules: Sequence[str | Path],
    output: Path,
    *,
    tokenizer: str | None = None,
    edge: str = "",
    workers: int | Crew = 1,
    rejects: Path | None = None,
    overwrite: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Writes the folder *shards* again as *output*, weighed by *rules* alone.

    What a build of the same inputs with these rules would hold, less what the old rules rejected.
    *tokenizer* is that of the build, the embedded one without. Raises ConfigurationError,
    InputError or BuildError; a second call goes on from what is finished, with *verify* where its
    sha256 is as it was.
    """
    started = time.monotonic()
    progress = progress or Progress(None)
    if os.path.realpath(output) == os.path.realpath(shards):
        raise ConfigurationError(f"--output {output}: is the folder of the shards; choose another")
    rejects = rejects or output / "rejects.jsonl"
    if os.path.dirname(os.path.realpath(rejects)) == os.path.realpath(shards):  # noqa: PTH120 - of text
        raise ConfigurationError(f"--rejects {rejects}: lies among the shards; choose another")
    old = read_finished(shards)
    recipe = recipe_of_manifest(old, load_rules(rules), tokenizer=tokenizer)
    recipe = replace(recipe, policy=replace(recipe.policy, edge=edge or recipe.policy.edge))
    require_same_ids(old, recipe)
    require_rejects(rejects, output)
    prepare_output(output)
    plan = plan_reweighting(old, recipe)
    job = ReweightJob(recipe, shards, tuple(old.shards), output, plan.fingerprint)
    with locked(output), hire(workers) as crew:
        if overwrite:
            discard_results(output)
        opened = open_output(output, plan, verify=verify)
        tell_kept(opened, plan)
        losses, kept = Losses(), progress_of(opened.done)
        with progress.stage("weighing", unit="rows", total=old.counts["rows"], kept=kept) as tell:
            made = list(local.run(opened.left, job, crew=crew, progress=tell, replaced=losses))
        done = sorted([*opened.done, *made], key=lambda d: d.index)
        with progress.stage("finishing"):
            manifest = succeed(old, plan, recipe, done)
            finish_output(output, plan, manifest, rejects)
    return Built(manifest, rejects, timed(started, done, made, losses))


@dataclass(frozen=True, slots=True)
class ReweightJob:
    """Shards from shards: task *i* is the one that the manifest tells in ``shards[i]``."""

    recipe: Recipe
    folder: Path
    shards: tuple[Mapping[str, Any], ...]
    output: Path
    fingerprint: str

    def begin(self) -> Complete:
        """No engine is loaded: ids are spelled out by a table."""
        # Nothing here makes cycles, and its look at a row group's tuples cost a sixth of the time.
        gc.disable()
        restoration = Restoration(self.recipe.vocabulary)

        def reweight(order: Order, watch: Watch, progress: Tell) -> TaskDone:  # noqa: ARG001 - rows come a million tokens at a time: none is at fault alone
            return complete(
                order.task,
                self._batches(self.shards[order.task.index], restoration),
                output=self.output,
                form=self.recipe.form,
                fingerprint=self.fingerprint,
                progress=progress,
            )

        return reweight

    def _batches(
        self, shard: Mapping[str, Any], restoration: Restoration
    ) -> Iterator[EncodedBatch]:
        """Row group by row group; BuildError where the file is not what the manifest says."""
        path = require_digest(self.folder, shard)
        for table in read_groups(path, self.recipe.form, _KEPT):
            yield reweigh(table, self.recipe.rules, self.recipe.policy, restoration)


def _key(record: Record) -> tuple[str, int]:
    return record.source, record.row


def reweigh(
    table: pa.Table, rules: RuleSet, policy: Policy, restoration: Restoration
) -> EncodedBatch:
    """The rows of *table* as *rules* weigh them; one that would train nothing becomes a reject."""
    restored = restoration.restore(table)
    encoded = restored.encoded
    prepared: list[Prepared] = []
    left_out: dict[int, RecordError] = {}
    able = rules.narrowed(encoded.text.tobytes())
    simple = able.plain  # then no turns need be made
    for row, record in enumerate(restored.records):
        text, scales = restored.texts[row], restored.scales[row]
        try:
            if simple:
                claims = able.claims_said(text, partial(restored.turns.said, row))
                prepared.append(Prepared(record, text, [], claims, scales))
            else:
                prepared.append(restored.prepare(row, able, policy))
        except RecordError as error:
            left_out[row] = error
            prepared.append(Prepared(record, text, [], []))
    # A conversation in several rows is kept or left out as one.
    bad = {_key(restored.records[row]): error for row, error in left_out.items()}
    for row, record in enumerate(restored.records if bad else ()):
        if _key(record) in bad:
            left_out[row] = bad[_key(record)]
            prepared[row] = Prepared(record, restored.texts[row], [], [])
    outputs = restored.turns.spoken(without=list(left_out))
    weighed = weigh_rows(prepared, encoded, rules, policy, outputs=outputs)
    targets = row_sums(weighed.labels != IGNORED, encoded.firsts)
    weighted = row_sums(weighed.loss_scale != 0, encoded.firsts)
    weighted[list(left_out)] = 0  # base all would weigh what it has no claims of
    kept = weighted > 0
    # A conversation in several rows is one reject, where none of them trains.
    untrained = np.flatnonzero(~kept).tolist()
    trained = np.flatnonzero(kept).tolist() if untrained else []
    training = {_key(restored.records[row]) for row in trained}
    lost = {
        _key(restored.records[row]): row
        for row in untrained[::-1]
        if row in left_out or _key(restored.records[row]) not in training
    }
    rejects = [
        reject(restored.records[row], left_out.get(row, NOTHING_TO_TRAIN))
        for row in sorted(lost.values())
    ]
    counts = count_weights(encoded, weighed, weighted, rules)
    counts.update(restored.turns.count(kept))
    counts["untrained_rows"] = len([r for r in untrained if _key(restored.records[r]) in training])
    counts["conversations"] = table.num_rows
    counts["rejects"] = len(rejects)
    for r in rejects:
        counts[f"reject.{r.stage}.{r.reason}"] += 1
    batch = _replaced(table, weighed, encoded.firsts, targets)
    return EncodedBatch(batch if kept.all() else batch.filter(pa.array(kept)), rejects, counts)


def _replaced(table: pa.Table, weighed: Weighed, firsts: Any, targets: Any) -> pa.RecordBatch:
    """The table's columns, those that rules decide made anew."""
    columns = {
        "labels": list_column(firsts, weighed.labels),
        "loss_scale": list_column(firsts, weighed.loss_scale),
        "num_target_tokens": column(targets.astype(np.int32)),
        "weight_sum": column(row_sums(weighed.loss_scale, firsts).astype(np.float32)),
    }
    arrays = [
        columns[name] if name in _WEIGHED else pa.concat_arrays(table[name].chunks)
        for name in SCHEMA.names
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
