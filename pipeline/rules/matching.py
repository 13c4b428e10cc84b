"""What entries claim of a talk: whole pieces of turns, or what their patterns find in them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import regex

from pipeline.errors import RecordError
from pipeline.laid import Laid, Piece
from pipeline.regions import Turn, divide
from pipeline.rules.entry import Condition, Entry, FieldTest, Pattern
from pipeline.rules.pattern import is_local, opening_of, quick_length
from pipeline.spans import Span, join

TIME_LIMIT = 5.0  # seconds for all rules on one row; sane patterns take microseconds
MOST_CLAIMS = 1_000_000  # of one row
_NEVER = 1e-9
_new = tuple.__new__  # a named tuple's own is Python, and takes twice the time


class Claim(NamedTuple):
    """Characters of the whole text that the rule of index ``rule`` weights."""

    rule: int
    start: int
    end: int


class Talk(NamedTuple):
    """A rendered conversation as rules see it.

    ``fields`` is the record. ``swift``: as ms-swift cuts it, whose last round also starts at a
    tool's message, and whose users' text runs through the assistant's header.
    """

    text: str
    turns: Sequence[Turn]
    fields: Mapping[str, Any]
    swift: bool = False


class Matcher(NamedTuple):
    """An entry in a rule set: ``first`` is the index of its first rule, ``name`` what errors say;
    ``everyone``: all roles carry loss; ``plain``: a pattern for all that the assistant says;
    ``mixes``: its claims may overlap or come unsorted; ``quick``: up to so many characters a match
    needs no time limit; ``local``: it can look at a row's whole text for its matches in pieces;
    ``opening``: what a piece must begin with, after white space, to match."""

    entry: Entry
    first: int
    name: str
    everyone: bool
    plain: bool
    mixes: bool
    quick: int
    local: bool
    opening: str


def make_matcher(entry: Entry, first: int, name: str, *, everyone: bool) -> Matcher:
    """An entry whose first rule has the index *first*."""
    where = entry.where
    limits = (where.first_turn, where.stop_turn, entry.when, entry.unless)
    plain = (
        entry.pattern is not None
        and entry.scope == "piece"
        and (where.roles or ("assistant",) * (not everyone)) == ("assistant",)
        and limits == (None, None, None, None)
        and not (where.regions or entry.sections or entry.markers)
    )
    # (?r) finds the last match first, and groups in lookarounds may overlap.
    backwards = entry.pattern is not None and entry.pattern.flags & regex.REVERSE
    quick = quick_length(entry.pattern) if entry.pattern is not None else 0
    return Matcher(
        entry,
        first,
        name,
        everyone,
        plain,
        bool(entry.group or backwards),
        quick,
        local=plain and quick > 0 and not (where.first or where.anchored) and _is_local(entry),
        opening=opening_of(entry.pattern) if entry.pattern is not None else "",
    )


def _is_local(entry: Entry) -> bool:
    return entry.pattern is not None and is_local(entry.pattern)


def find_claims(matchers: Iterable[Matcher], talk: Talk) -> list[Claim]:
    """What each entry claims, entry by entry; of one rule sorted and disjoint.

    Raises RecordError(``match``, ``pattern_timeout`` | ``too_many_claims`` | ``field_type``).
    """
    text = talk.text
    active = _choose(matchers, talk)
    if all(matcher.plain for matcher in active):  # none at all, mostly
        if not active:
            return []
        said = said_in(talk.turns)
        if len(active) == 1 and active[0].local and not active[0].mixes:
            found = _find_at_once(active[0], said, text)
            if found is not None:
                return found
        return find_said(
            [
                (m, said if m.local or m.opening else _having(text, m.entry.needed, said))
                for m in active
            ],
            text,
        )
    search = _Search(talk, time.monotonic() + TIME_LIMIT)
    gathered = _Gathered([], set(), set())
    for matcher in active:
        try:
            found = list(itertools.islice(search.match(matcher), MOST_CLAIMS + 1))
        except TimeoutError:
            raise _timeout(matcher, text, search.place) from None
        gathered.take(found, matcher)
    return gathered.claims_in_order()


def said_in(turns: Iterable[Turn]) -> list[Piece]:
    """All that the assistant says: pieces of its outputs, without stop tokens.

    No pattern takes a stop token's loss by accident.
    """
    if isinstance(turns, Laid):
        return turns.said()
    return [
        (turn.message, start, turn.stop if start <= turn.stop < end else end)
        for turn in turns
        for start, end in turn.outputs
    ]


def find_said(chosen: Iterable[tuple[Matcher, Sequence[Piece]]], text: str) -> list[Claim]:
    """What `find_claims` does, for matchers that are plain: all that most rules need.

    Each looks at its pieces, those that have what it needs. No turn has to be made for a row: a
    third of the price.
    """
    gathered, deadline = _Gathered([], set(), set()), time.monotonic() + TIME_LIMIT
    for matcher, pieces in chosen:
        # Patterns that match no empty text: a rule file's never do.
        found = _find_at_once(matcher, pieces, text) if matcher.local else None
        if found is not None:
            gathered.take(found, matcher)
            continue
        message, found = -1, []
        rule, group, opening = matcher.first, matcher.entry.group or 0, matcher.opening
        try:
            for message, start, end in pieces:  # noqa: B007 - an error names the last message
                if opening and not text.startswith(opening, start) and not text[start].isspace():
                    continue
                for match in _matches(matcher, text[start:end], deadline):
                    for a, b in match.spans(group):
                        if a < b:
                            found.append(Claim(rule, start + a, start + b))
                    if len(found) > MOST_CLAIMS:
                        break
        except TimeoutError:
            raise _timeout(matcher, text, f"messages[{message}]") from None
        gathered.take(found, matcher)
    return gathered.claims_in_order()


def _find_at_once(matcher: Matcher, pieces: Sequence[Piece], text: str) -> list[Claim] | None:
    """One search of a whole text for the matches in its pieces; None where one lies across an end.

    To cut each piece out and begin a search takes as long as its matches.
    """
    pattern, rule, group = matcher.entry.pattern, matcher.first, matcher.entry.group or 0
    if pattern is None or len(text) > matcher.quick:
        return None
    found: list[Claim] = []
    count, at, start, end = len(pieces), 0, -1, -1
    for match in pattern.finditer(text):
        a, b = match.span()
        while end <= a:
            if at == count:
                return found
            last, (_, start, end) = end, pieces[at]
            if start < last:  # not in the order of the text
                return None
            at += 1
        if b <= start:
            continue
        if a < start or b > end:
            return None
        if not group:
            found.append(_new(Claim, (rule, a, b)))
        else:
            found += [Claim(rule, x, y) for x, y in match.spans(group) if x < y]
        if len(found) > MOST_CLAIMS:
            return None
    return found


class _Gathered(NamedTuple):
    """Claims so far; which rules have some, and whose may overlap or come unsorted."""

    claims: list[Claim]
    claimed: set[int]
    mixed: set[int]

    def take(self, found: list[Claim], matcher: Matcher) -> None:
        if not found:
            return
        if matcher.mixes or (matcher.entry.shares and matcher.first in self.claimed):
            self.mixed.add(matcher.first)
        self.claimed.add(matcher.first)
        self.claims.extend(found)
        if len(self.claims) > MOST_CLAIMS:
            raise RecordError(
                "match",
                "too_many_claims",
                f"rule {matcher.name} makes over {MOST_CLAIMS:,} claims in one row; let its "
                "pattern match longer spans or drop the record",
            )

    def claims_in_order(self) -> list[Claim]:
        return _merged(self.claims, self.mixed) if self.mixed else self.claims


def _timeout(matcher: Matcher, text: str, place: str) -> RecordError:
    return RecordError(
        "match",
        "pattern_timeout",
        f"rule {matcher.name} took the rules over {TIME_LIMIT:g} s on this row of "
        f"{len(text):,} characters; make its pattern cheaper or drop the record",
        field=place,
    )


def _choose(matchers: Iterable[Matcher], talk: Talk) -> list[Matcher]:
    """Those that may find something, as far as a quick look tells."""
    text, turns = talk.text, talk.turns
    if not isinstance(turns, Laid):
        return [m for m in matchers if not _lacks(text, m.entry.needed)]
    opens, row, chosen = turns.table.opens, turns.row, list[Matcher]()
    for matcher in matchers:
        rows = opens.get(matcher.opening) if matcher.plain else None
        if not _lacks(text, matcher.entry.needed) if rows is None else row in rows:
            chosen.append(matcher)
    return chosen


def _lacks(text: str, needed: tuple[str, ...]) -> bool:
    """Whether *text* has none of what is *needed*; a loop, as `any` takes thrice the time."""
    for part in needed:
        if part in text:
            return False
    return bool(needed)


def _having(text: str, needed: tuple[str, ...], said: Sequence[Piece]) -> Sequence[Piece]:
    """Those of the pieces that have one of what is *needed*."""
    if not needed:
        return said
    return [piece for piece in said if any(text.find(p, *piece[1:]) >= 0 for p in needed)]


def _merged(claims: Iterable[Claim], mixed: set[int]) -> list[Claim]:
    """Sorted, with overlaps of one rule joined: groups in lookarounds may overlap too."""
    merged: list[Claim] = []
    for claim in sorted(claims):
        last = merged[-1] if merged else None
        if last and claim.rule in mixed and last.rule == claim.rule and claim.start <= last.end:
            merged[-1] = merged[-1]._replace(end=max(merged[-1].end, claim.end))
        else:
            merged.append(claim)
    return merged


class _Search:
    """One talk, within one time limit; ``place`` is the message that was looked at last."""

    def __init__(self, talk: Talk, deadline: float) -> None:
        self.talk, self.deadline, self.place = talk, deadline, ""
        self._spoken: dict[int, list[Span]] = {}

    def match(self, matcher: Matcher) -> Iterator[Claim]:
        entry = matcher.entry
        if entry.scope == "history":
            for turn in self._history():
                for start, end in turn.outputs:
                    yield Claim(matcher.first, start, end)
            return
        for index in self._chosen(matcher):
            self.place = f"messages[{self.talk.turns[index].message}]"
            if not self._holds(entry, index):
                continue
            for start, end in self._pieces(matcher, index):
                found = self._in_piece(matcher, start, end)
                if entry.scope == "row":
                    if next(found, None) is not None:
                        yield Claim(matcher.first, 0, len(self.talk.text))
                        return
                else:
                    yield from found

    def _history(self) -> Iterator[Turn]:
        """What the assistant says before the last message that it answers."""
        asked = ("user", "tool") if self.talk.swift else ("user",)
        turns = self.talk.turns
        spoken = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        last = spoken[-1] if spoken else -1
        start = max((i for i, t in enumerate(turns[:last]) if t.role in asked), default=0)
        return (turn for turn in turns[:start] if turn.outputs)

    def _chosen(self, matcher: Matcher) -> Iterable[int]:
        """The turns, by number, that its roles and its range name, if they carry loss."""
        where, turns = matcher.entry.where, self.talk.turns
        roles = where.roles or (() if matcher.everyone else ("assistant",))
        chosen = [i for i, turn in enumerate(turns) if not roles or turn.role in roles]
        chosen = chosen[where.first_turn : where.stop_turn]
        return [i for i in chosen if turns[i].outputs or turns[i].role != "assistant"]

    def _holds(self, entry: Entry, index: int) -> bool:
        if entry.when is not None and not self._all(entry.when, index):
            return False
        return entry.unless is None or not self._all(entry.unless, index)

    def _all(self, condition: Condition, index: int) -> bool:
        turns, text = self.talk.turns, self.talk.text
        if condition.user is not None:
            if _lacks(text, condition.needed):
                return False
            asked = next((t for t in reversed(turns[:index]) if t.role == "user"), None)
            if asked is None or not self._search(condition.user, text, asked.ranges):
                return False
        if condition.turn is not None:
            turn = turns[index]
            spans = self._said(index) if turn.role == "assistant" else turn.ranges
            if not self._search(condition.turn, text, spans):
                return False
        return all(self._tested(test) for test in condition.fields)

    def _search(self, pattern: Pattern, text: str, spans: Iterable[Span]) -> bool:
        whole = "".join(text[start:end] for start, end in spans)
        return pattern.search(whole, timeout=self._left()) is not None

    def _tested(self, test: FieldTest) -> bool:
        value = field_of(self.talk.fields, test.path)
        if value is None:
            return None in test.values
        if test.values:
            return any(
                value == v and isinstance(value, bool) == isinstance(v, bool) for v in test.values
            )
        if test.pattern is not None:
            if not isinstance(value, str):
                raise _field_type(test.path, "a string", value)
            return test.pattern.search(value, timeout=self._left()) is not None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _field_type(test.path, "a number", value)
        return (test.low is None or value >= test.low) and (test.high is None or value <= test.high)

    def _pieces(self, matcher: Matcher, index: int) -> Iterable[Span]:
        entry, turn = matcher.entry, self.talk.turns[index]
        if entry.where.regions:
            spans: list[Span] = []
            for region in divide(turn, self.talk.text):
                if region.name in entry.where.regions:
                    join(spans, region.start, region.end)
            return spans
        if turn.role == "assistant":
            return self._said(index) if entry.pattern is not None else turn.outputs
        if self.talk.swift:
            return _through_header(self.talk.turns, index)
        return turn.ranges

    def _said(self, index: int) -> list[Span]:
        found = self._spoken.get(index)
        if found is None:
            pieces = said_in([self.talk.turns[index]])
            found = self._spoken[index] = [Span(start, end) for _, start, end in pieces]
        return found

    def _in_piece(self, matcher: Matcher, start: int, end: int) -> Iterator[Claim]:
        entry, first = matcher.entry, matcher.first
        if entry.pattern is None:
            if start < end:
                yield Claim(first, start, end)
            return
        piece = self.talk.text[start:end]
        if _lacks(piece, entry.needed):
            return
        if entry.sections:
            yield from self._sections(matcher, piece, start)
            return
        for match in _matches(matcher, piece, self.deadline):
            rule = first
            if entry.markers:
                kind = next(k for group, k, _ in entry.markers if match.end(group) >= 0)
                if kind < 0:
                    continue
                rule += kind
            for a, b in match.spans(entry.group or 0):
                if a < b:
                    yield Claim(rule, start + a, start + b)

    def _sections(self, matcher: Matcher, piece: str, start: int) -> Iterator[Claim]:
        """Markers, and what follows each up to the next."""
        entry, first = matcher.entry, matcher.first
        position, rule = 0, -1
        for match in _matches(matcher, piece, self.deadline):
            a, b = match.span()
            if a == b:
                continue
            if rule >= 0 and position < a:
                yield Claim(first + rule, start + position, start + a)
            _, marker, rule = next(m for m in entry.markers if match.end(m[0]) >= 0)
            if marker >= 0:
                yield Claim(first + marker, start + a, start + b)
            position = b
        if rule >= 0 and position < len(piece):
            yield Claim(first + rule, start + position, start + len(piece))

    def _left(self) -> float:
        return _left(self.deadline)


def _left(deadline: float) -> float:
    """Seconds; never 0, which would mean no limit."""
    return max(deadline - time.monotonic(), _NEVER)


def _matches(matcher: Matcher, piece: str, deadline: float) -> Iterable[Any]:
    pattern, where = matcher.entry.pattern, matcher.entry.where
    assert pattern is not None
    left = None if len(piece) <= matcher.quick else _left(deadline)
    if left is None and time.monotonic() > deadline:  # a row may have many pieces
        raise TimeoutError
    if where.anchored:
        found = pattern.match(piece, timeout=left)
    elif where.first:
        found = pattern.search(piece, timeout=left)
    else:
        return pattern.finditer(piece, timeout=left)
    return [found] if found else []


def field_of(record: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, None where there is none; a key with dots wins over a path."""
    if path in record:
        return record[path]
    head, _, rest = path.partition(".")
    value = record.get(head)
    return field_of(value, rest) if rest and isinstance(value, Mapping) else None


def _field_type(path: str, wanted: str, value: Any) -> RecordError:
    return RecordError(
        "match",
        "field_type",
        f"a rule expects {wanted}, found {str(value)[:40]!r}; mend the record or the rule",
        field=path,
    )


def _through_header(turns: Sequence[Turn], index: int) -> list[Span]:
    """A message's ranges, the last one through the header of the answer that follows it.

    A system text's is all from the text's start up to the next message.
    """
    ranges = list(turns[index].ranges)
    following = turns[index + 1] if index + 1 < len(turns) else None
    if index == 0 and turns[index].role == "system" and following and following.ranges:
        return [Span(0, following.ranges[0].start)]
    if ranges and following and following.outputs and turns[index].role != "system":
        start, end = ranges[-1]
        if following.ranges[0].start == end and following.outputs[0].start >= end:
            ranges[-1] = Span(start, following.outputs[0].start)
    return ranges
