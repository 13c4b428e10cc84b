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
    """Tokens ``firsts[i]`` to ``stops[i]`` of the flat batch; ``straddling`` lay across an edge."""

    firsts: Int64s
    stops: Int64s
    straddling: int


@dataclass(frozen=True, slots=True)
class Weighed:
    """``labels`` and ``loss_scale`` of the flat batch, and what each rule did.

    ``claims[r]`` are the tokens that rule *r* claimed; ``trained_claims[r]`` how many of them
    carried loss before any rule.
    """

    labels: Int32s
    loss_scale: Float32s
    outputs: TokenSpans
    claims: list[TokenSpans]
    trained_claims: list[int]


def weigh(
    encoded: Encoded,
    texts: list[str],
    outputs: CharacterSpans,
    claims: list[tuple[CharacterSpans, float]],
) -> Weighed:
    """Outputs weigh 1, the rest 0, and each rule multiplies what it claims.

    The first token of a row has no prediction and never carries loss: a trainer that shifts
    weights over concatenated rows would give it to the neighbour.
    """
    bytes_of = _BytePositions(encoded, texts)
    tokens = len(encoded.ids)
    spoken = _tokens_of(encoded, bytes_of, outputs, whole=True)
    scale = _paint(tokens, spoken, np.float32(1), np.float32(0))
    base = scale.astype(bool)
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
    return Weighed(labels, scale, spoken, claimed, trained)


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
    """The tokens of each span: one that an edge cuts goes where most of its bytes are.

    A tie goes to the span. With *whole*, a token that the start cuts stays outside in any case:
    part of it is given by the prompt, so the model never emits it.
    """
    start, end = bytes_of(spans.rows, spans.starts), bytes_of(spans.rows, spans.ends)
    ends = encoded.ends
    # Tokens that share one character have equal ends: `right` keeps them on one side of an edge.
    first = np.searchsorted(ends, start, side="right")
    stop = np.searchsorted(ends, end, side="right")
    last = max(len(ends) - 1, 0)
    cut_first, inside_first = _cut(ends, np.minimum(first, last), start)
    cut_stop, inside_stop = _cut(ends, np.minimum(stop, last), end)
    size_first, size_stop = cut_first + inside_first, cut_stop + inside_stop
    straddles_first = (cut_first > 0) & (inside_first > 0)
    straddles_stop = (cut_stop > 0) & (inside_stop > 0)
    # `inside` is the part after the edge: the span's side at its start, the other side at its end.
    leave = straddles_first & ((2 * inside_first < size_first) | whole)
    take = straddles_stop & (2 * cut_stop >= size_stop)
    # One token that both edges cut holds the whole span: it goes by the span's share of it.
    both = straddles_first & straddles_stop & (first == stop)
    held = both & ~np.bool_(whole) & (2 * (end - start) >= size_first)
    first = np.where(both, first, first + leave)
    stop = np.where(both, first + held, stop + take)
    stop = np.maximum(first, stop)
    # Two neighbours can tie for one token: the earlier span has it.
    first[1:] = np.maximum(first[1:], stop[:-1])
    stop = np.maximum(first, stop)
    straddling = int(straddles_first.sum() + (straddles_stop & ~both).sum())
    return TokenSpans(first, stop, straddling)


def _cut(ends: Int64s, token: Int64s, edge: Int64s) -> tuple[Int64s, Int64s]:
    """Bytes of *token* before and after *edge*; (0, 0) in an empty batch."""
    if not len(ends):
        nothing = np.zeros(len(edge), np.int64)
        return nothing, nothing
    token_end = ends[token]
    token_start = np.where(token > 0, ends[token - 1], 0)
    return np.maximum(edge - token_start, 0), np.maximum(token_end - edge, 0)


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
