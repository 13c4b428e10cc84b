"""Where a generator's choices come from: random bytes, a seeded generator, or hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Choices(Protocol):
    """A whole number from 0 up to but not including *stop*; small ones are the simple choice."""

    def below(self, stop: int, /) -> int: ...


class Spelled:
    """Choices that bytes spell, which a fuzzer can change one by one; 0 when they are used up.

    As ``atheris.FuzzedDataProvider`` does, but any engine can replay it.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._next = data, 0

    def below(self, stop: int) -> int:
        width = max(1, ((stop - 1).bit_length() + 7) // 8)
        part = self._data[self._next : self._next + width]
        self._next += width
        return int.from_bytes(part, "little") % stop


class Chance:
    """Choices of a seeded generator."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance

    def below(self, stop: int) -> int:
        return self._chance.randrange(stop)


class Drawn:
    """Choices that hypothesis makes, and makes smaller: *draw* is that of ``composite``."""

    def __init__(self, draw: Callable[[Any], Any], integers: Callable[[int, int], Any]) -> None:
        self._draw, self._integers = draw, integers

    def below(self, stop: int) -> int:
        return int(self._draw(self._integers(0, stop - 1)))


def pick(choices: Choices, options: Sequence[T]) -> T:
    """One of *options*, which has some."""
    return options[choices.below(len(options))]


def once_in(choices: Choices, times: int) -> bool:
    """True once in so many times; the simple choice is no."""
    return choices.below(times) == times - 1
