"""What a verification finds, told so that a damaged folder cannot flood or forge the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.terminal import printable

SHOWN = 20  # faults of one kind; the others are counted
REBUILD = "build it again"
_LONGEST = 300  # characters of a fact: it may quote a damaged file


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; ``kind`` is the check that found it."""

    kind: str
    place: str
    fact: str
    remedy: str

    def __str__(self) -> str:
        return f"{shorten(self.place)}: {shorten(self.fact)}; {self.remedy}"


@dataclass(slots=True)
class Findings:
    """``told`` are the first faults of each kind, ``found`` how many there are of each.

    ``passed`` names what could not be checked because of them.
    """

    told: list[Fault] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)
    passed: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many faults there are."""
        return sum(self.found.values())

    def add(self, kind: str, place: object, fact: str, *, remedy: str = REBUILD) -> None:
        """Tells one fault."""
        self.found[kind] += 1
        if self.found[kind] <= SHOWN:
            self.told.append(Fault(kind, str(place), fact, remedy))

    def add_rows(
        self,
        kind: str,
        bad: npt.NDArray[Any],
        place: Callable[[int], str],
        fact: Callable[[int], str],
    ) -> None:
        """Tells a fault for each index that *bad* (bool) marks; only the first are described."""
        at = np.flatnonzero(bad)
        if not len(at):
            return
        room = max(0, SHOWN - self.found[kind])
        for index in at[:room].tolist():
            self.add(kind, place(index), fact(index))
        self.found[kind] += len(at[room:])

    def pass_over(self, what: str) -> None:
        """Says once that *what* was not checked."""
        if what not in self.passed:
            self.passed.append(what)

    def lines(self) -> list[str]:
        """All that there is to tell, one line each."""
        more = [
            f"{kind}: {count - SHOWN:,} more of this kind; mend those above first"
            for kind, count in self.found.items()
            if count > SHOWN
        ]
        passed = [f"not checked: {what}" for what in self.passed]
        return [*map(str, self.told), *more, *passed]


def shorten(text: str) -> str:
    """One line that steers no terminal, and not a damaged file's whole text."""
    return printable(f"{text[:_LONGEST]}…" if len(text) > _LONGEST else text)
