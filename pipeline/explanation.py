"""What each token of one row is, and why it weighs what it weighs.

Nothing here decides a weight: they come from ``weights.weigh``. Where an edge cuts a token, the
bytes on the inner side of the edge are told, since they decided where the token went.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.edges import TokenSpans
from pipeline.policy import Policy
from pipeline.regions import TEMPLATE, Region, Turn
from pipeline.rows import Prepared
from pipeline.rules import Rule, RuleSet
from pipeline.spans import Span
from pipeline.tokens.encoded import Encoded
from pipeline.tokens.offsets import character_starts
from pipeline.weights import Weighed

Kind = Literal["untrained", "trained", "lowered", "raised", "silenced"]
_METHODS = {
    "": "start as stored",
    "tags": "start found by tags",
    "prompt": "start found by prompt",
    "common": "start found by common: what it shares with the prompt",
    "probe": "start found by probe: the prompt after another question",
    "content": "start found by content: where the message's own words start",
    "unsure": "start unsure: built because --unsure build says so",
    "unprompted": "start unprompted: the template has no prompt",
}


@dataclass(frozen=True, slots=True)
class ExplainedToken:
    """One token: ``piece`` is what it covers in UTF-8, ``start`` and ``end`` its characters.

    Tokens that share a character all name it. ``message`` is -1, and ``role`` empty, where no
    message owns the text. ``trainable``: it would weigh 1 without rules.
    """

    number: int
    id: int
    piece: bytes
    start: int
    end: int
    message: int
    role: str
    region: str
    weight: float
    trainable: bool
    why: str

    @property
    def owner(self) -> str:
        """Message number and role."""
        return f"{self.message} {self.role}" if self.message >= 0 else "-"

    @property
    def kind(self) -> Kind:
        """What a reader tells apart at a glance; ``silenced`` would be trained but for a rule."""
        if not self.trainable:
            return "untrained"
        if self.weight == 1:
            return "trained"
        return "silenced" if not self.weight else "lowered" if self.weight < 1 else "raised"


@dataclass(frozen=True, slots=True)
class Explanation:
    """A row, explained; ``facts`` are the heading's lines, each a name and what there is to say."""

    place: str
    facts: tuple[tuple[str, str], ...]
    tokens: tuple[ExplainedToken, ...]

    @property
    def targets(self) -> int:
        """How many tokens carry loss."""
        return sum(token.weight != 0 for token in self.tokens)


@dataclass(frozen=True, slots=True)
class _Share:
    """Of each token: whether it went to some spans, and how many of its bytes lie inside them."""

    given: npt.NDArray[np.bool_]
    inside: npt.NDArray[np.int64]


def explain(
    prepared: Prepared,
    encoded: Encoded,
    weighed: Weighed,
    *,
    regions: Iterable[Region],
    rules: RuleSet,
    policy: Policy,
    place: str,
) -> Explanation:
    """The explanation of a batch of one row; *weighed* is by these *rules* and this *policy*."""
    leads = character_starts(prepared.text)
    edges = np.concatenate((encoded.starts[:1], encoded.ends))
    tiles = _tile(regions, len(prepared.text))
    owners = [tiles[i] for i in _tiles_of(tiles, leads, edges)]
    firsts = (np.searchsorted(leads, edges[:-1], side="right") - 1).tolist()
    stops = np.searchsorted(leads, edges[1:], side="left").tolist()
    trainable, reasons = _reasons(prepared, weighed, rules, policy, leads, edges)
    if policy.swift:
        reasons = [
            "stop token as ms-swift weighs it" if owner.name == "stop" and trained else reason
            for owner, trained, reason in zip(owners, trainable, reasons, strict=True)
        ]
    text = encoded.text.tobytes()
    tokens = tuple(
        ExplainedToken(
            number=number,
            id=int(encoded.ids[number]),
            piece=text[edges[number] : edges[number + 1]],
            start=firsts[number],
            end=stops[number],
            message=owner.message,
            role=owner.role,
            region=owner.name,
            weight=float(weighed.loss_scale[number]),
            trainable=trainable[number],
            why=reasons[number],
        )
        for number, owner in enumerate(owners)
    )
    facts = (
        ("source", place),
        ("row", f"{_count(len(tokens), 'token')}, {_loss(tokens)}"),
        *_turn_facts(prepared.turns, tokens),
        *_rule_facts(rules, weighed),
    )
    return Explanation(place, facts, tokens)


def _tile(regions: Iterable[Region], length: int) -> list[Region]:
    """The regions in the order of the text, and what lies between them as the template's."""
    tiles: list[Region] = []
    position = 0
    end_of_text = Region(-1, "", TEMPLATE, length, length)
    for region in [*sorted(regions, key=lambda r: r.start), end_of_text]:
        if position < region.start:
            tiles.append(Region(-1, "", TEMPLATE, position, region.start))
        tiles.append(region)
        position = region.end
    return tiles


def _tiles_of(
    tiles: Sequence[Region], leads: npt.NDArray[np.int64], edges: npt.NDArray[np.int64]
) -> Iterator[int]:
    """For each token the tile that most of its bytes are in, the earlier one on a tie."""
    borders = leads[[*(tile.start for tile in tiles), tiles[-1].end]]
    begun = np.searchsorted(borders[:-1], edges[:-1], side="right") - 1
    for first, (start, end) in zip(begun.tolist(), itertools.pairwise(edges.tolist()), strict=True):
        best, most = first, 0
        for tile in range(first, len(tiles)):
            if borders[tile] >= end:
                break
            inside = min(end, borders[tile + 1]) - max(start, borders[tile])
            if inside > most:
                best, most = tile, inside
        yield best


def _share(
    spans: Iterable[tuple[int, int]],
    tokens: TokenSpans,
    leads: npt.NDArray[np.int64],
    edges: npt.NDArray[np.int64],
) -> _Share:
    """*spans* are disjoint ranges of characters, *tokens* what was given to them."""
    given = np.zeros(len(edges) - 1, np.bool_)
    for first, stop in zip(tokens.firsts.tolist(), tokens.stops.tolist(), strict=True):
        given[first:stop] = True
    borders = leads[np.array(sorted(spans), np.int64).reshape(-1, 2)]
    if not len(borders):
        return _Share(given, np.zeros(len(given), np.int64))
    # Bytes of spans before a position: flat between them, rising by one a byte inside.
    before = np.concatenate(([0], np.cumsum(borders[:, 1] - borders[:, 0])))
    inside = np.diff(np.interp(edges, borders.ravel(), np.repeat(before, 2)[1:-1]))
    return _Share(given, np.rint(inside).astype(np.int64))


def _reasons(
    prepared: Prepared,
    weighed: Weighed,
    rules: RuleSet,
    policy: Policy,
    leads: npt.NDArray[np.int64],
    edges: npt.NDArray[np.int64],
) -> tuple[list[bool], list[str]]:
    """For each token whether it is trainable, and why it weighs what it weighs."""
    everything = rules.base == "all"
    outputs: list[Span] = [span for turn in prepared.turns for span in turn.outputs]
    if everything:
        outputs = [Span(0, len(prepared.text))]
    speaker = "all" if everything else "assistant"
    base = _share(outputs, weighed.outputs, leads, edges)
    claims = [
        _share([c[1:] for c in prepared.claims if c.rule == i], tokens, leads, edges)
        for i, tokens in enumerate(weighed.claims)
    ]
    starts = leads[np.array(sorted(span.start for span in outputs), np.int64)]
    sizes, cut = np.diff(edges), np.zeros(len(edges) - 1, np.bool_)
    cut[np.searchsorted(edges, starts, side="right") - 1] = ~np.isin(starts, edges)
    trainable, reasons, own = base.given.tolist(), [], weighed.own.tolist()
    for i, size in enumerate(sizes.tolist()):
        if not i and trainable[i]:
            trainable[i] = False
            reasons.append("first token: nothing predicts it")
        elif trainable[i]:
            told = [
                f"own weight ×{own[i]:g}" if own[i] != 1 else "",
                *(
                    _claimed(rule, rule.edge or policy.edge, share, i, size)
                    for rule, share in zip(rules.rules, claims, strict=True)
                ),
            ]
            reasons.append(", ".join(filter(None, [f"{speaker}{_part(base, i, size)}", *told])))
        elif base.inside[i]:
            fact = "cut by the header" if cut[i] else "mostly past the output"
            reasons.append(fact + _part(base, i, size))
        else:
            reasons.append("not generated")
    return trainable, reasons


def _claimed(rule: Rule, edge: str, share: _Share, token: int, size: int) -> str:
    if share.given[token]:
        factor = rule.weight
        if edge == "fraction":
            factor = 1 + (factor - 1) * int(share.inside[token]) / size
        counted = " (counted)" if rule.count else ""
        return f"{rule.name} ×{factor:g}{counted}{_part(share, token, size)}"
    return f"not {rule.name}{_part(share, token, size)}" if share.inside[token] else ""


def _part(share: _Share, token: int, size: int) -> str:
    """How much of a token lies inside, where an edge cuts it."""
    inside = int(share.inside[token])
    return f" ({inside} of {size} bytes inside)" if inside < size else ""


def _turn_facts(
    turns: Iterable[Turn], tokens: Sequence[ExplainedToken]
) -> Iterator[tuple[str, str]]:
    """A line for each turn of the assistant: what of it is trained, and how its start was found."""
    mine: dict[int, list[ExplainedToken]] = {}
    for token in tokens:
        mine.setdefault(token.message, []).append(token)
    for turn in turns:
        if turn.role != "assistant":
            continue
        own = mine.get(turn.message, [])
        facts = [f"{turn.role}, {_count(len(own), 'token')}, {_loss(own)}"]
        if turn.outputs:
            facts += [_METHODS[turn.found], *(["no stop token"] if turn.stop < 0 else [])]
        else:
            facts.append("nothing of it trains in this row")
        yield f"message {turn.message}", "; ".join(facts)


def _rule_facts(rules: RuleSet, weighed: Weighed) -> Iterator[tuple[str, str]]:
    """A line for each rule: what it claimed here."""
    if rules.base == "all":
        yield "base", "all: every token but the first weighs 1"
    elif not rules.rules:
        yield "rules", "none: what the assistant generates weighs 1"
    for rule, spans in zip(rules.rules, weighed.claims, strict=True):
        tokens = int((spans.stops - spans.firsts).sum())
        cut = f"; {spans.straddling:,} across an edge" if spans.straddling else ""
        claimed = f"{_count(spans.spans, 'span')}, {_count(tokens, 'token')}{cut}"
        if not tokens:
            claimed = "nothing here" if not spans.spans else f"no token{cut}"
        yield f"rule {rule.name}", f"×{rule.weight:g} on {claimed}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _loss(tokens: Sequence[ExplainedToken]) -> str:
    trained = sum(token.weight != 0 for token in tokens)
    total = f"{sum(token.weight for token in tokens):,.2f}".rstrip("0").rstrip(".")
    return f"{trained:,} trained, weight {total}"
