"""Weights of tokens against a reference that goes byte by byte."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tokens import Encoded, Paths
from pipeline.weights import IGNORED, CharacterSpans, Claimed, weigh

NO_PATHS = Paths(fast=0, reference=0, repaired=0, checked=0)
TEXTS = st.lists(st.text(st.sampled_from("ab é中🙂"), max_size=12), min_size=1, max_size=4)


def encoded_at(texts: list[str], cuts: list[list[int]]) -> Encoded:
    """A batch whose row *i* is cut into tokens at the byte positions ``cuts[i]``."""
    ids, ends, firsts, starts = [], [], [0], [0]
    for text, cut in zip(texts, cuts, strict=True):
        size = len(text.encode())
        inner = sorted({c % size for c in cut} - {0}) if size else []
        stops = [*inner, size] if size else []
        ends += [starts[-1] + stop for stop in stops]
        ids += [100 + i for i in range(len(stops))]
        firsts.append(len(ids))
        starts.append(starts[-1] + size)
    return Encoded(
        ids=np.array(ids, np.int32),
        firsts=np.array(firsts, np.int64),
        ends=np.array(ends, np.int64),
        text=np.frombuffer("".join(texts).encode(), np.uint8),
        starts=np.array(starts, np.int64),
        paths=NO_PATHS,
    )


def spans_of(spans: list[tuple[int, int, int]]) -> CharacterSpans:
    flat = np.array(spans, np.int64).reshape(-1, 3)
    return CharacterSpans(flat[:, 0], flat[:, 1], flat[:, 2])


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[str], Encoded, list[tuple[int, int, int]]]:
    texts = draw(TEXTS)
    cuts = [draw(st.lists(st.integers(0, 60), max_size=8)) for _ in texts]
    spans = []
    for row, text in enumerate(texts):
        edges = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
        spans += [(row, a, b) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    return texts, encoded_at(texts, cuts), spans


def bytes_inside(texts: list[str], span: tuple[int, int, int]) -> set[int]:
    row, start, end = span
    before = sum(len(t.encode()) for t in texts[:row])
    a = before + len(texts[row][:start].encode())
    return set(range(a, a + len(texts[row][start:end].encode())))


def token_bytes(encoded: Encoded, token: int) -> set[int]:
    start = int(encoded.ends[token - 1]) if token else 0
    return set(range(start, int(encoded.ends[token])))


@given(batches())
def test_a_straddling_token_goes_where_most_of_it_lies(
    batch: tuple[list[str], Encoded, list[tuple[int, int, int]]],
) -> None:
    texts, encoded, spans = batch
    everything = spans_of([(row, 0, len(text)) for row, text in enumerate(texts) if text])
    weighed = weigh(encoded, texts, everything, [Claimed(spans_of(spans), 0.5)])
    inside = set().union(*(bytes_inside(texts, span) for span in spans))
    for token in range(len(encoded.ids)):
        mine = token_bytes(encoded, token)
        expected = 0.5 if 2 * len(mine & inside) >= len(mine) else 1.0
        if token in encoded.firsts[:-1]:
            expected = 0.0
        assert weighed.loss_scale[token] == np.float32(expected)
    assert weighed.claims[0].spans == len(spans)


@given(batches())
def test_an_output_trains_no_token_that_its_start_cuts(
    batch: tuple[list[str], Encoded, list[tuple[int, int, int]]],
) -> None:
    texts, encoded, spans = batch
    weighed = weigh(encoded, texts, spans_of(spans), [])
    inside = set().union(*(bytes_inside(texts, span) for span in spans))
    for token in range(len(encoded.ids)):
        mine = token_bytes(encoded, token)
        # A byte that trains after one that does not, in one token: an output starts there.
        begun = any(b in inside and b - 1 not in inside for b in mine if b > min(mine))
        expected = 2 * len(mine & inside) >= len(mine) and not begun
        if token in encoded.firsts[:-1]:
            expected = False
        assert weighed.loss_scale[token] == expected


@given(batches())
def test_a_label_is_ignored_exactly_where_the_weight_is_zero(
    batch: tuple[list[str], Encoded, list[tuple[int, int, int]]],
) -> None:
    texts, encoded, spans = batch
    everything = spans_of([(row, 0, len(text)) for row, text in enumerate(texts) if text])
    weighed = weigh(encoded, texts, everything, [Claimed(spans_of(spans), 0.0)])
    assert ((weighed.labels == IGNORED) == (weighed.loss_scale == 0)).all()
    live = weighed.labels != IGNORED
    assert (weighed.labels[live] == encoded.ids[live]).all()


def test_weights_of_several_rules_multiply() -> None:
    texts = ["abcdef"]
    encoded = encoded_at(texts, [[1, 2, 3, 4, 5]])
    weighed = weigh(
        encoded,
        texts,
        spans_of([(0, 0, 6)]),
        [Claimed(spans_of([(0, 1, 4)]), 0.5), Claimed(spans_of([(0, 3, 5)]), 3.0)],
    )
    assert weighed.loss_scale.tolist() == [0, 0.5, 0.5, 1.5, 3, 1]
    assert weighed.trained_claims == [3, 2]


def test_the_first_token_of_every_row_carries_no_loss() -> None:
    texts = ["ab", "", "cd"]
    encoded = encoded_at(texts, [[1], [], [1]])
    weighed = weigh(encoded, texts, spans_of([(0, 0, 2), (2, 0, 2)]), [])
    assert weighed.loss_scale.tolist() == [0, 1, 0, 1]
    assert weighed.labels.tolist() == [IGNORED, 101, IGNORED, 101]


def test_an_empty_batch_weighs_nothing() -> None:
    weighed = weigh(encoded_at([], []), [], spans_of([]), [Claimed(spans_of([]), 0.0)])
    assert len(weighed.labels) == len(weighed.loss_scale) == 0


def test_tokens_that_share_a_character_stay_on_one_side() -> None:
    """The slow path gives equal ends to the tokens of one emoji."""
    texts = ["🙂a"]
    encoded = Encoded(
        ids=np.array([1, 2, 3, 4], np.int32),
        firsts=np.array([0, 4]),
        ends=np.array([4, 4, 4, 5]),
        text=np.frombuffer(texts[0].encode(), np.uint8),
        starts=np.array([0, 5]),
        paths=NO_PATHS,
    )
    weighed = weigh(encoded, texts, spans_of([(0, 0, 2)]), [Claimed(spans_of([(0, 0, 1)]), 0.25)])
    assert weighed.loss_scale.tolist() == [0, 0.25, 0.25, 1]


def test_straddling_tokens_are_counted() -> None:
    texts = ["abcdef"]
    encoded = encoded_at(texts, [[3]])
    weighed = weigh(encoded, texts, spans_of([(0, 0, 6)]), [Claimed(spans_of([(0, 2, 5)]), 0.0)])
    assert weighed.claims[0].straddling == 2
    assert weighed.outputs.straddling == 0


def test_many_spans_in_one_token_add_up() -> None:
    texts = ["abcdefghij"]
    encoded = encoded_at(["z" + texts[0]], [[1]])
    few = spans_of([(0, 1, 3), (0, 5, 6), (0, 8, 9)])
    many = spans_of([(0, 1, 3), (0, 5, 6), (0, 8, 10)])
    everything = spans_of([(0, 0, 11)])
    weighed = weigh(encoded, ["z" + texts[0]], everything, [Claimed(few, 0.5), Claimed(many, 0.25)])
    assert weighed.loss_scale.tolist() == [0, 0.25]


def test_matches_that_touch_are_one() -> None:
    """A pattern that claims each letter alone claims the whole word's token."""
    encoded = encoded_at(["xword"], [[1]])
    letters = spans_of([(0, i, i + 1) for i in range(1, 5)])
    weighed = weigh(encoded, ["xword"], spans_of([(0, 0, 5)]), [Claimed(letters, 0.5)])
    assert weighed.loss_scale.tolist() == [0, 0.5]
    assert weighed.claims[0].spans == 4
    assert weighed.claims[0].straddling == 0


@given(batches(), st.data())
def test_a_token_has_the_own_weight_of_most_of_it(
    batch: tuple[list[str], Encoded, list[tuple[int, int, int]]], data: st.DataObject
) -> None:
    """Spans and the gaps between them count alike; of two equal shares the earlier decides."""
    texts, encoded, spans = batch
    weights = [float(data.draw(st.sampled_from([0.0, 0.25, 0.5, 2.0]))) for _ in spans]
    everything = spans_of([(row, 0, len(text)) for row, text in enumerate(texts) if text])
    weighed = weigh(
        encoded,
        texts,
        everything,
        [],
        scales=spans_of(spans),
        scale_weights=np.array(weights, np.float32),
    )
    tiles: list[tuple[int, float]] = []  # the tile and the weight of each byte
    by_byte = {b: i for i, span in enumerate(spans) for b in bytes_inside(texts, span)}
    tile = 0
    for byte in range(len(encoded.text)):
        mine = by_byte.get(byte, -1)
        if byte and mine != by_byte.get(byte - 1, -1):
            tile += 1
        tiles.append((tile, weights[mine] if mine >= 0 else 1.0))
    for token in range(len(encoded.ids)):
        if token in encoded.firsts[:-1]:
            continue
        shares: dict[tuple[int, float], int] = {}
        for byte in sorted(token_bytes(encoded, token)):
            shares[tiles[byte]] = shares.get(tiles[byte], 0) + 1
        best = max(shares, key=lambda t: (shares[t], -t[0]))
        assert weighed.own[token] == weighed.loss_scale[token] == np.float32(best[1])
