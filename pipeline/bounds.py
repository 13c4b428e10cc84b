"""Where the outputs of usual rows begin and end, of many at once: by tags, or by their prompts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from pipeline.errors import RecordError
from pipeline.laid import HOW, Int64s
from pipeline.markers import Markers
from pipeline.starts import shared_stem
from pipeline.surroundings import Closing
from pipeline.written import ASSISTANT, WIDEST, Flags, Ranges, Written, integers, table_of

_TAGS, _COMMON = HOW.index("tags"), HOW.index("common")
Closings: TypeAlias = Callable[[int], Sequence[Closing]]


class Bounds(NamedTuple):
    """What the assistant's turns were found to be: borders in all texts joined, and how.

    ``good``: nothing else has to be asked of the turn.
    """

    begin: Int64s
    body: Int64s
    until: Int64s
    found: Int64s
    opened: Flags
    good: Flags


def find_tagged(written: Written, turn: Ranges, spoken: Int64s, markers: Markers) -> Bounds:
    """Turns with one pair of generation tags inside each."""
    start, end = turn.start[spoken], turn.end[spoken]
    begins, ends = written.tags()
    if not len(begins) or (begins[1:] < ends[:-1]).any():
        return _none(start)
    first = np.searchsorted(ends, start, side="right")
    stop = np.searchsorted(begins, end, side="left")
    good = stop == first + 1
    first = np.minimum(first, len(begins) - 1)
    good &= (begins[first] >= start) & (ends[first] <= end)
    begin, until = np.where(good, begins[first], start), np.where(good, ends[first], end)
    trimmed, sure = written.trimmed(begin, until)
    body, _ = written.stopped(begin, trimmed, markers)
    body = np.where(body < trimmed, body, until)
    found = np.full(len(start), _TAGS, np.int64)
    return Bounds(begin, body, until, found, np.zeros(len(start), np.bool_), good & sure)


def find_prompted(written: Written, turn: Ranges, spoken: Int64s, markers: Markers) -> Bounds:
    """Turns that begin with what their prompt supplies; ``body`` is ``until`` without a stop."""
    start, end = turn.start[spoken], turn.end[spoken]
    rows = itertools.compress(written.rows, written.usual.tolist())
    prompts = [prompt for row in rows for prompt in row.prompts]
    begin, found, opened = start.copy(), np.zeros_like(start), np.zeros(len(start), np.bool_)
    good, shared = np.zeros(len(start), np.bool_), np.zeros(len(start), np.bool_)
    numbers: dict[int, int] = {}
    which = integers(numbers.setdefault(id(prompt), len(numbers)) for prompt in prompts)
    for number, prompt in enumerate({id(prompt): prompt for prompt in prompts}.values()):
        left = np.flatnonzero(which == number)
        for header in prompt.headers:
            has = written.starts_with(header.text, start[left], end[left])
            mine, left = left[has], left[~has]
            begin[mine] += len(header.text)
            found[mine], opened[mine], good[mine] = HOW.index(header.found), header.opened, True
            if not len(left):
                break
        stem = shared_stem(prompt, markers) if len(left) else ""
        if stem:
            left = left[written.starts_with(stem, start[left], end[left])]
            said = [stem.strip() in row.strings for row in written.rows]
            left = left[~np.array(said)[turn.row[spoken[left]]]]
            begin[left] += len(stem)
            found[left], good[left], shared[left] = _COMMON, True, True
    until, sure = written.trimmed(begin, end)
    stop, eos = written.stopped(begin, until, markers)
    good &= sure & (stop > begin)
    # Before another control token the turn may have ended already.
    before = np.minimum(written.codes[stop - 1], WIDEST + 1)
    good &= (stop == until) | (eos & ~shared) | ~table_of(markers.lasts)[before]
    (blank,) = np.nonzero(good)
    blank = blank[written.is_space(begin[blank])]
    last, told = written.trimmed(begin[blank], stop[blank])
    good[blank] = told & (last > begin[blank])  # white space alone may be a message left out
    return Bounds(begin, stop, until, found, opened, good)


def close(
    written: Written,
    turn: Ranges,
    spoken: Int64s,
    parts: Bounds,
    markers: Markers,
    closings: Closings,
) -> None:
    """Ends turns without a stop token of their own, in place: one may follow, as in `_closed`."""
    (stopless,) = np.nonzero(parts.good & (parts.body == parts.until))
    if not len(stopless):
        return
    rows = turn.row[spoken]
    order = np.arange(len(rows)) - np.searchsorted(rows, rows)  # of the row's answers
    follows_all = [t for t in (markers.eos, *markers.told) if t]
    for i in stopless.tolist():
        row, at = int(rows[i]), int(spoken[i])
        base, text = int(written.begins[row]), written.texts[row]
        begin, end = int(parts.begin[i]) - base, int(turn.end[at]) - base
        try:
            closing = closings(row)[int(order[i])]
        except RecordError:
            parts.good[i] = False
            continue
        if closing.separator and text.endswith(closing.separator, begin, end):
            end -= len(closing.separator)
        stop = end
        for follows in (closing.stop, *follows_all):
            if follows and text.startswith(follows, end):
                end += len(follows)
                stop = end - len(markers.ending(follows, 0, len(follows)) or follows)
                turn.end[at] = end + base
                parts.good[i] = _take(turn, at, end + base)
                break
        parts.body[i], parts.until[i] = stop + base, end + base


def _take(turn: Ranges, at: int, end: int) -> bool:
    """Gives turn *at* what its next writes before *end*; False where that leaves an odd one."""
    after = at + 1
    if after == len(turn.row) or turn.row[after] != turn.row[at] or turn.start[after] >= end:
        return True
    turn.start[after] = end
    return bool(turn.end[after] > end and turn.role[after] != ASSISTANT)


def _none(start: Int64s) -> Bounds:
    no = np.zeros(len(start), np.bool_)
    return Bounds(start, start, start, np.zeros_like(start), no, no)
