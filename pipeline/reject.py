"""A record left out, and why: one line of ``rejects.jsonl``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from pipeline.errors import RecordError
from pipeline.source.record import Record, decode_json, is_reject


@dataclass(frozen=True, slots=True)
class Reject:
    r"""``place`` is where a person finds the record; ``raw`` is what it was, as text.

    Fed to a build, a reject stands for its raw record, so ``raw`` must not become JSON by being
    made readable: bytes that are not UTF-8 are written ``\xNN``, which JSON forbids.
    """

    source: str
    row: int
    line: int
    place: str
    stage: str
    reason: str
    field: str
    message: str
    raw: str

    def to_json(self) -> bytes:
        """One line of JSON, with its newline."""
        # A template's own error message can hold what UTF-8 cannot.
        message = self.message.encode("utf-8", "backslashreplace").decode()
        return msgspec.json.encode(replace(self, message=message)) + b"\n"


def reject(record: Record, error: RecordError) -> Reject:
    """The reject of *record* for *error*; of a reject that was fed back, with the same raw text."""
    return Reject(
        source=record.source,
        row=record.row,
        line=record.line,
        place=record.place,
        stage=error.stage,
        reason=error.reason,
        field=error.field,
        message=f"{record.place}: {error}",
        raw=_raw(record),
    )


def _raw(record: Record) -> str:
    """The raw record as text; of rejects that hold one another, the innermost."""
    raw = _written(record.value) if record.raw is None else record.raw
    while b'"raw"' in raw:
        try:
            value = decode_json(raw)
        except RecordError:
            break
        if not is_reject(value):
            break
        raw = value["raw"].encode() if isinstance(value["raw"], str) else _written(value["raw"])
    return _readable(raw)


def _written(value: Any) -> bytes:
    try:
        # Not msgspec: it writes NaN as null. A lone surrogate becomes its JSON escape.
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
    except RecursionError:
        return b"<nested too deep to be written>"


def _readable(raw: bytes) -> str:
    r"""Text, each byte that is not UTF-8 as ``\xNN``: after an even number of backslashes, always.

    After an odd one it would be an escaped backslash, and JSON; so the last becomes ``\x5c``.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError:
        parts = re.split("([\udc80-\udcff])", raw.decode("utf-8", "surrogateescape"))
    for i in range(1, len(parts), 2):
        before = parts[i - 1]
        if (len(before) - len(before.rstrip("\\"))) % 2:
            parts[i - 1] = before[:-1] + r"\x5c"
        parts[i] = rf"\x{ord(parts[i]) - 0xDC00:02x}"
    return "".join(parts)
