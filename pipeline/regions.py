"""The parts of a turn that rules and people speak of: header, reasoning, content, stop token."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipeline.spans import Span, join

TEMPLATE = "template"  # text that no message owns
_OUTPUT = frozenset(("reasoning", "content", "tool_call", "stop"))  # the regions of an output
_OPENING = re.compile(r"\s*<((?:\w+:)?think(?:ing)?)>")
_NO_THOUGHT = "<think>\n\n</think>\n\n"  # as Qwen3's template and others' write it
_CLOSING = re.compile(r"</(?:\w+:)?think(?:ing)?>\s*")


class Turn(NamedTuple):
    """One message as rendered, in characters of the whole text.

    ``outputs`` are the trainable ranges (empty unless the assistant speaks); ``stop`` is where the
    stop token starts, -1 where the turn has none; ``found`` says how the first output's start was
    established: ``tags``, ``prompt``, ``common``, ``probe``, ``content``, ``unprompted``, or
    ``unsure``; ``opened`` whether the header ends inside a think block; ``called`` is where tool
    calls begin, -1 where there are none.
    """

    message: int
    role: str
    ranges: list[Span]
    outputs: list[Span]
    stop: int
    found: str
    opened: bool
    called: int = -1


class Region(NamedTuple):
    """Characters of one message under one name; the regions of a turn tile its ranges.

    ``name`` is ``input``, ``header``, ``reasoning``, ``content``, ``tool_call``, ``stop`` or
    ``trailing``, or ``template`` where no message (-1) owns it; ``weight`` is their own weight,
    before any rule.
    """

    message: int
    role: str
    name: str
    start: int
    end: int
    weight: float = 1.0


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
            reasoned = output.start
            if first:
                reasoned = end_reasoning(text, output.start, body, opened=turn.opened)
            first = False
            called = body if turn.called < 0 else min(max(turn.called, reasoned), body)
            cuts += [output.start, reasoned, called, body, min(output.end, end)]
            names += ["trailing" if names else "header", "reasoning", "content", "tool_call"]
            names.append("stop")
        cuts.append(end)
        names.append("trailing" if names else "input")
        for name, (a, b) in zip(names, itertools.pairwise(cuts), strict=True):
            if a < b:
                yield Region(turn.message, turn.role, name, a, b)


def end_reasoning(text: str, start: int, end: int, *, opened: bool) -> int:
    """Where the reasoning that starts an output ends; *start* where there is none."""
    if opened:
        closing = _CLOSING.search(text, start, end)
        return closing.end() if closing else start
    if text.startswith(_NO_THOUGHT, start, end):  # most blocks there are, in a third of the time
        return _skip_white(text, start + len(_NO_THOUGHT), end)
    if text.startswith("<think>", start, end):  # in half the time
        closing_tag, at = "</think>", start + len("<think>")
    else:
        opening = _OPENING.match(text, start, end)
        if opening is None:
            return start
        closing_tag, at = f"</{opening[1]}>", opening.end()
    # A pattern would look at each character of the block.
    close = text.find(closing_tag, at, end)
    if close < 0:
        return start
    return _skip_white(text, close + len(closing_tag), end)


def _skip_white(text: str, at: int, end: int) -> int:
    while at < end and text[at].isspace():
        at += 1
    return at


def restore_turns(regions: Iterable[Region]) -> Iterator[Turn]:
    """The turns that were divided into *regions* (in ``divide``'s order), without what is not told.

    How a start was found is not stored.
    """
    by_turn = itertools.groupby(regions, key=lambda region: (region.message, region.role))
    for (message, role), parts in by_turn:
        if message < 0:
            continue
        ranges: list[Span] = []
        outputs: list[Span] = []
        stop = called = -1
        for part in parts:
            if part.name in _OUTPUT:
                join(outputs, part.start, part.end)
            join(ranges, part.start, part.end)
            stop = part.start if part.name == "stop" else stop
            called = part.start if part.name == "tool_call" and called < 0 else called
        yield Turn(message, role, ranges, outputs, stop, "", False, called)
