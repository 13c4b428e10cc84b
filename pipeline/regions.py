"""The parts of a turn that rules and people speak of: header, reasoning, content, stop token."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.turns import Turn

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
