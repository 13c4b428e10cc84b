"""Where a row's text is tokenized apart, for edges that ask for it (``split``).

The one thing in rules that changes ``input_ids``: no token lies across such an edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.policy import Policy
from pipeline.regions import Turn
from pipeline.rules import Claim, Rule, RuleSet
from pipeline.scales import Scale


def find_cuts(
    text: str,
    turns: Iterable[Turn],
    scales: Sequence[Scale],
    claims: Sequence[Claim],
    rules: RuleSet,
    *,
    policy: Policy,
) -> list[int]:
    """Sorted characters at which one rule's weight, or the weight before rules, changes.

    The build's edge ``split`` makes outputs, own weights and rules without an edge of their own
    split. ms-swift joins what weighs alike by whatever rules.
    """
    if not splits(rules, policy):
        return []
    edge = policy.edge
    split = [(rule.edge or edge) == "split" for rule in rules.rules]
    if not policy.swift:
        apart = {
            at
            for rule in np.flatnonzero(split).tolist()
            for at in _edges([c for c in claims if c.rule == rule], rules.rules[rule])
        }
        # Whatever the others do: a token across the edges of two equal ones would weigh as both.
        rest = _changes(text, turns, scales, [], rules, split, edge)
        return sorted(apart.union(rest) - {0, len(text)})
    return _changes(text, turns, scales, claims, rules, split, edge)


def splits(rules: RuleSet, policy: Policy) -> bool:
    """Whether any edge asks for it."""
    return policy.edge == "split" or any(rule.edge == "split" for rule in rules.rules)


def _edges(claims: Sequence[Claim], rule: Rule) -> set[int]:
    """Where the claims of one rule begin and end; those that touch are one."""
    if rule.weight == 1:
        return set()
    starts, ends = {c.start for c in claims}, {c.end for c in claims}
    return starts ^ ends


def _changes(
    text: str,
    turns: Iterable[Turn],
    scales: Sequence[Scale],
    claims: Sequence[Claim],
    rules: RuleSet,
    split: Sequence[bool],
    edge: str,
) -> list[int]:
    """Where the product of all these weights changes."""
    layers = [(c.start, c.end, rules.rules[c.rule].weight) for c in claims if split[c.rule]]
    outputs = []
    if edge == "split":
        layers += [(s.start, s.end, s.weight) for s in scales]
        if rules.base != "all":
            outputs = [span for turn in turns for span in turn.outputs]
    spans = [(start, end) for start, end, _ in layers] + outputs
    borders = np.unique([0, len(text), *(edge for span in spans for edge in span[:2])])
    weights = np.full(len(borders), 0.0 if outputs else 1.0)
    for start, end in np.searchsorted(borders, np.array(outputs, np.int64).reshape(-1, 2)):
        weights[start:end] = 1.0
    for start, end, weight in layers:
        first, stop = np.searchsorted(borders, (start, end))
        weights[first:stop] *= weight
    changed = np.flatnonzero(weights[1:-1] != weights[:-2]) + 1
    return [int(border) for border in borders[changed]]
