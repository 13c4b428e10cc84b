"""verl's own path from dataset class to loss keeps our weights; its traps are where we say."""

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

    # Schedulers, configuration and vision models: nothing of the path from dataset to loss.
    stand_in("ray", "hydra", "torchdata", "codetiming", "orjson", "verl.models", "peft")
    stand_in("verl.utils.dataset.multiturn_sft_dataset", "verl.workers.engine_workers")
    import json
    import os
    import re
    from types import SimpleNamespace
    import numpy as np
    import torch
    import verl
    from omegaconf import OmegaConf
    from torch.utils.data import DataLoader
    from verl.trainer.sft_trainer import create_sft_dataset
    from verl.utils import tensordict_utils as tu
    from verl.utils.dataset.dataset_utils import SFTTensorCollator
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
    from verl.workers.engine.utils import prepare_micro_batches
    from verl.workers.utils.losses import sft_loss

    folder, out, recipe = sys.argv[1:]
    told = {"refused": []}

    def data_config(**more):
        cls = {"path": f"{folder}/weighted_rows.py", "name": "WeightedRows"}
        plain = {"pad_mode": "no_padding", "max_length": 4096, "custom_cls": cls}
        return OmegaConf.create(plain | more)

    def make(**more):
        return create_sft_dataset(folder, data_config(**more), None, None, max_samples=-1)

    for change in ({"pad_mode": "right"}, {"max_length": 100}):
        try:
            make(**change)
        except ValueError as error:
            told["refused"].append(str(error))
    dataset = make()
    told["some"] = len(create_sft_dataset(folder, data_config(), None, None, max_samples=9))
    loader = DataLoader(dataset, batch_size=16, collate_fn=SFTTensorCollator("no_padding"))
    # Their engine without its model, which takes a GPU; in its place a table of bigrams.
    engine = object.__new__(FSDPEngineWithLMHead)
    engine.use_ulysses_sp = False
    engine.pad_to_length = None
    table = torch.from_numpy(np.random.default_rng(5).normal(size=(97, 5000))).float()

    def loss_of(micro):
        inputs, kept = engine.prepare_model_inputs(micro)
        told["inputs"] = sorted(key for key, value in inputs.items() if value is not None)
        output = SimpleNamespace(logits=table[inputs["input_ids"] % 97])
        made = engine.prepare_model_outputs(output, kept, micro, None)
        return sft_loss(None, made, micro)[0].item()

    seen, losses = {"ids": [], "weights": [], "lengths": [], "positions": []}, []
    for batch in loader:
        told["dtypes"] = {key: str(value.dtype) for key, value in batch.items()}
        seen["ids"].append(batch["input_ids"].values().numpy())
        seen["weights"].append(batch["loss_mask"].values().numpy())
        seen["positions"].append(batch["position_ids"].values().numpy())
        seen["lengths"].append(batch["input_ids"].offsets().diff().numpy())
        if len(losses) == 3:
            continue
        data = tu.get_tensordict(
            tensor_dict=batch,
            non_tensor_dict={"pad_mode": "no_padding", "use_dynamic_bsz": True,
                             "max_token_len_per_gpu": 1024, "use_remove_padding": True,
                             "temperature": 1.0},
        )
        # As FSDPEngine.forward_backward_batch does it, on one rank (fsdp/transformer_impl.py:730).
        tu.assign_non_tensor(data, batch_num_tokens=data["loss_mask"].sum().item(), dp_size=1)
        micros = prepare_micro_batches(data)[0]
        told["micros"] = len(micros)
        losses.append(sum(loss_of(micro) for micro in micros))
    np.savez(out, **{key: np.concatenate(parts) for key, parts in seen.items()}, losses=losses)

    # Two rows of ids; the second's first token weighs 1. Its weight lands on the first row's end.
    jagged = lambda rows: torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    logs = jagged([torch.tensor([-1.0, -2.0, -400.0]), torch.tensor([-8.0, -16.0])])
    def loss(*masks):
        mask = jagged([torch.tensor(m) for m in masks])
        data = tu.get_tensordict({"loss_mask": mask, "input_ids": logs}, {
            "pad_mode": "no_padding", "batch_num_tokens": 1, "dp_size": 1})
        return sft_loss(None, {"log_probs": logs}, data)[0].item()
    told["clean"] = loss([0.0, 1.0, 0.5], [0.0, 0.25])
    told["leaked"] = loss([0.0, 1.0, 0.5], [1.0, 0.25])
    padded = tu.get_tensordict(
        {"response_mask": torch.tensor([[0.5, 0.25]])},
        {"pad_mode": "right", "batch_num_tokens": 1, "dp_size": 1},
    )
    told["padded"] = sft_loss(None, {"log_probs": torch.tensor([[-1.0, -2.0]])}, padded)[0].item()
    home = os.path.dirname(verl.__file__)
    config = OmegaConf.load(f"{home}/trainer/config/sft_trainer_engine.yaml")
    told["options"] = [
        OmegaConf.select(config, option, default="none") != "none"
        for option in re.findall(r"(data\\.[a-z_.]+)=", recipe)
    ]
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def read(weighed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: F811
    """What verl makes of the export."""

    def make(folder: Path) -> Any:
        recipe = export_dataset(weighed, "verl", folder / "export").recipe
        words = (folder / "export", folder / "seen.npz", recipe)
        return run_with_trainers(_READ, *words, needs=("verl", "tensordict", "omegaconf"))

    folder, told = once(tmp_path_factory, "verl", make)
    found: dict[str, Any] = told | dict(np.load(folder / "seen.npz"))
    return found


def test_its_collator_gives_every_row_with_exact_float_weights(
    weighed: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    rows = rows_of(weighed)
    assert read["dtypes"] == {
        "input_ids": "torch.int64",
        "position_ids": "torch.int64",
        "loss_mask": "torch.float32",
    }
    assert read["lengths"].tolist() == [len(row["ids"]) for row in rows]
    np.testing.assert_array_equal(read["ids"], np.concatenate([row["ids"] for row in rows]))
    weights = np.concatenate([row["weights"] for row in rows])
    np.testing.assert_array_equal(read["weights"], weights)
    positions = np.concatenate([np.arange(len(row["ids"])) for row in rows])
    np.testing.assert_array_equal(read["positions"], positions)
    assert read["some"] == 9


def test_its_loss_is_the_weighted_sum_over_the_sum_of_weights_of_the_batch(
    weighed: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    rows = rows_of(weighed)
    table = np.random.default_rng(5).normal(size=(97, 5000))
    logs = table - np.log(np.exp(table).sum(1, keepdims=True))
    assert read["micros"] > 1  # the denominator is that of the batch, not of the micro-batch
    assert len(read["losses"]) == 3
    for number, loss in enumerate(read["losses"]):
        total = weight = 0.0
        for row in rows[16 * number : 16 * number + 16]:
            w = row["weights"][1:].astype(np.float64)
            total -= float(w @ logs[row["ids"][:-1] % 97, row["ids"][1:]])
            weight += float(w.sum())
        assert loss == pytest.approx(total / weight, rel=1e-5)


def test_a_weight_on_a_first_token_would_go_to_the_row_before(read: dict[str, Any]) -> None:
    assert read["clean"] == pytest.approx(1 * 1 + 0.5 * 2 + 0.25 * 8)
    assert read["leaked"] == pytest.approx(1 * 1 + 0.5 * 2 + 0.25 * 8 + 400)


def test_no_row_of_a_build_has_one(weighed: Path) -> None:  # noqa: F811
    assert not any(row["weights"][0] for row in rows_of(weighed))


def test_padded_batches_would_lose_weights_and_are_refused(read: dict[str, Any]) -> None:
    assert read["padded"] == pytest.approx(1 + 2)  # 0.5 and 0.25 counted as 1
    assert any("no_padding" in text for text in read["refused"])


def test_rows_longer_than_its_limit_are_refused_and_not_cut(
    weighed: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    longest = max(len(row["ids"]) for row in rows_of(weighed))
    assert any(f"set data.max_length={longest}" in text for text in read["refused"])


def test_the_recipe_sets_options_that_it_has(read: dict[str, Any]) -> None:
    assert read["options"] == [True] * 6
