"""Real files of every schema: each record converts, and nothing of it is lost."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from pipeline.conversation import with_string_arguments
from pipeline.schema import read_conversation

pytestmark = pytest.mark.corpus

# Of each file: its own schema, records, and records that carry tools.
FILES = {
    "alpaca_en_demo.json": ("alpaca", 999, 0),
    "alpaca_zh_demo.json": ("alpaca", 1000, 0),
    "dummy_conversation.json": ("sharegpt", 500, 0),
    "glaive_toolcall_en_demo.json": ("sharegpt", 300, 191),
    "hotpotqa.jsonl": ("messages", 500, 0),
    "reason_tool_use_demo_50.jsonl": ("messages", 50, 48),
    "tau_bench_airline_60.json": ("messages", 60, 0),
    "webdancer_50.jsonl": ("messages", 50, 0),
    "xtuner_conversation_zh_300.json": ("query-response", 300, 0),
}
TEXT_KEYS = {"content", "value", "input", "output", "system", "instruction"}


def records_of(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    records: list[Any] = json.loads(text)
    return records


def texts_of(record: Any) -> Iterator[str]:
    """All that people wrote in a record, wherever it lies: found with no knowledge of schemas."""
    if isinstance(record, dict):
        for key, value in record.items():
            if key in TEXT_KEYS and isinstance(value, str) and value:
                yield value
            elif key not in ("info", "functions", "tools"):
                yield from texts_of(value)
    elif isinstance(record, list):
        for item in record:
            yield from texts_of(item)


def test_no_file_is_forgotten(shared: Path) -> None:
    assert {path.name for path in (shared / "data" / "formats").iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_every_real_record_converts_and_keeps_its_text(shared: Path, name: str) -> None:
    schema, count, with_tools = FILES[name]
    records = records_of(shared / "data" / "formats" / name)
    tools = 0
    for record in records:
        expected = sorted(texts_of(record))
        conversation = read_conversation(json.loads(json.dumps(record)))
        assert read_conversation(record, schema=schema) == conversation
        tools += conversation.tools is not None
        found = [m["content"] for m in conversation.messages if m["content"]]
        found += [m["reasoning_content"] for m in conversation.messages if "reasoning_content" in m]
        for message in conversation.messages:
            found += [spell(call) for call in message.get("tool_calls", ())]
        missing = difference(expected, found)
        if schema == "alpaca":  # instruction and input share one message
            joined = "\n".join(found)
            missing = [text for text in missing if text not in joined]
        else:  # a call's spelling is compared by value below
            missing = [t for t in missing if spell_again(t) not in found]
        assert missing == []
    assert (len(records), tools) == (count, with_tools)


def spell(call: dict[str, Any]) -> str:
    return json.dumps(call["function"], sort_keys=True)


def spell_again(text: str) -> str:
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except ValueError:
        return text


def difference(expected: list[str], found: list[str]) -> list[str]:
    """What is in *expected* more often than in *found*."""
    rest = list(found)
    missing = []
    for text in expected:
        if text in rest:
            rest.remove(text)
        else:
            missing.append(text)
    return missing


def test_written_arguments_of_real_calls_come_back_as_they_were(shared: Path) -> None:
    records = records_of(shared / "data" / "formats" / "tau_bench_airline_60.json")
    seen = 0
    for record in records:
        written = arguments_of(json.loads(json.dumps(record["traj"])))
        conversation = with_string_arguments(read_conversation(record))
        assert arguments_of(conversation.messages) == written
        seen += len(written)
    assert seen > 300


def arguments_of(messages: list[dict[str, Any]]) -> list[Any]:
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    return [call["function"]["arguments"] for call in calls]


def test_all_bench_conversations_come_out_as_they_are(shared: Path) -> None:
    decode = msgspec.json.Decoder().decode
    count = 0
    with (shared / "data" / "bench_messages.jsonl.zst").open("rb") as file:
        stream = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file))
        for line in stream:
            record = decode(line)
            conversation = read_conversation(record)
            assert conversation.messages == record["messages"]
            assert conversation.tools is None
            assert conversation.kwargs == {}
            count += 1
    assert count == 50_000
