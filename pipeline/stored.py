"""A row of a finished shard, explained: what it was made of comes back from ids and manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.batch import Encoder
from pipeline.errors import BuildError, ConfigurationError, InputError, RecordError
from pipeline.explanation import Explanation, explain
from pipeline.manifest import NAME, Manifest, read_manifest
from pipeline.policy import Policy
from pipeline.preparation import Prepared
from pipeline.recipe import BUNDLED, Recipe
from pipeline.regions import Region, restore_turns
from pipeline.reject import reject
from pipeline.rules import RuleSet, Talk, compose, load_rules, parse_rule_file
from pipeline.scales import restore_scales
from pipeline.source.record import Record, decode
from pipeline.task import make_encoder
from pipeline.tokens import Encoded, EncodeFailure
from pipeline.tokens.vocabulary import TOKENIZER, Vocabulary, read_vocabulary

_NO_DATE = "1970-01-01"  # nothing is rendered again


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
    encoder = make_encoder(_recipe_of(manifest, folder, tokenizer))
    origin = f"{row.source}[{row.row}]"
    text, encoded = _restore(row, encoder, place=record.place, origin=origin)
    regions = [Region(s.message, s.role, s.region, s.start, s.end, s.weight) for s in row.spans]
    prepared = _prepare(record, text, regions, encoder.rules)
    stored = np.array(row.loss_scale, np.float32)
    weighed = encoder.weigh([prepared], encoded)
    _require_weights(stored, weighed.loss_scale, place=record.place, origin=origin)
    if rules:
        encoder = Encoder(
            encoder.tokenizer, encoder.template, load_rules(rules), policy=encoder.policy
        )
        prepared = _prepare(record, text, regions, encoder.rules)
        weighed = encoder.weigh([prepared], encoded)
    return explain(
        prepared,
        encoded,
        weighed,
        regions=regions,
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


def _recipe_of(manifest: Manifest, folder: Path, tokenizer: str | None) -> Recipe:
    """The recipe of a build, as its manifest tells it; the tokenizer's files are not in there."""
    files = [
        parse_rule_file(text, place=f"{folder / NAME}: rules.{name}", name=name)
        for name, text in manifest.rules.items()
    ]
    return Recipe(
        vocabulary=_vocabulary_of(manifest, tokenizer),
        templates=manifest.chat_templates,
        variables=manifest.template_variables,
        date=_NO_DATE,
        rules=compose(files),
        schema="auto",
        form=manifest.format,
        policy=policy_of(manifest),
    )


def policy_of(manifest: Manifest) -> Policy:
    """The policy of a build, as its manifest tells it."""
    return msgspec.convert(manifest.parts["policy"], Policy)


def _vocabulary_of(manifest: Manifest, name: str | None) -> Vocabulary:
    """The tokenizer of that *name*, or the embedded one, if it is the build's."""
    vocabulary = read_vocabulary(name or BUNDLED / "tokenizer")
    wanted, found = manifest.parts["tokenizer"][TOKENIZER], vocabulary.digests[TOKENIZER]
    if found == wanted:
        return vocabulary
    told = f"--tokenizer {name}: its" if name else "--tokenizer: missing; the embedded one's"
    raise ConfigurationError(
        f"{told} {TOKENIZER} is {found[:12]}..., but the shards were made with {wanted[:12]}... "
        "(sha256); name the folder or hub id of that tokenizer"
    )


def _restore(row: _StoredRow, encoder: Encoder, *, place: str, origin: str) -> tuple[str, Encoded]:
    """The text of a row's ids, which must encode to these ids again."""
    tokenizer, ids = encoder.tokenizer, np.array(row.input_ids, np.int64)
    known = bool(len(ids)) and ids.min() >= 0 and ids.max() < tokenizer.size
    text = tokenizer.decode(row.input_ids) if known else ""
    try:
        quoted = tokenizer.quotes(text, row.input_ids) if known else []
        encoded = tokenizer.encode([text], quoted={0: quoted})
    except EncodeFailure:
        encoded = tokenizer.encode([""])
    fits = all(0 <= span.start <= span.end <= len(text) for span in row.spans)
    if known and fits and np.array_equal(encoded.ids, ids):
        return text, encoded
    raise InputError(
        f"{place}: its text cannot be had back from its ids: the tokenizer normalized it, or the "
        f"shard is damaged; show the source record, {origin}"
    )


def _prepare(record: Record, text: str, regions: Sequence[Region], rules: RuleSet) -> Prepared:
    fields: dict[str, Any] = {}
    turns = list(restore_turns(regions))
    try:
        claims = rules.claims(Talk(text, turns, fields))
    except RecordError as error:
        raise InputError(reject(record, error).message) from error
    return Prepared(record, text, turns, claims, restore_scales(regions))


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
