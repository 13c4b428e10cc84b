"""Where patterns are looked for in a batch, held to asking each piece of each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.edges import BytePositions
from pipeline.regions import Turn
from pipeline.rules import RuleSet, Talk, compose, parse_rule_file
from pipeline.rules.matching import find_said, said_in
from pipeline.rules.scan import Said, choose_pieces, choose_rows
from pipeline.spans import Span
from pipeline.tokens.encoded import Encoded, Paths, join_texts

WRITTEN = st.text("ab<é世\U0001f600\n", max_size=12)
# What they need: one text, none, one of two, characters of several bytes.
PATTERNS = (r"ab", r"[ab]<", r"a+|b世", r"^é<", r"a|<b", r"\U0001f600a?")


def rules_of(patterns: list[str]) -> RuleSet:
    rules: list[Any] = [
        {"name": f"r{i}", "pattern": p, "weight": 0.5} for i, p in enumerate(patterns)
    ]
    told = {"version": 1, "name": "f", "rules": rules}
    return compose([parse_rule_file(yaml.safe_dump(told, allow_unicode=True), place="f.yaml")])


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    """Turns that say something or nothing, some with a stop token, and text that nobody says."""
    text, turns = draw(WRITTEN), []
    for number in range(draw(st.integers(0, 3))):
        said, stop = draw(WRITTEN), draw(st.sampled_from(["", "a<"]))
        start, end = len(text), len(text) + len(said) + len(stop)
        ended = end - len(stop) if stop else -1
        spoken = [Span(start, end)] if start < end else []
        turns.append(Turn(number, "assistant", spoken, spoken, ended, "", False, -1))
        text += said + stop + draw(WRITTEN)
    return Talk(text, turns, {})


def batch_of(rows: list[Talk]) -> tuple[bytes, list[int], Said]:
    """The text of a batch, where its rows begin, and all that is said in it."""
    flat, starts = join_texts([talk.text.encode() for talk in rows])
    nothing = np.zeros(0, np.int64)
    encoded = Encoded(
        np.zeros(0, np.int32),
        np.zeros(len(rows) + 1, np.int64),
        nothing,
        flat,
        starts,
        Paths(fast=0, reference=0, repaired=0, checked=0),
    )
    pieces = [(row, piece) for row, talk in enumerate(rows) for piece in said_in(talk.turns)]
    at = np.array([row for row, _ in pieces], np.int64)
    bytes_of = BytePositions(encoded, [talk.text for talk in rows])
    said = Said(
        at.tolist(),
        [piece for _, piece in pieces],
        bytes_of(at, np.array([start for _, (_, start, _) in pieces], np.int64)).tolist(),
        bytes_of(at, np.array([end for _, (_, _, end) in pieces], np.int64)).tolist(),
    )
    return flat.tobytes(), starts.tolist(), said


@given(
    st.lists(talks(), max_size=4),
    st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3, unique=True),
)
def test_a_batch_is_claimed_as_its_rows_are_one_by_one(
    rows: list[Talk], patterns: list[str]
) -> None:
    rules = rules_of(patterns)
    data, _, said = batch_of(rows)
    chosen = choose_pieces(rules.matchers, data, said)
    for row, talk in enumerate(rows):
        assert find_said(chosen.get(row, []), talk.text) == rules.claims(talk)


@given(
    st.lists(talks(), max_size=4),
    st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3, unique=True),
)
def test_only_what_has_a_needed_text_is_looked_at(rows: list[Talk], patterns: list[str]) -> None:
    rules = rules_of(patterns)
    data, starts, said = batch_of(rows)

    def has(text: str, needed: tuple[str, ...]) -> bool:
        return not needed or any(part in text for part in needed)

    wanted = {
        (row, matcher.name, piece)
        for row, talk in enumerate(rows)
        for matcher in rules.matchers
        for piece in said_in(talk.turns)
        if has(talk.text[piece[1] : piece[2]], matcher.entry.needed)
    }
    chosen = choose_pieces(rules.matchers, data, said)
    found = {(row, m.name, p) for row, mine in chosen.items() for m, ps in mine for p in ps}
    # An empty piece is not looked at where something is needed, and may be where nothing is.
    assert found == wanted
    assert choose_rows(rules.matchers, data, starts) == [
        row
        for row, talk in enumerate(rows)
        if any(has(talk.text, matcher.entry.needed) for matcher in rules.matchers)
    ]
