"""TRL's conversational prompts and completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import build, cli
from pipeline.errors import RecordError
from pipeline.recipe import BUNDLED
from pipeline.schema import read_conversation

ASK = {"role": "user", "content": "Two?"}
SAID = {"role": "assistant", "content": "Two."}
MORE = {"role": "user", "content": "Three?"}
ANSWER = {"role": "assistant", "content": "Three."}


def record(prompt: Any = None, completion: Any = None, **extra: Any) -> dict[str, Any]:
    return {
        "prompt": [ASK, SAID, MORE] if prompt is None else prompt,
        "completion": [ANSWER] if completion is None else completion,
        **extra,
    }


def fault(value: Any) -> RecordError:
    with pytest.raises(RecordError) as caught:
        read_conversation(value)
    return caught.value


@pytest.mark.parametrize("schema", ["auto", "query-response"])
def test_both_lists_are_one_conversation_whose_prompt_weighs_nothing(schema: str) -> None:
    read = read_conversation(record(), schema=schema)
    assert read.messages == [ASK, SAID, MORE, ANSWER]
    assert read.weights is not None
    assert read.weights.messages == {0: 0, 1: 0, 2: 0}
    assert read.weights.row == 1


def test_weights_system_text_and_tools_are_those_of_other_records() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    weighted = {**ANSWER, "weight": 0.5}
    read = read_conversation(record(None, [weighted], system="Be.", tools=[tool], weight=3))
    assert [m["role"] for m in read.messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert read.tools == [tool]
    assert read.weights is not None
    assert read.weights.messages == {1: 0, 2: 0, 3: 0, 4: 0.5}
    assert read.weights.row == 3


def test_messages_go_before_and_text_stays_text() -> None:
    assert read_conversation(record(messages=[ASK, SAID])).messages == [ASK, SAID]
    assert read_conversation(record("a", "b")).weights is None


@pytest.mark.parametrize(
    ("value", "reason", "field"),
    [
        (record(completion=[]), "no_assistant_turn", "completion"),
        (record([ASK], [MORE]), "no_assistant_turn", "completion"),
        (record([{"role": "wizard", "content": ""}]), "unknown_role", "prompt[0].role"),
        (record(completion=["x"]), "bad_message", "completion[0]"),
        (record(completion=[{**ANSWER, "content": 1}]), "bad_content", "completion[0].content"),
        (record([ASK, {**SAID, "weight": 1}, MORE]), "misplaced_weight", "prompt[1]"),
        (record([ASK], "text"), "unknown_schema", ""),
    ],
)
def test_what_is_wrong_is_told_by_its_field(value: Any, reason: str, field: str) -> None:
    assert (fault(value).reason, fault(value).field) == (reason, field)


def test_only_the_completion_trains(tmp_path: Path) -> None:
    path, output = tmp_path / "x.jsonl", tmp_path / "out"
    last = {"messages": [ASK, {**SAID, "weight": 0}, MORE, ANSWER]}
    path.write_text(json.dumps(record()) + "\n" + json.dumps(last) + "\n", encoding="utf-8")
    argv = ["--input", str(path), "--output", str(output), "--workers", "1", "--quiet"]
    assert cli.run(build.main, [*argv, "--tokenizer", str(BUNDLED / "tokenizer")]) == 0
    columns = ["input_ids", "labels", "loss_scale"]
    first, second = (
        pq.read_table(output / "train-00000-of-00001.parquet").select(columns).to_pylist()
    )
    assert first == second
    assert 0 < sum(first["loss_scale"]) < len(first["input_ids"]) / 2
