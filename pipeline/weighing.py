"""A batch of rows, weighed: from what rules claim of each to its tokens, and what came of it.

Shared by what builds rows and what weighs finished ones anew.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from pipeline.columns import row_sums
from pipeline.edges import BytePositions, CharacterSpans
from pipeline.laid import BEGIN, ROW, UNTIL, Int64s, gather
from pipeline.policy import Policy
from pipeline.regions import Turn
from pipeline.rows import Counts
from pipeline.rules import Claim, RuleSet
from pipeline.scales import Scale
from pipeline.swift import settle_stops
from pipeline.tokens.encoded import Encoded
from pipeline.weights import IGNORED, Claimed, Weighed, weigh


class Row(Protocol):
    """A row as text, with what rules claim of it and what it weighs before them."""

    @property
    def text(self) -> str: ...

    @property
    def turns(self) -> Sequence[Turn]: ...

    @property
    def claims(self) -> Sequence[Claim]: ...

    @property
    def scales(self) -> Sequence[Scale]: ...


def weigh_rows(
    prepared: Sequence[Row],
    encoded: Encoded,
    rules: RuleSet,
    policy: Policy,
    *,
    outputs: CharacterSpans | None = None,
    bytes_of: BytePositions | None = None,
) -> Weighed:
    """Labels and weights of the batch; claims are in the order of ``rules.rules``.

    *outputs* are those of the rows' turns, where the turns themselves are not at hand; *bytes_of*
    are the batch's, where they are at hand.
    """
    claims: list[list[int]] = [[] for _ in rules.rules]
    for row, p in enumerate(prepared):
        for rule, start, end in p.claims:
            claims[rule] += (row, start, end)
    scales = [(row, *scale) for row, p in enumerate(prepared) for scale in p.scales]
    if outputs is None:
        outputs = _find_outputs(prepared)
    everything = rules.base == "all"
    weighed = weigh(
        encoded,
        [p.text for p in prepared],
        outputs,
        [
            Claimed(
                _character_spans(spans),
                rule.weight,
                edge=rule.edge or policy.edge,
                count=rule.count,
            )
            for spans, rule in zip(claims, rules.rules, strict=True)
        ],
        scales=_character_spans([n for scale in scales for n in scale[:3]]),
        scale_weights=np.array([scale[3] for scale in scales], np.float32),
        everything=everything,
        bytes_of=bytes_of,
    )
    if policy.swift:
        rows = [(p.text, p.turns) for p in prepared]
        settle_stops(weighed, encoded, rows, everything=everything)
    return weighed


def _find_outputs(prepared: Sequence[Row]) -> CharacterSpans:
    laid, listed = gather(p.turns for p in prepared)
    spoken = [
        number
        for row in listed
        for turn in prepared[row].turns
        for start, end in turn.outputs
        for number in (row, start, end)
    ]
    usual = laid[laid[:, BEGIN] >= 0][:, [ROW, BEGIN, UNTIL]]
    return _character_spans(spoken, usual)


def count_weights(encoded: Encoded, weighed: Weighed, weighted: Any, rules: RuleSet) -> Counts:
    """Of the rows that carry loss: what trains, and what rules claimed.

    ``weighted`` are the tokens of each row that do not weigh 0.
    """
    kept = weighted > 0
    targets = row_sums(weighed.labels != IGNORED, encoded.firsts)[kept]
    counts: Counts = Counter({f"encoded.{k}": n for k, n in asdict(encoded.paths).items()})
    counts["rows"] = int(kept.sum())
    counts["tokens"] = int(np.diff(encoded.firsts)[kept].sum())
    counts["targets"] = int(targets.sum())
    if any(rule.count for rule in rules.rules):
        counts["counted_zeros"] = int((targets - weighted[kept]).sum())
    sums = row_sums(weighed.loss_scale, encoded.firsts)[kept]
    counts["weight_sum"] = float(sums.sum(dtype=np.float64))  # type: ignore[assignment] # floats add up too
    counts["straddling.outputs"] = weighed.outputs.straddling
    for rule, spans, trained in zip(
        rules.rules, weighed.claims, weighed.trained_claims, strict=True
    ):
        counts[f"rule.{rule.name}.spans"] = spans.spans
        counts[f"rule.{rule.name}.tokens"] = trained
        counts[f"rule.{rule.name}.straddling"] = spans.straddling
    return counts


def _character_spans(numbers: list[int], others: Int64s | None = None) -> CharacterSpans:
    """Spans of which each is three numbers, row, start and end, sorted by row and start.

    *others* are more of them, int64 [spans, 3]. A template may print messages in another order,
    and a pattern may search backwards.
    """
    # Through an array, as numpy asks each number of a list what it is.
    spans = np.frombuffer(array("q", numbers), np.int64).reshape(-1, 3)
    if others is not None:
        spans = np.concatenate((others, spans))
    rows, starts, ends = spans.T.copy()
    before = (rows[1:] < rows[:-1]) | ((rows[1:] == rows[:-1]) & (starts[1:] < starts[:-1]))
    if before.any():
        order = np.lexsort((ends, starts, rows))
        rows, starts, ends = rows[order], starts[order], ends[order]
    return CharacterSpans(rows, starts, ends)
