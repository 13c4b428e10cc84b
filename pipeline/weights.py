"""From spans of characters to one weight a token, for a whole batch at once.

``edges`` says which tokens lie in spans, this what that makes of their weights and labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.edges import BytePositions, CharacterSpans, TokenSpans, Touched, touch
from pipeline.policy import EDGES
from pipeline.tokens.encoded import Encoded

IGNORED = -100  # the label that every trainer's cross-entropy leaves out

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Claimed:
    """What one rule claims of a batch, and the weight that multiplies it.

    ``edge`` is one of EDGES: which of the tokens that lie across an edge of the spans belong to
    them. ``any``: all. ``contained``: none. ``majority``: those with at least half of their bytes
    inside. ``fraction``: all, multiplied by 1 + (weight - 1) x the share of bytes inside.
    ``split``: the text was cut there before it was tokenized; what lies across all the same goes
    by majority. With ``count``, a token whose weight this rule makes 0 keeps its label.
    """

    spans: CharacterSpans
    weight: float
    edge: str = "majority"
    count: bool = False


@dataclass(frozen=True, slots=True)
class Weighed:
    """``labels`` and ``loss_scale`` of the flat batch, and what each rule did.

    ``own`` are the weights before any rule. ``claims[r]`` are the tokens that rule *r* claimed;
    ``trained_claims[r]`` how many of them carried loss before any rule.
    """

    labels: Int32s
    loss_scale: Float32s
    own: Float32s
    outputs: TokenSpans
    claims: list[TokenSpans]
    trained_claims: list[int]


def weigh(
    encoded: Encoded,
    texts: list[str],
    outputs: CharacterSpans,
    claims: Sequence[Claimed],
    *,
    scales: CharacterSpans | None = None,
    scale_weights: Float32s | None = None,
    everything: bool = False,
    bytes_of: BytePositions | None = None,
) -> Weighed:
    """Outputs weigh 1 or what *scales* give them, the rest 0; each rule multiplies what it claims.

    ``scale_weights[i]`` is the weight of span *i* of *scales*. With *everything*, all tokens are
    outputs. *bytes_of* are the batch's, where they are at hand. Products are float32, taken in the
    order of *claims*. A label is live where the weight is not 0, or would not be but for zeros of
    claims that ``count``.

    The first token of a row has no prediction and never carries loss: a trainer that shifts
    weights over concatenated rows would give it to the neighbour. Raises ValueError for an edge
    that is not one of EDGES.
    """
    bytes_of = bytes_of or BytePositions(encoded, texts)
    tokens = len(encoded.ids)
    spoken = _all_tokens(encoded) if everything else _outputs(touch(encoded, bytes_of, outputs))
    scale = _paint(tokens, spoken, np.float32(1), np.float32(0))
    if scales is not None and scale_weights is not None and len(scale_weights):
        scale *= _spread(encoded, bytes_of, scales, scale_weights)
    firsts = encoded.firsts
    scale[firsts[:-1][firsts[:-1] < firsts[1:]]] = 0
    own, live = scale.copy(), scale  # `live` is the product without counted zeros
    trainable = np.concatenate(([0], np.cumsum(scale != 0)))
    claimed: list[TokenSpans] = []
    trained: list[int] = []
    for claim in claims:
        mine, factors = _claim(touch(encoded, bytes_of, claim.spans), claim)
        claimed.append(mine)
        trained.append(int((trainable[mine.stops] - trainable[mine.firsts]).sum()))
        if not len(factors):
            continue
        if claim.count and live is scale and not factors.all():
            live = scale.copy()
        scale *= _paint(tokens, mine, factors, np.float32(1))
        if live is not scale:
            if claim.count:
                factors = np.where(factors == 0, np.float32(1), factors)
            live *= _paint(tokens, mine, factors, np.float32(1))
    scale += np.float32(0)  # a negative weight makes -0.0 of 0, which is another 0 on disk
    labels = np.where(live != 0, encoded.ids, np.int32(IGNORED))
    return Weighed(labels, scale, own, spoken, claimed, trained)


def _all_tokens(encoded: Encoded) -> TokenSpans:
    """Every row as one span."""
    firsts, stops = encoded.firsts[:-1], encoded.firsts[1:]
    held = firsts < stops
    return TokenSpans(firsts[held], stops[held], int(held.sum()), 0)


def _outputs(touched: Touched) -> TokenSpans:
    """By majority, but a token that an output's start cuts stays outside in any case.

    Part of it is given by the prompt, so the model never emits it.
    """
    return touched.give(touched.mostly() & ~np.isin(touched.cut, touched.entered))[0]


def _claim(touched: Touched, claim: Claimed) -> tuple[TokenSpans, Float32s]:
    """The tokens of a claim, and the factor of each range of them."""
    if claim.edge not in EDGES:
        raise ValueError(f"edge: expected one of {', '.join(EDGES)}, found {claim.edge!r}")
    taken = touched.mostly()
    if claim.edge in ("any", "fraction", "contained"):
        taken = np.full(len(taken), claim.edge != "contained")
    spans, inside, widths = touched.give(taken)
    if claim.edge == "fraction":
        factors = (claim.weight * inside + (widths - inside)) / widths
        return spans, factors.astype(np.float32)
    return spans, np.full(len(inside), claim.weight, np.float32)


def _spread(
    encoded: Encoded, bytes_of: BytePositions, spans: CharacterSpans, weights: Float32s
) -> Float32s:
    """One weight a token: that of the span, or of the gap between spans, with most of its bytes.

    Unlike a rule's claims, which multiply where they meet, a token has one weight of its own; of
    two equal shares the earlier decides.
    """
    ends = encoded.ends
    edges = np.stack((bytes_of(spans.rows, spans.starts), bytes_of(spans.rows, spans.ends)))
    borders = np.concatenate(([0], edges.T.ravel(), [len(encoded.text)])).astype(np.int64)
    values = np.ones(len(borders) - 1, np.float32)
    values[1::2] = weights
    # Tiles of one weight are one: where else a text was cut (`spans` is, at regions) says nothing.
    begins = np.append(True, np.diff(borders[:-1]) > 0)  # of several at one place the last counts
    values = values[np.append(np.flatnonzero(begins)[1:] - 1, len(values) - 1)]
    borders = np.append(borders[:-1][begins], borders[-1])
    begins = np.append(True, values[1:] != values[:-1])
    values, borders = values[begins], np.append(borders[:-1][begins], borders[-1])
    # Where the last byte of each token lies, and of those that a border cuts, all that they touch.
    last = np.searchsorted(borders, ends - 1, side="right") - 1
    starts = np.concatenate(([0], ends[:-1])) if len(ends) else ends
    first = np.minimum(np.searchsorted(borders, starts, side="right") - 1, last)
    cut = np.flatnonzero(first < last)
    touched = last[cut] - first[cut] + 1
    token = np.repeat(cut, touched)
    tile = np.arange(len(token)) - np.repeat(np.cumsum(touched) - touched, touched) + first[token]
    inside = np.minimum(borders[tile + 1], ends[token]) - np.maximum(borders[tile], starts[token])
    order = np.lexsort((-tile, inside, token))  # of each token the last has most bytes
    best = order[np.cumsum(touched) - 1]
    last[cut] = tile[best]
    spread = values[last] if len(ends) else np.zeros(0, np.float32)
    # Empty tokens that a row begins with have no byte before them but that of another row.
    bare = np.searchsorted(ends, encoded.starts[:-1], side="right")
    for row in np.flatnonzero(bare > encoded.firsts[:-1]).tolist():
        spread[encoded.firsts[row] : bare[row]] = 1
    return spread


def _paint(
    tokens: int, spans: TokenSpans, value: Float32s | np.float32, elsewhere: np.float32
) -> Float32s:
    """One number a token: *value*, one or one for each span, and *elsewhere* between them."""
    edges = np.empty(2 * len(spans.firsts) + 2, np.int64)
    edges[0], edges[-1] = 0, tokens
    edges[1:-1:2], edges[2:-1:2] = spans.firsts, spans.stops
    values = np.full(len(edges) - 1, elsewhere, np.float32)
    values[1::2] = value
    return np.repeat(values, np.diff(edges))
