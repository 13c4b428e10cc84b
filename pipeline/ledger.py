"""Every record a row or a reject, once: records are numbered through the inputs, rows walk them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns import numbers
from pipeline.findings import Findings

NAME = "manifest.json"
MOST = 1 << 53  # records of a whole build: more is no count of anything

Int64s = npt.NDArray[np.int64]
Place = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a build in order: their names, and the number of each one's first record.

    ``firsts`` has one more than ``names``, the number of all records; ``numbers`` tells a name's.
    """

    names: Sequence[str]
    numbers: Mapping[str, int]
    firsts: Int64s

    @property
    def records(self) -> int:
        return int(self.firsts[-1])

    def locate(self, record: int) -> str:
        """``source[row]`` of the record of that number."""
        source = int(np.searchsorted(self.firsts, record, side="right")) - 1
        return f"{self.names[source]}[{record - int(self.firsts[source])}]"


@dataclass(slots=True)
class Ledger:
    """The records that rows were seen of, as half-open runs of their numbers, in order.

    A healthy build has one run more than it has rejects, so memory is bounded by these. With
    *fanned*, neighbouring rows of one shard may be of one record.
    """

    inputs: Inputs
    fanned: bool
    starts: array[int] = field(default_factory=lambda: array("q"))
    stops: array[int] = field(default_factory=lambda: array("q"))
    shard: str = ""
    rejected: array[int] = field(default_factory=lambda: array("q"))
    broken: bool = False

    @property
    def records(self) -> int:
        """How many records have rows."""
        return sum(self.stops) - sum(self.starts)

    def enter_rows(self, table: pa.Table, place: Place, findings: Findings, *, shard: str) -> None:
        """Takes the columns ``source`` and ``row`` of the next row group of *shard*."""
        if not table.num_rows:
            return
        source = pa.concat_arrays(table["source"].chunks).dictionary_encode()
        names = source.dictionary.to_pylist()
        known = np.array([self.inputs.numbers.get(name, -1) for name in names], np.int64)
        sources = known[np.asarray(numbers(source.indices), np.int64)]
        rows = np.asarray(numbers(pa.concat_arrays(table["row"].chunks)), np.int64)
        sizes = np.append(np.diff(self.inputs.firsts), 0)  # the last: of what is no input
        strange = sources < 0
        beyond = ~strange & ((rows < 0) | (rows >= sizes[sources]))

        def unknown(row: int) -> str:
            return f"source: {table['source'][row].as_py()!r}, which is no input of the manifest"

        findings.add_rows("order", strange, place, unknown)
        findings.add_rows(
            "order",
            beyond,
            place,
            lambda r: (
                f"row: {rows[r]}, but {self.inputs.names[sources[r]]} has {sizes[sources[r]]}"
            ),
        )
        good = ~(strange | beyond)
        self.broken |= not good.all()
        at = np.flatnonzero(good)
        self._walk(self.inputs.firsts[sources[at]] + rows[at], at, place, findings, shard)

    def _walk(
        self, records: Int64s, at: Int64s, place: Place, findings: Findings, shard: str
    ) -> None:
        """*records* are numbers, *at* the rows of the group that they are of."""
        if not len(records):
            return
        last = self.stops[-1] - 1 if self.stops else -1
        steps = np.diff(records, prepend=last)
        again = steps == 0
        if self.fanned:
            again[1:] = False
            again[0] &= shard != self.shard
        self.shard = shard

        def where(i: int) -> str:
            return place(int(at[i]))

        def told(i: int) -> str:
            return self.inputs.locate(int(records[i]))

        findings.add_rows("order", again, where, lambda i: f"{told(i)} has a row before already")
        findings.add_rows(
            "order", steps < 0, where, lambda i: f"{told(i)} comes after a later record's row"
        )
        self.broken |= bool(again.any() or (steps < 0).any())
        forward = records[steps > 0] if (steps >= 0).all() else np.unique(records[records > last])
        if not len(forward):
            return
        cuts = np.flatnonzero(np.diff(forward) > 1) + 1
        starts = np.append(forward[:1], forward[cuts]).tolist()
        stops = [*(forward[cuts - 1] + 1).tolist(), int(forward[-1]) + 1]
        if self.stops and self.stops[-1] == starts[0]:
            self.stops[-1] = stops[0]
            starts, stops = starts[1:], stops[1:]
        self.starts.extend(starts)
        self.stops.extend(stops)

    def enter_reject(self, source: str, row: int, place: str, findings: Findings) -> None:
        """Takes one line of the rejects."""
        index = self.inputs.numbers.get(source)
        if index is None:
            findings.add("rejects", place, f"source: {source!r}, which is no input of the manifest")
            self.broken = True
            return
        size = int(self.inputs.firsts[index + 1] - self.inputs.firsts[index])
        if not 0 <= row < size:
            findings.add("rejects", place, f"row: {row}, but {source} has {size:,} records")
            self.broken = True
            return
        self.rejected.append(int(self.inputs.firsts[index]) + row)

    def settle(self, findings: Findings, *, elsewhere: range) -> None:
        """Tells records that are neither row nor reject, or both, or a reject twice.

        *elsewhere* is how many may be neither: the rejects of an earlier build, of whose shards
        these were made.
        """
        rejected = _frozen(self.rejected)
        rejected.sort()
        self._tell(findings, rejected[1:][np.diff(rejected) == 0], "is a reject twice")
        rejected = np.unique(rejected)
        starts, stops = _frozen(self.starts), _frozen(self.stops)
        run = np.searchsorted(starts, rejected, side="right") - 1
        both = (run >= 0) & (rejected < np.append(stops, 0)[run])
        self._tell(findings, rejected[both], "is a row and a reject")
        neither = self.inputs.records - self.records - int((~both).sum())
        if neither in elsewhere:
            return
        if elsewhere.stop > 1:
            findings.add(
                "records",
                NAME,
                f"{neither:,} records are neither row nor reject here, but it says that "
                f"{elsewhere.stop - 1:,} were left out before",
            )
            return
        edges = np.sort(np.concatenate((stops, rejected + 1, [0])))
        begins = np.sort(np.concatenate((starts, rejected, [self.inputs.records])))
        for start, stop in zip(edges.tolist(), begins.tolist(), strict=True):
            if start < stop:
                more = f" and the {stop - start - 1:,} after it are" if stop - start > 1 else " is"
                findings.add("records", self.inputs.locate(start), f"it{more} no row and no reject")

    def _tell(self, findings: Findings, records: Int64s, fact: str) -> None:
        for record in records.tolist():
            findings.add("records", self.inputs.locate(record), fact)


def _frozen(values: array[int]) -> Int64s:
    return np.array(values, np.int64)
