"""Examples, run: what a file changes in a made-up talk must be what the example marks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.errors import RecordError
from pipeline.regions import Turn
from pipeline.rules.entry import Example, Rule, RuleFile
from pipeline.rules.marks import mark
from pipeline.rules.matching import Matcher, Talk, find_claims, make_matcher
from pipeline.spans import Span


class Failure(NamedTuple):
    """Why an example fails: *place: fact; remedy*, and the talk as the rules change it."""

    message: str
    shown: str


def check_examples(file: RuleFile) -> list[Failure]:
    """One failure for each example that is not as it is marked, up to one that takes too long."""
    failures: list[Failure] = []
    for example in file.examples:
        failure = check_example(file, example)
        if failure:
            failures.append(failure)
            if not failure.shown:
                break
    return failures


def check_coverage(file: RuleFile) -> str:
    """What the file's examples lack, empty where there are hits and near misses."""
    hits = [bool(example.marks) for example in file.examples]
    if not file.entries and file.base in ("", "assistant"):
        return "" if hits and not any(hits) else "has no example in which nothing is marked"
    if not any(hits):
        return "has no example with a marked span"
    return "" if not all(hits) else "has no near miss, an example in which nothing is marked"


def check_example(file: RuleFile, example: Example) -> Failure | None:
    """Missing, noisy, or of another weight than told; None where all is right."""
    talk, starts = _talk(example)
    plain = _weights(talk, everything=False)
    weights = _weights(talk, everything=file.base == "all")
    try:
        _multiply(file, talk, weights)
    except RecordError as error:
        return Failure(f"{example.place}: {error.message}", "")
    marked = [(starts[m] + a, starts[m] + b, w) for m, a, b, w in example.marks]
    fact = next(_faults(talk.text, plain, weights, marked), "")
    if not fact:
        return None
    changed = list(_runs([w != p for w, p in zip(weights, plain, strict=True)]))
    shown: list[str] = []
    for (role, content, stop), start in zip(example.messages, starts, strict=True):
        told = _within(talk.text, changed, start, start + len(content + stop))
        shown.append(f"{role}: {told}".replace("\n", "\\n"))
    return Failure(f"{example.place}: {fact}; mend the pattern or the marks", "\n".join(shown))


def _faults(
    text: str,
    plain: Sequence[float],
    weights: Sequence[float],
    marked: Sequence[tuple[int, int, float | None]],
) -> Iterator[str]:
    wanted = [False] * len(text)
    for start, end, told in marked:
        wanted[start:end] = [True] * (end - start)
        for i in range(start, end):
            if weights[i] == plain[i]:
                stop = next((j for j in range(i, end) if weights[j] != plain[j]), end)
                yield f"missing: the rules do not claim {text[i:stop]!r}"
            elif told is not None and not math.isclose(weights[i], told, rel_tol=1e-6):
                stop = next((j for j in range(i, end) if weights[j] != weights[i]), end)
                yield f"{text[i:stop]!r} weighs {weights[i]:g}, not {told:g}"
        if start == end:
            yield "marks nothing"
    noisy = [w != p and not x for w, p, x in zip(weights, plain, wanted, strict=True)]
    for start, end in _runs(noisy):
        yield f"noisy: the rules claim {text[start:end]!r} (x{weights[start]:g})"


def _talk(example: Example) -> tuple[Talk, list[int]]:
    """The messages one after another, without headers, and where each starts."""
    text, turns, starts = "", [], []
    for index, (role, content, stop) in enumerate(example.messages):
        start, body = len(text), len(text) + len(content)
        text += content + stop
        starts.append(start)
        ranges = [Span(start, len(text))] if start < len(text) else []
        outputs = ranges if role == "assistant" else []
        called = start + example.called[index] if example.called[index] >= 0 else -1
        turns.append(Turn(index, role, ranges, outputs, body if stop else -1, "", False, called))
    return Talk(text, turns, example.fields), starts


def _weights(talk: Talk, *, everything: bool) -> list[float]:
    weights = [float(everything)] * len(talk.text)
    for turn in talk.turns:
        for start, end in turn.outputs:
            weights[start:end] = [1.0] * (end - start)
    return weights


def _multiply(file: RuleFile, talk: Talk, weights: list[float]) -> None:
    matchers: list[Matcher] = []
    rules: list[Rule] = []
    for entry in file.entries:
        first = matchers[-1].first if entry.shares else len(rules)
        matchers.append(make_matcher(entry, first, file.name, everyone=file.base == "all"))
        rules += [] if entry.shares else entry.rules
    for claim in find_claims(matchers, talk):
        for i in range(claim.start, claim.end):
            weights[i] *= rules[claim.rule].weight


def _runs(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    position = 0
    for flag, run in itertools.groupby(flags):
        length = len(list(run))
        if flag:
            yield position, position + length
        position += length


def _within(text: str, spans: Sequence[tuple[int, int]], start: int, end: int) -> str:
    inside = [
        (max(a, start) - start, min(b, end) - start) for a, b in spans if a < end and start < b
    ]
    return mark(text[start:end], inside)
