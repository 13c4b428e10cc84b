"""Whether a short way is worth trying, told by how often it was one."""

from __future__ import annotations

_TRUST = 256  # tries before it is judged
_REST = 4096  # that are left out before it is tried again


class Payoff:
    """Of a short way whose failures cost about what its successes save: half must be such."""

    __slots__ = ("_done", "_rest", "_tried")

    def __init__(self) -> None:
        self._tried = self._done = self._rest = 0

    def rests(self, count: int) -> bool:
        """Whether to leave out the next *count* tries."""
        if self._rest <= 0:
            return False
        self._rest -= count
        return True

    def note(self, tried: int, done: int) -> None:
        """So many tries, and how many of them succeeded."""
        self._tried, self._done = self._tried + tried, self._done + done
        if self._tried >= _TRUST:
            self._rest = _REST if 2 * self._done < self._tried else 0
            self._tried = self._done = 0
