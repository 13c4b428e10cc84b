"""What ``--profile ms-swift`` does as ms-swift does it, where we would not.

Read from its version 4.6 and held to its own output; see ``docs/ms-swift.md``. A message's
``loss_scale`` replaces what rules say of it there, ``loss: true`` brings a message back that the
base leaves out, and stop tokens weigh 1 whatever their message weighs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.conversation import Conversation
from pipeline.regions import Turn
from pipeline.rules import Claim, RuleSet
from pipeline.spans import Span, subtract
from pipeline.tokens.encoded import Encoded
from pipeline.weights import IGNORED, Weighed

if TYPE_CHECKING:  # slow to import, and reweighting needs none
    from pipeline.sampled import Place

_NUMBERS = ("weight", "loss_scale")
_SWITCHES = ("train", "loss")


def own_weights(conversation: Conversation) -> tuple[set[int], set[int]]:
    """The messages that have a number for a weight, and those that are switched on."""
    messages = list(enumerate(conversation.messages))
    numbers = {i for i, m in messages if any(m.get(key) is not None for key in _NUMBERS)}
    return numbers, {i for i, m in messages if any(m.get(key) for key in _SWITCHES)}


def exempt_weighted(
    claims: Sequence[Claim],
    turns: Sequence[Turn],
    rules: RuleSet,
    *,
    weighted: Collection[int],
    switched: Collection[int] = (),
) -> list[Claim]:
    """The claims without those on messages that have a weight, or are *switched* on, themselves."""
    history = {m.first for m in rules.matchers if m.entry.scope == "history"}
    starts, ends, owners = [], [], []
    for turn in sorted(turns, key=lambda turn: turn.ranges[0].start):
        for start, end in turn.outputs:
            starts.append(start)
            ends.append(end)
            owners.append(turn.message)
    kept: list[Claim] = []
    for claim in claims:
        i = bisect_right(starts, claim.start) - 1
        own = switched if claim.rule in history else weighted
        if i < 0 or claim.start >= ends[i] or owners[i] not in own:
            kept.append(claim)
    return kept


def exempt_sampled(claims: Sequence[Claim], places: Sequence[Place], rules: RuleSet) -> list[Claim]:
    """The claims without what they say of runs, which ms-swift's rules do not read.

    Its base it leaves aside only where ids have weights.
    """
    if not places:
        return list(claims)
    history = {m.first for m in rules.matchers if m.entry.scope == "history"}
    kept: list[Claim] = []
    for claim in claims:
        exempt = [
            Span(place.start, place.end)
            for place in places
            if claim.rule not in history or place.run.weights
        ]
        rest = subtract([Span(claim.start, claim.end)], exempt)
        kept += [claim._replace(start=start, end=end) for start, end in rest]
    return kept


def settle_stops(
    weighed: Weighed,
    encoded: Encoded,
    rows: Sequence[tuple[str, Sequence[Turn]]],
    *,
    everything: bool,
) -> None:
    """Stop tokens weigh 1 in the last turn, and after a trained token; else 0. In place.

    With base ``all`` (*everything*) they weigh 1 everywhere. *rows* are texts and turns.
    """
    scale, labels = weighed.loss_scale, weighed.labels
    for row, (text, turns) in enumerate(rows):
        begin = encoded.starts[row]
        speaking = sorted(
            (turn for turn in turns if turn.role == "assistant"), key=lambda turn: turn.ranges
        )
        for turn in speaking:
            if turn.stop < 0 or not turn.outputs:
                continue
            edges = [len(text[:at].encode()) for at in (turn.stop, turn.outputs[-1].end)]
            first, stop = np.searchsorted(encoded.ends, begin + np.array(edges), side="right")
            # A text may be a stop token alone, and a row's first token never carries loss.
            first = max(first, encoded.firsts[row] + 1)
            before = scale[first - 1] > 0
            weight = 1 if everything or before or turn is speaking[-1] else 0
            scale[first:stop] = weight
            labels[first:stop] = encoded.ids[first:stop] if weight else IGNORED
