"""Where a text spells control tokens: just the places that an engine would split out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from pipeline.spans import Span
from pipeline.tokens.encoded import Int32
from pipeline.tokens.offsets import flatten_steps
from pipeline.tokens.vocabulary import AddedToken, Definition

FILLER = "\U0010fffd"  # hides text from `Controls.match`, a character for a character

STUB = {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}  # one token of whatever it gets


class Match(NamedTuple):
    """A control token's spelling, without the spaces that ``lstrip`` and ``rstrip`` take."""

    start: int
    end: int
    content: str

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)


class Reference(Protocol):
    """What this needs of ``ReferenceEngine``, which it is handed: imports point one way."""

    def read(self, text: str) -> tuple[Int32, list[tuple[int, int]]]: ...

    def find(self, content: str) -> int: ...

    def has_in_model(self, content: str) -> bool: ...

    def normalize(self, text: str) -> str: ...

    def share_model(self, other: Any) -> None: ...

    def add(self, tokens: Iterable[AddedToken]) -> list[int]: ...


Make = Callable[[bytes], Reference]  # an engine of a ``tokenizer.json``


class Controls:
    """Finds control tokens as the engine does: leftmost, then longest, among all added tokens.

    Tokens that match normalized text come second, between the others, wherever those lie.
    """

    def __init__(self, definition: Definition, *, raw: bytes, make: Make) -> None:
        """*raw* is the ``tokenizer.json`` that *definition* was read from."""
        added = [token for token in definition.added_tokens if token.content]
        self._special = {token.content for token in added if token.control}
        self._splitter: Splitter | None = None
        literal = [token.content for token in added if not token.normalized]
        normalized = [token for token in added if token.normalized]
        normalizes = any(flatten_steps(definition.normalizer, "normalizers"))
        passes = [literal]
        if any(token.control for token in normalized):
            passes.append([token.content for token in normalized])
            plain = not any(t.lstrip or t.rstrip for t in added) and not normalizes
        else:
            plain = True
        if plain and not any(token.single_word for token in added):
            self._passes = [re.compile(_alternation(p)) for p in passes if p]
        else:  # what they match depends on what is around them, or on normalized text
            self._splitter = Splitter(definition, raw=raw, make=make)

    def match(self, text: str) -> list[Match]:
        """Sorted and disjoint; 3 ns a character, by a Splitter 100 ns."""
        if not self._special:
            return []
        if self._splitter is not None:
            return self._splitter.match(text)
        found: list[tuple[int, int]] = []
        for pattern in self._passes:
            gaps = list(_gaps(found, len(text)))
            found = sorted([*found, *(m.span() for g in gaps for m in pattern.finditer(text, *g))])
        spelled = ((start, end, text[start:end]) for start, end in found)
        return [Match(*match) for match in spelled if match[2] in self._special]


class Splitter:
    """Asks the reference itself, with a model that makes one token of what is left between."""

    def __init__(self, definition: Definition, *, raw: bytes, make: Make) -> None:
        self._engine = make(rewrite(raw, model=STUB, added_tokens=[], pre_tokenizer=None))
        added = [token for token in definition.added_tokens if token.content]
        tokens = zip(self._engine.add(added), added, strict=True)
        self._contents = {id_: token.content for id_, token in tokens if token.control}

    def match(self, text: str) -> list[Match]:
        ids, offsets = self._engine.read(text)
        spelled = zip(ids.tolist(), offsets, strict=True)
        return [_trim(text, *o, self._contents[i]) for i, o in spelled if i in self._contents]


def mask(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """*text* with FILLER for all characters of sorted disjoint *spans*."""
    return replace(text, ((start, end, FILLER * (end - start)) for start, end in spans))


def replace(text: str, replacements: Iterable[tuple[int, int, str]]) -> str:
    """*text* with other strings for sorted disjoint ranges of characters."""
    pieces, at = [], 0
    for start, end, string in replacements:
        pieces += [text[at:start], string]
        at = end
    return "".join([*pieces, text[at:]])


def rewrite(raw: bytes, **parts: object) -> bytes:
    """A ``tokenizer.json`` with other *parts*; the rest is copied, not understood."""
    fields: Mapping[str, object] = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**fields, **parts})


def _gaps(spans: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    at = 0
    for start, end in (*spans, (size, size)):
        yield at, start
        at = end


def _trim(text: str, start: int, end: int, content: str) -> Match:
    """The spelling in a match that may hold spaces: of ``lstrip``, or of a ``Prepend``."""
    at = text.find(content, start, end)
    if at >= 0:
        return Match(at, at + len(content), content)
    found = text[start:end]  # another spelling of it, which the normalizer made the same
    left, right = len(found) - len(found.lstrip()), len(found) - len(found.rstrip())
    return Match(start + left, end - right, content)


def _alternation(words: Iterable[str]) -> str:
    """A pattern for the longest of *words*; 800 with one beginning cost no more than ten."""
    first, *rest = distinct = sorted(set(words))
    if not rest:
        return re.escape(first)
    shared = _common_start(first, rest[-1])  # sorted, so it is all others' as well
    branches: dict[str, list[str]] = {}
    for word in distinct:
        branches.setdefault(word[len(shared) : len(shared) + 1], []).append(word[len(shared) :])
    optional = "?" if branches.pop("", None) else ""
    alternatives = "|".join(map(_alternation, branches.values()))
    return f"{re.escape(shared)}(?:{alternatives}){optional}"


def _common_start(a: str, b: str) -> str:
    size = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    return a[:size]
