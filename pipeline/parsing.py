"""Records as conversations: decoded, with no key given twice, and read by their schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from pipeline.conversation import Conversation
from pipeline.schema import read_conversation
from pipeline.schema.plain import PLAIN_SCHEMAS, read_plain
from pipeline.source.colons import count_colons
from pipeline.source.record import Record, decode, require_single, unwrap
from pipeline.source.walk import count_keys

_decode = msgspec.json.Decoder().decode


def count_together(records: Sequence[Record]) -> Sequence[int | None]:
    """For `parse`, the colons of each (`count_colons`); None of one that is alone.

    It may be large, and should it kill the worker, it has to be the one that the worker is at.
    """
    if len(records) == 1:
        return (None,)
    return count_colons([record.raw or b"" for record in records])


def parse(record: Record, *, schema: str, colons: int | None = None) -> Conversation:
    """``read_conversation(decode(record))``, its errors too; plain records in half of the time.

    Where one has as many *colons* as keys, no key is given twice; None leaves them to be counted.
    """
    raw = record.raw
    if raw is None or record.fault or schema not in PLAIN_SCHEMAS:
        return read_conversation(decode(record), schema=schema)
    try:
        value = _decode(raw)
    except (ValueError, RecursionError):  # `decode` has other ways, and words for what is wrong
        return read_conversation(decode(record), schema=schema)
    talk = read_plain(value)
    if talk is None or colons != _count_plain(value, talk):
        require_single(raw, value)
    return talk or read_conversation(unwrap(value), schema=schema)


def _count_plain(record: dict[str, Any], talk: Conversation) -> int:
    """`count_keys` of a plain record, without a look at its messages; -1 where it is too deep."""
    count = len(record) + 2 * len(talk.messages)
    for key, value in record.items():
        if (type(value) is dict or type(value) is list) and key != "messages":
            try:
                count += count_keys(value)
            except RecursionError:
                return -1
    return count
