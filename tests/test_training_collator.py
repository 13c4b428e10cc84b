"""Batches of rows: what stands where, and that nothing leaks from row to row."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra: pip install '.[train]'")
transformers = pytest.importorskip("transformers", reason="needs the extra: pip install '.[train]'")

from pipeline.errors import ConfigurationError, InputError
from pipeline.training import WeightedCollator, count_items, weighted_cross_entropy

pytestmark = pytest.mark.train
Row = dict[str, Any]
PAD = 9


def make_rows(seed: int, lengths: list[int]) -> list[Row]:
    """Rows as a build has them: the first token is not trained, 0 where the label is -100."""
    dice, rows = np.random.default_rng(seed), []
    for length in lengths:
        ids = dice.integers(1, 8, length).tolist()
        trained = [False, *(dice.random(length - 1) < 0.6).tolist()]
        weights = dice.choice([0.25, 1.0, 3.0], length).tolist()
        rows.append(
            {
                "input_ids": ids,
                "labels": [i if t else -100 for i, t in zip(ids, trained, strict=True)],
                "loss_scale": [w if t else 0.0 for w, t in zip(weights, trained, strict=True)],
            }
        )
    return rows


TWO: list[Row] = [
    {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "loss_scale": [0, 0.5, 2]},
    {"input_ids": [4, 5], "labels": [-100, 5], "loss_scale": [0, 1]},
]


def test_padding_by_hand() -> None:
    batch = WeightedCollator(PAD)(TWO)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[1, 2, 3], [4, 5, PAD]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[-100, 2, 3], [-100, 5, -100]],
        "loss_scale": [[0, 0.5, 2], [0, 1, 0]],
    }
    assert {name: values.dtype for name, values in batch.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "labels": torch.int64,
        "loss_scale": torch.float32,
    }


def test_padding_on_the_left_and_to_a_multiple_by_hand() -> None:
    batch = WeightedCollator(PAD, multiple_of=4, side="left")(TWO)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[PAD, 1, 2, 3], [PAD, PAD, 4, 5]],
        "attention_mask": [[0, 1, 1, 1], [0, 0, 1, 1]],
        "labels": [[-100, -100, 2, 3], [-100, -100, -100, 5]],
        "loss_scale": [[0, 0, 0.5, 2], [0, 0, 0, 1]],
    }


def test_padding_free_by_hand() -> None:
    batch = WeightedCollator(PAD, padding_free=True, multiple_of=4, sequence_ids=True)(TWO)
    assert batch.pop("use_cache") is False
    assert batch.pop("max_length_q") == batch.pop("max_length_k") == 3
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[1, 2, 3, 4, 5, PAD, PAD, PAD]],
        "labels": [[-100, 2, 3, -100, 5, -100, -100, -100]],
        "loss_scale": [[0, 0.5, 2, 0, 1, 0, 0, 0]],
        "position_ids": [[0, 1, 2, 0, 1, 0, 0, 0]],
        "seq_idx": [[0, 0, 0, 1, 1, 2, 3, 4]],
        "cu_seq_lens_q": [0, 3, 5, 6, 7, 8],
        "cu_seq_lens_k": [0, 3, 5, 6, 7, 8],
    }


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_padding_free_batches_are_those_of_transformers(seed: int, lengths: list[int]) -> None:
    """Of DataCollatorWithFlattening: the same keys, values and types; two keys are ours."""
    rows = make_rows(seed, lengths)
    collator = transformers.DataCollatorWithFlattening(
        return_flash_attn_kwargs=True, return_seq_idx=True
    )
    theirs = collator([{k: row[k] for k in ("input_ids", "labels")} for row in rows])
    ours = WeightedCollator(PAD, padding_free=True, sequence_ids=True)(rows)
    assert ours.pop("loss_scale").tolist() == [[w for row in rows for w in row["loss_scale"]]]
    assert ours.pop("use_cache") is False
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert type(ours[name]) is type(values)
        assert not isinstance(values, torch.Tensor) or ours[name].dtype == values.dtype
        np.testing.assert_array_equal(ours[name], values)


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(1, 8),
    st.sampled_from(["right", "left"]),
)
def test_a_padded_batch_holds_its_rows_and_nothing_else(
    seed: int, lengths: list[int], multiple: int, side: Any
) -> None:
    rows = make_rows(seed, lengths)
    batch = WeightedCollator(PAD, multiple_of=multiple, side=side)(rows)
    width = batch["input_ids"].shape[1]
    assert max(lengths) <= width < max(lengths) + multiple
    assert width % multiple == 0
    for at, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        held = slice(0, length) if side == "right" else slice(width - length, width)
        rest = torch.ones(width, dtype=torch.bool)
        rest[held] = False
        for name, filler in (("input_ids", PAD), ("labels", -100), ("loss_scale", 0)):
            assert batch[name][at, held].tolist() == row[name]
            assert (batch[name][at, rest] == filler).all()
        assert torch.equal(batch["attention_mask"][at], (~rest).long())


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(1, 8),
    st.booleans(),
)
def test_counts_do_not_depend_on_how_rows_are_laid(
    seed: int, lengths: list[int], multiple: int, free: bool
) -> None:
    rows = make_rows(seed, lengths)
    batch = WeightedCollator(PAD, padding_free=free, multiple_of=multiple)(rows)
    live = sum(label != -100 for row in rows for label in row["labels"])
    assert count_items(batch, "targets") == live
    assert count_items(batch, "weights") == sum(sum(row["loss_scale"]) for row in rows)
    assert count_items(batch, "tokens") == sum(lengths) - len(rows)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_no_row_is_predicted_from_the_one_before(seed: int, lengths: list[int]) -> None:
    """Rows that train their first token, against the contract: flat, a shift would predict it from
    the last of the row before. The loss is that of each row alone, and that token has no part."""
    rows = make_rows(seed, lengths)
    for row in rows:
        row["labels"][0], row["loss_scale"][0] = row["input_ids"][0], 100.0
    batch = WeightedCollator(PAD, padding_free=True, multiple_of=4)(rows)
    logits = torch.randn(1, batch["labels"].shape[1], 10, generator=torch.manual_seed(seed))
    logits.requires_grad_()
    flat = weighted_cross_entropy(logits, batch["labels"], batch["loss_scale"], 1)
    parts = torch.split(logits[:, : sum(lengths)], lengths, dim=1)
    alone = sum(
        weighted_cross_entropy(
            part[0], torch.tensor(row["labels"]), torch.tensor(row["loss_scale"]), 1
        )
        for part, row in zip(parts, rows, strict=True)
    )
    torch.testing.assert_close(flat, alone)
    if flat.requires_grad:
        flat.backward()
    lasts = np.cumsum(lengths) - 1
    assert not logits.grad[0, lasts].any()


def test_rows_may_be_lists_arrays_or_tensors_and_stay_as_they_are() -> None:
    row = {"input_ids": [1, 2], "labels": [1, 2], "loss_scale": [1, 2], "text": "beside"}
    numbers = {name: np.array(row[name], np.int32) for name in ("input_ids", "labels")}
    numbers["loss_scale"] = np.array([1, 2], np.float32)
    for values in numbers.values():
        values.flags.writeable = False  # as mapped from a file
    tensors = {name: torch.tensor(values) for name, values in row.items() if name != "text"}
    batch = WeightedCollator(PAD, padding_free=True)([row, numbers, tensors])
    assert batch["labels"].tolist() == [[-100, 2] * 3]
    assert batch["loss_scale"].tolist() == [[0, 2] * 3]
    assert "text" not in batch
    assert row["labels"] == numbers["labels"].tolist() == tensors["labels"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"loss_scale": ...}, r"rows\[1\]: no 'loss_scale' among .*remove_unused_columns=False"),
        ({"labels": None}, r"rows\[1\]: no 'labels'"),
        (
            {"loss_scale": [0.0]},
            r"rows\[1\]: input_ids 2, labels 2, loss_scale 1 tokens; .*TRL",
        ),
        ({"input_ids": [], "labels": [], "loss_scale": []}, r"rows\[1\]: no tokens"),
        ({"labels": [0.5, 1.5]}, r"rows\[1\]\.labels: float64 of shape \[2\]"),
        ({"loss_scale": ["a", "b"]}, r"rows\[1\]\.loss_scale: <U1"),
        ({"input_ids": [[4], [5]]}, r"rows\[1\]\.input_ids: int64 of shape \[2, 1\]"),
        ({"input_ids": [[4], [5, 6]]}, r"rows\[1\]\.input_ids: .*; give one number a token"),
    ],
)
def test_a_malformed_row_is_named_with_a_remedy(change: Row, told: str) -> None:
    row = {name: values for name, values in (TWO[1] | change).items() if values is not ...}
    for free in (False, True):
        with pytest.raises(InputError, match=told):
            WeightedCollator(PAD, padding_free=free)([TWO[0], row])


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="multiple_of: 0"):
        WeightedCollator(PAD, multiple_of=0)
    with pytest.raises(ConfigurationError, match="side: 'middle'"):
        WeightedCollator(PAD, side="middle")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="pad_token_id: None"):
        WeightedCollator(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rows: none"):
        WeightedCollator(PAD)([])


def test_a_collator_can_be_sent_to_a_worker() -> None:
    collator = WeightedCollator(PAD, padding_free=True, multiple_of=8)
    assert pickle.loads(pickle.dumps(collator)) == collator


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_torch_is_imported_when_a_name_is_used() -> None:
    code = (
        "import sys, pipeline.training as t\n"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(t.__all__))\n"
        "t.WeightedCollator\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    first, second = run_python(code).splitlines()
    assert first.startswith("set() [")
    assert "'WeightedCollator', 'WeightedTrainer'" in first
    assert second == "True False"


@pytest.mark.parametrize(
    ("name", "missing"), [("WeightedCollator", "torch"), ("WeightedTrainer", "transformers")]
)
def test_without_torch_or_transformers_the_error_tells_what_to_install(
    name: str, missing: str
) -> None:
    code = (
        "import sys, importlib.abc\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {missing!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "try:\n"
        f"    from pipeline.training import {name}\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert run_python(code) == (
        f"pipeline.training.{name}: needs {missing}, which is not installed; "
        "pip install 'weighted-shards[train]'\n"
    )
