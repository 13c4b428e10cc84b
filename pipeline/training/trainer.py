"""transformers' Trainer with the weighted loss, divided right over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DataCollatorWithPadding, Trainer, default_data_collator
from transformers.trainer_utils import EvalLoopOutput

from pipeline.errors import ConfigurationError, InputError
from pipeline.training.loss import (
    Denominator,
    count_items,
    divide,
    require_denominator,
    weighted_cross_entropy,
)


class WeightedTrainer(Trainer):  # type: ignore[misc] # transformers is Any to mypy
    """Takes batches of ``WeightedCollator``, and all that Trainer takes but a loss of your own.

    Each step's gradient is that of one batch of all its rows, however they are cut into
    micro-batches (``gradient_accumulation_steps``) and ranks; the denominator is counted over them
    all. With ``average_tokens_across_devices=False`` each rank divides by its own, as Trainer does.

    ``remove_unused_columns`` is switched off, as the model's forward names no ``loss_scale``.
    ``evaluate`` gives the loss of all rows as of one batch, whatever the batches' size; a row that
    fills up the ranks' last batch counts twice, as in Trainer.

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
        self._evaluated: list[torch.Tensor] = []
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
            (
                "data_collator",
                isinstance(self.data_collator, DataCollatorWithPadding)
                or self.data_collator is default_data_collator,
                "pass WeightedCollator(pad_token_id=...), as Trainer's own pads no weights",
            ),
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
            # Ranks of tensor parallelism see the same rows.
            count = self.accelerator.gather(count).sum() / self.get_tp_size()
        return count

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As Trainer's; without *num_items_in_batch* this batch counts alone."""
        for name in ("labels", "loss_scale"):
            if name not in inputs:
                raise InputError(
                    f"batch: no {name!r} among {sorted(inputs)}; use WeightedCollator as "
                    "data_collator"
                )
        kept = {name: inputs[name] for name in inputs if name not in ("labels", "loss_scale")}
        outputs = model(**kept)
        total = weighted_cross_entropy(outputs.logits, inputs["labels"], inputs["loss_scale"], 1)
        items = num_items_in_batch
        if items is None or not model.training:
            own = count_items(inputs, self.denominator)
            items = own if items is None else items
            if not model.training:
                self._evaluated.append(torch.stack([total.detach(), own.to(total)]).double().cpu())
        loss = divide(total, items)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Gradients are averaged over the ranks, and each has divided by the count of all.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(
        self, *given: Any, metric_key_prefix: str = "eval", **named: Any
    ) -> EvalLoopOutput:
        """As Trainer's, whose loss is a mean of batches' means, with that of all rows instead."""
        self._evaluated = []
        found = super().evaluation_loop(*given, metric_key_prefix=metric_key_prefix, **named)
        if self._evaluated:
            sums = torch.stack(self._evaluated).sum(0).float().to(self.args.device)
            total, items = self.accelerator.gather(sums[None]).sum(0)
            found.metrics[f"{metric_key_prefix}_loss"] = divide(total, items).item()
            self._evaluated = []
        return found
