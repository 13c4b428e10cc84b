"""What a record says of its own weights, read strictly: a wrong one is a reject, never a guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.conversation import Weights
from pipeline.schema.field import fault, misfit

SWITCHES = ("train", "loss", "output_with_loss")  # the last is xtuner's
NUMBERS = ("weight", "loss_scale")
WEIGHT_KEYS = frozenset((*SWITCHES, *NUMBERS))
ROW_KEYS = ("weight", "sample_weight")
LARGEST = 1_000_000


@dataclass(frozen=True, slots=True)
class Weight:
    """One message's: ``whole`` is None where only parts weigh; ``ranges`` as in `Weights.parts`."""

    whole: float | None
    ranges: list[tuple[int, int, float]]


def read_weight(holder: Mapping[str, Any], place: str) -> float | None:
    """What `WEIGHT_KEYS` of a message or a part say with one voice; None without any, or nulls.

    A switch that is on leaves it to the number beside it. RecordError ``bad_weight``,
    ``unsupported_weight`` for a list of weights, ``conflicting_weight`` where two switches or two
    numbers differ, a switch is off beside a positive number, or on beside 0.
    """
    switch = _read_agreed(holder, SWITCHES, f"{place}.")
    number = _read_agreed(holder, NUMBERS, f"{place}.")
    if switch is None or number is None:
        return switch if number is None else number
    if bool(switch) != bool(number):
        key = next(key for key in NUMBERS if holder.get(key) is not None)
        fact = (
            f"is {number:g} beside a switch that is {'on' if switch else 'off'}; keep one of them"
        )
        raise fault("conflicting_weight", f"{place}.{key}", fact)
    return number


def read_message_weight(
    message: Mapping[str, Any], ranges: list[tuple[int, int, float]], place: str
) -> Weight | None:
    """What a message with these weighted *ranges* says; None where neither has a weight."""
    if message.get("sample_weight") is not None:
        fact = "belongs on the record; call a message's weight or loss_scale"
        raise fault("misplaced_weight", f"{place}.sample_weight", fact)
    whole = None if WEIGHT_KEYS.isdisjoint(message) else read_weight(message, place)
    return Weight(whole, ranges) if ranges or whole is not None else None


def read_row_weight(record: Mapping[str, Any]) -> float | None:
    """The record's ``weight`` or ``sample_weight``; errors as for `read_weight`."""
    return _read_agreed(record, ROW_KEYS, "")


def _refuse_misplaced(record: Mapping[str, Any]) -> None:
    """A message's keys on a record would be passed over; a metric that is called loss may be."""
    for key, kinds in (("train", (bool,)), ("loss", (bool,)), ("loss_scale", (int, float))):
        if isinstance(record.get(key), kinds):
            fact = "belongs on a message; call a whole record's weight or sample_weight"
            raise fault("misplaced_weight", key, fact)


def gather_weights(
    record: Mapping[str, Any], weights: Mapping[int, Weight], *, shift: int
) -> Weights | None:
    """All in one, each message's index moved by *shift*; None where nothing has a weight."""
    _refuse_misplaced(record)
    row = read_row_weight(record)
    if row is None and not weights:
        return None
    return Weights(
        messages={i + shift: w.whole for i, w in weights.items() if w.whole is not None},
        parts={i + shift: w.ranges for i, w in weights.items() if w.ranges},
        row=1.0 if row is None else row,
    )


def _read_agreed(holder: Mapping[str, Any], keys: tuple[str, ...], prefix: str) -> float | None:
    agreed: float | None = None
    first = ""
    for key in keys:
        if (value := holder.get(key)) is None:
            continue
        field = f"{prefix}{key}"
        weight = _read_switch(value, field) if key in SWITCHES else read_number(value, field)
        if agreed is None:
            agreed, first = weight, key
        elif weight != agreed:
            raise fault("conflicting_weight", field, f"differs from {first}; keep one of them")
    return agreed


def _read_switch(value: Any, field: str) -> float:
    if isinstance(value, (bool, int, float)):
        if value in (0, 1):
            return 1.0 if value else 0.0
        fact = "is a number other than 0 and 1; write true or false, or call it weight"
        raise fault("bad_weight", field, fact)
    remedy = "write one, or drop the key"
    raise misfit("bad_weight", field, "true or false", value, remedy=remedy)


def read_number(value: Any, field: str) -> float:
    """A weight that is a number from 0 to `LARGEST`; RecordError ``bad_weight``."""
    if isinstance(value, list) and field.endswith("loss_scale"):
        fact = (
            "a list of weights goes with token ids in the content; write one number, or "
            '{"token_ids": [...], "loss_scale": [...]} as content'
        )
        raise fault("unsupported_weight", field, fact)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        remedy = "write 1 or 0" if isinstance(value, bool) else "write one, or drop the key"
        raise misfit("bad_weight", field, "a number", value, remedy=remedy)
    if 0 <= value <= LARGEST:
        return float(value) + 0.0  # -0.0 would print as a negative weight
    fact = "is negative" if value < 0 else f"is above {LARGEST:,}" if value > 0 else "is NaN"
    raise fault("bad_weight", field, f"{fact}; write a number from 0 to {LARGEST:,}")
