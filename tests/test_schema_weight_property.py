"""Weights drawn at random, and padded as Arrow pads: what goes in comes out, of the same text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.conversation import Conversation, Weights
from pipeline.schema import read_conversation
from pipeline.source.columns import to_records
from pipeline.source.record import decode


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def read_as_records(table: Any) -> list[Any]:
    return [decode(record) for batch in table.to_batches() for record in to_records(batch)]


def read_with_nulls(table: Any) -> list[Any]:
    """As Arrow gives rows to those who write them to JSON lines: every key, null where unset."""
    rows: list[Any] = table.to_pylist()
    assert set(rows[0]["messages"][0]) == set(rows[1]["messages"][0])
    return rows


@pytest.mark.parametrize("read", [read_as_records, read_with_nulls])
def test_nulls_that_arrow_pads_with_weigh_nothing(read: Callable[[Any], list[Any]]) -> None:
    """One message with a key gives all others a null under it, in messages and in parts."""
    rows: list[Any] = [
        {"messages": [text_message("user", text("q")), text_message("assistant", text("a"))]},
        {
            "messages": [
                {**text_message("user", text("q")), "train": False, "weight": 0},
                text_message("assistant", text("ab"), text("c", weight=0.5, loss_scale=0.5)),
                {**text_message("assistant", text("d", train=True)), "loss_scale": 2.0},
            ],
            "sample_weight": 3.0,
        },
    ]
    plain, weighted = map(read_conversation, read(pa.Table.from_pylist(rows, schema=PADDED)))
    assert plain.weights is None
    assert weighted.weights == Weights(
        {0: 0.0, 2: 2.0}, {1: [(2, 3, 0.5)], 2: [(0, 1, 1.0)]}, row=3.0
    )


def text_message(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(parts)}


OWN = [
    ("train", pa.bool_()),
    ("loss", pa.bool_()),
    ("weight", pa.float32()),
    ("loss_scale", pa.float64()),
]
PART = pa.struct([("type", pa.string()), ("text", pa.string()), *OWN])
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.list_(PART)), *OWN])
PADDED = pa.schema(
    [
        ("messages", pa.list_(MESSAGE)),
        ("weight", pa.float64()),
        ("sample_weight", pa.float64()),
    ]
)

numbers = st.floats(0, 1e6) | st.integers(0, 1_000_000)
own_weights = st.fixed_dictionaries(
    {}, optional={"weight": numbers | st.none(), "loss": st.none(), "loss_scale": st.none()}
) | st.fixed_dictionaries({"train": st.booleans() | st.none()}, optional={"loss": st.none()})
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
parted = st.lists(st.tuples(texts, own_weights), min_size=1, max_size=4)
said = st.tuples(own_weights, texts | parted)
exchanges = st.lists(st.tuples(said, said), min_size=1, max_size=3)


def asked(keys: dict[str, Any]) -> float | None:
    """The one weight that the drawn keys name, by hand."""
    named = [value for value in keys.values() if value is not None]
    return float(named[0]) if named else None


def spell(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [text(value, **keys) for value, keys in content]


def assert_read_back(conversation: Conversation, drawn: list[Any], *, row: Any) -> None:
    """Each drawn ``(index, keys, content)`` is found again, and nothing else."""
    weights = conversation.weights or Weights({}, {})
    expected = {index: asked(keys) for index, keys, _ in drawn if asked(keys) is not None}
    assert weights.messages == expected
    assert weights.row == (1.0 if row is None else row)
    cut: dict[int, list[Any]] = {}
    wanted: dict[int, list[Any]] = {}
    for index, _, content in drawn:
        whole = conversation.messages[index]["content"]
        parts = [] if isinstance(content, str) else content
        assert whole == (content if isinstance(content, str) else "".join(t for t, _ in parts))
        cut[index] = [(whole[start:end], w) for start, end, w in weights.parts.get(index, [])]
        wanted[index] = [(t, asked(keys)) for t, keys in parts if t and asked(keys) is not None]
    assert cut == wanted
    assert set(weights.parts) == {index for index in wanted if wanted[index]}


@given(
    exchanges,
    st.sampled_from(["messages", "sharegpt", "pairs"]),
    st.booleans(),
    st.none() | numbers,
)
def test_what_goes_in_as_weights_comes_out(
    drawn: list[Any], form: str, with_system: bool, row: Any
) -> None:
    items: list[Any] = []
    expected: list[Any] = []
    index = int(with_system)
    for (question_keys, question), (answer_keys, answer) in drawn:
        if form == "pairs":  # a question of a pair is a string without keys
            items.append({"input": "q", "output": spell(answer), **answer_keys})
            expected.append((index, {}, "q"))
        else:
            role, content = ("role", "content") if form == "messages" else ("from", "value")
            items.append({role: "user", content: spell(question), **question_keys})
            items.append({role: "assistant", content: spell(answer), **answer_keys})
            expected.append((index, question_keys, question))
        expected.append((index + 1, answer_keys, answer))
        index += 2
    record = {"conversation": items, "weight": row, "system": "s" if with_system else None}
    assert_read_back(read_conversation(record), expected, row=row)
