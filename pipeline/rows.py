"""Rows between their making and their writing: as text with its claims, as Arrow columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pipeline.conversation import Weights
from pipeline.errors import RecordError
from pipeline.regions import Turn
from pipeline.reject import Reject
from pipeline.rules.matching import Claim
from pipeline.scales import Scale, scale_turns
from pipeline.source.record import Record
from pipeline.spans import Span

if TYPE_CHECKING:  # slow to import, and not needed by all who pass rows on
    import pyarrow as pa

    from pipeline.sampled import Place

Counts: TypeAlias = "Counter[str]"

NOTHING_TO_TRAIN = RecordError(
    "weigh", "nothing_to_train", "no token of it carries loss; drop the record or change the rules"
)
_NONE = Weights({}, {})
_EMPTY: Mapping[Any, Any] = MappingProxyType({})


class Prepared(NamedTuple):
    """A row as text.

    ``scales`` are what its characters weigh before any rule, where that is not 1; ``quoted`` the
    control tokens that the data spells out; ``cuts`` are where the text is tokenized apart, beside
    the ``places`` of ids that came with the data;
    ``counts`` what else deserves to be counted; ``fields`` the record's own that stay with the row,
    as JSON. A ``whole`` one is no row: it tells what its conversation weighs, rendered once.
    """

    record: Record
    text: str
    turns: Sequence[Turn]
    claims: list[Claim]
    scales: Sequence[Scale] = ()
    quoted: Sequence[Span] = ()
    cuts: Sequence[int] = ()
    places: Sequence[Place] = ()
    fields: str | None = None
    counts: Mapping[str, int] = _EMPTY
    whole: bool = False
    weights: Weights = _NONE
    parts: Mapping[int, Sequence[Scale]] = _EMPTY

    def rescaled(self, factor: float) -> Prepared:
        """The same row, all of it *factor* times as heavy."""
        row, messages = self.weights.row * factor, self.weights.messages
        scales = scale_turns(
            self.turns, length=len(self.text), weights=messages, parts=self.parts, row=row
        )
        return self._replace(scales=scales)


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Rows in the records' order, the rejects, and what happened (dotted names to numbers)."""

    rows: pa.RecordBatch
    rejects: list[Reject]
    counts: Counts
