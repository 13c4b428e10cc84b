"""From spans of characters to one weight a token, for a whole batch at once.

Only the edges of spans are looked up (``searchsorted`` on the tokens' byte ends), so the cost goes
by spans, not by tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.tokens import Encoded

IGNORED = -100  # the label that every trainer's cross-entropy leaves out

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CharacterSpans:
    """Spans in a batch, sorted and disjoint; starts and ends are characters of text ``rows[i]``."""

    rows: Int64s
    starts: Int64s
    ends: Int64s


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
    claims: list[tuple[CharacterSpans, float]],
    *,
    scales: CharacterSpans | None = None,
    scale_weights: Float32s | None = None,
) -> Weighed:
    """Outputs weigh 1 or what *scales* give them, the rest 0; each rule multiplies what it claims.

    ``scale_weights[i]`` is the weight of span *i* of *scales*.

    The first token of a row has no prediction and never carries loss: a trainer that shifts
    weights over concatenated rows would give it to the neighbour.
    """
    bytes_of = _BytePositions(encoded, texts)
    tokens = len(encoded.ids)
    spoken = _tokens_of(encoded, bytes_of, outputs, whole=True)
    scale = _paint(tokens, spoken, np.float32(1), np.float32(0))
    if scales is not None and scale_weights is not None and len(scale_weights):
        scale *= _spread(encoded, bytes_of, scales, scale_weights)
    own, base = scale.copy(), scale.astype(bool)
    claimed: list[TokenSpans] = []
    trained: list[int] = []
    for spans, weight in claims:
        mine = _tokens_of(encoded, bytes_of, spans, whole=False)
        scale *= _paint(tokens, mine, np.float32(weight), np.float32(1))
        claimed.append(mine)
        trained.append(_count(base, mine))
    firsts = encoded.firsts
    scale[firsts[:-1][firsts[:-1] < firsts[1:]]] = 0
    labels = np.where(scale != 0, encoded.ids, np.int32(IGNORED))
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


def _tokens_of(
    encoded: Encoded, bytes_of: _BytePositions, spans: CharacterSpans, *, whole: bool
) -> TokenSpans:
    """The tokens of the spans: one that edges cut goes where most of its bytes are.

    A tie goes to the spans; what several spans have of one token adds up. With *whole*, a token
    that a span's start cuts stays outside in any case: part of it is given by the prompt, so the
    model never emits it.
    """
    start, end = _joined(bytes_of(spans.rows, spans.starts), bytes_of(spans.rows, spans.ends))
    ends = encoded.ends
    # Tokens that share one character have equal ends: `right` keeps them on one side of an edge.
    first = np.searchsorted(ends, start, side="right")
    stop = np.searchsorted(ends, end, side="right")
    begun, stopped = _cuts(ends, first, start), _cuts(ends, stop, end)
    inner = TokenSpans(first + begun, np.maximum(stop, first + begun), 0, 0)
    cut = np.unique(np.concatenate((first[begun], stop[stopped])))
    covered = _covered(start, end, ends[cut]) - _covered(start, end, _token_starts(ends, cut))
    taken = 2 * covered >= ends[cut] - _token_starts(ends, cut)
    if whole:
        taken &= ~np.isin(cut, first[begun])
    firsts = np.concatenate((inner.firsts, cut[taken]))
    stops = np.concatenate((inner.stops, cut[taken] + 1))
    order = np.argsort(firsts, kind="stable")
    firsts, stops = firsts[order], stops[order]
    held = firsts < stops
    return TokenSpans(firsts[held], stops[held], len(spans.starts), len(cut))


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
    return values[last] if len(ends) else np.zeros(0, np.float32)


def _joined(start: Int64s, end: Int64s) -> tuple[Int64s, Int64s]:
    """Spans that touch are one: a token that only their border cuts lies in both of them."""
    if not len(start):
        return start, end
    apart = start[1:] != end[:-1]
    return start[np.append(True, apart)], end[np.append(apart, True)]


def _token_starts(ends: Int64s, tokens: Int64s) -> Int64s:
    return np.where(tokens > 0, ends[tokens - 1], 0) if len(ends) else tokens


def _cuts(ends: Int64s, tokens: Int64s, edges: Int64s) -> npt.NDArray[np.bool_]:
    """Whether each edge lies inside its token, with bytes of the token on both sides."""
    inside = tokens < len(ends)
    inside[inside] = _token_starts(ends, tokens[inside]) < edges[inside]
    return inside


def _covered(start: Int64s, end: Int64s, positions: Int64s) -> Int64s:
    """How many bytes before each position lie in the spans."""
    if not len(start):
        return np.zeros(len(positions), np.int64)
    before = np.concatenate(([0], np.cumsum(end - start)))
    index = np.searchsorted(start, positions, side="right")
    past = np.maximum(end[np.maximum(index - 1, 0)] - positions, 0)
    return np.asarray(before[index] - np.where(index > 0, past, 0), np.int64)


def _paint(tokens: int, spans: TokenSpans, value: np.float32, elsewhere: np.float32) -> Float32s:
    """One number a token: *value* in the spans, *elsewhere* between them."""
    edges = np.empty(2 * len(spans.firsts) + 2, np.int64)
    edges[0], edges[-1] = 0, tokens
    edges[1:-1:2], edges[2:-1:2] = spans.firsts, spans.stops
    values = np.full(len(edges) - 1, elsewhere, np.float32)
    values[1::2] = value
    return np.repeat(values, np.diff(edges))


def _count(flags: npt.NDArray[np.bool_], spans: TokenSpans) -> int:
    """How many of the spans' tokens have their flag set."""
    before = np.concatenate(([0], np.cumsum(flags)))
    return int((before[spans.stops] - before[spans.firsts]).sum())
