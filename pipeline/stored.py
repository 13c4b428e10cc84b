"""A row of a finished shard, explained: what it was made of comes back from ids and manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.batch import Encoder
from pipeline.building import make_encoder
from pipeline.errors import BuildError, InputError, RecordError
from pipeline.explanation import Explanation, explain
from pipeline.lineage import not_kept, recipe_of_manifest, rules_of
from pipeline.manifest import NAME, read_manifest
from pipeline.policy import Policy
from pipeline.regions import Region
from pipeline.reject import reject
from pipeline.restoration import Restoration, Restored
from pipeline.rows import Prepared
from pipeline.rules import RuleSet, load_rules
from pipeline.shards import SCHEMA
from pipeline.source.record import Record, decode


class _StoredSpan(msgspec.Struct):
    message: int
    role: str
    region: str
    start: int
    end: int
    weight: float


class _StoredRow(msgspec.Struct):
    """The columns of a shard that are shown."""

    input_ids: list[int]
    loss_scale: list[float]
    source: str
    row: int
    spans: list[_StoredSpan]
    text: str | None = None


def explain_row(
    record: Record, folder: Path, *, tokenizer: str | None, rules: Sequence[str]
) -> Explanation:
    """A row of a shard: text from its ids, turns from ``spans``; *rules* instead of its own.

    Raises BuildError, ConfigurationError or InputError where the row cannot be had back.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise BuildError(
            f"{folder}: no {NAME} there, which tells the tokenizer and the rules of "
            f"{record.source}; show it in the folder of a finished build"
        )
    row = _stored(record)
    encoder = make_encoder(
        recipe_of_manifest(manifest, rules_of(manifest, folder), tokenizer=tokenizer)
    )
    origin = f"{row.source}[{row.row}]"
    for asking in (encoder.rules, *([load_rules(rules)] if rules else [])):
        if missing := not_kept(asking, encoder.policy):
            raise InputError(
                f"{record.place}: its rules ask for the record's {missing[0]}, which its row does "
                f"not keep (--keep {missing[0]}); show the source record, {origin}"
            )
    restored = _restore(record, row, encoder, origin=origin)
    encoded = restored.encoded
    prepared = _prepare(record, restored, encoder.rules, encoder.policy)
    stored = np.array(row.loss_scale, np.float32)
    weighed = encoder.weigh([prepared], encoded)
    _require_weights(stored, weighed.loss_scale, place=record.place, origin=origin)
    if rules:
        encoder = Encoder(
            encoder.tokenizer,
            encoder.template,
            load_rules(rules, profile=encoder.policy.profile),
            policy=encoder.policy,
        )
        prepared = _prepare(record, restored, encoder.rules, encoder.policy)
        weighed = encoder.weigh([prepared], encoded)
    return explain(
        prepared,
        encoded,
        weighed,
        regions=[Region(s.message, s.role, s.region, s.start, s.end, s.weight) for s in row.spans],
        rules=encoder.rules,
        policy=encoder.policy,
        place=f"{record.place}, made of {origin}"
        + (", under other rules than its own" if rules else ""),
    )


def _stored(record: Record) -> _StoredRow:
    try:
        return msgspec.convert(decode(record), _StoredRow)
    except (RecordError, msgspec.ValidationError) as error:
        raise InputError(
            f"{record.place}: not a row of a shard of this version: {error}; build it again"
        ) from error


def _restore(record: Record, row: _StoredRow, encoder: Encoder, *, origin: str) -> Restored:
    """The row before it was weighed.

    Its text need not encode to its ids again: they may be sampled ones, or tokenized apart.
    """
    tokenizer = encoder.tokenizer
    restoration = Restoration(tokenizer.vocabulary, tokenizer=tokenizer)
    try:
        value = record.value or {}  # which lacks what is null
        columns = {name: [value.get(name)] for name in SCHEMA.names}
        if row.input_ids:
            return restoration.restore(pa.Table.from_pydict(columns, SCHEMA))
    except (InputError, pa.ArrowException):
        pass
    raise InputError(
        f"{record.place}: its text cannot be had back from its ids: the shard is damaged; show the "
        f"source record, {origin}"
    )


def _prepare(record: Record, restored: Restored, rules: RuleSet, policy: Policy) -> Prepared:
    try:
        return restored.prepare(0, rules, policy)
    except RecordError as error:
        raise InputError(reject(record, error).message) from error


def _require_weights(stored: Any, computed: Any, *, place: str, origin: str) -> None:
    """Stored weights are shown, so the rules that are said to give them must."""
    if np.array_equal(stored, computed):
        return
    if len(stored) != len(computed):
        fact = f"{len(stored)} weights for {len(computed)} tokens"
    else:
        first = int(np.flatnonzero(stored != computed)[0])
        fact = f"token {first}: stored {stored[first]:g}, computed {computed[first]:g}"
    raise InputError(
        f"{place}: its weights are not what the rules of {NAME} give ({fact}): the tokenizer "
        f"normalized its text, or the shard is damaged; show the source record, {origin}"
    )
