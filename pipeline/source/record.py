"""Pieces of input, and the records in them: undecoded, each knowing its place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from pipeline.errors import RecordError
from pipeline.source.walk import find_doubled, find_surrogate, join

# What JSON calls white space; bytes.strip() alone would take \v and \f too, and hide a bad line.
WHITE = b" \t\r\n"
BOM = b"\xef\xbb\xbf"
# The keys of a line of rejects.jsonl: a record with just these stands for its raw one.
REJECTED = frozenset(
    ("source", "row", "line", "place", "stage", "reason", "field", "message", "raw")
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A fixed range of one source, a function of its content, that any process can read alone.

    ``path`` is the seekable file that is read: the input, or its unpacked form in the spool.
    ``start`` and ``end`` are bytes of it where *form* is ``lines`` or ``elements`` (one array
    element a line), rows where it is ``parquet`` or ``arrow``. ``first`` is the number in the
    source of the first record, ``line`` the 1-based line where the piece starts (0 without lines),
    ``size`` the bytes it stands for, to balance work. ``stamp`` is the size and the time of change
    (ns) of the file as surveyed; None is not compared.
    """

    source: str
    path: str
    form: str
    start: int
    end: int
    first: int
    line: int
    size: int
    stamp: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One file's worth of records; ``sha256`` and ``size`` are of the content once uncompressed."""

    name: str
    sha256: str
    size: int
    records: int
    pieces: tuple[Piece, ...]


class Record(NamedTuple):
    """JSON text in ``raw``, or a row in ``value``; ``row`` counts records from 0, ``line`` from 1.

    ``fault`` says why a row could not become a ``value`` whole; ``value`` then lacks that column,
    and ``raw`` is the row as it was, which is no JSON.
    """

    source: str
    row: int
    line: int
    raw: bytes | None = None
    value: dict[str, Any] | None = None
    fault: RecordError | None = None

    @property
    def place(self) -> str:
        """``train.jsonl:17`` where the source has lines, else ``data.json[16]``."""
        return f"{self.source}:{self.line}" if self.line else f"{self.source}[{self.row}]"


def decode(record: Record) -> Any:
    """The record's value: numbers and their order as written, big integers exact.

    msgspec decodes; what it refuses goes through ``json``, which takes NaN and 1e400. Raises
    RecordError (stage ``read``): ``bad_json``, ``bad_utf8``, ``too_deep``, ``lone_surrogate`` (with
    the field: tokenizers cannot take one), ``duplicate_key`` (where the two values differ), and
    what ``fault`` holds. A line of rejects.jsonl, from whatever
    file it comes, is its raw record, once mended.
    """
    if record.fault is not None:
        raise record.fault
    return unwrap(record.value if record.raw is None else decode_json(record.raw))


def unwrap(value: Any) -> Any:
    """What a line of rejects.jsonl stands for; any other value is itself."""
    # A reject whose own line was broken by hand holds another one.
    while is_reject(value):
        raw = value["raw"]
        value = decode_json(raw.encode("utf-8", "surrogatepass")) if isinstance(raw, str) else raw
    return value


def is_reject(value: Any) -> bool:
    """Whether a value is a line of rejects.jsonl; its raw record is text, or was made an object."""
    return (
        type(value) is dict
        and len(value) == len(REJECTED)
        and value.keys() == REJECTED
        and isinstance(value["raw"], (str, dict))
    )


def decode_json(raw: bytes, *, field: str = "") -> Any:
    """JSON text in UTF-8 as a value; errors as of ``decode``, *field* being where the text lay."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Files that were joined have byte order marks inside.
        raw = raw.removeprefix(BOM)
        value = _decode_slowly(raw, field)
        if (found := find_surrogate(value)) is not None:
            fact = "half of a surrogate pair is no text; drop it"
            raise RecordError("read", "lone_surrogate", fact, field=join(field, found)) from None
    require_single(raw, value, field=field)
    return value


def require_single(raw: bytes, value: Any, *, field: str = "") -> None:
    """RecordError ``duplicate_key`` unless *value*, decoded from *raw*, is all that it says."""
    try:
        doubled = find_doubled(raw, value)
    except RecursionError:
        raise _too_deep(field) from None
    if doubled is not None:
        fact = "stands there twice with different values; keep one"
        raise RecordError("read", "duplicate_key", fact, field=join(field, doubled))


def _decode_slowly(raw: bytes, field: str) -> Any:
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError as error:
        fact = f"byte {raw[error.start]:#04x} at byte {error.start + 1} is not UTF-8"
        raise RecordError("read", "bad_utf8", f"{fact}; save as UTF-8", field=field) from None
    except json.JSONDecodeError as error:
        fact = f"bad JSON at column {error.colno}: {error.msg}; repair the record"
        if not raw.strip(WHITE):
            fact = "nothing where a value should be; the array is cut off or has a comma too many"
        raise RecordError("read", "bad_json", fact, field=field) from None
    except RecursionError:
        raise _too_deep(field) from None
    except ValueError:
        fact = "an integer of more than 4,300 digits; write it as text"
        raise RecordError("read", "bad_json", fact, field=field) from None


def _too_deep(field: str) -> RecordError:
    fact = "is nested deeper than Python can hold; flatten it or drop the record"
    return RecordError("read", "too_deep", fact, field=field)
