"""The turns of a batch, divided into the ``spans`` column.

The same as ``regions.divide`` turn by turn, at a fifth of its cost; that still divides what is
rare: rows with weights of their own, turns in several ranges.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns import column
from pipeline.regions import TEMPLATE, Region, Turn, divide, end_reasoning
from pipeline.rows import Prepared
from pipeline.scales import cut_regions, scale_template
from pipeline.shards import SPAN_TYPE

# The parts of a turn with an output, in their order; then what others have.
_NAMES = ("header", "reasoning", "content", "tool_call", "stop", "trailing", "input", TEMPLATE)
# Numbers of a turn: message, role (its complement where the turn has an output), start and end; and
# the borders within an output.
_HEAD, _BODY = 4, 5

Int64s = npt.NDArray[np.int64]


def divide_rows(prepared: Sequence[Prepared]) -> pa.ListArray:
    """Each message's regions, in characters of the rendered text."""
    roles: dict[str, int] = {"": 0}
    counts, heads, bodies = list[int](), list[int](), list[int]()
    rare: list[tuple[int, Region]] = []
    for row, p in enumerate(prepared):
        lengths = len(heads), len(bodies)
        if p.scales or not _flatten(p.turns, p.text, roles, heads, bodies):
            del heads[lengths[0] :], bodies[lengths[1] :]
            rare += [(row, region) for region in _divide_slowly(p)]
        counts.append(len(heads))
    fields = _divide_plain(*map(_numbers, (counts, heads, bodies)))
    weights = np.ones(fields.shape[1], np.float32)
    if rare:
        fields, weights = _merge(fields, rare, roles)
    return _assemble(fields, weights, list(roles), len(prepared))


def _flatten(
    turns: Sequence[Turn], text: str, roles: dict[str, int], heads: list[int], bodies: list[int]
) -> bool:
    """Appends the numbers of each turn; False where one is not plain."""
    for message, role, ranges, outputs, stop, _, opened, called in turns:
        if len(ranges) != 1:
            return False
        start, end = ranges[0]
        code = roles[role] if role in roles else roles.setdefault(role, len(roles))
        if not outputs:
            heads += (message, code, start, end)
            continue
        begin, until = outputs[0]
        if len(outputs) != 1 or not start <= begin < until <= end or 0 <= stop < begin:
            return False
        body = stop if 0 <= stop < until else until
        thought, first = begin, text[begin]
        if first == "<" or opened or first.isspace():  # no think block begins otherwise
            thought = end_reasoning(text, begin, body, opened=opened)
        speech = body if called < 0 else min(max(called, thought), body)
        heads += (message, ~code, start, end)
        bodies += (begin, thought, speech, body, until)
    return True


def _numbers(values: list[int]) -> Int64s:
    # Through an array, as numpy asks each number of a list what it is.
    return np.frombuffer(array("q", values), np.int64)


def _divide_slowly(prepared: Prepared) -> Iterator[Region]:
    for turn in prepared.turns:
        regions = divide(turn, prepared.text)
        yield from cut_regions(regions, prepared.scales) if prepared.scales else regions
    if prepared.scales:
        yield from scale_template(prepared.turns, prepared.scales)


def _divide_plain(counts: Int64s, heads: Int64s, bodies: Int64s) -> Int64s:
    """int64 [6, regions]: row, message, role, name, start, end, in the turns' order.

    *counts* are how many numbers of *heads* there are after each row.
    """
    heads, bodies = heads.reshape(-1, _HEAD), bodies.reshape(-1, _BODY)
    row = np.repeat(np.arange(len(counts)), np.diff(counts, prepend=0) // _HEAD)
    borders = np.empty((len(heads), _BODY + 2), np.int64)
    borders[:, :-1], borders[:, -1] = heads[:, 2:3], heads[:, 3]
    borders[heads[:, 1] < 0, 1:-1] = bodies
    turn, part = np.nonzero(borders[:, :-1] < borders[:, 1:])
    message, code, _, _ = heads[turn].T
    speaks = code < 0
    return np.stack(
        (
            row[turn],
            message,
            np.where(speaks, ~code, code),
            # All that one without an output holds is its last part, and has the name after it.
            part + ~speaks,
            borders[turn, part],
            borders[turn, part + 1],
        )
    )


def _merge(
    plain: Int64s, rare: Sequence[tuple[int, Region]], roles: dict[str, int]
) -> tuple[Int64s, npt.NDArray[np.float32]]:
    """With regions of rows that are none of the *plain* ones; their weights."""
    numbers = [
        (row, r.message, roles.setdefault(r.role, len(roles)), _NAMES.index(r.name), r.start, r.end)
        for row, r in rare
    ]
    fields = np.concatenate((plain, np.array(numbers, np.int64).T), axis=1)
    weights = np.ones(fields.shape[1], np.float32)
    weights[plain.shape[1] :] = [region.weight for _, region in rare]
    order = np.argsort(fields[0], kind="stable")
    return fields[:, order], weights[order]


def _assemble(
    fields: Int64s, weights: npt.NDArray[np.float32], roles: Sequence[str], rows: int
) -> pa.ListArray:
    row, message, role, name, start, end = fields
    firsts = np.searchsorted(row, np.arange(rows + 1)).astype(np.int32)
    columns = [
        column(message.astype(np.int32)),
        _words(role, roles),
        _words(name, _NAMES),
        column(start.astype(np.int32)),
        column(end.astype(np.int32)),
        column(weights),
    ]
    values = pa.StructArray.from_arrays(columns, fields=list(SPAN_TYPE))
    return pa.ListArray.from_arrays(column(firsts), values)


def _words(codes: Int64s, words: Sequence[str]) -> pa.Array:
    indices = column(codes.astype(np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array(words, pa.string())).dictionary_decode()
