"""The ``spans`` column of a batch, held to the division of each turn alone."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.division import divide_rows
from pipeline.regions import Region, Turn, divide, end_reasoning
from pipeline.rows import Prepared
from pipeline.scales import Scale, cut_regions, scale_template
from pipeline.source.record import Record
from pipeline.spans import Span

WORDS = [
    "a",
    " ",
    "\n",
    "<think>",
    "</think>",
    "</b>",
    "é",
    "<mm:think>",
    "</mm:think>",
    "<thinking>",
    "<think>\n\n</think>\n\n",
]
WEIGHTS = st.sampled_from([0.0, 0.5, 1.0, 2.0])


@st.composite
def rows(draw: st.DrawFn) -> Prepared:
    """Turns in one range or several, with one output, several, or none; weights of their own."""
    text, turns, scales = "", list[Turn](), list[Scale]()
    for message in range(draw(st.integers(0, 4))):
        text += "".join(draw(st.lists(st.sampled_from(WORDS), max_size=2)))  # nobody's
        start = len(text)
        text += "".join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8)))
        cuts = sorted(draw(st.lists(st.integers(start, len(text)), min_size=4, max_size=4)))
        begin, called, stop, end = cuts
        ranges = [Span(start, len(text))]
        if draw(st.integers(0, 5)) == 0 and start < begin:
            ranges = [Span(start, begin), Span(begin, len(text))]
        speaks = begin < end and draw(st.booleans())
        outputs = [Span(begin, end)] if speaks else []
        if speaks and begin < called < end and draw(st.integers(0, 5)) == 0:
            outputs = [Span(begin, called), Span(called, end)]
        role = draw(st.sampled_from(["user", "assistant", "tool"]))
        turns.append(
            Turn(
                message,
                role,
                [span for span in ranges if span.start < span.end],
                outputs,
                draw(st.sampled_from([-1, stop])) if speaks else -1,
                "prompt",
                draw(st.booleans()),
                draw(st.sampled_from([-1, called])) if speaks else -1,
            )
        )
    if text and draw(st.integers(0, 3)) == 0:
        a, b = sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        scales = [Scale(a, b, draw(WEIGHTS))] if a < b else []
    record = Record("s", 0, 1, raw=b"{}")
    return Prepared(record, text, turns, [], scales)


def one_by_one(prepared: Prepared) -> list[Region]:
    regions: list[Region] = []
    for turn in prepared.turns:
        mine = divide(turn, prepared.text)
        regions += cut_regions(mine, prepared.scales) if prepared.scales else mine
    if prepared.scales:
        regions += scale_template(prepared.turns, prepared.scales)
    return regions


def told(region: Region) -> dict[str, Any]:
    names = ("message", "role", "region", "start", "end", "weight")
    return dict(zip(names, region, strict=True))


@settings(max_examples=300, deadline=None)
@given(st.lists(rows(), max_size=4))
def test_a_batch_is_divided_as_its_turns_are_one_by_one(batch: list[Prepared]) -> None:
    expected = [[told(region) for region in one_by_one(p)] for p in batch]
    assert divide_rows(batch).to_pylist() == expected


def test_an_empty_batch_has_no_spans() -> None:
    assert divide_rows([]).to_pylist() == []


BLOCK = re.compile(r"\s*<((?:\w+:)?think(?:ing)?)>.*?</\1>\s*", re.DOTALL)


@given(st.lists(st.sampled_from(WORDS), max_size=9).map("".join), st.data())
def test_reasoning_ends_where_one_pattern_says(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    block = BLOCK.match(text, start, end)
    assert end_reasoning(text, start, end, opened=False) == (block.end() if block else start)


def test_an_empty_block_ends_with_the_white_space_after_it() -> None:
    text = "<think>\n\n</think>\n\n \nHello"
    assert end_reasoning(text, 0, len(text), opened=False) == text.index("Hello")
    assert [end_reasoning(text, 0, end, opened=False) for end in (18, 19, 20)] == [18, 19, 20]
