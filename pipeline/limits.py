"""Bounds on what a chat template may take, so that a hostile one is stopped and named.

A template is somebody's program: it can loop for ever, double a string forty times, or ask for ten
billion spaces in one call. Whatever makes or repeats something tells a `Meter` first. All limits
but the clock are counts, so that a record is accepted or rejected alike on every machine; they
grow with the record, whose size is only computed when a count passes what any small record may
take.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from jinja2.utils import Namespace

from pipeline.errors import RecordError

ITEM = 4  # what an item of a list counts, in characters
SMALL = 4096  # shorter strings are not worth a count: loops and the source bound their number
_LOOK = 256  # steps between two looks at the clock
_PIECES = 1024  # printed between two sums of their lengths
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one render may take; a record of n characters may take ``per_character`` * n more.

    *characters* bounds the text and each value (an item of a list counts 4), ``16 * characters``
    everything made in a render. *steps* are loop iterations (one with a long body counts as
    several) and calls (4 each). *depth* bounds calls inside calls, *bits* one integer, *source*
    the template's own text. *seconds* is a last resort: where it decides, a slower machine can
    reject what a faster one accepts.
    """

    characters: int = 2_000_000
    steps: int = 1_000_000
    per_character: int = 16
    depth: int = 100
    bits: int = 65_536
    seconds: float = 60.0
    source: int = 200_000


def stopped(fact: str) -> RecordError:
    """The error for a render that a limit ended: stage ``render``, reason ``template_limit``."""
    message = f"the chat template {fact}; change the template, or leave the record out"
    return RecordError("render", "template_limit", message)


def measure(value: Any, *, cutoff: int, indent: int = 0) -> int:
    """Characters that writing *value* out takes, near enough; stops soon after *cutoff*.

    A value that is reached twice counts twice: ``[a, a]`` of ``[b, b]`` of ... is small in memory
    and endless in print. *indent* counts for each item at each level, as JSON's does.
    """
    total, depth, level = 0, 0, [value]
    while level and total <= cutoff:
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                total += len(item)
            elif kind is dict:
                below += item
                below += item.values()
            elif kind is list:
                below += item
            else:
                inside = _inside(item)
                total += inside if isinstance(inside, int) else 0
                below += () if isinstance(inside, int) else inside
            if total + len(below) * ITEM > cutoff:
                return total + len(below) * ITEM
        depth += 1
        total += len(below) * (ITEM + indent * depth)
        level = below
    return total


def _inside(item: Any) -> Any:
    """What a value of a rarer kind holds, or how many characters it has itself."""
    if isinstance(item, (str, bytes)):
        return len(item)
    if isinstance(item, int):
        return ITEM if -1_000_000 < item < 1_000_000 else item.bit_length()
    if isinstance(item, dict):
        return [*item, *item.values()]
    if isinstance(item, Namespace):
        # There is no public way, and a namespace answers for no other name.
        return list(object.__getattribute__(item, "_Namespace__attrs").values())
    return item if isinstance(item, (list, tuple, set, frozenset, *_VIEWS)) else ITEM


class Meter:
    """What a render has taken so far; its limits grow with the size of the record it renders.

    One meter serves many renders, one at a time: a new one for each cost 2 % of short renders.
    """

    __slots__ = (
        "_deadline",
        "_fresh",
        "_record",
        "_sites",
        "_steps_limit",
        "ceiling",
        "depth",
        "limits",
        "made",
        "next_look",
        "next_weighing",
        "steps",
    )

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._sites: dict[tuple[int, int], int] = {}
        self._fresh = False
        self.begin(None)

    def begin(self, record: Any) -> None:
        """Starts anew for a render of *record*: any tree of JSON that the template is given."""
        self._record = record
        self.steps = self.made = self.depth = 0
        if not self._fresh:
            self._fresh = True
            self.ceiling = self.next_weighing = self.limits.characters  # of one value, of the text
            self._steps_limit = self.limits.steps
            self.next_look = min(_LOOK, self.limits.steps)
            self._sites.clear()
            self._deadline = 0.0  # from the first look on: most renders are over before it

    def spend(self, steps: int) -> None:
        """Counts *steps* that the template takes."""
        self.steps += steps
        if self.steps > self.next_look:
            self.look()

    def make(self, characters: int) -> None:
        """Counts a value of *characters*, before it is made where it can be big."""
        made = self.made + characters
        if characters > self.ceiling or made > self.next_weighing:
            self._weigh(characters)
        self.made = made

    def collect(self, pieces: Iterator[str], into: list[str]) -> None:
        """Appends the *pieces* of a render one by one, until they are too long together.

        Whatever is longer than `SMALL` was counted when it was made, so a thousand pieces between
        two sums are little memory; a generator around each piece cost 4 % of all renders. The
        caller sums up the last thousand, before it joins them: see `allow`.
        """
        into.extend(islice(pieces, _PIECES))
        printed = summed = 0
        while len(into) - summed == _PIECES:
            printed += sum(map(len, into[summed:]))
            self.allow(printed)
            summed = len(into)
            into.extend(islice(pieces, _PIECES))

    def metered(self, values: Iterable[Any], extra: int = 0) -> Iterator[Any]:
        """*values* that get written side by side, *extra* characters between them."""
        total = 0
        for value in values:
            total += size(self, value) + extra
            self.spend(1)
            self.allow(total)
            yield value
        self.make(total)

    def allow(self, characters: int) -> None:
        """Stops the render where a value of *characters* is too big; counts nothing."""
        if characters > self.ceiling:
            self._scale()
            if characters > self.ceiling:
                raise stopped(f"makes more than {self.ceiling:,} characters")

    def keep(self, site: int, characters: int) -> None:
        """Counts what an assignment keeps: only growth, for it lets go of what it kept before."""
        self.spend(characters >> 12)  # a text that grows bit by bit is copied each time
        key = (site, self.depth)
        self._fresh = False
        before = self._sites.get(key, 0)
        if characters > before:
            self._sites[key] = characters
            self.allow(characters)
            self.make(characters - before)

    def number(self, bits: float) -> None:
        """Stops the render where an integer of *bits* is too big."""
        if bits > self.limits.bits:
            raise stopped(f"makes a number of more than {self.limits.bits:,} bits")

    def enter(self) -> None:
        """One call deeper; the caller takes ``depth`` back."""
        self.spend(4)
        self.depth += 1
        if self.depth > self.limits.depth:
            raise stopped(f"calls itself more than {self.limits.depth} deep")

    def look(self) -> None:
        """Compares ``steps`` with their limit, and the clock with its own."""
        if self.steps > self._steps_limit:
            self._scale()
            if self.steps > self._steps_limit:
                raise stopped(f"takes more than {self._steps_limit:,} steps")
        self._watch()
        self.next_look = min(self.steps + _LOOK, self._steps_limit)

    def _weigh(self, characters: int) -> None:
        self.allow(characters)
        made = self.made + characters
        if made > 16 * self.ceiling:
            self._scale()
            if made > 16 * self.ceiling:
                raise stopped(f"makes more than {16 * self.ceiling:,} characters in all")
        self._watch()
        self.next_weighing = min(made + (1 << 20), 16 * self.ceiling)

    def _watch(self) -> None:
        self._fresh = False
        now = time.monotonic()
        if not self._deadline:
            self._deadline = now + self.limits.seconds
        if now >= self._deadline:
            raise stopped(f"runs for more than {self.limits.seconds:g} seconds")

    def _scale(self) -> None:
        self._fresh = False
        if self._record is not None:
            # JSON is a tree, so its size is finite: no cutoff is needed, only a number.
            more = self.limits.per_character * measure(self._record, cutoff=1 << 60)
            self._record = None
            self.ceiling += more
            self._steps_limit += more


def size(meter: Meter, value: Any, *, indent: int = 0) -> int:
    """`measure` of a value that gets written out, or an error where that is too much."""
    n = len(value) if type(value) is str else measure(value, cutoff=meter.ceiling, indent=indent)
    if n > meter.ceiling:
        meter.allow(n)  # a bigger record has a higher ceiling: measure up to that
        n = measure(value, cutoff=meter.ceiling, indent=indent)
        meter.allow(n)
    return n
