"""Megatron's own reader gives our ids and weights; its dataset and its loss are where we say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.exporting import export_dataset
from tests.exports import once, rows_of, weighed  # noqa: F401 - a fixture
from tests.trainers import run_with_trainers

pytestmark = pytest.mark.train

_READ = """
    import sys
    from tests.stand_ins import stand_in

    # Of Megatron-Bridge only its loss is wanted, which is that of Megatron-LM's pretrain_gpt.py.
    stand_in("transformer_engine", "megatron.bridge.models", "megatron.bridge.recipes")
    stand_in("megatron.bridge.peft", "megatron.bridge.data")
    import json
    from types import SimpleNamespace
    import numpy as np
    import torch
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.pipeline_parallel.schedules import forward_step_calc_loss

    folder, out, longest = sys.argv[1], sys.argv[2], int(sys.argv[3])
    sys.path.insert(0, folder)
    from weighted_rows import WeightedRows, loss_func

    told, arrays = {}, {}
    for name in ("rows", "rows_weights"):
        read = IndexedDataset(f"{folder}/{name}")
        rows = [read[i] for i in range(len(read))]
        told[name] = {"dtype": str(rows[0].dtype), "rows": len(rows)}
        told[name]["documents"] = read.document_indices.tolist() == list(range(len(rows) + 1))
        arrays[name] = np.concatenate(rows)
        arrays["lengths"] = read.sequence_lengths
        arrays[name + "_slice"] = read.get(5, offset=3, length=4)

    def build(kind, length, samples):
        config = GPTDatasetConfig(
            random_seed=7, sequence_length=length, blend=([f"{folder}/rows"], None),
            split="90,10,0", path_to_cache=out, create_attention_mask=False,
            reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
            tokenizer=SimpleNamespace(eod=0, pad=-5, vocab_size=5000, unique_identifiers={}),
        )
        return BlendedMegatronDatasetBuilder(kind, samples, lambda: True, config).build()

    training, validation, _ = build(WeightedRows, longest - 1, [700, 40, None])
    told["sizes"] = [len(training), len(validation)]
    keys = ("tokens", "labels", "loss_mask", "position_ids")
    for name, items in (("train", [training[i] for i in range(700)]),
                        ("valid", [validation[i] for i in range(len(validation))])):
        for key in keys:
            arrays[f"{name}_{key}"] = np.stack([item[key].numpy() for item in items])
    told["filler"] = float(training[None]["loss_mask"].abs().sum())
    told["dtypes"] = {key: str(training[0][key].dtype) for key in keys}
    try:
        build(WeightedRows, 100, [10, 10, None])
    except Exception as error:
        told["refused"] = str(error)
    stock = build(GPTDataset, 64, [20, 2, None])[0]
    told["stock"] = sorted({float(v) for i in range(20) for v in stock[i]["loss_mask"]})

    # Two micro-batches of two tokens each, losses 1 and 3; all weights equal.
    from megatron.bridge.training.losses import masked_next_token_loss

    def step(loss_of, weights, per_token):
        config = SimpleNamespace(
            calculate_per_token_loss=per_token, timers=None, num_moe_experts=None,
            mtp_num_layers=None, grad_scale_func=None,
        )
        found = []
        for losses in ([1.0, 1.0], [3.0, 3.0]):
            loss, tokens = forward_step_calc_loss(
                None, torch.tensor([losses]),
                lambda output: loss_of(torch.tensor([weights]), output, model=None),
                config, None, False, 2, [], cp_group_size=1, is_last_stage=True,
            )
            total = torch.zeros([], dtype=torch.int)
            total += tokens  # schedules.py:672: int32, so that a float could not be added
            found.append([float(loss), int(total)])
        return found

    def stock_loss(mask, output, model):
        return masked_next_token_loss(mask, output, check_for_nan_in_loss=False)

    told["steps"] = {
        f"{name} {weight}{' per token' if per_token else ''}": step(kind, [weight] * 2, per_token)
        for name, kind in (("stock", stock_loss), ("ours", loss_func))
        for weight in (0.4, 1.0, 2.0)
        for per_token in (False, True)
    }
    np.savez(out + "/found.npz", **arrays)
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def read(weighed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: F811
    """What Megatron makes of the export."""

    def make(folder: Path) -> Any:
        longest = export_dataset(weighed, "megatron-lm", folder / "export").receipt["told"][
            "longest_row"
        ]
        words = (folder / "export", folder, str(longest))
        return run_with_trainers(_READ, *words, needs=("megatron/core", "megatron/bridge"))

    folder, told = once(tmp_path_factory, "megatron-lm", make)
    found: dict[str, Any] = told | {"arrays": dict(np.load(folder / "found.npz"))}
    return found


def test_its_reader_gives_every_row_with_exact_weights(
    weighed: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    rows, found = rows_of(weighed), read["arrays"]
    assert read["rows"] == {"dtype": "int32", "rows": len(rows), "documents": True}
    assert read["rows_weights"] == {"dtype": "float32", "rows": len(rows), "documents": True}
    assert found["lengths"].tolist() == [len(row["ids"]) for row in rows]
    np.testing.assert_array_equal(found["rows"], np.concatenate([row["ids"] for row in rows]))
    weights = np.concatenate([row["weights"] for row in rows])
    np.testing.assert_array_equal(found["rows_weights"], weights)
    assert found["rows_slice"].tolist() == rows[5]["ids"][3:7].tolist()
    assert found["rows_weights_slice"].tolist() == rows[5]["weights"][3:7].tolist()


def test_its_builder_gives_each_row_as_a_sample_with_the_weight_of_what_is_predicted(
    weighed: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    rows, found = rows_of(weighed), read["arrays"]
    room = found["train_tokens"].shape[1]
    expected = {
        name: [np.pad(row[name][part], (0, room - len(row["ids"]) + 1)) for row in rows]
        for name, part in (("ids", slice(-1)), ("weights", slice(1, None)))
    }
    labels = [np.pad(row["ids"][1:], (0, room - len(row["ids"]) + 1)) for row in rows]
    known = {ids.astype(np.int64).tobytes(): number for number, ids in enumerate(expected["ids"])}
    assert len(known) == len(rows)  # so that a row is known by its tokens
    given = {
        split: [known[tokens.tobytes()] for tokens in found[f"{split}_tokens"]]
        for split in ("train", "valid")
    }
    for split, numbers in given.items():
        masks = np.stack([expected["weights"][number] for number in numbers])
        np.testing.assert_array_equal(found[f"{split}_loss_mask"], masks)
        ends = np.stack([labels[number] for number in numbers])
        np.testing.assert_array_equal(found[f"{split}_labels"], ends)
        assert (found[f"{split}_position_ids"] == np.arange(room)).all()
    share = round(0.9 * len(rows))
    assert sorted(set(given["train"])) == list(range(share))
    assert sorted(given["train"][:share]) == list(range(share))  # an epoch: each row once
    assert given["train"][:share] != given["train"][share : 2 * share]
    assert set(given["valid"]) == set(range(share, len(rows)))
    assert read["dtypes"]["loss_mask"] == "torch.float32"
    assert read["filler"] == 0


def test_rows_that_do_not_fit_are_refused_and_not_cut(read: dict[str, Any]) -> None:
    longest = read["arrays"]["lengths"].max()
    assert f"have up to {longest} tokens" in read["refused"]


def test_its_own_dataset_knows_no_weights(read: dict[str, Any]) -> None:
    assert read["stock"] == [1.0]


def test_in_its_own_loss_a_weight_that_all_share_cancels_and_a_small_sum_is_cut(
    read: dict[str, Any],
) -> None:
    steps = read["steps"]
    # Each micro-batch over its own sum of weights, and over the two of them.
    assert steps["stock 1.0"] == [[0.5, 2], [1.5, 2]]
    assert steps["stock 2.0"] == [[0.5, 4], [1.5, 4]]
    # 0.4 + 0.4 becomes 0, which becomes 1.
    assert steps["stock 0.4"] == [[pytest.approx(0.4), 0], [pytest.approx(1.2), 0]]


def test_in_ours_it_does_not_and_the_denominator_is_the_tokens_that_train(
    read: dict[str, Any],
) -> None:
    steps = read["steps"]
    for weight in (0.4, 1.0, 2.0):
        summed = [[pytest.approx(2 * weight), 2], [pytest.approx(6 * weight), 2]]
        assert steps[f"ours {weight} per token"] == summed
