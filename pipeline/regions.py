"""The parts of a turn that rules and people speak of: header, reasoning, content, stop token."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipeline.spans import Span
from pipeline.turns import Turn

_OUTPUT = ("reasoning", "content", "stop")  # the regions of an output, in the order of the text
REGIONS = ("input", "header", "reasoning", "content", "stop", "trailing")
_BLOCK = re.compile(r"\s*<((?:\w+:)?think(?:ing)?)>.*?</\1>\s*", re.DOTALL)
_REST_OF_BLOCK = re.compile(r".*?</(?:\w+:)?think(?:ing)?>\s*", re.DOTALL)


class Region(NamedTuple):
    """Characters of one message under one name; the regions of a turn tile its ranges."""

    message: int
    role: str
    name: str
    start: int
    end: int


def divide(turn: Turn, text: str) -> Iterator[Region]:
    """The regions of *turn* in the order of the text, empty ones left out."""
    first = True
    for start, end in turn.ranges:
        cuts = [start]
        names: list[str] = []
        for output in turn.outputs:
            if not (output.start < end and start < output.end):
                continue
            body = turn.stop if start <= turn.stop < output.end else min(output.end, end)
            reasoned = _reasoned(turn, text, output.start, body) if first else output.start
            first = False
            cuts += [output.start, reasoned, body, min(output.end, end)]
            names += ["header" if len(names) == 0 else "trailing", "reasoning", "content", "stop"]
        cuts.append(end)
        names.append("trailing" if names else ("input" if turn.role != "assistant" else "header"))
        for name, (a, b) in zip(names, itertools.pairwise(cuts), strict=True):
            if a < b:
                yield Region(turn.message, turn.role, name, a, b)


def _reasoned(turn: Turn, text: str, start: int, end: int) -> int:
    """Where the reasoning that starts an output ends; *start* where there is none."""
    if turn.opened:
        match = _REST_OF_BLOCK.match(text, start, end)
    elif text.find("</", start, end) >= 0:
        match = _BLOCK.match(text, start, end)
    else:
        match = None
    return match.end() if match else start


def restore_turns(regions: Iterable[Region]) -> Iterator[Turn]:
    """The turns that were divided into *regions* (in ``divide``'s order), without what is not told.

    How a start was found is not stored. Two outputs that touch are told apart by the names'
    order; one that ends with its content and one that is nothing but a stop token are joined.
    """
    by_turn = itertools.groupby(regions, key=lambda region: (region.message, region.role))
    for (message, role), parts in by_turn:
        ranges: list[Span] = []
        outputs: list[Span] = []
        stop = last = -1
        for _, _, name, start, end in parts:
            place = _OUTPUT.index(name) if name in _OUTPUT else -1
            touches = bool(ranges) and ranges[-1].end == start
            if place >= 0:
                _put(outputs, Span(start, end), joined=touches and place > last >= 0)
            _put(ranges, Span(start, end), joined=touches)
            stop = start if name == "stop" else stop
            last = place
        yield Turn(message, role, ranges, outputs, stop, "", False)


def _put(spans: list[Span], span: Span, *, joined: bool) -> None:
    if joined:
        span = Span(spans.pop().start, span.end)
    spans.append(span)
