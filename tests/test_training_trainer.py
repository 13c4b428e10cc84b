"""A step of the trainer is that of one batch by hand, however its rows are cut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra: pip install '.[train]'")
transformers = pytest.importorskip("transformers", reason="needs the extra: pip install '.[train]'")

from pipeline.errors import ConfigurationError, InputError
from pipeline.training import WeightedCollator, WeightedTrainer, weighted_cross_entropy
from tests.training_steps import (
    TWO_RANKS,
    Floats,
    differentiate,
    flatten,
    make_arguments,
    make_model,
    make_rows,
    step,
    take_step,
)

pytestmark = pytest.mark.train
torch.set_num_threads(1)  # two that wait for each other on busy cores take ten times as long
ROOT = Path(__file__).resolve().parent.parent
NEAR = 1e-5  # of the largest gradient; float32 against float64


def distance(found: Floats, expected: Floats) -> float:
    """The largest difference, in parts of the largest expected value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def gradients() -> dict[str, Floats]:
    """By hand, over all rows, for each denominator."""
    names = ("targets", "weights", "tokens")
    return {name: differentiate(make_rows(), name)[1] for name in names}


def test_the_mean_of_micro_batches_is_another_gradient(gradients: dict[str, Floats]) -> None:
    """What the rest of this file compares would not tell right from wrong otherwise."""
    rows = [row for row in make_rows() if any(row["loss_scale"])]
    parts = [differentiate(rows[at : at + 2], "targets")[1] for at in range(0, len(rows), 2)]
    assert distance(np.mean(parts, axis=0), gradients["targets"]) > 0.1
    assert distance(gradients["weights"], gradients["targets"]) > 0.1
    assert distance(gradients["tokens"], gradients["targets"]) > 0.1


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize(
    ("size", "micro", "denominator"),
    [(8, 1, "targets"), (3, 3, "targets"), (1, 8, "targets"), (3, 3, "weights"), (3, 3, "tokens")],
)
def test_accumulated_micro_batches_are_one_batch(
    tmp_path: Path,
    gradients: dict[str, Floats],
    size: int,
    micro: int,
    padding_free: bool,
    denominator: str,
) -> None:
    found = take_step(
        tmp_path, size=size, micro=micro, padding_free=padding_free, denominator=denominator
    )
    assert distance(found, gradients[denominator]) < NEAR


def test_a_model_that_takes_no_counts_is_divided_once(
    tmp_path: Path, gradients: dict[str, Floats]
) -> None:
    """Trainer would take its loss for a mean, and divide it by the number of micro-batches."""
    model = make_model()
    model.accepts_loss_kwargs = False
    arguments = make_arguments(
        tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=3
    )
    trainer = WeightedTrainer(model, arguments, WeightedCollator(0), make_rows())
    assert distance(step(trainer), gradients["targets"]) < NEAR


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Floats]:
    """What a step of two processes took, for each way to cut the rows."""
    folder = tmp_path_factory.mktemp("ranks")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = subprocess.run(
        [*launch, "-m", "tests.training_steps", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


@pytest.mark.parametrize("name", [name for name in TWO_RANKS if name != "each_its_own"])
def test_two_ranks_are_one_batch(
    gradients: dict[str, Floats], two_ranks: dict[str, Floats], name: str
) -> None:
    expected = gradients[TWO_RANKS[name].get("denominator", "targets")]
    assert distance(two_ranks[name], expected) < NEAR


def test_two_ranks_that_count_alone_are_not(
    gradients: dict[str, Floats], two_ranks: dict[str, Floats]
) -> None:
    assert distance(two_ranks["each_its_own"], gradients["targets"]) > 0.01


def test_two_ranks_evaluate_as_one(two_ranks: dict[str, Floats]) -> None:
    loss, _ = differentiate(make_rows(), "targets")
    assert two_ranks["evaluated"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_rows_do_not_see_each_other_without_padding(
    gradients: dict[str, Floats], attention: str
) -> None:
    """The gradient by hand is of each row alone. A cache would join them: the batch forbids it."""
    found = {}
    for cache in (False, True):
        model = make_model(attention)
        batch = WeightedCollator(0, padding_free=True, multiple_of=16)(make_rows())
        labels, weights = batch.pop("labels"), batch.pop("loss_scale")
        outputs = model(**(batch | {"use_cache": True} if cache else batch))
        weighted_cross_entropy(outputs.logits, labels, weights).backward()
        found[cache] = flatten(p.grad for p in model.parameters())
    assert distance(found[False], gradients["targets"]) < NEAR
    assert distance(found[True], gradients["targets"]) > 0.01


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("denominator", ["targets", "weights", "tokens"])
@pytest.mark.parametrize("size", [3, 8])
def test_evaluation_is_weighted_and_of_all_rows(
    tmp_path: Path, padding_free: bool, denominator: Any, size: int
) -> None:
    trainer = WeightedTrainer(
        model=make_model(),
        args=make_arguments(tmp_path, per_device_eval_batch_size=size),
        data_collator=WeightedCollator(0, padding_free=padding_free),
        denominator=denominator,
    )
    loss, _ = differentiate(make_rows(), denominator)
    assert trainer.evaluate(make_rows())["eval_loss"] == pytest.approx(loss, rel=1e-5)
    predicted = trainer.predict(make_rows())
    assert predicted.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
    if size < 8:
        return
    assert predicted.predictions.shape == ((1, 120, 64) if padding_free else (8, 40, 64))
    assert (predicted.label_ids != -100).sum() == sum(
        label != -100 for row in make_rows() for label in row["labels"]
    )


def test_trainer_drops_the_weights_unless_told_not_to(
    tmp_path: Path, gradients: dict[str, Floats]
) -> None:
    """The trap of its default, met by the collator; WeightedTrainer needs no telling."""
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([row | {"text": "beside"} for row in make_rows()])
    arguments = make_arguments(tmp_path, per_device_train_batch_size=8)
    assert arguments.remove_unused_columns
    plain = transformers.Trainer(make_model(), arguments, WeightedCollator(0), rows)
    with pytest.raises(InputError, match=r"no 'loss_scale' among .*remove_unused_columns=False"):
        plain.train()
    weighted = WeightedTrainer(make_model(), arguments, WeightedCollator(0), rows)
    assert distance(step(weighted), gradients["targets"]) < NEAR


def test_a_hook_and_a_function_make_any_trainer_weigh(
    tmp_path: Path, gradients: dict[str, Floats]
) -> None:
    """compute_loss_func gets no inputs, so a hook before the model's forward keeps the weights."""
    model, kept = make_model(), []

    def keep(_: Any, given: Any, named: dict[str, Any]) -> Any:
        kept.append(named.pop("loss_scale"))
        return given, named

    def weigh(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        return weighted_cross_entropy(outputs.logits, labels, kept.pop(), num_items_in_batch)

    model.register_forward_pre_hook(keep, with_kwargs=True)
    trainer = transformers.Trainer(
        model,
        make_arguments(
            tmp_path,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=3,
            remove_unused_columns=False,
        ),
        WeightedCollator(0, padding_free=True),
        make_rows(),
        compute_loss_func=weigh,
    )
    assert distance(step(trainer), gradients["targets"]) < NEAR
    assert not kept


def test_trainers_own_collator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pass WeightedCollator"):
        WeightedTrainer(model=make_model(), args=make_arguments(tmp_path))


def test_a_batch_without_weights_is_an_error(tmp_path: Path) -> None:
    def collate(rows: Any) -> Any:
        return {k: v for k, v in WeightedCollator(0)(rows).items() if k != "loss_scale"}

    arguments = make_arguments(tmp_path, per_device_train_batch_size=8)
    trainer = WeightedTrainer(make_model(), arguments, collate, make_rows())
    with pytest.raises(InputError, match=r"batch: no 'loss_scale' among .*; use WeightedCollator"):
        trainer.train()


@pytest.mark.parametrize(
    ("named", "change", "told"),
    [
        ({"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor: "),
        ({"accelerator_config": {"dispatch_batches": True}}, {}, "dispatch_batches: "),
        ({}, {"denominator": "mean"}, "denominator: 'mean' is none of targets, weights, tokens"),
        ({}, {"compute_loss_func": weighted_cross_entropy}, "compute_loss_func: "),
    ],
)
def test_what_would_change_the_loss_is_refused(
    tmp_path: Path, named: dict[str, Any], change: dict[str, Any], told: str
) -> None:
    arguments = make_arguments(tmp_path, **named)
    with pytest.raises(ConfigurationError, match=told):
        WeightedTrainer(make_model(), arguments, WeightedCollator(0), make_rows(), **change)


@pytest.mark.parametrize(
    ("size", "told"), [("get_cp_size", "context or sequence"), ("get_sp_size", "context or seq")]
)
def test_rows_that_are_cut_before_the_shift_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, told: str
) -> None:
    monkeypatch.setattr(WeightedTrainer, size, lambda _: 2)
    with pytest.raises(ConfigurationError, match=told):
        WeightedTrainer(make_model(), make_arguments(tmp_path), WeightedCollator(0), make_rows())


def test_several_gpus_of_one_process_are_refused(tmp_path: Path) -> None:
    arguments = make_arguments(tmp_path)
    arguments._n_gpu = 2
    with pytest.raises(ConfigurationError, match=r"n_gpu: .*one process for each GPU"):
        WeightedTrainer(make_model(), arguments, WeightedCollator(0), make_rows())


def test_a_router_with_a_loss_of_its_own_is_refused(tmp_path: Path) -> None:
    model = make_model()
    model.config.output_router_logits = True
    with pytest.raises(ConfigurationError, match=r"output_router_logits: .*set it to False"):
        WeightedTrainer(model, make_arguments(tmp_path), WeightedCollator(0), make_rows())
