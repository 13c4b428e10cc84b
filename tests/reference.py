"""Slow ways to the same answers, written apart from the code they judge."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
from jinja2 import nodes


class _Tags(jinja2.ext.Extension):
    tags = {"generation"}  # noqa: RUF012 - the attribute Jinja reads

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_say"), [], [], body).set_lineno(line)

    def _say(self, caller: Any) -> str:
        return str(caller())


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def plain_template(source: str, day: datetime.date) -> jinja2.Template:
    """A chat template as Hugging Face's documentation says it is rendered, with no hooks."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Tags, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, **{"ensure_ascii": False, **options}
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = day.strftime
    return environment.from_string(source)


def render_plainly(template: jinja2.Template, messages: list[Any], **variables: Any) -> str:
    """The text, with reasoning under both of its names as transformers passes it."""
    aliased = []
    for message in messages:
        reasoning = next(
            (
                message[k]
                for k in ("reasoning_content", "thinking", "reasoning")
                if message.get(k) is not None
            ),
            None,
        )
        extra = {"thinking": reasoning} if reasoning is not None else {}
        last = {"reasoning_content": reasoning} if reasoning is not None else {}
        aliased.append({**extra, **message, **last})
    return template.render(**{"messages": aliased, "tools": None, "documents": None, **variables})


class SlowToken(NamedTuple):
    """A token of one row; start and end are bytes of the row's text."""

    id: int
    start: int
    end: int


class SlowClaim(NamedTuple):
    """What a rule claims of one row, in characters."""

    spans: list[tuple[int, int]]
    weight: float
    edge: str
    counted: bool


@dataclass(frozen=True)
class SlowRow:
    """A row weighed token by token; of each claim, its tokens by number and how many straddle."""

    labels: list[int] = field(default_factory=list)
    weights: list[np.float32] = field(default_factory=list)
    own: list[np.float32] = field(default_factory=list)
    outputs: set[int] = field(default_factory=set)
    claimed: list[set[int]] = field(default_factory=list)
    straddling: list[set[int]] = field(default_factory=list)


def weigh_row(
    text: str,
    tokens: list[SlowToken],
    outputs: list[tuple[int, int]],
    claims: list[SlowClaim],
    scales: list[tuple[int, int, float]],
    *,
    everything: bool,
) -> SlowRow:
    """One row, a token at a time, with sets of bytes: the contract of weights, word by word."""
    row = SlowRow(claimed=[set() for _ in claims], straddling=[set() for _ in claims])
    spoken = _bytes_of(text, outputs)
    for number, token in enumerate(tokens):
        mine = _held(token)
        base = 1.0 if everything or _speaks(mine, spoken) else 0.0
        if base:
            row.outputs.add(number)
        own = np.float32(base) * np.float32(_own_weight(text, mine, scales))
        own = np.float32(0) if number == 0 else own
        weight = uncounted = own
        for index, claim in enumerate(claims):
            inside = mine & _bytes_of(text, claim.spans)
            if 0 < len(inside) < len(mine):
                row.straddling[index].add(number)
            if not _belongs(len(inside), len(mine), claim.edge):
                continue
            row.claimed[index].add(number)
            share = Fraction(len(inside), len(mine)) if claim.edge == "fraction" else Fraction(1)
            factor = np.float32(float(1 + (Fraction(claim.weight) - 1) * share))
            weight = weight * factor
            if not (claim.counted and factor == 0):
                uncounted = uncounted * factor
        row.weights.append(weight)
        row.own.append(own)
        row.labels.append(token.id if uncounted != 0 else -100)
    return row


def _bytes_of(text: str, spans: list[tuple[int, int]]) -> set[int]:
    held: set[int] = set()
    for start, end in spans:
        before = len(text[:start].encode())
        held |= set(range(before, before + len(text[start:end].encode())))
    return held


def _held(token: SlowToken) -> set[int]:
    """A token's bytes; an empty one counts as the byte before it, if its row has one."""
    if token.start < token.end:
        return set(range(token.start, token.end))
    return {token.start - 1} if token.start else set()


def _speaks(mine: set[int], spoken: set[int]) -> bool:
    """Mostly in the outputs, and not begun outside of one."""
    for byte in mine:
        if byte in spoken and byte - 1 in mine and byte - 1 not in spoken:
            return False
    return _belongs(len(mine & spoken), len(mine), "majority")


def _belongs(inside: int, size: int, edge: str) -> bool:
    if not inside:
        return False
    if edge in ("any", "fraction"):
        return True
    if edge == "contained":
        return inside == size
    return inside >= size - inside


def _own_weight(text: str, mine: set[int], scales: list[tuple[int, int, float]]) -> float:
    """That of the span, or of the gap before, after or between, that has most of the bytes."""
    shares: Counter[tuple[int, float]] = Counter()
    for byte in sorted(mine):
        place, weight = 0, 1.0  # which span or gap it is, from left to right
        for index, (start, end, own) in enumerate(scales):
            held = _bytes_of(text, [(start, end)])
            if byte in held:
                place, weight = 2 * index + 1, own
            elif byte >= len(text[:end].encode()):
                place = 2 * index + 2
        shares[place, weight] += 1
    most = max(shares.values(), default=0)
    return next((weight for (_, weight), n in sorted(shares.items()) if n == most), 1.0)
