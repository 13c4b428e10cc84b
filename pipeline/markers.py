"""The texts of a tokenizer's added tokens: what may stop a turn, and what no edge may cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_TAIL = 4  # characters


class Markers:
    """The texts of a tokenizer's added tokens: *control* ones may stop a turn, none is ever cut.

    *told* are stop tokens that somebody names, for templates that write none at a turn's end.
    """

    def __init__(
        self,
        *,
        control: Iterable[str],
        added: Iterable[str],
        eos: str = "",
        told: Sequence[str] = (),
    ) -> None:
        self.eos, self.told = eos, told
        self._control, self._added = frozenset(control), tuple(added)
        self._lengths = sorted({len(token) for token in self._control}, reverse=True)
        # By their last characters, longest first: DeepSeek-R1 has 802.
        self._endings: dict[str, list[str]] = {}
        for token in sorted(self._control, key=len, reverse=True):
            self._endings.setdefault(token[-_TAIL:], []).append(token)
        self.lasts = frozenset(token[-1:] for token in self._control)  # a token's last character
        self._tails = sorted({len(tail) for tail in self._endings}, reverse=True)
        self._usual = ""  # the one that was found last, if no longer one ends with it
        self.apart: tuple[str, ...] = ()  # all of those that were found
        self._inner: dict[str, bool] = {}
        self._begun: dict[str, list[tuple[int, str]]] = {}

    def ending(self, text: str, start: int, end: int) -> str:
        """The longest control token that ``text[start:end]`` ends with, or nothing."""
        if text.endswith(self._usual, start, end) and self._usual:
            return self._usual
        for length in self._tails:
            for token in self._endings.get(text[end - length : end], ()):
                if end - len(token) >= start and text.endswith(token, start, end):
                    if not self._ends_another(token):
                        self._usual = token
                        if token not in self.apart:
                            self.apart += (token,)
                    return token
        return ""

    def _ends_another(self, token: str) -> bool:
        found = self._inner.get(token)
        if found is None:
            found = any(other[1:].endswith(token) for other in self._control)
            self._inner[token] = found
        return found

    def leading(self, text: str) -> str:
        """*text* through the control token that it starts with after white space, or nothing."""
        begun = len(text) - len(text.lstrip())
        for length in self._lengths:
            if text[begun : begun + length] in self._control:
                return text[: begun + length]
        return ""

    def holds(self, text: str) -> bool:
        """Whether *text* has an added token in it."""
        return any(token in text for token in self._added)

    def whole(self, text: str, end: int) -> int:
        """*end*, or the start of the added token of *text* that *end* would cut in half."""
        for length, rest in self._begin(text[:end]):
            if text.startswith(rest, end):
                return end - length
        return end

    def begins_at(self, text: str) -> bool:
        """Whether an added token may have begun before the end of *text* and go on after it."""
        return bool(self._begin(text))

    def _begin(self, shared: str) -> list[tuple[int, str]]:
        """Ways in which *shared* may end inside an added token: characters inside, the rest of it.

        What turns share with a header is one of few texts, so this is looked up: comparing 800
        added tokens for each turn took 2 ms a conversation with DeepSeek's.
        """
        begun = self._begun.get(shared)
        if begun is None:
            if len(self._begun) > 1000:
                self._begun.clear()
            begun = self._begun[shared] = [
                (length, token[length:])
                for token in self._added
                for length in range(len(token) - 1, 0, -1)
                if shared.endswith(token[:length])
            ]
        return begun
