"""What a worker does of a reweighting: from shards to shards, row group by row group."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.columns import column, list_column, row_sums
from pipeline.edges import BytePositions
from pipeline.errors import RecordError
from pipeline.lineage import require_digest
from pipeline.order import Order, Watch
from pipeline.policy import Policy
from pipeline.recipe import Recipe
from pipeline.regions import Turn
from pipeline.reject import reject
from pipeline.restoration import Restoration, Restored
from pipeline.rows import NOTHING_TO_TRAIN, EncodedBatch
from pipeline.rules import Claim, RuleSet
from pipeline.rules.matching import find_said
from pipeline.rules.scan import choose_pieces, choose_rows
from pipeline.scales import Scale
from pipeline.shards import SCHEMA, read_groups
from pipeline.source.record import Record
from pipeline.task import Complete, Progress, TaskDone, complete
from pipeline.weighing import Row, count_weights, weigh_rows
from pipeline.weights import IGNORED, Weighed

_WEIGHED = ("labels", "loss_scale", "num_target_tokens", "weight_sum")
_KEPT = [name for name in SCHEMA.names if name not in _WEIGHED]


def begin(
    recipe: Recipe,
    folder: Path,
    shards: Sequence[Mapping[str, Any]],
    *,
    output: Path,
    fingerprint: str,
) -> Complete:
    """What makes shard *i* of *output* of ``shards[i]``, which a manifest in *folder* tells.

    No engine is loaded: ids are spelled out by a table.
    """
    # Nothing here makes cycles, and its look at a row group's tuples cost a sixth of the time.
    gc.disable()
    restoration = Restoration(recipe.vocabulary)

    def batches(shard: Mapping[str, Any]) -> Iterator[EncodedBatch]:
        path = require_digest(folder, shard)
        for table in read_groups(path, recipe.form, _KEPT):
            yield reweigh(table, recipe.rules, recipe.policy, restoration)

    def reweight(order: Order, watch: Watch, progress: Progress) -> TaskDone:  # noqa: ARG001 - rows come a million tokens at a time: none is at fault alone
        return complete(
            order.task,
            batches(shards[order.task.index]),
            output=output,
            form=recipe.form,
            fingerprint=fingerprint,
            progress=progress,
        )

    return reweight


class _Claimed(NamedTuple):
    """A `Row`; its turns only where somebody looks at them."""

    text: str
    turns: Sequence[Turn]
    claims: Sequence[Claim]
    scales: Sequence[Scale]


def reweigh(
    table: pa.Table, rules: RuleSet, policy: Policy, restoration: Restoration
) -> EncodedBatch:
    """The rows of *table* as *rules* weigh them; one that would train nothing becomes a reject."""
    restored = restoration.restore(table)
    encoded = restored.encoded
    bytes_of = BytePositions(encoded, restored.texts)
    claimed, left_out = _claim(restored, rules, policy, bytes_of)
    # A conversation in several rows is kept or left out as one.
    bad = {_key(restored.records[row]): error for row, error in left_out.items()}
    for row, record in enumerate(restored.records if bad else ()):
        if _key(record) in bad:
            left_out[row] = bad[_key(record)]
            claimed[row] = _Claimed(restored.texts[row], (), (), ())
    outputs = restored.turns.spoken(without=list(left_out))
    weighed = weigh_rows(claimed, encoded, rules, policy, outputs=outputs, bytes_of=bytes_of)
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


def _claim(
    restored: Restored, rules: RuleSet, policy: Policy, bytes_of: BytePositions
) -> tuple[list[Row], dict[int, RecordError]]:
    """Each row with what *rules* claim of it, and the rows on which they fail."""
    texts, scales, encoded = restored.texts, restored.scales, restored.encoded
    data = encoded.text.tobytes()
    claimed: list[Row] = [
        _Claimed(text, (), (), own) for text, own in zip(texts, scales, strict=True)
    ]
    left_out: dict[int, RecordError] = {}
    if rules.plain and not policy.swift:  # then no turns need be made
        chosen = choose_pieces(rules.matchers, data, restored.turns.said(bytes_of))
        for row, mine in chosen.items():
            try:
                claimed[row] = _Claimed(texts[row], (), find_said(mine, texts[row]), scales[row])
            except RecordError as error:
                left_out[row] = error
        return claimed, left_out
    rows = range(len(texts))
    for row in rows if policy.swift else choose_rows(rules.matchers, data, encoded.starts.tolist()):
        try:
            claimed[row] = restored.prepare(row, rules, policy)
        except RecordError as error:
            left_out[row] = error
    return claimed, left_out


def _key(record: Record) -> tuple[str, int]:
    return record.source, record.row


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
