"""Texts that are tokenized apart, and rows that are put together from their pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tokens.encoded import Encoded, Paths, cut_text, fill_rows, join_pieces
from pipeline.tokens.tokenizer import load_tokenizer
from pipeline.tokens.vocabulary import read_vocabulary
from tests import vocabularies

Piece = tuple[str, list[int]]  # its text, and where in its bytes tokens end


def encode(pieces: list[Piece]) -> Encoded:
    sizes = [len(text.encode()) for text, _ in pieces]
    starts = np.cumsum([0, *sizes]).astype(np.int64)
    flat = [
        int(start) + end for start, (_, ends) in zip(starts, pieces, strict=False) for end in ends
    ]
    return Encoded(
        ids=np.arange(len(flat), dtype=np.int32),
        firsts=np.cumsum([0, *(len(ends) for _, ends in pieces)]).astype(np.int64),
        ends=np.array(flat, np.int64),
        text=np.frombuffer("".join(text for text, _ in pieces).encode(), np.uint8),
        starts=starts,
        paths=Paths(fast=len(pieces), reference=0, repaired=0, checked=0),
    )


@st.composite
def piece(draw: st.DrawFn) -> Piece:
    text = draw(st.text(st.sampled_from("a é🙂"), max_size=5))
    size = len(text.encode())
    if draw(st.integers(0, 3)) == 0:
        return text, []
    return text, [*sorted(draw(st.lists(st.integers(0, size), max_size=4))), size]


@given(st.text(st.sampled_from("aé🙂"), max_size=8), st.lists(st.integers(0, 8), max_size=6))
def test_pieces_meet_at_the_cuts_and_nowhere_else(text: str, places: list[int]) -> None:
    cuts = sorted(min(place, len(text)) for place in places)
    pieces = cut_text(text, cuts)
    assert "".join(pieces) == text
    assert all(pieces) or pieces == [""] == [text]
    borders = {sum(map(len, pieces[:i])) for i in range(1, len(pieces))}
    assert borders == set(cuts) - {0, len(text)}


@given(st.lists(st.lists(piece(), min_size=1, max_size=4), max_size=4))
def test_joined_rows_are_their_pieces_one_after_another(rows: list[list[Piece]]) -> None:
    joined = join_pieces(encode([p for row in rows for p in row]), list(map(len, rows)))
    assert len(joined.firsts) == len(joined.starts) == len(rows) + 1
    number = 0
    for r, row in enumerate(rows):
        first, stop = joined.firsts[r : r + 2].tolist()
        start, end = joined.starts[r : r + 2].tolist()
        assert joined.text[start:end].tobytes().decode() == "".join(text for text, _ in row)
        ends, before = [], start
        for text, some in row:
            ends += [before + e for e in some]
            before += len(text.encode())
        if ends:  # the contract of Encoded, also where the last piece has no token
            ends[-1] = end
        assert joined.ends[first:stop].tolist() == ends
        assert joined.ids[first:stop].tolist() == list(range(number, number + len(ends)))
        number += len(ends)


@given(st.lists(st.tuples(piece(), st.booleans()), max_size=6))
def test_rows_that_are_filled_in_stand_between_the_others(drawn: list[tuple[Piece, bool]]) -> None:
    whole = encode([p for p, _ in drawn])
    others = encode([p for p, filled in drawn if not filled])
    filled = {}
    for row, ((text, ends), apart) in enumerate(drawn):
        tokens = slice(*whole.firsts[row : row + 2])
        if apart:
            filled[row] = (whole.ids[tokens], np.diff(ends, prepend=0), text.encode())
        else:
            at = sum(not f for _, f in drawn[:row])
            others.ids[slice(*others.firsts[at : at + 2])] = whole.ids[tokens]
    found = fill_rows(others, filled)
    for field in ("ids", "firsts", "ends", "starts", "text"):
        assert getattr(found, field).tolist() == getattr(whole, field).tolist()


def test_joining_leaves_the_pieces_as_they_were() -> None:
    pieces = encode([("ab", [1, 2]), (" ", [])])
    joined = join_pieces(pieces, [2])
    assert joined.ends.tolist() == [1, 3]
    assert pieces.ends.tolist() == [1, 2]


@pytest.mark.parametrize("counts", [[1], [3], [2, 0], [2, 1], []])
def test_counts_that_are_not_the_batch_are_an_error(counts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"counts: expected 1 or more .* 2 pieces in all"):
        join_pieces(encode([("a", [1]), ("b", [1])]), counts)


def test_a_text_cut_where_its_tokens_meet_keeps_its_ids(tmp_path: Path) -> None:
    """Cut within a word, it has a token that ends there instead."""
    vocabularies.write(tmp_path, vocabularies.byte_level())
    tokenizer = load_tokenizer(read_vocabulary(tmp_path), engine="reference")
    texts = ["Hello world, they'll see", "", "naïve café 你好"]
    whole = tokenizer.encode(texts)
    pieces = [cut_text(text, cuts) for text, cuts in zip(texts, [[5, 11], [], [5]], strict=True)]
    flat = tokenizer.encode([p for some in pieces for p in some])
    joined = join_pieces(flat, list(map(len, pieces)))
    for field in ("ids", "firsts", "ends", "starts", "text"):
        assert getattr(joined, field).tolist() == getattr(whole, field).tolist()
    word = join_pieces(tokenizer.encode(cut_text("the quick", [6])), [2])
    assert 6 in word.ends
    assert 6 not in tokenizer.encode(["the quick"]).ends
