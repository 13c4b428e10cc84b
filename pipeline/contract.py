"""The data contract of a shard's columns, held against one row group, by arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.columns import flat_column, numbers, row_sums
from pipeline.divided import Regions, read_regions
from pipeline.findings import Findings
from pipeline.regions import TEMPLATE
from pipeline.schema.message import PLAIN_ROLES
from pipeline.weights import IGNORED

NULLABLE = frozenset(("text", "fields"))
REGIONS = ("input", "header", "reasoning", "content", "tool_call", "stop", "trailing")
_OUTPUT = ("reasoning", "content", "tool_call", "stop")
_LISTS = ("input_ids", "labels", "loss_scale")
# float64 sums in another order, rounded to float32: what honest shards may differ by.
_ORDER, _ROUNDING = 1e-9, 2.0**-23

Int64s = npt.NDArray[np.int64]
Place = Callable[[int], str]


@dataclass(slots=True)
class Sums:
    """What rows add up to, to be compared with what a manifest counts.

    ``heft`` is the sum of the weights' absolute values, ``counted_zeros`` the live labels of
    weight 0.
    """

    rows: int = 0
    tokens: int = 0
    targets: int = 0
    weight_sum: float = 0.0
    heft: float = 0.0
    counted_zeros: int = 0
    turns: int = 0
    turns_without_stop: int = 0

    def add(self, other: Sums) -> None:
        """Adds *other*, field by field."""
        for name in Sums.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def check_rows(
    table: pa.Table,
    place: Place,
    findings: Findings,
    *,
    keep: Sequence[str],
    counting: bool,
    ids: int,
) -> Sums | None:
    """Tells every breach in *table*, which has the columns of ``shards.SCHEMA``.

    ``place(row)`` names a row of it; *keep* are the fields that its rows may hold; with *counting*,
    labels may be live where weights are 0; *ids* is one more than the largest id. None where
    columns are too damaged to be added up. Raises ArrowException for buffers that do not hold what
    their type says.
    """
    table.validate(full=True)
    if _nulls(table, place, findings):
        return None
    firsts, tokens = flat_column(table["input_ids"])
    if not _equal_lengths(table, firsts, place, findings):
        return None
    flat = [numbers(flat_column(table[name])[1]) for name in _LISTS[1:]]
    sums = _tokens(
        table,
        firsts,
        numbers(tokens),
        *flat,
        place=place,
        findings=findings,
        counting=counting,
        known=ids,
    )
    _fields(table, place, findings, keep)
    regions = read_regions(table["spans"])
    _spans(regions, table["text"], place, findings)
    sums.turns, sums.turns_without_stop = _turns(regions)
    return sums


def _nulls(table: pa.Table, place: Place, findings: Findings) -> bool:
    """Whether there is a null where none may be."""
    before = findings.found["nulls"]
    for name in table.column_names:
        column = table[name]
        if name not in NULLABLE and column.null_count:
            bad = np.flatnonzero(_booleans(pc.is_null(column)))
            _tell_nulls(findings, bad, place, name)
            continue
        if pa.types.is_list(column.type):
            for inner, values in _leaves(name, column):
                if values.null_count:
                    firsts, _ = flat_column(column)
                    at = np.flatnonzero(_booleans(pc.is_null(values)))
                    rows = np.unique(np.searchsorted(firsts, at, side="right") - 1)
                    _tell_nulls(findings, rows, place, inner)
    return findings.found["nulls"] > before


def _tell_nulls(findings: Findings, rows: Int64s, place: Place, name: str) -> None:
    findings.add_rows(
        "nulls",
        np.ones(len(rows), np.bool_),
        lambda i: place(int(rows[i])),
        lambda _: f"{name}: null, which the contract has nowhere here",
    )


def _leaves(name: str, column: pa.ChunkedArray) -> list[tuple[str, pa.Array]]:
    values = flat_column(column)[1]
    if not pa.types.is_struct(values.type):
        return [(name, values)]
    fields = [(f"{name}.{f.name}", values.field(i)) for i, f in enumerate(values.type)]
    return [(name, values), *fields]


def _booleans(values: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Whether each is true, by way of bytes: bits have no numpy form without a copy."""
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], pa.bool_())
    return np.asarray(numbers(values.cast(pa.uint8())), np.bool_)


def _equal_lengths(table: pa.Table, firsts: Int64s, place: Place, findings: Findings) -> bool:
    alike = True
    lengths = np.diff(firsts)
    for name in _LISTS[1:]:
        other = np.diff(flat_column(table[name])[0])
        bad = other != lengths
        findings.add_rows(
            "lengths",
            bad,
            place,
            lambda row, name=name, other=other: (  # type: ignore[misc] # mypy knows no defaults
                f"{name}: {other[row]} items for {lengths[row]} input_ids"
            ),
        )
        alike &= not bad.any()
    return alike


def _tokens(
    table: pa.Table,
    firsts: Int64s,
    ids: npt.NDArray[np.int32],
    labels: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    *,
    place: Place,
    findings: Findings,
    counting: bool,
    known: int,
) -> Sums:
    """The columns with one number a token, and those that sum them up."""

    def at(token: int) -> str:
        row = int(np.searchsorted(firsts, token, side="right")) - 1
        return f"{place(row)}: token {token - int(firsts[row])}"

    live, weighing = labels != IGNORED, weights != 0
    finite = np.isfinite(weights)
    heads = firsts[:-1][np.diff(firsts) > 0]
    first = np.zeros(len(ids), np.bool_)
    first[heads] = True
    tell = findings.add_rows
    strange = (ids < 0) | (ids >= known)
    tell("ids", strange, at, lambda t: f"input_ids: {ids[t]}, which is no id of the vocabulary")
    wrong = live & (labels != ids)
    tell("labels", wrong, at, lambda t: f"labels: {labels[t]}, neither -100 nor its id {ids[t]}")
    tell("weights", ~finite, at, lambda t: f"loss_scale: {weights[t]}, not a finite number")
    tell("weights", first & weighing, at, lambda t: f"loss_scale: {weights[t]:g}, not 0")
    tell("labels", first & live, at, lambda t: f"labels: {labels[t]}, not -100")
    dead = weighing & ~live & ~first
    tell("labels", dead, at, lambda t: f"labels: -100, but loss_scale is {weights[t]:g}")
    zeros = live & ~weighing & ~first
    if not counting:
        tell("labels", zeros, at, lambda t: f"labels: {labels[t]}, but loss_scale is 0")
    trained = row_sums(weighing, firsts)
    tell("untrained", trained == 0, place, lambda _: "loss_scale: no token trains")
    sums = _summed(table, firsts, live, np.where(finite, weights, np.float32(0)), place, findings)
    return replace(sums, counted_zeros=int(zeros.sum()))


def _summed(
    table: pa.Table,
    firsts: Int64s,
    live: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float32],
    place: Place,
    findings: Findings,
) -> Sums:
    """The columns with one number a row, held against the lists that they sum up."""
    targets = row_sums(live, firsts)
    sums, heft = row_sums(weights, firsts), row_sums(np.abs(weights), firsts)
    for name, counted in (("length", np.diff(firsts)), ("num_target_tokens", targets)):
        told = _integers(table, name)
        findings.add_rows(
            "lengths",
            told != counted,
            place,
            lambda row, name=name, told=told, counted=counted: (  # type: ignore[misc] # as above
                f"{name}: {told[row]}, but its lists have {counted[row]}"
            ),
        )
    stored = np.asarray(numbers(pa.concat_arrays(table["weight_sum"].chunks)), np.float64)
    # `not <=`, so that a NaN is a fault too.
    off = ~(np.abs(stored - sums) <= _ROUNDING * np.abs(sums) + _ORDER * heft)
    findings.add_rows(
        "lengths",
        off,
        place,
        lambda row: f"weight_sum: {stored[row]:g}, but its loss_scale adds up to {sums[row]:g}",
    )
    return Sums(
        rows=table.num_rows,
        tokens=int(firsts[-1]),
        targets=int(targets.sum()),
        weight_sum=float(sums.sum()),
        heft=float(heft.sum()),
        counted_zeros=0,
    )


def _integers(table: pa.Table, name: str) -> Int64s:
    return np.asarray(numbers(pa.concat_arrays(table[name].chunks)), np.int64)


def _fields(table: pa.Table, place: Place, findings: Findings, keep: Sequence[str]) -> None:
    column = table["fields"]
    if column.null_count == len(column):
        return
    known = {*keep}
    for row, text in enumerate(column.to_pylist()):
        if text is None:
            continue
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            findings.add("fields", place(row), f"fields: not JSON ({error})")
            continue
        if not isinstance(value, dict) or not value:  # of a record without any it is null
            findings.add("fields", place(row), f"fields: {text[:40]!r} is no object with a field")
        elif not known.issuperset(value):
            extra = min({*value} - known)
            findings.add("fields", place(row), f"fields: holds {extra!r}, which --keep did not")


def _spans(regions: Regions, texts: pa.ChunkedArray, place: Place, findings: Findings) -> None:
    """Regions lie in order inside the text and do not overlap; their words are known."""
    firsts = regions.firsts
    rows = np.repeat(np.arange(len(firsts) - 1), np.diff(firsts))

    def at(span: int) -> str:
        row = int(rows[span])
        return f"{place(row)}: spans[{span - int(firsts[row])}]"

    def extent(span: int) -> str:
        return f"characters {regions.start[span]} to {regions.end[span]}"

    def named(span: int) -> str:
        role, name = regions.roles[regions.role[span]], regions.names[regions.name[span]]
        return f"role {role!r}, region {name!r} of message {regions.message[span]}"

    empty = (regions.start < 0) | (regions.end <= regions.start)
    findings.add_rows("spans", empty, at, lambda s: f"{extent(s)}: no range")
    if texts.null_count < len(texts):
        lengths = pc.fill_null(pc.utf8_length(texts), np.iinfo(np.int32).max)
        limits = np.asarray(numbers(pa.concat_arrays(lengths.chunks)), np.int64)[rows]
        beyond = regions.end > limits
        findings.add_rows("spans", beyond, at, lambda s: f"{extent(s)}: outside of the row's text")
    findings.add_rows("spans", _unsorted(regions, rows), at, lambda s: f"{extent(s)}: out of order")
    known_role = np.array([role in PLAIN_ROLES for role in regions.roles], np.bool_)[regions.role]
    nobody = np.array([role == "" for role in regions.roles], np.bool_)[regions.role]
    known_name = np.array([n in REGIONS for n in regions.names], np.bool_)[regions.name]
    template = np.array([n == TEMPLATE for n in regions.names], np.bool_)[regions.name]
    owned = (regions.message >= 0) & known_role & known_name
    unowned = (regions.message == -1) & nobody & template
    findings.add_rows("spans", ~(owned | unowned), at, lambda s: f"{named(s)}: unknown")
    bad = ~(np.isfinite(regions.weight) & (regions.weight >= 0))
    findings.add_rows("spans", bad, at, lambda s: f"weight {regions.weight[s]}: no weight")


def _unsorted(regions: Regions, rows: Int64s) -> npt.NDArray[np.bool_]:
    """By message, what nobody owns last; within a message by start; nothing overlaps anything.

    A message may lie inside another (a tool's answer in the turn that called it).
    """
    bad = np.zeros(len(rows), np.bool_)
    message = np.where(regions.message < 0, np.iinfo(np.int64).max, regions.message)
    if len(rows):
        same = rows[1:] == rows[:-1]
        back = (message[1:] == message[:-1]) & (regions.start[1:] < regions.end[:-1])
        bad[1:] = same & ((message[1:] < message[:-1]) | back)
        order = np.lexsort((regions.start, rows))
        same = rows[order][1:] == rows[order][:-1]
        bad[order[1:]] |= same & (regions.start[order][1:] < regions.end[order][:-1])
    return bad


def _turns(regions: Regions) -> tuple[int, int]:
    """Messages that train, and those of them without a stop token."""
    rows = np.repeat(np.arange(len(regions.firsts) - 1), np.diff(regions.firsts))
    spoken = np.array([n in _OUTPUT for n in regions.names], np.bool_)[regions.name]
    stops = np.array([n == "stop" for n in regions.names], np.bool_)[regions.name]
    keys = rows * (1 << 32) + regions.message
    training, stopped = np.unique(keys[spoken]), np.unique(keys[stops])
    return len(training), len(training) - len(stopped)
