"""From spans of characters to one weight a token, for a whole batch at once.

Only the edges of spans are looked up (``searchsorted`` on the tokens' byte ends), so the cost goes
by spans, not by tokens. An empty token goes where the byte before it goes; where its row has none,
no span claims it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.tokens import Encoded

IGNORED = -100  # the label that every trainer's cross-entropy leaves out
EDGES = ("any", "contained", "majority", "fraction", "split")

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CharacterSpans:
    """Spans in a batch, sorted and disjoint; starts and ends are characters of text ``rows[i]``."""

    rows: Int64s
    starts: Int64s
    ends: Int64s


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
class TokenSpans:
    """Disjoint ranges of tokens, ``firsts[i]`` up to ``stops[i]`` of the flat batch, sorted.

    ``spans`` are how many spans of characters they come from, ``straddling`` how many tokens lay
    across an edge of one.
    """

    firsts: Int64s
    stops: Int64s
    spans: int
    straddling: int


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
) -> Weighed:
    """Outputs weigh 1 or what *scales* give them, the rest 0; each rule multiplies what it claims.

    ``scale_weights[i]`` is the weight of span *i* of *scales*. With *everything*, all tokens are
    outputs. Products are float32, taken in the order of *claims*. A label is live where the weight
    is not 0, or would not be but for zeros of claims that ``count``.

    The first token of a row has no prediction and never carries loss: a trainer that shifts
    weights over concatenated rows would give it to the neighbour. Raises ValueError for an edge
    that is not one of EDGES.
    """
    bytes_of = _BytePositions(encoded, texts)
    tokens = len(encoded.ids)
    spoken = _all_tokens(encoded) if everything else _outputs(_touch(encoded, bytes_of, outputs))
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
        mine, factors = _claim(_touch(encoded, bytes_of, claim.spans), claim)
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
    if (scale_weights is not None and (scale_weights < 0).any()) or any(
        c.weight < 0 for c in claims
    ):
        scale += np.float32(0)  # no -0.0, which differs from 0 on disk
    labels = np.where(live != 0, encoded.ids, np.int32(IGNORED))
    return Weighed(labels, scale, own, spoken, claimed, trained)


class _BytePositions:
    """Character positions to byte positions, by counting the bytes that start a character."""

    def __init__(self, encoded: Encoded, texts: list[str]) -> None:
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self._texts = np.concatenate(([0], np.cumsum(lengths)))
        self._byte_starts = encoded.starts
        self._leads: Int64s | None = None
        if self._texts[-1] != len(encoded.text):
            leads = np.flatnonzero((encoded.text & 0xC0) != 0x80)
            self._leads = np.append(leads, len(encoded.text))

    def __call__(self, rows: Int64s, characters: Int64s) -> Int64s:
        if self._leads is None:
            return np.asarray(self._byte_starts[rows] + characters, np.int64)
        return np.asarray(self._leads[self._texts[rows] + characters], np.int64)


@dataclass(frozen=True, slots=True)
class _Touched:
    """Tokens by where they lie: in the spans, or across an edge of them.

    inner, [runs], may be empty: ``firsts`` and ``stops`` of those inside. ``cut``, sorted: those
    across, with their ``widths`` and how many bytes of them are ``inside``. ``entered``: those in
    which a span starts. ``spans``: how many there are.
    """

    firsts: Int64s
    stops: Int64s
    cut: Int64s
    widths: Int64s
    inside: Int64s
    entered: Int64s
    spans: int

    def mostly(self) -> Flags:
        """The cut tokens that the spans have at least half of; shares of several add up."""
        return np.asarray(2 * self.inside >= self.widths)

    def give(self, taken: Flags) -> tuple[TokenSpans, Int64s, Int64s]:
        """The inner tokens and those *taken*; of each range, bytes inside and width (or 1, 1)."""
        ones = np.ones(len(self.firsts), np.int64)
        firsts = np.concatenate((self.firsts, self.cut[taken]))
        stops = np.concatenate((self.stops, self.cut[taken] + 1))
        inside = np.concatenate((ones, self.inside[taken]))
        widths = np.concatenate((ones, self.widths[taken]))
        order = np.argsort(firsts, kind="stable")
        order = order[firsts[order] < stops[order]]
        spans = TokenSpans(firsts[order], stops[order], self.spans, len(self.cut))
        return spans, inside[order], widths[order]


def _touch(encoded: Encoded, bytes_of: _BytePositions, spans: CharacterSpans) -> _Touched:
    """Where tokens lie to the spans; spans that touch are one."""
    start = bytes_of(spans.rows, spans.starts)
    end = bytes_of(spans.rows, spans.ends)
    rows, start, end = _joined(spans.rows, start, end)
    ends, bound = encoded.ends, encoded.firsts[rows + 1]
    # Tokens that share one character may have equal ends: `right` keeps them on one side of an
    # edge, and `bound` keeps the next row's, which can begin with empty ones, out of this row.
    first = np.minimum(np.searchsorted(ends, start, side="right"), bound)
    stop = np.minimum(np.searchsorted(ends, end, side="right"), bound)
    base = encoded.starts[rows]
    begun, stopped = _cuts(ends, first, start, bound, base), _cuts(ends, stop, end, bound, base)
    inner = first + begun
    both = np.concatenate((first[begun], stop[stopped]))
    cut, index = np.unique(both, return_index=True)
    left = _token_starts(ends, cut, np.concatenate((base[begun], base[stopped]))[index])
    right = ends[cut]
    inside = _covered(start, end, right) - _covered(start, end, left)
    return _Touched(
        inner, np.maximum(stop, inner), cut, right - left, inside, first[begun], len(spans.starts)
    )


def _all_tokens(encoded: Encoded) -> TokenSpans:
    """Every row as one span."""
    firsts, stops = encoded.firsts[:-1], encoded.firsts[1:]
    held = firsts < stops
    return TokenSpans(firsts[held], stops[held], int(held.sum()), 0)


def _outputs(touched: _Touched) -> TokenSpans:
    """By majority, but a token that an output's start cuts stays outside in any case.

    Part of it is given by the prompt, so the model never emits it.
    """
    return touched.give(touched.mostly() & ~np.isin(touched.cut, touched.entered))[0]


def _claim(touched: _Touched, claim: Claimed) -> tuple[TokenSpans, Float32s]:
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
    encoded: Encoded, bytes_of: _BytePositions, spans: CharacterSpans, weights: Float32s
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
    bare = np.clip(bare, encoded.firsts[:-1], encoded.firsts[1:])
    for row in np.flatnonzero(bare > encoded.firsts[:-1]).tolist():
        spread[encoded.firsts[row] : bare[row]] = 1
    return spread


def _joined(rows: Int64s, start: Int64s, end: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Spans of a row that touch are one: a token that only their border cuts lies in both."""
    if not len(start):
        return rows, start, end
    apart = (start[1:] != end[:-1]) | (rows[1:] != rows[:-1])
    begin = np.append(True, apart)
    return rows[begin], start[begin], end[np.append(apart, True)]


def _token_starts(ends: Int64s, tokens: Int64s, rows: Int64s) -> Int64s:
    """Where each token starts; its row does at *rows*."""
    # A row before may have text and no tokens: then the token before ends ahead of this row.
    before = np.where(tokens > 0, ends[tokens - 1], 0) if len(ends) else tokens
    return np.asarray(np.maximum(before, rows), np.int64)


def _cuts(ends: Int64s, tokens: Int64s, edges: Int64s, bounds: Int64s, rows: Int64s) -> Flags:
    """Whether each edge lies inside its token, with bytes of the token on both sides."""
    inside = tokens < bounds
    inside[inside] = _token_starts(ends, tokens[inside], rows[inside]) < edges[inside]
    return inside


def _covered(start: Int64s, end: Int64s, positions: Int64s) -> Int64s:
    """How many bytes before each position lie in the spans."""
    if not len(start):
        return np.zeros(len(positions), np.int64)
    before = np.concatenate(([0], np.cumsum(end - start)))
    index = np.searchsorted(start, positions, side="right")
    past = np.maximum(end[np.maximum(index - 1, 0)] - positions, 0)
    return np.asarray(before[index] - np.where(index > 0, past, 0), np.int64)


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
