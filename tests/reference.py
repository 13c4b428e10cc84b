"""Slow ways to the same answers, written apart from the code they judge."""

from __future__ import annotations

import datetime
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
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
    """That of the run of bytes of one weight that has most of the token's; the first of equals."""
    weights = [1.0] * len(text.encode())
    for start, end, own in scales:
        for byte in _bytes_of(text, [(start, end)]):
            weights[byte] = own
    places = [0, *itertools.accumulate(a != b for a, b in itertools.pairwise(weights))]
    shares = Counter((places[byte], weights[byte]) for byte in mine)
    most = max(shares.values(), default=0)
    return next((weight for (_, weight), n in sorted(shares.items()) if n == most), 1.0)


@dataclass(frozen=True)
class SlowMessage:
    """A message as rendered: its regions tile it, and an assistant's are named by what they are."""

    role: str
    regions: list[tuple[str, int, int]]
    spoken: bool  # an assistant's that carries loss

    @property
    def whole(self) -> tuple[int, int]:
        return self.regions[0][1], self.regions[-1][2]


_SAID = ("reasoning", "content", "tool_call")
_PLACES = {"ignorecase": re.I, "dotall": re.S, "multiline": re.M, "ascii": re.A, "verbose": re.X}


def claim_characters(
    text: str,
    talk: list[SlowMessage],
    rules: list[dict[str, Any]],
    base: str,
    row: dict[str, Any],
) -> dict[str, set[int]]:
    """The characters that each rule claims, by its own name and, of sections, its weight.

    *rules* are the items of a rule file as plain values, *row* the record's fields without depth.
    """
    claimed: dict[str, set[int]] = {}
    if base == "last_turn":
        claimed["base"] = _history(talk)
    for rule in rules:
        found = claimed.setdefault(rule["name"], set()) if "sections" not in rule else set[int]()
        for message in _chosen_messages(talk, rule, base):
            if not _applies(text, talk, rule, message, row):
                continue
            for start, end in _pieces_of(talk[message], rule):
                if "sections" in rule:
                    for weight, at in _weigh_sections(rule["sections"], text[start:end]):
                        claimed.setdefault(f"{rule['name']}[x{weight:g}]", set()).add(start + at)
                else:
                    found |= {start + at for at in _matched(rule, text[start:end])}
        if "sample_weight" in rule and found:
            claimed[rule["name"]] = set(range(len(text)))
    return claimed


def _history(talk: list[SlowMessage]) -> set[int]:
    answers = [i for i, m in enumerate(talk) if m.role == "assistant"]
    asked = [i for i, m in enumerate(talk) if m.role == "user" and answers and i < answers[-1]]
    held: set[int] = set()
    for message in talk[: asked[-1] if asked else 0]:
        for name, start, end in message.regions:
            if message.spoken and name in (*_SAID, "stop"):
                held |= set(range(start, end))
    return held


def _chosen_messages(talk: list[SlowMessage], rule: dict[str, Any], base: str) -> list[int]:
    where = rule.get("where", {})
    roles = where.get("role", [] if base == "all" else ["assistant"])
    roles = [roles] if isinstance(roles, str) else roles
    numbers = [i for i, message in enumerate(talk) if not roles or message.role in roles]
    turn = where.get("turn", ":")
    if isinstance(turn, int):
        numbers = [n for at, n in enumerate(numbers) if turn in (at, at - len(numbers))]
    else:
        first, stop = (int(part) if part else None for part in turn.split(":"))
        numbers = numbers[slice(first, stop)]
    return [n for n in numbers if talk[n].role != "assistant" or talk[n].spoken]


def _applies(
    text: str, talk: list[SlowMessage], rule: dict[str, Any], number: int, row: dict[str, Any]
) -> bool:
    def holds(condition: dict[str, Any]) -> bool:
        if "user" in condition:
            before = [m for m in talk[:number] if m.role == "user"]
            asked = text[slice(*before[-1].whole)] if before else ""
            if not before or not re.search(condition["user"], asked):
                return False
        if "turn" in condition:
            spans = _pieces_of(talk[number], {"pattern": ""})
            if not re.search(condition["turn"], "".join(text[a:b] for a, b in spans)):
                return False
        for name, wanted in condition.get("row", {}).items():
            value = row.get(name)
            if isinstance(wanted, dict):
                if value is None:
                    return False
                if "pattern" in wanted and not re.search(wanted["pattern"], value):
                    return False
                if not wanted.get("min", value) <= value <= wanted.get("max", value):
                    return False
            else:
                values = wanted if isinstance(wanted, list) else [wanted]
                if not any(value == v and (value is True) == (v is True) for v in values):
                    return False
        return True

    if "when" in rule and not holds(rule["when"]):
        return False
    return "unless" not in rule or not holds(rule["unless"])


def _pieces_of(message: SlowMessage, rule: dict[str, Any]) -> list[tuple[int, int]]:
    """Runs of regions without a gap."""
    wanted = rule.get("where", {}).get("region")
    searched = "pattern" in rule or "sections" in rule
    runs: list[tuple[int, int]] = []
    for name, start, end in message.regions:
        if wanted:
            mine = name in ([wanted] if isinstance(wanted, str) else wanted)
        elif message.role != "assistant":
            mine = True
        else:
            mine = name in _SAID or (name == "stop" and not searched)
        if not mine or start == end:
            continue
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return runs


def _matched(rule: dict[str, Any], piece: str) -> Iterator[int]:
    if "pattern" not in rule:
        yield from range(len(piece))
        return
    where, flags = rule.get("where", {}), 0
    for flag in rule.get("flags", []):
        flags |= _PLACES[flag]
    patterns = rule["pattern"] if isinstance(rule["pattern"], list) else [rule["pattern"]]
    for pattern in patterns:
        matches = list(re.finditer(pattern, piece, flags))
        if where.get("anchored"):
            matches = [m for m in [re.match(pattern, piece, flags)] if m]
        for match in matches[:1] if where.get("first") else matches:
            yield from range(*match.span(rule.get("group", 0)))


def _weigh_sections(sections: list[dict[str, Any]], piece: str) -> Iterator[tuple[float, int]]:
    """Character by character: is there a marker here, and which is the first listed?"""
    at, body = 0, 1.0
    while at < len(piece):
        length, marker, following = 1, body, body
        for section in sections:
            source = section.get("pattern") or re.escape(section["marker"])
            match = re.compile(source).match(piece, at)
            if match and match.end() > at:
                length, marker, following = match.end() - at, section["weight"], section["body"]
                break
        for i in range(at, at + length):
            if marker != 1:
                yield marker, i
        at, body = at + length, following
