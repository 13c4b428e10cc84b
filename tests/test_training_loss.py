"""The weighted loss against a slow float64 reference, other people's formulas, and its promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra: pip install '.[train]'")

from pipeline.errors import ConfigurationError, InputError
from pipeline.training import count_items, loss, weighted_cross_entropy

pytestmark = pytest.mark.train
cross_entropy = torch.nn.functional.cross_entropy
Batch = tuple[Any, Any, Any]  # logits, labels, weights


def make_batch(
    seed: int, *, rows: int = 3, tokens: int = 7, vocabulary: int = 11, negative: bool = False
) -> Batch:
    """Random logits; a third of the labels is -100, a third of the rest weighs 0."""
    dice = np.random.default_rng(seed)
    labels = dice.integers(0, vocabulary, (rows, tokens))
    weights = dice.choice([0.0, 0.25, 1.0, 2.5], (rows, tokens), p=[0.3, 0.2, 0.3, 0.2])
    if negative:
        weights *= dice.choice([-1.0, 1.0], weights.shape)
    labels[dice.random(labels.shape) < 1 / 3] = -100
    weights[labels == -100] = 0
    logits = 3 * torch.from_numpy(dice.standard_normal((rows, tokens, vocabulary)))
    return logits, torch.from_numpy(labels), torch.from_numpy(weights.astype(np.float32))


def weigh_slowly(batch: Batch, denominator: str, items: float | None = None) -> tuple[float, Any]:
    """Loss and gradient token by token, from the definition, in float64."""
    logits, labels, weights = (values.double().numpy() for values in batch)
    total, counts = 0.0, {"targets": 0.0, "weights": 0.0, "tokens": 0.0}
    gradient = np.zeros_like(logits)
    for row in range(len(labels)):
        for place in range(1, labels.shape[1]):
            counts["tokens"] += 1
            label, weight = int(labels[row, place]), weights[row, place]
            if label == -100:
                continue
            counts["targets"] += 1
            counts["weights"] += weight
            shares = np.exp(logits[row, place - 1])
            shares /= shares.sum()
            total -= weight * np.log(shares[label])
            gradient[row, place - 1] = weight * (shares - np.eye(len(shares))[label])
    divisor = counts[denominator] if items is None else items
    return (total / divisor, gradient / divisor) if divisor else (0.0, 0 * gradient)


def differentiate(batch: Batch, *given: Any) -> tuple[Any, Any]:
    logits, labels, weights = batch
    logits = logits.detach().requires_grad_()
    value = weighted_cross_entropy(logits, labels, weights, *given)
    value.backward()
    return value.detach(), logits.grad


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(2, 20),
    st.sampled_from([1, 40, 1 << 22]),
    st.sampled_from(["targets", "weights", "tokens"]),
    st.sampled_from([None, 3, 0.5]),
)
def test_loss_and_gradient_are_those_of_the_definition(
    seed: int, rows: int, tokens: int, vocabulary: int, chunk: int, denominator: Any, items: Any
) -> None:
    batch = make_batch(
        seed, rows=rows, tokens=tokens, vocabulary=vocabulary, negative=denominator != "weights"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK", chunk)  # 1: a row at a time; 40: some rows; all at once
        value, gradient = differentiate(batch, items, denominator)
    expected, slope = weigh_slowly(batch, denominator, items)
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("items", [None, 40])
def test_it_is_the_formula_of_ms_swift(items: int | None) -> None:
    """As its 4.6.0 computes it (trainers/utils.py, trainers/seq2seq_trainer.py, loss/causal_lm.py):
    labels and weights rolled by one over each row, cross-entropy of all, times, sum, divided."""
    logits, labels, weights = make_batch(1, negative=True)
    labels[:, 0], weights[:, 0] = -100, 0  # as shards have it: what is rolled round is masked
    each = cross_entropy(
        logits.float().view(-1, logits.shape[-1]),
        torch.roll(labels, -1, -1).view(-1),
        ignore_index=-100,
        reduction="none",
    )
    each = each * torch.roll(weights, -1, -1).view(-1)
    swift = each.sum() / ((labels[:, 1:] != -100).sum() if items is None else items)
    assert swift != 0
    torch.testing.assert_close(
        weighted_cross_entropy(logits.float(), labels, weights, items), swift
    )


def test_it_is_the_mean_over_shifted_targets_of_weighted_losses() -> None:
    logits, labels, weights = make_batch(2)
    mask = labels[..., 1:] != -100
    each = cross_entropy(logits[..., :-1, :][mask], labels[..., 1:][mask], reduction="none")
    expected = (each * weights[..., 1:][mask]).mean()
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights), expected)


@pytest.mark.parametrize("denominator", ["targets", "weights"])
def test_weights_of_1_give_plain_cross_entropy(denominator: Any) -> None:
    logits, labels, weights = make_batch(3)
    plain = logits.detach().requires_grad_()
    expected = cross_entropy(plain[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    expected.backward()
    batch = (logits, labels, torch.ones_like(weights))
    value, gradient = differentiate(batch, None, denominator)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, plain.grad)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_target_of_weight_0_has_no_gradient_whatever_its_logits(poison: float) -> None:
    batch = logits, _, weights = make_batch(4)
    idle = torch.nn.functional.pad(weights[:, 1:], (0, 1)) == 0
    clean = differentiate(batch)
    logits[idle] = poison
    value, gradient = differentiate(batch)
    assert idle.any()
    assert not idle.all()
    assert not gradient[idle].any()
    assert torch.equal(value, clean[0])
    assert torch.equal(gradient, clean[1])


def test_a_weight_moves_its_own_target_only() -> None:
    batch = _, labels, weights = make_batch(5)
    _, before = differentiate(batch, 10)
    row, place = (int(at[0]) for at in torch.where((labels[:, 1:] != -100) & (weights[:, 1:] > 0)))
    weights[row, place + 1] *= -3
    _, after = differentiate(batch, 10)
    torch.testing.assert_close(after[row, place], -3 * before[row, place])
    after[row, place] = before[row, place]
    assert torch.equal(after, before)


@pytest.mark.parametrize(("dtype", "near"), [("bfloat16", 2**-8), ("float16", 2**-10)])
def test_half_precision_gives_a_float32_loss_and_a_gradient_of_its_own(
    dtype: str, near: float
) -> None:
    logits, labels, weights = make_batch(6, tokens=40, vocabulary=300)
    batch = (logits.to(getattr(torch, dtype)), labels, weights)
    value, gradient = differentiate(batch)
    expected, slope = weigh_slowly(batch, "targets")  # of the rounded logits
    assert value.dtype == torch.float32
    assert gradient.dtype == getattr(torch, dtype)
    assert value.item() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient.double(), slope, rtol=near, atol=1e-7)


def test_autocast_changes_nothing() -> None:
    logits, labels, weights = make_batch(7)
    batch = (logits.float(), labels, weights)
    expected = differentiate(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = differentiate(batch)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("denominator", ["targets", "weights", "tokens"])
@pytest.mark.parametrize("items", [None, 0, 5])
def test_without_targets_the_loss_is_0_and_so_is_its_gradient(denominator: Any, items: Any) -> None:
    logits, labels, weights = make_batch(8)
    batch = (logits, torch.full_like(labels, -100), 0 * weights)
    value, gradient = differentiate(batch, items, denominator)
    assert value == 0
    assert gradient.shape == logits.shape
    assert not gradient.any()


def test_weights_of_labels_that_are_none_count_nowhere() -> None:
    batch = logits, labels, weights = make_batch(9)
    stray = torch.where(labels == -100, 7.0, weights)
    for denominator in ("targets", "weights"):
        expected = differentiate(batch, None, denominator)
        found = differentiate((logits, labels, stray), None, denominator)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_one_row_needs_no_batch_dimension_and_strides_do_not_matter() -> None:
    logits, labels, weights = make_batch(10)
    alone = differentiate((logits[1], labels[1], weights[1]))
    batched = differentiate((logits[1:2], labels[1:2], weights[1:2]))
    assert torch.equal(alone[0], batched[0])
    assert torch.equal(alone[1], batched[1][0])
    wide = torch.cat([logits, logits], -1).transpose(0, 1).contiguous().transpose(0, 1)
    assert not wide[..., :11].is_contiguous()
    strided = differentiate((wide[..., :11], labels, weights))
    torch.testing.assert_close(strided, differentiate((logits, labels, weights)))


def test_a_gradient_of_the_gradient_is_refused_not_left_out() -> None:
    """A penalty on the gradient would otherwise train as if it were a constant."""
    logits, labels, weights = make_batch(12)
    logits.requires_grad_()
    value = weighted_cross_entropy(logits, labels, weights)
    with pytest.raises(InputError, match="its gradient has no gradient; leave out create_graph"):
        torch.autograd.grad(value, logits, create_graph=True)


def test_a_scale_of_the_loss_scales_the_gradient() -> None:
    """Against numeric differences, through what comes after the loss."""
    logits, labels, weights = make_batch(11, rows=2, tokens=4, vocabulary=5)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: 3 * weighted_cross_entropy(x, labels, weights, 2) ** 2, (logits,)
    )


def measure_peak(run: Callable[[], object], trace: Path) -> int:
    """The most bytes that *run* held at a time beyond what it found, as torch's allocator tells."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    moves = [event for event in events if event["name"] == "[memory]"]
    sizes = [int(event["args"]["Bytes"]) for event in sorted(moves, key=lambda e: e["ts"])]
    return int(max(np.cumsum([0, *sizes])))


def test_logits_are_never_doubled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward holds some chunks, backward the gradient too; torch's own way breaks both bounds."""
    vocabulary, chunk = 8192, 1 << 16
    monkeypatch.setattr(loss, "CHUNK", chunk)
    _, labels, weights = make_batch(12, rows=2, tokens=256, vocabulary=vocabulary)
    logits = torch.randn(2, 256, vocabulary).bfloat16().requires_grad_()
    size, some = logits.nbytes, 4 * 4 * chunk
    assert size == 8 << 20

    def weigh(*, backward: bool) -> None:
        value = weighted_cross_entropy(logits, labels, weights)
        if backward:
            value.backward()
            logits.grad = None

    def weigh_plainly(*, backward: bool) -> None:
        value = cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        if backward:
            value.backward()
            logits.grad = None

    trace = tmp_path / "trace.json"
    weigh(backward=True)  # what torch allocates once is not the loss's
    assert measure_peak(lambda: weigh(backward=False), trace) < some
    assert size < measure_peak(lambda: weigh(backward=True), trace) < size + some
    assert measure_peak(lambda: weigh_plainly(backward=False), trace) > 3 * size
    assert measure_peak(lambda: weigh_plainly(backward=True), trace) > 5 * size


def test_errors_tell_what_does_not_fit() -> None:
    logits, labels, weights = make_batch(13)
    for batch, told in (
        ((logits[:, :-1], labels, weights), r"labels: \[3, 7\] beside logits of \[3, 6, 11\]"),
        ((logits, labels, weights[:, 1:]), r"loss_scale: \[3, 6\] beside logits"),
        ((logits, weights, labels), "exchanged"),
        ((logits[0, 0], labels, weights), r"logits: torch.float64 of shape \[11\]"),
        ((logits, labels + 101, weights), "and the logits are of 11 ids; build with the tokenizer"),
        ((logits, labels.clamp(-5), weights.clamp(1)), "labels: -5 to"),
    ):
        with pytest.raises(InputError, match=told):
            weighted_cross_entropy(*batch)


def test_negative_weights_have_no_mean() -> None:
    logits, labels, weights = make_batch(14)
    batch = {"labels": labels, "loss_scale": -weights}
    with pytest.raises(ConfigurationError, match="negative"):
        count_items(batch, "weights")
    with pytest.raises(ConfigurationError, match="negative"):
        weighted_cross_entropy(logits, labels, -weights, None, "weights")


def test_another_denominator_is_refused() -> None:
    logits, labels, weights = make_batch(15)
    batch = {"labels": labels, "loss_scale": weights}
    with pytest.raises(ConfigurationError, match="'mean' is none of targets, weights, tokens"):
        count_items(batch, "mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="'mean' is none of"):
        weighted_cross_entropy(logits, labels, weights, 5, "mean")  # type: ignore[arg-type]


def test_tokens_are_counted_without_padding() -> None:
    labels = torch.full((2, 6), 5)
    mask = torch.tensor(
        [[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]]
    )  # 3 and 4: 2 and 3 have one before
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 0, 1]])
    assert count_items({"labels": labels}, "tokens") == 10
    assert count_items({"labels": labels, "attention_mask": mask}, "tokens") == 5
    assert count_items({"labels": labels, "position_ids": positions}, "tokens") == 6
