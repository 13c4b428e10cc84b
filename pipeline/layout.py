"""The turns of usual rows, established together: what `establish_turns` finds, in arrays.

A row is usual if each of its messages is one range of the text, in their order, with one header or
one pair of tags, and an end that is plain to see. Whatever is otherwise in a row leaves it to
the slow way, which tells more and may refuse; so nothing here raises.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.bounds import Bounds, Closings, close, find_prompted, find_tagged
from pipeline.laid import (
    BEGIN,
    CODES,
    END,
    FOUND,
    MESSAGE,
    NUMBERS,
    ROW,
    START,
    Int64s,
    Laid,
    TurnTable,
)
from pipeline.markers import Markers
from pipeline.regions import end_reasoning
from pipeline.written import ASSISTANT, Flags, Row, Written, integers

_EMPTY_BLOCK = "<think>\n\n</think>\n\n"


def lay(
    rows: Sequence[Row],
    markers: Markers,
    *,
    tagged: bool,
    closings: Closings,
    openings: Sequence[str] = (),
) -> list[Laid | None]:
    """The turns of each row, None for one that is not usual.

    *closings* tells of a row what follows each message of the assistant; *openings* are those of
    the table.
    """
    if not rows:
        return []
    written = Written(rows)
    turn = written.turns()
    usual = written.usual.copy()
    spoken = np.flatnonzero((turn.role == ASSISTANT) & usual[turn.row])
    if tagged:
        parts = find_tagged(written, turn, spoken, markers)
    else:
        parts = find_prompted(written, turn, spoken, markers)
        close(written, turn, spoken, parts, markers, closings)
    usual[turn.row[spoken[~parts.good]]] = False
    numbers = np.full((len(turn.row), NUMBERS), -1, np.int64)
    base = written.begins[turn.row]
    numbers[:, ROW:FOUND] = np.stack((turn.row, turn.message, turn.role)).T
    numbers[:, FOUND:START] = 0
    numbers[:, START], numbers[:, END] = turn.start - base, turn.end - base
    thought = _end_thoughts(written, turn.row[spoken], parts, usual)
    borders = np.stack((parts.begin, thought, parts.body, parts.body, parts.until)).T
    numbers[spoken, FOUND:START] = np.stack((parts.found, parts.opened)).T
    numbers[spoken, BEGIN:END] = borders - base[spoken, None]
    numbers, usual = _with_told(written, numbers, usual)
    firsts = np.searchsorted(numbers[:, ROW], np.arange(len(rows) + 1)).tolist()
    opens = _find_openings(written, openings, turn.row[spoken], parts)
    table = TurnTable(numbers, firsts, opens)
    return [Laid(table, row) if good else None for row, good in enumerate(usual.tolist())]


def _end_thoughts(written: Written, row: Int64s, parts: Bounds, usual: Flags) -> Int64s:
    """Where the reasoning ends that each output starts with: `end_reasoning`, of all of them."""
    begin, body = parts.begin, parts.body
    thought: Int64s = begin.copy()
    (some,) = np.nonzero((begin < body) & usual[row])
    first = written.codes[begin[some]]
    some = some[parts.opened[some] | (first == ord("<")) | written.is_space(begin[some])]
    empty = written.starts_with(_EMPTY_BLOCK, begin[some], body[some]) & ~parts.opened[some]
    after = begin[some] + len(_EMPTY_BLOCK)
    more = after < body[some]
    more[more] = written.is_space(after[more])
    empty &= ~more
    thought[some[empty]] = after[empty]
    some = some[~empty]
    base = written.begins[row[some]]
    asked = zip(
        row[some].tolist(),
        base.tolist(),
        (begin[some] - base).tolist(),
        (body[some] - base).tolist(),
        parts.opened[some].tolist(),
        strict=True,
    )
    thought[some] = integers(
        at + end_reasoning(written.texts[i], a, b, opened=opened) for i, at, a, b, opened in asked
    )
    return thought


def _find_openings(
    written: Written, openings: Sequence[str], row: Int64s, parts: Bounds
) -> dict[str, frozenset[int]]:
    """Rows in which an output begins with each text, or with white space."""
    (said,) = np.nonzero(parts.begin < parts.body)
    begin, end, row = parts.begin[said], parts.body[said], row[said]
    blank, first = written.is_space(begin), written.codes[begin]
    found = {}
    for text in openings:
        opens = blank | (first == ord(text[0]))
        opens[opens] = blank[opens] | written.starts_with(text, begin[opens], end[opens])
        found[text] = frozenset(row[opens].tolist())
    return found


def _with_told(written: Written, numbers: Int64s, usual: Flags) -> tuple[Int64s, Flags]:
    """With the turns of first messages that stand in front of all others, as `find_told` does.

    Rows that lack other messages, or have more gaps, are not usual.
    """
    row, count = numbers[:, ROW], len(written.rows)
    held = np.bincount(row, minlength=count)
    lacks = (held < written.messages) & usual
    if not lacks.any():
        return numbers, usual
    # Whether one message alone is missing, the first, and all others touch.
    first = np.cumsum(held) - held
    apart = np.append(numbers[1:, START] != numbers[:-1, END], True)
    apart[(first + held - 1)[held > 0]] = False  # the last turn of a row
    alone = (held > 0) & (held == written.messages - 1)
    alone &= np.bincount(row[apart], minlength=count) == 0
    mine = np.flatnonzero(alone & lacks)
    last = first[mine] + held[mine] - 1
    good = (numbers[first[mine], MESSAGE] == 1) & (
        numbers[last, END] == written.begins[mine + 1] - written.begins[mine]
    )
    usual = usual & ~lacks
    mine = mine[good]
    usual[mine] = True
    told: list[tuple[int, ...]] = []
    limits = numbers[first[mine], START].tolist()
    for i, limit in zip(mine.tolist(), limits, strict=True):
        message, text = written.rows[i].messages[0], written.texts[i]
        said = message["content"].strip()
        at = text.find(said, 0, limit) if said else -1
        if at >= 0 and text.find(said, at + 1, limit) < 0:
            role = CODES[message["role"]]
            told.append((i, 0, role, 0, 0, at, -1, -1, -1, -1, -1, at + len(said)))
    if told:
        numbers = np.concatenate((np.array(told, np.int64), numbers))
        numbers = numbers[np.argsort(numbers[:, ROW], kind="stable")]
    return numbers, usual
