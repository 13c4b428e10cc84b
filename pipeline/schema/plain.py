"""The records of most data: messages of a role and a text, and nothing else to say."""

from __future__ import annotations

from typing import Any

from pipeline.conversation import Conversation
from pipeline.schema.message import PLAIN_ROLES
from pipeline.schema.row import MEDIA_KEYS
from pipeline.schema.weight import ROW_KEYS, WEIGHT_KEYS

PLAIN_SCHEMAS = frozenset(("auto", "messages"))
# A record with one of these has more to say than its messages, whatever it holds there.
TELLING = frozenset((*MEDIA_KEYS, *WEIGHT_KEYS, *ROW_KEYS, "system", "tools", "functions")) | {
    "chat_template_kwargs"
}


def read_plain(record: Any) -> Conversation | None:
    """What `read_conversation` makes of a plain record, in less than half of the time.

    None leaves any other to it. Messages are the record's own, not copied (0.5 us): it must be one
    that nobody else holds, and they must be objects of their own, as in what JSON decodes to.
    """
    if type(record) is not dict or not TELLING.isdisjoint(record):
        return None
    items = record.get("messages")
    if type(items) is not list:
        return None
    speaks = False
    for item in items:
        if type(item) is not dict or len(item) != 2:
            return None
        role = item.get("role")
        if role == "assistant":
            speaks = True
        elif type(role) is not str or role not in PLAIN_ROLES:
            return None
        if type(item.get("content")) is not str:
            return None
    return Conversation(items, plain=True) if speaks else None
