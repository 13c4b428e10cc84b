"""The pure core, called from Python in the ways that its users have."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pyarrow as pa
import pytest

import pipeline
from pipeline.errors import InputError
from pipeline.recipe import BUNDLED
from pipeline.shards import SCHEMA

TALK = {
    "messages": [
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "Four 🙂"},
    ]
}
CALLED = {
    "messages": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "look", "arguments": {"b": 1, "a": None}}}
            ],
        },
        {"role": "tool", "content": "Rain"},
        {"role": "assistant", "content": "Rain."},
    ],
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}],
}


@pytest.fixture(scope="module")
def encoder() -> Any:
    vocabulary = pipeline.read_vocabulary(BUNDLED / "tokenizer")
    return pipeline.Encoder(
        pipeline.load_tokenizer(vocabulary, certificate=pipeline.find_certificate(vocabulary)),
        pipeline.load_template(vocabulary),
        pipeline.load_rules(["ignore_empty_think"]),
    )


def test_values_in_memory_become_rows_and_stay_as_they_are(encoder: Any) -> None:
    values = [copy.deepcopy(TALK), copy.deepcopy(CALLED)]
    rows = encoder(values)
    assert rows.schema.equals(SCHEMA)
    assert rows.column("row").to_pylist() == [0, 1]
    assert values == [TALK, CALLED]


def test_a_batch_gives_the_rows_that_its_records_give_alone(encoder: Any) -> None:
    together = encoder([TALK, CALLED, TALK])
    for i, value in enumerate([TALK, CALLED, TALK]):
        alone = encoder([value]).to_pylist()[0]
        assert {**together.to_pylist()[i], "row": 0} == alone


def test_an_arrow_table_gives_the_rows_of_its_values(encoder: Any) -> None:
    """Arrow pads what one message has and another has not with nulls; they say nothing."""
    table = pa.Table.from_pylist([TALK, {"messages": CALLED["messages"]}])
    rows = encoder(table)
    assert isinstance(rows, pa.Table)
    assert rows["input_ids"].to_pylist()[0] == encoder([TALK]).to_pylist()[0]["input_ids"]


def test_datasets_can_map_it(encoder: Any) -> None:
    import datasets

    datasets.disable_progress_bars()
    source = datasets.Dataset.from_list([TALK] * 5).with_format("arrow")
    mapped = source.map(encoder, batched=True, batch_size=2, remove_columns=source.column_names)
    assert mapped.with_format(None)["labels"][:] == encoder([TALK] * 5).to_pydict()["labels"]


def test_an_encoder_survives_pickling(encoder: Any) -> None:
    assert pickle.loads(pickle.dumps(encoder))([TALK, CALLED]).equals(encoder([TALK, CALLED]))


def test_the_first_bad_record_is_named(encoder: Any) -> None:
    with pytest.raises(InputError, match=r"^\[1\]: messages\[0\]\.role: "):
        encoder([TALK, {"messages": [{"role": "wizard", "content": "x"}]}])


def test_no_records_are_no_rows(encoder: Any) -> None:
    assert encoder([]).num_rows == 0


def test_public_names_exist() -> None:
    for name in pipeline.__all__:
        assert getattr(pipeline, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipeline.nothing
