"""What characters weigh before any rule: by the data's own weights, and by the row they are in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.conversation import Conversation, SampledContent, Weights
from pipeline.errors import RecordError
from pipeline.regions import TEMPLATE, Region, Turn
from pipeline.spans import Span, subtract

if TYPE_CHECKING:  # slow to import, and reweighting needs none
    from pipeline.rendered import Rendered


class Scale(NamedTuple):
    """Characters of one text that weigh ``weight`` instead of 1."""

    start: int
    end: int
    weight: float


def scale_turns(
    turns: Sequence[Turn],
    *,
    length: int,
    weights: Mapping[int, float],
    parts: Mapping[int, Sequence[Scale]],
    row: float,
    outputs_only: bool = False,
) -> list[Scale]:
    """Sorted and disjoint, in a text of *length* characters; what weighs 1 is left out.

    *weights* are those of messages, 1 where absent; *parts* are characters of the text that a
    content part wrote, with the part's own weight; *row* is the sample's, and that of the text that
    no message owns. They multiply. With *outputs_only*, all else weighs 1.
    """
    if row == 1 and not parts and all(weight == 1 for weight in weights.values()):
        return []
    scales: list[Scale] = []
    for turn in turns:
        own = weights.get(turn.message, 1.0) * row
        for owned in turn.outputs if outputs_only else turn.ranges:
            position = owned.start
            for part in parts.get(turn.message, ()):
                start, end = max(part.start, position), min(part.end, owned.end)
                if start < end:
                    scales.append(Scale(position, start, own))
                    scales.append(Scale(start, end, own * part.weight))
                    position = end
            scales.append(Scale(position, owned.end, own))
    if row != 1 and not outputs_only:
        owned_ranges = sorted(span for turn in turns for span in turn.ranges)
        scales += [Scale(*gap, row) for gap in subtract([Span(0, length)], owned_ranges)]
    return sorted(s for s in scales if s.weight != 1 and s.start < s.end)


def cut_regions(regions: Iterable[Region], scales: Sequence[Scale]) -> Iterator[Region]:
    """The regions, cut where their weight changes."""
    ends = [scale.end for scale in scales]
    for region in regions:
        position = region.start
        for i in range(bisect_right(ends, position), len(scales)):
            scale = scales[i]
            if scale.start >= region.end:
                break
            start, end = max(scale.start, position), min(scale.end, region.end)
            if position < start:
                yield region._replace(start=position, end=start)
            yield region._replace(start=start, end=end, weight=scale.weight)
            position = end
        if position < region.end:
            yield region._replace(start=position)


def scale_template(turns: Iterable[Turn], scales: Sequence[Scale]) -> Iterator[Region]:
    """What the scales say of text that no message owns, as regions of nobody's."""
    owned = sorted(span for turn in turns for span in turn.ranges)
    for scale in scales:
        for start, end in subtract([Span(scale.start, scale.end)], owned):
            yield Region(-1, "", TEMPLATE, start, end, scale.weight)


def restore_scales(regions: Iterable[Region]) -> list[Scale]:
    """The scales that cut *regions*."""
    return sorted(Scale(r.start, r.end, r.weight) for r in regions if r.weight != 1)


def refuse_weights(conversation: Conversation) -> None:
    """A weight that the data asks for is honoured or refused, never passed over.

    Only with base ``all`` do others than the assistant carry loss.
    """
    if conversation.plain:
        return
    weights, asked = conversation.weights, list[tuple[int, float]]()
    if weights is not None:
        asked += weights.messages.items()
        asked += [(i, weight) for i, parts in weights.parts.items() for _, _, weight in parts]
    for i, message in enumerate(conversation.messages):
        if type(message["content"]) is SampledContent:
            asked += [(i, w) for piece in message["content"].pieces for w in piece.weights]
    for index, weight in asked:
        role = conversation.messages[index]["role"]
        if weight and role != "assistant":
            raise RecordError(
                "parse",
                "unsupported_weight",
                f"weighs {weight:g}, but only what the assistant says carries loss; use 0, drop "
                "the key, or train all with the rule file all",
                field=f"messages[{index}]",
            )


def find_parts(weights: Weights, traced: Rendered) -> dict[int, list[Scale]]:
    """Where the parts with weights stand in the text, by message.

    Raises RecordError(``render``, ``weight_untraced``) where that is not known of a character.
    """
    codes = traced.codes()
    unknown = [code for code, origin in enumerate(traced.origins) if origin.field == "?"]
    followed = not np.isin(codes, unknown).any()
    runs = _runs(codes)
    found: dict[int, list[Scale]] = {}
    for index, parts in weights.parts.items():
        for code in traced.own.get(index, ()):
            field = traced.origins[code].field
            if not field.startswith("content["):
                continue
            start, end, weight = parts[int(field[len("content[") : -1])]
            mine = runs.get(code, [])
            if not followed and sum(b - a for a, b in mine) < end - start:
                raise RecordError(
                    "render",
                    "weight_untraced",
                    "the template edits it in a way that cannot be followed, so that the weight "
                    "of a part has no certain place; weigh the message instead",
                    field=f"messages[{index}].content",
                )
            found.setdefault(index, []).extend(Scale(a, b, weight) for a, b in mine)
    return {index: sorted(scales) for index, scales in found.items()}


def _runs(codes: npt.NDArray[np.uint32]) -> dict[int, list[tuple[int, int]]]:
    """Where each code stands, as half-open ranges."""
    edges = np.flatnonzero(np.diff(codes)) + 1
    starts = np.concatenate(([0], edges)) if len(codes) else edges
    ends = np.append(edges, len(codes))
    runs: dict[int, list[tuple[int, int]]] = {}
    for code, start, end in zip(
        codes[starts].tolist(), starts.tolist(), ends.tolist(), strict=False
    ):
        runs.setdefault(code, []).append((start, end))
    return runs
