"""Why a row of ms-swift's differs from ours: named causes, from ``swift_differences.json``.

A cause has a sign: a regular expression over ms-swift's text, or over one of the segments that it
tokenized apart. Where the sign is found lies the region that the cause explains; every token that
differs must overlap one. So causes are known again on rows that nobody has listed.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

PLACE = Path(__file__).parent / "swift_differences.json"
_STOP = re.compile(r"<\|im_end\|>\n?")
_MESSAGE = re.compile(r"<\|im_start\|>assistant\n.*?(?:<\|im_end\|>\n?|\Z)", re.DOTALL)

Key: TypeAlias = "tuple[str, str, str]"  # file, system, id
Span: TypeAlias = "tuple[int, int]"


@dataclass(frozen=True, slots=True)
class Row:
    """What ms-swift made of one conversation with one loss scale; ``error`` if it raised.

    ``file`` is its version and template, such as ``head.qwen3``; ``segments`` are the texts that it
    tokenized apart, with their weights; ``weights`` are 0 and 1 by the labels where it stores none.
    """

    file: str
    system: str
    id: str
    text: str
    ids: list[int]
    labels: list[int]
    weights: list[float]
    segments: list[tuple[str, float]]
    error: str

    @property
    def key(self) -> Key:
        return self.file, self.system, self.id


@dataclass(frozen=True, slots=True)
class Difference:
    """A cause: ``bug`` of ms-swift, ``version`` (3.6.4 is otherwise), or ``choice`` of ours.

    ``rows`` are those known to differ for it under ``--profile ms-swift``; in the default profile
    the sign alone decides. A sign is what ``text`` finds (with ``own``, in turns that have one of
    these keys; alone, these turns), and each ``segment`` of that ``weight``; ``files`` and
    ``systems`` say where to look, ``tools`` only in talks with calls; ``error`` is what ms-swift
    raised instead of a text.
    """

    name: str
    kind: str
    reason: str
    profiles: tuple[str, ...]
    files: re.Pattern[str]
    systems: re.Pattern[str]
    text: re.Pattern[str] | None
    segment: re.Pattern[str] | None
    weight: float | None
    own: tuple[str, ...]
    tools: bool
    error: re.Pattern[str] | None
    rows: frozenset[Key]

    def regions(self, row: Row, record: Mapping[str, Any]) -> list[Span]:
        """Where the sign stands in the row's text, in characters, with stop tokens that follow."""
        if self.error is not None:
            return [(0, 1)] if self.error.search(row.error) else []
        roles = {message["role"] for message in record["messages"]}
        if not (self.files.match(row.file) and self.systems.fullmatch(row.system)):
            return []
        if self.tools and "tool_response" not in roles:
            return []
        found = list(self._signs(row, record))
        return [(start, _with_stop(row.text, end)) for start, end in found]

    def _signs(self, row: Row, record: Mapping[str, Any]) -> Iterator[Span]:
        owned = list(_weighted(row.text, record, self.own)) if self.own else [(0, len(row.text))]
        for start, end in owned:
            if self.text is None and self.segment is None:
                yield start, end
            elif self.text is not None:
                yield from (match.span() for match in self.text.finditer(row.text, start, end))
        if self.segment is not None:
            for start, end, weight in _segments(row):
                told = self.weight is None or weight == self.weight
                if told and self.segment.fullmatch(row.text, start, end):
                    yield start, end


def _segments(row: Row) -> Iterator[tuple[int, int, float]]:
    start = 0
    for text, weight in row.segments:
        yield start, start + len(text), weight
        start += len(text)


def _weighted(text: str, record: Mapping[str, Any], keys: Sequence[str]) -> Iterator[Span]:
    """The assistant's turns, header and all, one of whose messages has one of the keys."""
    turns = [match.span() for match in _MESSAGE.finditer(text)]
    spoken = [
        list(group)
        for role, group in itertools.groupby(
            record["messages"], key=lambda m: m["role"] in ("user", "system")
        )
        if not role
    ]
    for span, messages in zip(turns, spoken, strict=False):
        if any(message.get(key) is not None for message in messages for key in keys):
            yield span


def _with_stop(text: str, end: int) -> int:
    match = _STOP.match(text, end)
    return match.end() if match else end


def read_differences(path: Path = PLACE) -> list[Difference]:
    """The data file. ``rows`` there are groups: each file x each system x each id."""
    return [_read(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def _read(entry: dict[str, Any]) -> Difference:
    sign = entry["sign"]
    rows = frozenset(
        key
        for group in entry.get("rows", ())
        for key in itertools.product(group["files"], group["systems"], group["ids"])
    )
    return Difference(
        entry["name"],
        entry["kind"],
        entry["reason"],
        tuple(entry["profiles"]),
        re.compile(sign.get("files", "")),
        re.compile(sign.get("systems", ".*")),
        re.compile(sign["text"], re.DOTALL) if "text" in sign else None,
        re.compile(sign["segment"], re.DOTALL) if "segment" in sign else None,
        sign.get("weight"),
        tuple(sign.get("own", ())),
        sign.get("tools", False),
        re.compile(sign["error"]) if "error" in sign else None,
        rows,
    )


def write_rows(rows: Mapping[str, Collection[Key]], path: Path = PLACE) -> None:
    """Lists the rows of each cause anew, those of the ms-swift profile, in as few groups."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    for entry in entries:
        listed = rows.get(entry["name"], ()) if "ms-swift" in entry["profiles"] else ()
        entry["rows"] = list(_grouped(listed))
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _grouped(keys: Collection[Key]) -> Iterator[dict[str, list[str]]]:
    files: dict[tuple[str, str], set[str]] = defaultdict(set)  # by id and system
    for file, system, name in keys:
        files[name, system].add(file)
    systems: dict[tuple[str, tuple[str, ...]], set[str]] = defaultdict(set)  # by id and files
    for (name, system), found in files.items():
        systems[name, tuple(sorted(found))].add(system)
    ids: dict[tuple[tuple[str, ...], tuple[str, ...]], set[str]] = defaultdict(set)
    for (name, found_files), found in systems.items():
        ids[found_files, tuple(sorted(found))].add(name)
    for (group_files, group_systems), found in sorted(ids.items()):
        yield {"files": [*group_files], "systems": [*group_systems], "ids": sorted(found)}


def explain(
    row: Row,
    record: Mapping[str, Any],
    differing: Sequence[Span],
    differences: Sequence[Difference],
    *,
    profile: str,
) -> tuple[list[str], list[Span]]:
    """The names of the causes, and the differing spans (bytes) that none of them explains.

    Of a row that ms-swift failed on the span is (0, 1). Spans that overlap one another are one: a
    cut in one place moves the tokens beside it.
    """
    stretches = _merge(differing)
    names: list[str] = []
    left = list(stretches)
    for difference in differences:
        if profile not in difference.profiles or not left:
            continue
        regions = [_in_bytes(row.text or "?", s) for s in difference.regions(row, record)]
        explained = [s for s in left if any(a < s[1] and s[0] < b for a, b in regions)]
        if explained:
            names.append(difference.name)
            left = [s for s in left if s not in explained]
    return names, left


def _merge(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _in_bytes(text: str, span: Span) -> Span:
    """Bytes of what the tokenizer saw: Qwen's normalizes to NFC."""
    start, end = (len(unicodedata.normalize("NFC", text[:at]).encode()) for at in span)
    return start, end
