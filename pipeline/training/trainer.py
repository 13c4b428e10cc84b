"""transformers' Trainer with the weighted loss, divided right over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer

from pipeline.errors import ConfigurationError, InputError
from pipeline.training.loss import (
    Denominator,
    count_items,
    require_denominator,
    weighted_cross_entropy,
)


class WeightedTrainer(Trainer):  # type: ignore[misc] # transformers is Any to mypy
    """Takes batches of ``WeightedCollator``, and all that Trainer takes but a loss of your own.

    Each step's gradient is that of one batch of all its rows, however they are cut into
    micro-batches (``gradient_accumulation_steps``) and ranks; the denominator is counted over them
    all. With ``average_tokens_across_devices=False`` each rank divides by its own, as Trainer does.

    ``remove_unused_columns`` is switched off, as the model's forward names no ``loss_scale``.
    ``evaluate`` divides each batch by its own count over all ranks, and gives their mean.

    ConfigurationError for what would change the loss behind your back: ``compute_loss_func``, label
    smoothing, a router's auxiliary loss, context or sequence parallelism, DataParallel.
    """

    def __init__(self, *given: Any, denominator: Denominator = "targets", **named: Any) -> None:
        require_denominator(denominator)
        super().__init__(*given, **named)
        self.denominator: Denominator = denominator
        # Or training_step divides by the micro-batches once more. (5.24 can be told so by
        # loss_is_scaled_for_ga, which 5.0 does not know.)
        self.model_accepts_loss_kwargs = True
        self.args.remove_unused_columns = False
        loading = self.accelerator.dataloader_config
        loading.dispatch_batches = loading.dispatch_batches or False  # None: of streams, yes
        for place, asked, remedy in self._conflicts():
            if asked:
                raise ConfigurationError(f"{place}: not with the weighted loss; {remedy}")

    def _conflicts(self) -> list[tuple[str, Any, str]]:
        router = getattr(getattr(self.model, "config", None), "output_router_logits", False)
        dispatch = self.accelerator.dispatch_batches
        split = self.get_cp_size() * self.get_sp_size() > 1
        return [
            ("compute_loss_func", self.compute_loss_func, "leave it out, or use Trainer"),
            ("label_smoothing_factor", self.args.label_smoothing_factor, "set it to 0"),
            ("output_router_logits", router, "set it to False: its loss would not be added"),
            (
                "context or sequence parallelism",
                split,
                "switch it off: rows are cut before the shift",
            ),
            ("dispatch_batches", dispatch, "set it to None: it joins and cuts finished batches"),
            ("n_gpu", self.args.n_gpu > 1, "start one process for each GPU, as with torchrun"),
        ]

    def _get_num_items_in_batch(
        self, batch_samples: Sequence[Mapping[str, Any]], device: torch.device
    ) -> torch.Tensor | None:
        """Of each step, and of each batch of an evaluation; Trainer's own counts labels alone."""
        if not batch_samples or "labels" not in batch_samples[0]:
            return None
        counts = [count_items(batch, self.denominator).to(device) for batch in batch_samples]
        count = torch.stack(counts).sum()
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count / self.get_tp_size()  # those ranks see the same rows

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As Trainer's; without *num_items_in_batch* this batch counts alone."""
        inputs = dict(inputs)  # prediction_step reads the labels afterwards
        try:
            labels, weights = inputs.pop("labels"), inputs.pop("loss_scale")
        except KeyError as error:
            raise InputError(
                f"batch: no {error} among {sorted(inputs)}; use WeightedCollator as data_collator"
            ) from None
        outputs = model(**inputs)
        loss = weighted_cross_entropy(
            outputs.logits, labels, weights, num_items_in_batch, self.denominator
        )
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Gradients are averaged over the ranks, and each has divided by the count of all.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss
