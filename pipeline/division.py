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
from pipeline.laid import FOUND, NUMBERS, OPENED, ROLES, gather
from pipeline.regions import TEMPLATE, Region, Turn, divide, end_reasoning
from pipeline.rows import Prepared
from pipeline.scales import cut_regions, scale_template
from pipeline.shards import SPAN_TYPE

# The parts of a turn with an output, in their order; then what others have.
_NAMES = ("header", "reasoning", "content", "tool_call", "stop", "trailing", "input", TEMPLATE)
_INPUT = _NAMES.index("input")
_NUMBERS = 10  # a turn: row, message, role, and the seven borders of its six parts
_LAID = [n for n in range(NUMBERS) if n not in (FOUND, OPENED)]

Int64s = npt.NDArray[np.int64]


def divide_rows(prepared: Sequence[Prepared]) -> pa.ListArray:
    """Each message's regions, in characters of the rendered text."""
    roles = {role: code for code, role in enumerate(ROLES)}
    flat: list[int] = []
    rare: list[tuple[int, Region]] = []
    # What has weights of its own is no usual row, but rows can be made of such as well.
    laid, listed = gather([] if p.scales else p.turns for p in prepared)
    for row in listed:
        p = prepared[row]
        length = len(flat)
        if p.scales or not _flatten(row, p.turns, p.text, roles, flat):
            del flat[length:]
            rare += [(row, region) for region in _divide_slowly(p)]
    # Through an array, as numpy asks each number of a list what it is.
    turns = np.frombuffer(array("q", flat), np.int64).reshape(-1, _NUMBERS)
    if len(laid):
        turns = np.concatenate((laid[:, _LAID], turns))
        turns = turns[np.argsort(turns[:, 0], kind="stable")] if listed else turns
    fields = _divide_plain(turns)
    weights = np.ones(fields.shape[1], np.float32)
    if rare:
        fields, weights = _merge(fields, rare, roles)
    return _assemble(fields, weights, list(roles), len(prepared))


def _flatten(
    row: int, turns: Sequence[Turn], text: str, roles: dict[str, int], flat: list[int]
) -> bool:
    """Appends the numbers of each turn; False where one is not plain."""
    closes = "</" in text
    for message, role, ranges, outputs, stop, _, opened, called in turns:
        code = roles[role] if role in roles else roles.setdefault(role, len(roles))
        if len(ranges) != 1:
            return False
        start, end = ranges[0]
        if not outputs:
            flat += (row, message, code, start, -1, -1, -1, -1, -1, end)
            continue
        begin, until = outputs[0]
        if len(outputs) != 1 or not start <= begin < until <= end or 0 <= stop < begin:
            return False
        body = stop if 0 <= stop < until else until
        thought = end_reasoning(text, begin, body, opened=opened) if opened or closes else begin
        speech = body if called < 0 else min(max(called, thought), body)
        flat += (row, message, code, start, begin, thought, speech, body, until, end)
    return True


def _divide_slowly(prepared: Prepared) -> Iterator[Region]:
    for turn in prepared.turns:
        regions = divide(turn, prepared.text)
        yield from cut_regions(regions, prepared.scales) if prepared.scales else regions
    if prepared.scales:
        yield from scale_template(prepared.turns, prepared.scales)


def _divide_plain(turns: Int64s) -> Int64s:
    """int64 [6, regions]: row, message, role, name, start, end, in the turns' order."""
    borders = turns[:, 3:].copy()
    silent = borders[:, 1] < 0
    borders[silent, 1:-1] = borders[silent, :1]
    names = np.tile(np.arange(_INPUT), (len(turns), 1))
    names[silent, -1] = _INPUT
    held = borders[:, :-1] < borders[:, 1:]
    turn, part = np.nonzero(held)
    return np.stack(
        (*turns[turn, :3].T, names[turn, part], borders[turn, part], borders[turn, part + 1])
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
