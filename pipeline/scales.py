"""What characters weigh before any rule: by the data's own weights, and by the row they are in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pipeline.regions import Region
from pipeline.turns import Turn


class Scale(NamedTuple):
    """Characters of one text that weigh ``weight`` instead of 1."""

    start: int
    end: int
    weight: float


def scale_turns(
    turns: Iterable[Turn],
    *,
    weights: Mapping[int, float],
    parts: Mapping[int, Sequence[Scale]],
    row: float,
) -> list[Scale]:
    """Sorted and disjoint, inside the outputs; what weighs 1 is left out.

    *weights* are those of messages, 1 where absent; *parts* are characters of the text that a
    content part wrote, with the part's own weight; *row* is the sample's. They multiply.
    """
    scales: list[Scale] = []
    for turn in turns:
        own = weights.get(turn.message, 1.0) * row
        for output in turn.outputs:
            position = output.start
            for part in parts.get(turn.message, ()):
                start, end = max(part.start, position), min(part.end, output.end)
                if start < end:
                    scales.append(Scale(position, start, own))
                    scales.append(Scale(start, end, own * part.weight))
                    position = end
            scales.append(Scale(position, output.end, own))
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


def restore_scales(regions: Iterable[Region]) -> list[Scale]:
    """The scales that cut *regions*."""
    return sorted(Scale(r.start, r.end, r.weight) for r in regions if r.weight != 1)
