"""A record left out, and why: one line of ``rejects.jsonl``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec

from pipeline.errors import RecordError
from pipeline.source.record import Record


@dataclass(frozen=True, slots=True)
class Reject:
    """``place`` is where a person finds the record; ``raw`` is what it was, as text.

    A raw line that is not UTF-8 is kept with each bad byte as ``\\xNN``.
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
    """The reject of *record* for *error*."""
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
    if record.raw is not None:
        return bytes(record.raw).decode("utf-8", errors="backslashreplace")
    return msgspec.json.encode(record.value, enc_hook=_unusual).decode()


def _unusual(value: Any) -> str:
    return str(value)
