"""Rows that are tokenized and weighted already, for ms-swift; written by a Weighted Shards export.

``--external_plugins`` imports this file, ``--template weighted_rows`` uses it on a
``--cached_dataset`` of the same export. Ids, labels and weights reach the collator as they are.
"""

from __future__ import annotations

from typing import Any

from swift.template import (  # type: ignore[import-not-found]
    MaxLengthError,
    Template,
    TemplateMeta,
    register_template,
)


class WeightedRows(Template):  # type: ignore[misc] # types not read
    """Encodes nothing: a row brings its ``input_ids``, ``labels`` and ``loss_scale``."""

    def encode(
        self,
        inputs: Any,
        return_template_inputs: bool = False,  # noqa: ARG002 - as it is called
        return_length: bool = False,
    ) -> dict[str, Any]:
        """A row as ms-swift's collator takes it; MaxLengthError where it is too long.

        A row is never cut: weights and labels of half a conversation are nobody's wish.
        """
        if not isinstance(inputs, dict) or "loss_scale" not in inputs:
            raise ValueError(
                "template weighted_rows: reads only rows of a Weighted Shards export; "
                "for anything else give the model's own --template"
            )
        ids = list(inputs["input_ids"])
        labels, weights = list(inputs["labels"]), list(inputs["loss_scale"])
        if not len(ids) == len(labels) == len(weights):
            raise ValueError("a row has columns of different lengths; export the shards again")
        if labels[0] != -100 or weights[0] != 0:
            # ms-swift moves both over the rows of a batch: this one's would be its neighbour's.
            raise ValueError("a row trains its first token; export the shards again")
        if self.max_length is not None and len(ids) > self.max_length:
            raise MaxLengthError(
                f"a row has {len(ids)} tokens, more than --max_length {self.max_length}"
            )
        row: dict[str, Any] = {"input_ids": ids, "labels": labels, "loss_scale": weights}
        row["length"] = len(ids)
        if return_length:
            row["lengths"] = [len(ids)]
        return row


# The parts of a chat are not asked for; ms-swift wants some.
register_template(
    TemplateMeta(
        "weighted_rows", prefix=[], prompt=["{{QUERY}}"], chat_sep=None, template_cls=WeightedRows
    ),
    exist_ok=True,
)
