"""Weights of tokens against a reference that goes byte by byte."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.edges import CharacterSpans, TokenSpans
from pipeline.policy import EDGES
from pipeline.tokens.encoded import Encoded, Paths
from pipeline.weights import IGNORED, Claimed, Weighed, weigh
from tests import reference

NO_PATHS = Paths(fast=0, reference=0, repaired=0, checked=0)
TEXT = st.text(st.sampled_from("ab é中🙂"), max_size=10)
# The tiniest two make each other vanish in float32.
WEIGHTS = st.sampled_from([0.0, 1.0, 0.5, 2.0, 0.1, 3.7, 1e-30, -1.0, -0.25, -1e-30])


def batch_of(texts: list[str], ends: list[list[int]]) -> Encoded:
    """A batch whose row *i* has tokens that end at the bytes ``ends[i]`` of its text."""
    sizes = [len(text.encode()) for text in texts]
    starts = np.cumsum([0, *sizes])
    flat = [int(start) + end for start, row in zip(starts, ends, strict=False) for end in row]
    return Encoded(
        ids=np.arange(100, 100 + len(flat), dtype=np.int32),
        firsts=np.cumsum([0, *map(len, ends)]).astype(np.int64),
        ends=np.array(flat, np.int64),
        text=np.frombuffer("".join(texts).encode(), np.uint8),
        starts=starts.astype(np.int64),
        paths=NO_PATHS,
    )


def encoded_at(texts: list[str], cuts: list[list[int]]) -> Encoded:
    """A batch whose row *i* is cut into tokens at the byte positions ``cuts[i]``."""
    sizes = [len(text.encode()) for text in texts]
    ends = [[*cut, size] if size else [] for cut, size in zip(cuts, sizes, strict=True)]
    return batch_of(texts, ends)


def spans_of(spans: list[tuple[int, int, int]]) -> CharacterSpans:
    flat = np.array(spans, np.int64).reshape(-1, 3)
    return CharacterSpans(flat[:, 0], flat[:, 1], flat[:, 2])


class Row(NamedTuple):
    """One row's text, and all that is said of it."""

    text: str
    ends: list[int]
    outputs: list[tuple[int, int]]
    claims: list[list[tuple[int, int]]]
    scales: list[tuple[int, int, float]]


def disjoint(text: str) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Sorted spans, of which some touch and some are empty."""
    edges = st.lists(st.integers(0, len(text)), max_size=8).map(sorted)
    return edges.map(lambda e: list(zip(e[::2], e[1::2], strict=False)))


@st.composite
def rows(draw: st.DrawFn, rules: int) -> Row:
    text = draw(TEXT)
    size = len(text.encode())
    # Tokens cut characters, some are empty; a row may have text and no token, or the reverse.
    tokenless = draw(st.integers(0, 3)) == 0
    inner = draw(st.lists(st.integers(0, size), max_size=9))
    ends = [] if tokenless else [*sorted(inner), size]
    scales = [(*span, draw(WEIGHTS)) for span in draw(disjoint(text))]
    claims = [draw(disjoint(text)) for _ in range(rules)]
    return Row(text, ends, draw(disjoint(text)), claims, scales)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Row], list[tuple[float, str, bool]]]:
    rules = draw(st.lists(st.tuples(WEIGHTS, st.sampled_from(EDGES), st.booleans()), max_size=4))
    return draw(st.lists(rows(len(rules)), max_size=4)), rules


def flat_spans(spans: list[list[tuple[int, int]]]) -> CharacterSpans:
    return spans_of([(row, *span) for row, some in enumerate(spans) for span in some])


def weigh_batch(
    batch: list[Row], rules: list[tuple[float, str, bool]], *, scaled: bool, everything: bool
) -> Weighed:
    texts = [row.text for row in batch]
    scales = [(r, *scale) for r, row in enumerate(batch) for scale in row.scales]
    return weigh(
        batch_of(texts, [row.ends for row in batch]),
        texts,
        flat_spans([row.outputs for row in batch]),
        [
            Claimed(flat_spans([row.claims[rule] for row in batch]), weight, edge, count)
            for rule, (weight, edge, count) in enumerate(rules)
        ],
        scales=spans_of([scale[:3] for scale in scales]) if scaled else None,
        scale_weights=np.array([s[3] for s in scales], np.float32) if scaled else None,
        everything=everything,
    )


def weigh_slowly(
    batch: list[Row], rules: list[tuple[float, str, bool]], *, scaled: bool, everything: bool
) -> list[reference.SlowRow]:
    weighed, number = [], 100
    for row in batch:
        tokens, start = [], 0
        for end in row.ends:
            tokens.append(reference.SlowToken(number, start, end))
            number, start = number + 1, end
        claims = [
            reference.SlowClaim(spans, *rule) for spans, rule in zip(row.claims, rules, strict=True)
        ]
        scales = row.scales if scaled else []
        weighed.append(
            reference.weigh_row(
                row.text, tokens, row.outputs, claims, scales, everything=everything
            )
        )
    return weighed


def tokens_in(spans: TokenSpans) -> list[int]:
    pairs = zip(spans.firsts.tolist(), spans.stops.tolist(), strict=True)
    return [token for first, stop in pairs for token in range(first, stop)]


def numbered(batch: list[Row], sets: list[set[int]]) -> list[int]:
    """Tokens of rows as tokens of the batch."""
    before = np.cumsum([0, *(len(row.ends) for row in batch)]).tolist()
    return [first + t for first, some in zip(before, sets, strict=False) for t in sorted(some)]


@settings(max_examples=400)
@given(batches(), st.booleans(), st.booleans())
def test_a_batch_weighs_what_its_rows_do_byte_by_byte(
    drawn: tuple[list[Row], list[tuple[float, str, bool]]], scaled: bool, everything: bool
) -> None:
    batch, rules = drawn
    weighed = weigh_batch(batch, rules, scaled=scaled, everything=everything)
    slow = weigh_slowly(batch, rules, scaled=scaled, everything=everything)
    assert weighed.loss_scale.tolist() == [w for row in slow for w in row.weights]
    assert weighed.labels.tolist() == [label for row in slow for label in row.labels]
    assert weighed.own.tolist() == [own for row in slow for own in row.own]
    assert tokens_in(weighed.outputs) == numbered(batch, [row.outputs for row in slow])
    for rule, claimed in enumerate(weighed.claims):
        assert tokens_in(claimed) == numbered(batch, [row.claimed[rule] for row in slow])
        assert claimed.straddling == sum(len(row.straddling[rule]) for row in slow)
        assert claimed.spans == sum(len(row.claims[rule]) for row in batch)
        assert weighed.trained_claims[rule] == sum(
            row.own[token] != 0 for row in slow for token in row.claimed[rule]
        )


@given(batches())
def test_a_zero_weight_is_the_zero_that_equals_itself_on_disk(
    drawn: tuple[list[Row], list[tuple[float, str, bool]]],
) -> None:
    weighed = weigh_batch(*drawn, scaled=True, everything=False)
    zeros = weighed.loss_scale == 0
    assert not np.signbit(weighed.loss_scale[zeros]).any()
    assert weighed.loss_scale.dtype == np.float32
    assert weighed.labels.dtype == np.int32


@given(batches())
def test_a_label_is_ignored_exactly_where_the_weight_is_zero_unless_counted(
    drawn: tuple[list[Row], list[tuple[float, str, bool]]],
) -> None:
    batch, rules = drawn
    uncounted = [(weight, edge, False) for weight, edge, _ in rules]
    weighed = weigh_batch(batch, uncounted, scaled=True, everything=True)
    assert ((weighed.labels == IGNORED) == (weighed.loss_scale == 0)).all()


@pytest.mark.parametrize(
    ("edge", "weights"),
    [
        # bytes inside: 1 of 4, 4 of 4, 2 of 4
        ("any", [0.5, 0.5, 0.5]),
        ("contained", [1, 0.5, 1]),
        ("majority", [1, 0.5, 0.5]),
        ("split", [1, 0.5, 0.5]),
        ("fraction", [0.875, 0.5, 0.75]),
    ],
)
def test_an_edge_policy_decides_on_tokens_that_straddle(edge: str, weights: list[float]) -> None:
    texts = ["x" + "abcd" * 3]
    claim = Claimed(spans_of([(0, 4, 11)]), 0.5, edge)
    weighed = weigh(encoded_at(texts, [[1, 5, 9]]), texts, spans_of([(0, 0, 13)]), [claim])
    assert weighed.loss_scale.tolist() == [0, *weights]
    assert weighed.claims[0].straddling == 2


def test_an_unknown_edge_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"edge: expected one of majority, .* found 'most'"):
        weigh(encoded_at([], []), [], spans_of([]), [Claimed(spans_of([]), 1, "most")])


def test_a_counted_zero_keeps_its_label() -> None:
    texts = ["abcdef"]
    counted = Claimed(spans_of([(0, 1, 4)]), 0, count=True)
    plain = Claimed(spans_of([(0, 3, 5)]), 0)
    encoded = encoded_at(texts, [[1, 2, 3, 4, 5]])
    weighed = weigh(encoded, texts, spans_of([(0, 0, 5)]), [counted, plain])
    assert weighed.loss_scale.tolist() == [0, 0, 0, 0, 0, 0]
    assert weighed.labels.tolist() == [IGNORED, 101, 102, IGNORED, IGNORED, IGNORED]


def test_a_negative_weight_trains_away() -> None:
    texts = ["abc"]
    encoded = encoded_at(texts, [[1, 2]])
    claim = Claimed(spans_of([(0, 1, 2)]), -0.5)
    weighed = weigh(encoded, texts, spans_of([(0, 0, 3)]), [claim])
    assert weighed.loss_scale.tolist() == [0, -0.5, 1]
    assert weighed.labels.tolist() == [IGNORED, 101, 102]


def test_a_base_of_everything_trains_all_but_the_first_token_of_a_row() -> None:
    texts = ["abc", "", "d", "ef"]
    encoded = encoded_at(texts, [[1, 2], [], [], [1]])
    weighed = weigh(encoded, texts, spans_of([]), [], everything=True)
    assert weighed.loss_scale.tolist() == [0, 1, 1, 0, 0, 1]
    assert tokens_in(weighed.outputs) == [0, 1, 2, 3, 4, 5]
    assert weighed.outputs.spans == 3


def test_empty_tokens_at_the_start_of_a_row_do_not_go_with_the_row_before() -> None:
    """Else a row's weights would depend on its neighbours in the batch."""
    texts = ["ab", "cd"]
    weighed = weigh(batch_of(texts, [[1, 2], [0, 0, 2]]), texts, spans_of([(0, 0, 2)]), [])
    assert weighed.loss_scale.tolist() == [0, 1, 0, 0, 0]


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
    assert weighed.labels.tolist() == [IGNORED, 101, IGNORED, 103]


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


def test_text_without_tokens_widens_no_token_of_the_next_row() -> None:
    """A WordPiece makes no token of spaces; the next row's first begins with its row."""
    texts = ["  ", "abc"]
    claim = Claimed(spans_of([(0, 0, 1), (1, 0, 2)]), 0.5)
    weighed = weigh(batch_of(texts, [[], [2, 3]]), texts, spans_of([]), [claim], everything=True)
    assert tokens_in(weighed.claims[0]) == [0]
    assert weighed.claims[0].straddling == 0
