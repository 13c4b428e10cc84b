"""Records parsed together: as each is alone, decoded and read by the general way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import RecordError
from pipeline.parsing import count_together, parse
from pipeline.schema import SCHEMAS, read_conversation
from pipeline.schema.plain import TELLING, read_plain
from pipeline.source.colons import count_colons
from pipeline.source.record import REJECTED, Record, decode

MARKS = ['"', ":", '":', '\\":', '\\\\":', "\\", " ", "\n", "x", "é"]
# Pieces of records, some of which write a key twice, or a colon after white space or in a string.
ROLES = ['"user"', '"assistant"', '"assistant"', '"model"', "null", "[]", '"\\u0061ssistant"']
CONTENTS = ['"a"', '"b"', '""', r'"c\":"', r'"\\\":"', '"\\ud800"', "null", '["x"]', '{"d": 1}']
KEYS = ['"role"', '"r\\u006fle"', '"content"', '"content"', '"weight"', '"x"']
OTHER = ['"id"', '"x"', '"messages"', '"conversations"', r'"\":"', *map(json.dumps, TELLING)]
VALUES = ["1", "null", "true", "[]", '"s"', '{"a": 1, "a": 2}', '[{"a": {"b" : 1}}]', "1e400"]
COLONS = st.sampled_from([":", ": ", " : "])


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """A record, mostly a plain one, that may be wrong in one way or another."""
    colon = draw(COLONS)
    messages = []
    for _ in range(draw(st.integers(0, 4))):
        pairs = [("role", draw(st.sampled_from(ROLES[:3]))), ("content", '"t"')]
        pairs = [(json.dumps(key), value) for key, value in pairs]
        if draw(st.integers(0, 3)) == 0:
            value = draw(st.sampled_from([*ROLES, *CONTENTS]))
            pairs.insert(draw(st.integers(0, 2)), (draw(st.sampled_from(KEYS)), value))
        if draw(st.integers(0, 5)) == 0:
            pairs[-1] = (pairs[-1][0], draw(st.sampled_from(CONTENTS)))
        messages.append("{" + ", ".join(key + colon + value for key, value in pairs) + "}")
    fields = [('"messages"', "[" + ", ".join(messages) + "]")]
    for _ in range(draw(st.integers(0, 2))):
        key, value = draw(st.sampled_from(OTHER)), draw(st.sampled_from(VALUES))
        fields.insert(draw(st.integers(0, len(fields))), (key, value))
    text = "{" + ",".join(key + draw(COLONS) + value for key, value in fields) + "}"
    return draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"\xff"])) + text.encode()


def told(record: Record, **how: Any) -> str:
    """What a record is parsed to, or the error; repr, as NaN is not equal to itself."""
    try:
        return repr(parse(record, **how))
    except RecordError as error:
        return repr((error.stage, error.reason, error.field, str(error)))


def told_slowly(record: Record, schema: str) -> str:
    try:
        return repr(read_conversation(decode(record), schema=schema))
    except RecordError as error:
        return repr((error.stage, error.reason, error.field, str(error)))


TWICE = b'{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}'
REJECT = json.dumps(dict.fromkeys(REJECTED, "") | {"raw": TWICE.decode()}).encode()


@settings(max_examples=400)
@given(st.lists(texts(), min_size=1, max_size=4), st.sampled_from(SCHEMAS))
@example([TWICE, TWICE], "auto")
@example([REJECT, TWICE.replace(b'"user", "role": ', b""), b""], "messages")
def test_records_together_are_parsed_as_each_is_alone(raws: list[bytes], schema: str) -> None:
    records = [Record("s", row, row + 1, raw) for row, raw in enumerate(raws)]
    counts = [*zip(records, count_together(records), strict=True), (records[0], None)]
    for record, colons in counts:
        assert told(record, schema=schema, colons=colons) == told_slowly(record, schema)


@given(texts())
def test_what_is_read_as_plain_is_read_the_same_by_the_schema(raw: bytes) -> None:
    try:
        value = decode(Record("s", 0, 1, raw))
    except RecordError:
        return
    talk = read_plain(value)
    if talk is not None:
        assert repr(talk) == repr(read_conversation(value, schema="messages"))
        assert len({id(message) for message in talk.messages}) == len(talk.messages)


def test_a_plain_record_has_as_many_colons_as_keys() -> None:
    talk = [{"role": "user", "content": "q"}, {"content": 'a "b": c', "role": "assistant"}]
    value = {"id": "1", "messages": talk, "meta": {"of": [{"x": 1}]}}
    assert read_plain(value) is not None
    raw = json.dumps(value).encode()
    assert count_colons([raw, raw]) == [9, 9]


@pytest.mark.parametrize("key", sorted(TELLING))
def test_a_record_that_says_more_than_its_messages_is_not_plain(key: str) -> None:
    talk = [{"role": "assistant", "content": "a"}]
    assert read_plain({"messages": talk, key: None}) is None


@given(st.lists(st.lists(st.sampled_from(MARKS), max_size=8).map("".join), min_size=1, max_size=5))
def test_colons_are_counted_as_text_by_text(texts: list[str]) -> None:
    raws = [text.encode() for text in texts]
    for raw, count in zip(raws, count_colons(raws), strict=True):
        unclear = b'\\\\":' in raw
        assert count == (None if unclear else raw.count(b'":') - raw.count(b'\\":'))
