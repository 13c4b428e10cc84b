"""Content written as token ids, as ms-swift has it: what was sampled is what trains.

``{"token_ids": [...], "loss_scale": [...]}`` with one weight an id, or a bare list of ids.
"""

from __future__ import annotations

from typing import Any

from pipeline.conversation import Piece
from pipeline.schema.field import fault, misfit
from pipeline.schema.weight import WEIGHT_KEYS, read_number, read_weight

_LARGEST = 2**31 - 1
_REMEDY = 'write {"token_ids": [...]}, with a "loss_scale" of one number an id where they differ'


def holds_ids(value: Any) -> bool:
    """Whether it is an object of token ids, or a list that begins with a number."""
    if isinstance(value, dict):
        return value.get("token_ids") is not None
    return isinstance(value, list) and bool(value) and type(value[0]) is int


def read_ids(value: Any, place: str) -> Piece:
    """Ids from what `holds_ids`; their weights multiply the message's.

    RecordError ``bad_token_ids``, and those of weights. Whether a tokenizer has such ids is not
    known here.
    """
    if isinstance(value, list):
        return Piece(ids=_read_list(value, place), field=place)
    field = f"{place}.token_ids"
    if not isinstance(value["token_ids"], list):
        raise misfit("bad_token_ids", field, "a list of ids", value["token_ids"], remedy=_REMEDY)
    for key in ("text", "value"):
        if value.get(key) is not None:
            raise fault("bad_token_ids", f"{place}.{key}", "stands beside token_ids; keep one")
    ids = _read_list(value["token_ids"], field)
    return Piece(ids=ids, weights=_read_weights(value, len(ids), place), field=field)


def _read_list(values: list[Any], field: str) -> tuple[int, ...]:
    for k, value in enumerate(values):
        if type(value) is not int:
            raise misfit("bad_token_ids", f"{field}[{k}]", "a token id", value, remedy=_REMEDY)
        if not 0 <= value <= _LARGEST:
            fact = f"{value} is no token id; write ids of the tokenizer that sampled them"
            raise fault("bad_token_ids", f"{field}[{k}]", fact)
    return tuple(values)


def _read_weights(value: dict[str, Any], count: int, place: str) -> tuple[float, ...]:
    """One a token, none where nothing is said."""
    listed = value.get("loss_scale")
    if not isinstance(listed, list):
        one = read_weight(value, place)
        return () if one is None else (one,) * count
    field = f"{place}.loss_scale"
    for key in WEIGHT_KEYS:
        if key != "loss_scale" and value.get(key) is not None:
            fact = "stands beside one weight a token; keep one of them"
            raise fault("conflicting_weight", f"{place}.{key}", fact)
    if len(listed) != count:
        fact = f"holds {len(listed):,} weights for {count:,} token ids; write one for each"
        raise fault("bad_weight", field, fact)
    return tuple(read_number(weight, f"{field}[{k}]") for k, weight in enumerate(listed))
