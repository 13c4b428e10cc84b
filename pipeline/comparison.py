"""What one set of rules changes over another: tokens, shares, and some of the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.batch import Encoder
from pipeline.errors import ConfigurationError, RecordError
from pipeline.lineage import not_kept, read_finished, recipe_of_manifest, require_digest
from pipeline.policy import Policy
from pipeline.recipe import require_turns
from pipeline.restoration import Restoration
from pipeline.rows import Prepared
from pipeline.rules import RuleSet, Talk
from pipeline.shards import SCHEMA, read_groups
from pipeline.source import read, survey
from pipeline.source.record import decode
from pipeline.tokens.encoded import Encoded, select_rows
from pipeline.tokens.faults import EncodeFailure
from pipeline.weighing import weigh_rows
from pipeline.weights import IGNORED

_CONTEXT = 24  # characters on each side of a changed span
_SHOWN = 120  # characters of a changed span
_PIECE = 16 << 20
_ROWS = 1 << 40


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of text and tokens, and each as both rule sets claim it."""

    encoded: Encoded
    old: list[Prepared]
    new: list[Prepared]


@dataclass(frozen=True, slots=True)
class Change:
    """A run of tokens whose weight changes from ``old`` to ``new``, and what is around its text."""

    place: str
    owner: str
    before: str
    text: str
    after: str
    old: float
    new: float


@dataclass(slots=True)
class Compared:
    """Sums over all rows; ``weights`` counts the changed tokens by their old and new weight."""

    rows: int = 0
    changed_rows: int = 0
    failed: int = 0
    tokens: int = 0
    trained: list[int] = field(default_factory=lambda: [0, 0])
    weight: list[float] = field(default_factory=lambda: [0.0, 0.0])
    weights: Counter[tuple[float, float]] = field(default_factory=Counter)
    changes: list[Change] = field(default_factory=list)


def compare(
    batches: Iterable[Batch | int], old: RuleSet, new: RuleSet, policy: Policy, *, examples: int
) -> Compared:
    """Sums of all batches, and the first *examples* of changes that differ in text and weights.

    A number among the batches is one of rows that could not be read. Raises ConfigurationError for
    edges that split, as ids would differ.
    """
    if policy.swift:
        raise ConfigurationError(
            "--diff: ms-swift's weights depend on more than rules; compare without its profile"
        )
    for rules in (old, new):
        require_turns(policy, rules)
    if "split" in {policy.edge, *(rule.edge for rule in (*old.rules, *new.rules))}:
        raise ConfigurationError(
            "--diff: edges that split change ids, so that tokens cannot be compared; use show"
        )
    found = Compared()
    seen: set[tuple[str, float, float]] = set()
    for batch in batches:
        if isinstance(batch, int):
            found.failed += batch
            continue
        weighed = [
            weigh_rows(prepared, batch.encoded, rules, policy)
            for prepared, rules in ((batch.old, old), (batch.new, new))
        ]
        weights = [w.loss_scale for w in weighed]
        # A counted zero differs from a plain one in its label only.
        relabelled = weighed[0].labels != weighed[1].labels
        changed = np.flatnonzero((weights[0] != weights[1]) | relabelled)
        rows = np.searchsorted(batch.encoded.firsts, changed, side="right") - 1
        found.rows += len(batch.old)
        found.changed_rows += len(np.unique(rows))
        found.tokens += len(batch.encoded.ids)
        for side, w in enumerate(weighed):
            found.trained[side] += int((w.labels != IGNORED).sum())
            found.weight[side] += float(w.loss_scale.sum(dtype=np.float64))
        pairs = zip(weights[0][changed].tolist(), weights[1][changed].tolist(), strict=True)
        found.weights.update(pairs)
        if len(found.changes) < examples:
            for change in _changes(batch, changed, rows, weights[0], weights[1]):
                key = (change.text, change.old, change.new)
                if key not in seen and len(found.changes) < examples:
                    seen.add(key)
                    found.changes.append(change)
    return found


def _changes(
    batch: Batch, changed: np.ndarray, rows: np.ndarray, old: np.ndarray, new: np.ndarray
) -> Iterator[Change]:
    """Runs of neighbouring tokens of one row that change alike."""
    if not len(changed):
        return
    apart = (
        (np.diff(changed) > 1)
        | (np.diff(rows) > 0)
        | (np.diff(old[changed]) != 0)
        | (np.diff(new[changed]) != 0)
    )
    begins = np.flatnonzero(np.append(True, apart))
    ends = np.append(begins[1:], len(changed)) - 1
    encoded = batch.encoded
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        row, first, last = int(rows[begin]), int(changed[begin]), int(changed[end])
        begun = int(encoded.starts[row])
        start = begun if first == encoded.firsts[row] else int(encoded.ends[first - 1])
        raw = batch.old[row].text.encode()
        a, b = start - begun, int(encoded.ends[last]) - begun
        yield Change(
            batch.old[row].record.place,
            _owner(batch.old[row], len(raw[:a].decode(errors="ignore"))),
            raw[:a].decode(errors="replace")[-_CONTEXT:],
            raw[a:b].decode(errors="replace"),
            raw[b:].decode(errors="replace")[:_CONTEXT],
            float(old[first]),
            float(new[first]),
        )


def _owner(prepared: Prepared, at: int) -> str:
    for turn in prepared.turns:
        if any(start <= at < end for start, end in turn.ranges):
            return f"message {turn.message} {turn.role}"
    return "template"


def read_input(
    word: str, encoder: Encoder, new: RuleSet, *, spool: Path, rows: int
) -> Iterator[Batch | int]:
    """The first *rows* records of an input; *encoder* has the old rules."""
    left = rows
    sources = survey([word], spool=spool, piece_bytes=_PIECE, piece_rows=_ROWS)
    for piece in (piece for source in sources for piece in source.pieces):
        for records in read(piece):
            prepared, rejects = encoder.prepare(records[:left])
            left -= len(records[:left])
            yield len(rejects)
            yield from _both(prepared, encoder, new)
            if left <= 0:
                return


def _both(prepared: list[Prepared], encoder: Encoder, new: RuleSet) -> Iterator[Batch | int]:
    able: list[Prepared] = []
    others: list[Prepared] = []
    for p in prepared:
        if p.whole:
            continue
        fields = decode(p.record) if new.fields else {}
        try:
            others.append(p._replace(claims=new.claims(Talk(p.text, p.turns, fields))))
            able.append(p)
        except RecordError:
            yield 1
    try:
        yield Batch(encoder.encode_texts(able), able, others)
    except EncodeFailure as failure:
        yield len(failure.rows)
        kept = [i for i in range(len(able)) if i not in failure.rows]
        able, others = [able[i] for i in kept], [others[i] for i in kept]
        yield Batch(encoder.encode_texts(able), able, others)


def read_shards(
    folder: Path, old: RuleSet, new: RuleSet, *, tokenizer: str | None, rows: int
) -> tuple[Policy, Iterator[Batch | int]]:
    """The policy of finished shards and their first *rows* rows, about.

    Raises BuildError or ConfigurationError where they cannot be had back.
    """
    manifest = read_finished(folder)
    recipe = recipe_of_manifest(manifest, old, tokenizer=tokenizer)
    missing = [*not_kept(old, recipe.policy), *not_kept(new, recipe.policy)]
    if missing:
        raise ConfigurationError(
            f"--on {folder}: its rows do not keep the record's {missing[0]}, which rules ask for; "
            f"compare on the source, or build with --keep {missing[0]}"
        )
    restoration = Restoration(recipe.vocabulary)

    def batches() -> Iterator[Batch | int]:
        left = rows
        for shard in manifest.shards:
            require_digest(folder, shard)
            for table in read_groups(folder / shard["file"], manifest.format, SCHEMA.names):
                restored = restoration.restore(table.slice(0, left))
                left -= len(restored.records)
                able: list[int] = []
                sides: tuple[list[Prepared], list[Prepared]] = ([], [])
                for row in range(len(restored.records)):
                    try:
                        pair = [restored.prepare(row, r, recipe.policy) for r in (old, new)]
                    except RecordError:
                        yield 1
                        continue
                    able.append(row)
                    for side, prepared in zip(sides, pair, strict=True):
                        side.append(prepared)
                yield Batch(select_rows(restored.encoded, able), *sides)
                if left <= 0:
                    return

    return recipe.policy, batches()


def tell(found: Compared) -> list[str]:
    """Lines for a terminal."""
    share = [f"{n / found.tokens:.2%}" if found.tokens else "none" for n in found.trained]
    failed = f"; {found.failed:,} more could not be read" if found.failed else ""
    lines = [
        f"rows     {found.rows:,}, of which {found.changed_rows:,} change{failed}",
        f"tokens   {found.tokens:,}, of which {sum(found.weights.values()):,} change",
        f"trained  {share[0]} -> {share[1]}  ({found.trained[0]:,} -> {found.trained[1]:,})",
        f"weight   {found.weight[0]:,.1f} -> {found.weight[1]:,.1f}",
    ]
    for (old, new), count in sorted(found.weights.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"  x{old:g} -> x{new:g}  {count:,} tokens")
    for change in found.changes:
        middle = change.text
        if len(middle) > _SHOWN:
            middle = f"{middle[: _SHOWN // 2]} ... {middle[-_SHOWN // 2 :]}"
        shown = f"{change.before}⟦{middle}⟧{change.after}".replace("\n", "\\n")
        lines.append(f"{change.place}: {change.owner}: x{change.old:g} -> x{change.new:g}")
        lines.append(f"    {shown}")
    return lines
