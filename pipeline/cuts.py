"""Where a row's text is tokenized apart, for edges that ask for it (``split``).

The one thing in rules that changes ``input_ids``: no token lies across such an edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.regions import Turn
from pipeline.rules import Claim, RuleSet
from pipeline.scales import Scale


def find_cuts(
    text: str,
    turns: Iterable[Turn],
    scales: Sequence[Scale],
    claims: Sequence[Claim],
    rules: RuleSet,
    *,
    edge: str,
) -> list[int]:
    """Sorted characters at which the weight changes, by all that splits.

    *edge* is the build's: ``split`` makes outputs, own weights and rules without an edge split.
    """
    split = [(rule.edge or edge) == "split" for rule in rules.rules]
    if not any(split) and edge != "split":
        return []
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
