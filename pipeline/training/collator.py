"""Rows of shards, made one batch: padded, or one after the other without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ConfigurationError, InputError
from pipeline.training.loss import IGNORED

Values = npt.NDArray[Any]
# Each column with its type in a batch and the kinds of numpy types that it may come as.
COLUMNS = {
    "input_ids": (np.int64, "iu"),
    "labels": (np.int64, "iu"),
    "loss_scale": (np.float32, "fiu"),
}


@dataclass(frozen=True, slots=True)
class WeightedCollator:
    """Picklable ``collate_fn``: rows become ``input_ids``, ``labels``, ``loss_scale``, ...

    A row's values are lists, arrays or tensors; columns beside those three are left out. The first
    label of a row is -100 and its weight 0, whatever the row says: nothing precedes it.

    Padded: ``[B, T]``, and ``attention_mask``; T is a multiple of *multiple_of*; padding has the
    label -100 and the weight 0 and lies on *side*.

    *padding_free*: ``[1, T]``, all rows flat, and ``position_ids`` that start at 0 with each; what
    fills T up to a multiple is sequences of one token. With *boundaries* also ``cu_seq_lens_q``,
    ``cu_seq_lens_k`` (int32 ``[sequences + 1]``) and ``max_length_q``, ``max_length_k`` (int), as
    flash attention takes them, and with *sequence_ids* ``seq_idx`` (int32 ``[1, T]``), as Mamba
    does. There is no ``attention_mask``, and ``use_cache`` is False: given a mask, or making a
    cache, transformers 5.24 looks for no sequences in ``position_ids`` and lets each row see those
    before. On a CPU ``eager`` and ``sdpa`` keep rows apart, to the last bits of padded rows.
    """

    pad_token_id: int
    _: KW_ONLY
    padding_free: bool = False
    multiple_of: int = 1
    side: Literal["right", "left"] = "right"
    boundaries: bool = True
    sequence_ids: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.pad_token_id, int):
            raise ConfigurationError(
                f"pad_token_id: {self.pad_token_id!r}; give any id, such as 0 or the end of text: "
                "padding is masked and carries no loss"
            )
        if self.multiple_of < 1:
            raise ConfigurationError(f"multiple_of: {self.multiple_of}; give 1 or more")
        if self.side not in ("right", "left"):
            raise ConfigurationError(f"side: {self.side!r}; give 'right' or 'left'")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """InputError where a row has not these columns, each as long as the others."""
        if not len(rows):
            raise InputError("rows: none; a batch is made of one or more")
        columns, lengths = _flatten(rows)
        firsts = np.cumsum(lengths) - lengths
        columns["labels"][firsts] = IGNORED
        columns["loss_scale"][firsts] = 0
        return self._join(columns, lengths) if self.padding_free else self._pad(columns, lengths)

    def _pad(self, columns: Mapping[str, Values], lengths: Values) -> dict[str, Any]:
        width = _round_up(int(lengths.max()), self.multiple_of)
        places = np.arange(width)[None, :]
        if self.side == "left":
            places = places[:, ::-1]
        mask = places < lengths[:, None]
        batch: dict[str, Any] = {"attention_mask": torch.from_numpy(mask.astype(np.int64))}
        for name, values in columns.items():
            padded = np.full(mask.shape, self._filler(name), values.dtype)
            padded[mask] = values
            batch[name] = torch.from_numpy(padded)
        return batch

    def _join(self, columns: Mapping[str, Values], lengths: Values) -> dict[str, Any]:
        tokens = int(lengths.sum())
        rest = _round_up(tokens, self.multiple_of) - tokens
        # One sequence a token of padding: position 0 is never predicted, so whoever counts
        # positions other than 0 counts no padding, and no kernel sees a long sequence of it.
        lengths = np.append(lengths, np.ones(rest, np.int64))
        ends = np.cumsum(lengths)
        positions = np.arange(tokens + rest) - np.repeat(ends - lengths, lengths)
        batch: dict[str, Any] = {
            "position_ids": torch.from_numpy(positions)[None],
            "use_cache": False,
        }
        for name, values in columns.items():
            filler = np.full(rest, self._filler(name), values.dtype)
            batch[name] = torch.from_numpy(np.append(values, filler))[None]
        if self.boundaries:
            bounds = torch.from_numpy(np.append(0, ends).astype(np.int32))
            batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = bounds
            batch["max_length_q"] = batch["max_length_k"] = int(lengths.max())
        if self.sequence_ids:
            numbers = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
            batch["seq_idx"] = torch.from_numpy(numbers)[None]
        return batch

    def _filler(self, name: str) -> int:
        return {"input_ids": self.pad_token_id, "labels": IGNORED, "loss_scale": 0}[name]


def _flatten(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Values], Values]:
    """Each column of all rows as one new array, and how many tokens each row has."""
    given = [{name: _read(row, name, at) for name in COLUMNS} for at, row in enumerate(rows)]
    for at, row in enumerate(given):
        lengths = {name: len(values) for name, values in row.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(
                f"rows[{at}]: {told} tokens; give columns of one length (trainers that cut "
                "rows, as TRL with its max_length, cut only the columns they know)"
            )
        if not lengths["input_ids"]:
            raise InputError(f"rows[{at}]: no tokens; leave empty rows out")
    columns = {
        name: np.concatenate([row[name] for row in given], dtype=dtype, casting="unsafe")
        for name, (dtype, _) in COLUMNS.items()
    }
    return columns, np.array([len(row["input_ids"]) for row in given])


def _read(row: Mapping[str, Any], name: str, at: int) -> Values:
    if row.get(name) is None:
        raise InputError(
            f"rows[{at}]: no {name!r} among {sorted(map(str, row))}; pass "
            "remove_unused_columns=False to TrainingArguments (trainers drop columns that the "
            "model's forward does not name)"
        )
    try:
        values = np.asarray(row[name])
    except (TypeError, ValueError) as error:  # bfloat16 tensors, lists of lists of unlike lengths
        raise InputError(f"rows[{at}].{name}: {error}; give one number a token") from error
    # An empty list is an array of floats to numpy.
    if values.ndim != 1 or (len(values) and values.dtype.kind not in COLUMNS[name][1]):
        raise InputError(
            f"rows[{at}].{name}: {values.dtype} of shape {list(values.shape)}; "
            "give one number a token"
        )
    return values


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
