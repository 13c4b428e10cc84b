"""Cross-entropy with a weight for each token, and what it is divided by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch

from pipeline.errors import ConfigurationError, InputError

Denominator = Literal["targets", "weights", "tokens"]
IGNORED = -100  # the label of a token that is not predicted

# Logits that are held in float32 at a time: 16 MiB, whatever the vocabulary. 4,096 tokens of 32,768
# ids take one core 0.59 s with 2**20, 0.69 s with 2**22, 1.36 s with 2**24; plain torch 1.09 s.
CHUNK = 1 << 22


def weighted_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    loss_scale: torch.Tensor,
    num_items_in_batch: torch.Tensor | float | None = None,
    denominator: Denominator = "targets",
) -> torch.Tensor:
    """Sum of weight * cross-entropy over the targets, divided once; float32, 0 without targets.

    *logits* are ``[B, T, V]`` (or ``[T, V]``), unshifted like *labels* and *loss_scale* ``[B, T]``:
    position ``i`` predicts label ``i + 1``. Targets are the labels that are not -100, but for the
    first of each row. What divides:

    - ``targets``: how many there are, those of weight 0 too (the denominator of a build);
    - ``weights``: the sum of their weights, none of which may be negative then;
    - ``tokens``: every position of *labels* but the first of each row. Labels cannot tell padding:
      ``count_items`` counts without it;
    - *num_items_in_batch*, where given: the count of the whole step, over all its micro-batches and
      ranks. A mean for each of those would weigh a token by how short its neighbours are.

    A target of weight 0 is never read: its gradient is exactly 0, whatever its logits are. Logits
    that lie contiguous are not copied: statistics are float32 in chunks of ``CHUNK`` numbers, and
    the gradient is one buffer of their shape and dtype.
    """
    require_denominator(denominator)
    _check(logits, labels, loss_scale)
    labels, weights = labels.to(logits.device), loss_scale.to(logits.device)
    targets, weights = _shift(labels, IGNORED), _shift(weights, 0)
    rows = ((targets != IGNORED) & (weights != 0)).reshape(-1).nonzero().squeeze(1)
    picked = targets.reshape(-1)[rows]
    vocabulary = logits.shape[-1]
    _check_range(picked, vocabulary)
    total: torch.Tensor = _WeightedSum.apply(
        logits.reshape(-1, vocabulary), rows, picked, weights.reshape(-1)[rows]
    )
    items = num_items_in_batch
    if items is None:
        items = count_items({"labels": labels, "loss_scale": loss_scale}, denominator)
    return divide(total, items)


def count_items(batch: Mapping[str, Any], denominator: Denominator = "targets") -> torch.Tensor:
    """What the loss of this batch is to be divided by, as a scalar on the device of its labels.

    Add those of all micro-batches of a step on all ranks, and pass the sum as
    *num_items_in_batch*. For ``tokens`` padding is told by *position_ids* or *attention_mask* (each
    token that has one before it in its sequence counts); without either all count.
    """
    require_denominator(denominator)
    labels = batch["labels"]
    if denominator == "targets":
        return (labels[..., 1:] != IGNORED).sum()
    if denominator == "weights":
        weights = batch["loss_scale"].to(labels.device)[..., 1:]
        weights = weights[labels[..., 1:] != IGNORED].float()
        if bool((weights < 0).any()):
            raise ConfigurationError(
                "denominator: 'weights' and some weights are negative, so their sum may be 0 or "
                "turn the gradient round; use 'targets'"
            )
        return weights.sum()
    if "position_ids" in batch:
        return (batch["position_ids"] != 0).sum()
    if "attention_mask" in batch:
        mask = batch["attention_mask"].bool()
        return (mask[..., 1:] & mask[..., :-1]).sum()
    return torch.ones_like(labels[..., 1:]).sum()


def require_denominator(name: str) -> None:
    """ConfigurationError unless *name* is one."""
    if name not in get_args(Denominator):
        choices = ", ".join(get_args(Denominator))
        raise ConfigurationError(f"denominator: {name!r} is none of {choices}; name one")


def divide(total: torch.Tensor, items: torch.Tensor | float) -> torch.Tensor:
    """0 where *items* is 0: a batch without targets must not spread NaN over those of a step."""
    divisor = torch.as_tensor(items, dtype=total.dtype, device=total.device).reshape(())
    empty = divisor == 0
    return torch.where(empty, total * 0, total / torch.where(empty, 1, divisor))


def _check(logits: torch.Tensor, labels: torch.Tensor, loss_scale: torch.Tensor) -> None:
    if not logits.is_floating_point() or logits.ndim not in (2, 3):
        raise InputError(
            f"logits: {logits.dtype} of shape {list(logits.shape)}; give "
            "floats of [B, T, V] or [T, V]"
        )
    for name, values in (("labels", labels), ("loss_scale", loss_scale)):
        if values.shape != logits.shape[:-1]:
            raise InputError(
                f"{name}: {list(values.shape)} beside logits of {list(logits.shape)}; give one a "
                "token, unshifted, and the logits of all tokens"
            )
    if labels.is_floating_point() or not loss_scale.is_floating_point():
        raise InputError(
            f"labels: {labels.dtype}, loss_scale: {loss_scale.dtype}; give integers and floats "
            "(are they exchanged?)"
        )


def _check_range(targets: torch.Tensor, vocabulary: int) -> None:
    if not len(targets):
        return
    least, most = (int(bound) for bound in targets.aminmax())
    if least < 0 or most >= vocabulary:
        raise InputError(
            f"labels: {least} to {most}, and the logits are of {vocabulary} ids; "
            "build with the tokenizer of this model, or resize its embeddings"
        )


def _shift(values: torch.Tensor, fill: int) -> torch.Tensor:
    """Each row moved left by one: logits need no slice then, which would be copied to be flat."""
    return torch.nn.functional.pad(values[..., 1:], (0, 1), value=fill)


class _WeightedSum(torch.autograd.Function):  # type: ignore[misc] # torch is Any to mypy
    """The sum over *rows* of flat logits of weight * -log p(target), and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        rows: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        weights = weights.to(_precision(logits))
        norms, losses = torch.empty_like(weights), torch.empty_like(weights)
        for part in _chunks(len(rows), logits.shape[1]):
            chunk = logits.index_select(0, rows[part]).to(weights.dtype)
            norms[part] = chunk.logsumexp(1)
            losses[part] = norms[part] - chunk.gather(1, targets[part, None]).squeeze(1)
        ctx.save_for_backward(logits, rows, targets, weights, norms)
        return (weights * losses).sum()

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # torch's once_differentiable stays silent where `outer` needs no gradient, as a loss's own
        # never does: the term would be left out.
        if torch.is_grad_enabled():
            raise InputError(
                "weighted_cross_entropy: its gradient has no gradient; leave out "
                "create_graph=True, or use torch's cross_entropy"
            )
        logits, rows, targets, weights, norms = ctx.saved_tensors
        factors = weights * outer
        gradient = torch.zeros_like(logits)
        for part in _chunks(len(rows), logits.shape[1]):
            chunk = logits.index_select(0, rows[part]).to(factors.dtype)
            chunk.sub_(norms[part, None]).exp_()
            chunk.scatter_add_(1, targets[part, None], chunk.new_full((len(chunk), 1), -1))
            chunk.mul_(factors[part, None])
            gradient.index_copy_(0, rows[part], chunk.to(gradient.dtype))
        return gradient, None, None, None


def _precision(logits: torch.Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, CHUNK // vocabulary)
    return (slice(first, first + step) for first in range(0, rows, step))
