"""A record's own weights: which it names, of which characters, and which are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.conversation import Weights, with_empty_content, with_string_arguments
from pipeline.errors import RecordError
from pipeline.schema import read_conversation

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
QA = [USER, ANSWER]
KEYS = ("weight", "loss", "loss_scale", "train")


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def weights_of(record: Any, schema: str = "auto") -> Weights:
    weights = read_conversation(record, schema=schema).weights
    assert weights is not None
    return weights


def of_messages(*messages: Any) -> Weights:
    return weights_of({"messages": list(messages)})


def fault_of(record: Any) -> tuple[str, str]:
    with pytest.raises(RecordError) as caught:
        read_conversation(record)
    assert caught.value.stage == "parse"
    return caught.value.reason, caught.value.field


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({"train": True}, 1.0),
        ({"train": False}, 0.0),
        ({"train": 0}, 0.0),
        ({"loss": True}, 1.0),
        ({"loss": 1.0}, 1.0),
        ({"loss": False}, 0.0),
        ({"weight": 0}, 0.0),
        ({"weight": 0.25}, 0.25),
        ({"weight": 1_000_000}, 1e6),
        ({"loss_scale": 3}, 3.0),
        ({"train": True, "loss": 1, "weight": 1, "loss_scale": 1.0}, 1.0),
        ({"train": False, "weight": 0.0, "loss": None}, 0.0),
        ({"loss": True, "loss_scale": 0.5}, 0.5),
        ({"weight": 2, "train": 1}, 2.0),
        ({"weight": 0.5, "train": None, "loss": None, "loss_scale": None}, 0.5),
    ],
)
@pytest.mark.parametrize("role", ["user", "assistant", "tool", "system"])
def test_a_message_of_any_role_names_its_weight(
    role: str, keys: dict[str, Any], weight: float
) -> None:
    message = {"role": role, "content": "t", **keys}
    conversation = read_conversation({"messages": [USER, message, ANSWER]})
    assert conversation.weights == Weights({1: weight}, {})
    assert conversation.messages[1] == message, "templates see the keys as they were written"


@pytest.mark.parametrize(
    "record",
    [
        {"messages": QA},
        {"messages": [{**m, **dict.fromkeys(KEYS)} for m in QA], "weight": None},
        {"messages": [USER, {"role": "assistant", "content": [text("a", weight=None)]}]},
        {"messages": [USER, {"role": "assistant", "content": [text("a"), text("", weight=2)]}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "output": "a", "sample_weight": None},
        {"query": "q", "response": "a"},
    ],
)
def test_a_record_that_names_none_has_none(record: Any) -> None:
    assert read_conversation(record).weights is None


@pytest.mark.parametrize(
    ("keys", "reason", "key"),
    [
        ({"weight": "1"}, "bad_weight", "weight"),
        ({"weight": True}, "bad_weight", "weight"),
        ({"weight": [1]}, "bad_weight", "weight"),
        ({"weight": {}}, "bad_weight", "weight"),
        ({"weight": -0.5}, "bad_weight", "weight"),
        ({"weight": math.nan}, "bad_weight", "weight"),
        ({"weight": math.inf}, "bad_weight", "weight"),
        ({"weight": -math.inf}, "bad_weight", "weight"),
        ({"weight": 1_000_000.5}, "bad_weight", "weight"),
        ({"weight": 10**400}, "bad_weight", "weight"),
        ({"weight": -(10**400)}, "bad_weight", "weight"),
        ({"loss_scale": False}, "bad_weight", "loss_scale"),
        ({"loss_scale": [0.0, 1.0]}, "unsupported_weight", "loss_scale"),
        ({"train": 0.5}, "bad_weight", "train"),
        ({"train": "false"}, "bad_weight", "train"),
        ({"train": math.nan}, "bad_weight", "train"),
        ({"loss": 2}, "bad_weight", "loss"),
        ({"loss": []}, "bad_weight", "loss"),
        ({"train": False, "weight": 0.5}, "conflicting_weight", "weight"),
        ({"weight": 0, "train": True}, "conflicting_weight", "weight"),
        ({"loss": True, "loss_scale": 0.0}, "conflicting_weight", "loss_scale"),
        ({"loss": False, "loss_scale": 2}, "conflicting_weight", "loss_scale"),
        ({"train": True, "loss": False}, "conflicting_weight", "loss"),
        ({"weight": 0.5, "loss_scale": 0.25}, "conflicting_weight", "loss_scale"),
        ({"train": 1, "weight": 1, "loss": 1, "loss_scale": 2}, "conflicting_weight", "loss_scale"),
    ],
)
def test_a_bad_weight_is_refused_at_its_key(keys: dict[str, Any], reason: str, key: str) -> None:
    on_message = {"messages": [USER, {**ANSWER, **keys}]}
    on_part = {"messages": [USER, {"role": "assistant", "content": [text("a"), text("b", **keys)]}]}
    on_value = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    on_value["conversations"][1] |= keys
    assert fault_of(on_message) == (reason, f"messages[1].{key}")
    assert fault_of({**on_message, "system": "s"}) == (reason, f"messages[1].{key}")
    assert fault_of(on_part) == (reason, f"messages[1].content[1].{key}")
    assert fault_of(on_value) == (reason, f"conversations[1].{key}")
    on_pair = {"conversation": [{"input": "q", "output": "a", "system": "s", **keys}]}
    assert fault_of(on_pair) == (reason, f"conversation[0].{key}")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"weight": -1}, "weight: is negative; write a number from 0 to 1,000,000"),
        ({"weight": 2e6}, "weight: is above 1,000,000; write a number from 0 to 1,000,000"),
        ({"weight": math.nan}, "weight: is NaN; write a number from 0 to 1,000,000"),
        ({"weight": False}, "weight: expected a number, found a boolean; write 1 or 0"),
        ({"weight": "x"}, "weight: expected a number, found a string; write one, or drop the key"),
        ({"train": "x"}, "train: expected true or false, found a string; write one"),
        ({"loss": 0.5}, "loss: is a number other than 0 and 1; write true or false"),
        ({"train": 1, "weight": 0}, "weight: is 0 beside a switch that is on; keep one of them"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_to_do(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(RecordError) as caught:
        read_conversation({"messages": [USER, {**ANSWER, **keys}]})
    assert str(caught.value).startswith(f"messages[1].{words}")


def test_a_negative_zero_is_zero() -> None:
    assert math.copysign(1, of_messages(USER, {**ANSWER, "weight": -0.0}).messages[1]) == 1


@pytest.mark.parametrize("key", KEYS)
def test_a_weighted_part_is_a_range_of_the_joined_text(key: str) -> None:
    parts = [text("ab"), {"type": "text", "value": "c€𝄞", key: 0}, {"text": "d", "cache": None}]
    conversation = read_conversation({"messages": [USER, {"role": "assistant", "content": parts}]})
    assert conversation.messages[1] == {"role": "assistant", "content": "abc€𝄞d"}
    assert conversation.weights == Weights({}, {1: [(2, 5, 0.0)]})


def test_neighbouring_parts_keep_their_own_ranges_and_empty_ones_leave_none() -> None:
    parts = [text("ab", weight=2), text("", weight=9), text("c", weight=2), text(""), text("d")]
    weights = of_messages({"role": "user", "content": parts}, ANSWER)
    assert weights == Weights({}, {0: [(0, 2, 2.0), (2, 3, 2.0)]})


def test_a_message_and_its_parts_may_weigh_differently() -> None:
    parts = [text("a", weight=0.5), text("b")]
    weights = of_messages(USER, {"role": "assistant", "content": parts, "weight": 2})
    assert weights == Weights({1: 2.0}, {1: [(0, 1, 0.5)]})


def test_ranges_count_no_reasoning_and_no_calls() -> None:
    parts = [
        {"type": "reasoning", "value": "hmm", "weight": None},
        text("ab"),
        text("c", train=False),
        {"type": "tool_call", "value": {"name": "f", "arguments": {}}, "loss": None},
    ]
    weights = of_messages(USER, {"role": "assistant", "content": parts})
    assert weights == Weights({}, {1: [(2, 3, 0.0)]})


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "part",
    [
        {"type": "reasoning", "value": "r"},
        {"type": "tool_call", "value": {"name": "f", "arguments": {}}},
    ],
)
def test_a_weight_on_reasoning_or_a_call_is_refused(part: dict[str, Any], key: str) -> None:
    record = {"messages": [USER, {"role": "assistant", "content": [{**part, key: 1}]}]}
    assert fault_of(record) == ("unsupported_weight", "messages[1].content[0]")


def test_a_message_that_is_a_call_has_a_weight() -> None:
    items = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}', "loss": False},
        {"from": "observation", "value": "o"},
        {"from": "gpt", "value": [text("a", weight=3)]},
    ]
    assert weights_of({"conversations": items}) == Weights({1: 0.0}, {3: [(0, 1, 3.0)]})


def test_keys_of_a_message_that_only_sound_like_weights_are_none() -> None:
    answer = {**ANSWER, "weights": 2, "Loss": "x", "losses": [], "output_weight": -1}
    assert read_conversation({"messages": [USER, answer]}).weights is None
    arguments = {"weight": "70 kg", "train": "ICE 1"}
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": arguments}]}
    assert read_conversation({"messages": [USER, call]}).weights is None


ROWS: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": QA}),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": ""}]},
    ),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["h", "k"]]}),
    ("query-response", {"query": "q", "response": "a", "history": [["h", "k"]]}),
    ("query-response", {"prompt": "q", "completion": "a"}),
    ("query-response", {"conversation": [{"input": "q", "output": "a"}]}),
]


@pytest.mark.parametrize(("schema", "record"), ROWS)
@pytest.mark.parametrize("chosen", ["auto", "named"])
def test_a_row_has_a_weight_in_every_schema(
    schema: str, record: dict[str, Any], chosen: str
) -> None:
    asked = schema if chosen == "named" else "auto"
    assert weights_of({**record, "weight": 2}, asked) == Weights({}, {}, 2.0)
    assert weights_of({**record, "sample_weight": 0.5}, asked) == Weights({}, {}, 0.5)
    both = {**record, "sample_weight": 0.5, "weight": 0.5}
    assert weights_of(both, asked) == Weights({}, {}, 0.5)
    padded = {**record, "sample_weight": 0, "weight": None}
    assert weights_of(padded, asked) == Weights({}, {}, 0.0)
    assert fault_of({**record, "weight": 1, "sample_weight": 2}) == (
        "conflicting_weight",
        "sample_weight",
    )
    assert fault_of({**record, "weight": True}) == ("bad_weight", "weight")
    assert fault_of({**record, "sample_weight": "2"}) == ("bad_weight", "sample_weight")
    assert fault_of({**record, "sample_weight": [2]}) == ("bad_weight", "sample_weight")


def test_a_row_that_names_only_messages_weighs_one() -> None:
    assert of_messages(USER, {**ANSWER, "weight": 0.5}).row == 1.0


def test_a_system_text_put_first_moves_every_index() -> None:
    messages = [{**USER, "train": False}, {"role": "assistant", "content": [text("a", weight=2)]}]
    record = {"messages": messages, "system": "s"}
    assert weights_of(record) == Weights({0 + 1: 0.0}, {1 + 1: [(0, 1, 2.0)]})
    assert weights_of({**record, "system": ""}) == Weights({0: 0.0}, {1: [(0, 1, 2.0)]})


def test_a_system_text_that_is_there_already_moves_none() -> None:
    system = {"role": "system", "content": [text("s", weight=3), text("t")]}
    weights = weights_of({"messages": [system, *QA], "system": "st"})
    assert weights == Weights({}, {0: [(0, 1, 3.0)]})


def test_a_pair_weighs_its_answer() -> None:
    pairs = [
        {"system": "s", "input": "q", "output": "a", "loss": True},
        {"input": "q", "output": [text("a"), text("b", weight=4)], "weight": 0.5},
        {"system": "", "input": "q", "output": "a", "loss": None, "weight": 0},
    ]
    expected = Weights({2: 1.0, 4: 0.5, 6: 0.0}, {4: [(1, 2, 4.0)]})
    assert weights_of({"conversation": pairs}) == expected
    shifted = Weights({3: 1.0}, {})
    pairs = [{"input": "p", "output": "b"}, {"input": "q", "output": "a", "train": True}]
    assert weights_of({"conversation": pairs}) == shifted
    assert weights_of({"conversation": pairs, "system": "s"}) == Weights({4: 1.0}, {})


def test_functions_spelled_out_in_weighted_parts_are_seen() -> None:
    functions = [{"name_for_model": "f"}]
    system = {"role": "system", "content": [text('use {"name": "f', weight=0), text('"}')]}
    record = {"messages": [system, *QA], "functions": functions}
    assert read_conversation(record).tools is None


def test_other_forms_of_a_conversation_keep_its_weights() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "weight": 2}
    conversation = read_conversation({"messages": [USER, message]})
    for other in (with_string_arguments(conversation), with_empty_content(conversation)):
        assert other is not conversation
        assert other.weights == Weights({1: 2.0}, {})


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"messages": [USER, ANSWER], "train": False}, "train"),
        ({"messages": [USER, ANSWER], "loss_scale": 0.5}, "loss_scale"),
        ({"messages": [USER, {**ANSWER, "sample_weight": 2}]}, "messages[1].sample_weight"),
    ],
)
def test_a_weight_where_it_would_do_nothing_is_refused(record: Any, field: str) -> None:
    assert fault_of(record) == ("misplaced_weight", field)


def test_a_metric_called_loss_is_no_weight() -> None:
    assert read_conversation({"messages": [USER, ANSWER], "loss": 1.75}).weights is None
