"""Rule files that are nearly right, most of which load: ours in YAML, ms-swift's in JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import regex
import yaml

from benchmarks.fuzz_choices import Choices, once_in, pick
from benchmarks.fuzz_shapes import LETTERS, PIECES, text
from pipeline.policy import EDGES

ATOMS = (
    *("a", "b", ".", r"\s", r"\S", r"\w", r"\d", r"\b", "^", "$", r"\n", r"\p{L}", r"\X", r"\R"),
    *("[ab]", "[^a]", "[[a-z]--[b]]", "<think>", "</think>", r"\s*</think>", "Thought:", "Action:"),
    *(r"\bYes\b", "Yes", "0", "(?i:YES)", "(?<=a)", "(?<!b)", "(?=<)", "(?!a)", r"\K", r"\m"),
    *("(?P<g>a+)", "(?P<h>[ab])", "(?:a|aa)+", "(?:a*)*b", "(?>a+)", "(?|(a)|(b))", r"\x{41}"),
    *("(?:a){e<=1}", "a{2,3}", "(?#c)", "⟦", "😀", "✿", "(?:a+)+", "(?:.|a)*?", r"[^\n]+\n"),
)
ODD_ATOMS = (
    *("(?P=g)", r"\1", "(?1)", "(?&g)", "(?R)", r"\G", "(?b)", "(?r)", "(?s)", "(?x)", "(?V0)"),
    *("(?L)", r"\L<n>", "#", "(?(g)a|b)", "a{99999}", "(?:a{999}){999}", r"\N{DIGIT ONE}"),
    *(
        r"\ud800",
        "[",
        "(",
        ")",
        "{",
        "*",
        "+",
        "\\",
        "(?P<>",
        "[a",
        "(*SKIP)",
        "(*FAIL)",
        "(?<=a+)",
    ),
    *(
        "(?e)(?:abc){e}",
        "(?p)a|ab",
        r"\p{Nothing}",
        "[[:alpha:]]",
        "(?-i:a)",
        "(?i)ß",
        r"(?w)\b",
        "a{18446744073709551616}",
    ),
    *("(?:a){e<=99999999999999999999}", "(?:ab){1<=s<=2:[x]}", "(" * 500, "(?:" * 999 + ")" * 999),
)
COUNTS = ("*", "+", "?", "*?", "++", "{1,3}", "{0}", "{,5}", "{e}", "{2}{2}")
FLAGS = ("ignorecase", "multiline", "dotall", "verbose")
ROLES = ("assistant", "user", "system", "tool")
REGIONS = ("reasoning", "content", "tool_call", "stop", "header", "input")
TESTS: tuple[Any, ...] = (1, "x", [1, None], {"min": 1}, {"pattern": "a"}, True, None, {"max": 3.5})
WEIGHTS = (0, 0.5, 1, 2, 0.001, 1_000_000, 3)
ODD_WEIGHTS = (-1, -0.0, 1e-9, 1e12, ".inf", "0", True, None, 10**400, float("nan"), [1])
TURNS = (0, -1, 1, "1:", ":-1", "0:2", "-2:")
ODD_TURNS = (":", "2:1", "x", 10**9, "1:30", -(10**6), "999999999:", "-3:-1", None, 0.5)


def rule_file(choices: Choices) -> bytes:
    """A rule file as bytes; one in three is ms-swift's."""
    if choices.below(3) == 2:
        return _swift(choices)
    file: dict[str, Any] = {"version": _odd(choices, (1,), (2, "1", 1.0, None))}
    file["name"] = _odd(choices, ("r", "r.x"), ("a b", "", 1, None))
    if once_in(choices, 3):
        file["base"] = _odd(choices, ("assistant", "last_turn", "all"), ("x", None))
    file["rules"] = [_entry(choices) for _ in range(pick(choices, (1, 2, 3, 1)))]
    if once_in(choices, 4):
        file["examples"] = [_example(choices) for _ in range(1 + choices.below(2))]
    if once_in(choices, 20):
        file[pick(choices, ("why", "summary", "rulez", ""))] = pick(choices, ("x", 1, None))
    shown = yaml.safe_dump(file, allow_unicode=True, sort_keys=False, width=10**6)
    return shown.encode("utf-8", "surrogatepass")


def pattern(choices: Choices) -> str:
    """A regular expression, if it is one at all."""
    parts: list[str] = []
    for _ in range(1 + choices.below(4)):
        kind = choices.below(20)
        if kind < 14:
            parts.append(pick(choices, ATOMS))
        elif kind < 18:
            piece = pick(choices, PIECES if kind < 16 else LETTERS)
            parts.append(regex.escape(piece.strip(), special_only=True))
        else:
            parts.append(pick(choices, ODD_ATOMS))
        if once_in(choices, 5):
            parts.append(pick(choices, COUNTS))
    joined = "".join(parts)
    shape = choices.below(8)
    wrapped = (
        f"({joined})",
        f"(?P<g>{joined})",
        f"(?:{joined})+",
        f"{joined}|{pick(choices, ATOMS)}",
    )
    return wrapped[shape] if shape < len(wrapped) else joined


def _odd(choices: Choices, usual: Sequence[Any], odd: Sequence[Any]) -> Any:
    """One of *usual*, rarely one of *odd*."""
    return pick(choices, odd if once_in(choices, 40) else usual)


def _weight(choices: Choices) -> Any:
    return _odd(choices, WEIGHTS, ODD_WEIGHTS)


def _entry(choices: Choices) -> Any:
    entry: dict[str, Any] = {}
    if once_in(choices, 6):
        entry["name"] = _odd(choices, ("x", "y", "z", "u", "v"), ("x y", 1))
    if once_in(choices, 4):
        entry["sections"] = [_section(choices) for _ in range(1 + choices.below(3))]
    else:
        if choices.below(5):
            several = once_in(choices, 4)
            entry["pattern"] = (
                [pattern(choices) for _ in range(1 + choices.below(3))]
                if several
                else pattern(choices)
            )
        if once_in(choices, 4):
            entry["flags"] = [
                _odd(choices, FLAGS, ("ascii", 1)) for _ in range(1 + choices.below(2))
            ]
        if "(?P<g>" in str(entry.get("pattern")) and choices.below(2):
            entry["group"] = "g"
        key = "weight" if choices.below(5) else "sample_weight"
        entry[key] = _weight(choices)
        if entry.get("weight") == 0 and choices.below(2):
            entry["count"] = _odd(choices, (True, False), ("yes",))
    if once_in(choices, 5):
        entry["edge"] = _odd(choices, EDGES, ("x", 1))
    if once_in(choices, 4):
        entry["negative"] = True
    if once_in(choices, 3):
        entry["where"] = _where(choices)
    for key in ("when", "unless"):
        if once_in(choices, 5):
            entry[key] = _condition(choices)
    return entry


def _section(choices: Choices) -> dict[str, Any]:
    kind = "marker" if choices.below(2) else "pattern"
    said = pick(choices, PIECES) if kind == "marker" else pattern(choices)
    section: dict[str, Any] = {kind: said, "weight": _weight(choices)}
    if choices.below(3):
        section["body"] = _weight(choices)
    return section


def _where(choices: Choices) -> dict[str, Any]:
    where: dict[str, Any] = {}
    if once_in(choices, 3):
        where["role"] = [_odd(choices, ROLES, ("nobody", 1)) for _ in range(1 + choices.below(2))]
    if once_in(choices, 3):
        where["turn"] = _odd(choices, TURNS, ODD_TURNS)
    if once_in(choices, 3):
        where["region"] = _odd(choices, REGIONS, ("x",))
    for key in ("first", "anchored"):
        if once_in(choices, 5):
            where[key] = True
    return where


def _condition(choices: Choices) -> dict[str, Any]:
    condition: dict[str, Any] = {}
    for key in ("user", "turn"):
        if once_in(choices, 2):
            condition[key] = pattern(choices)
    if once_in(choices, 3):
        test = _odd(choices, TESTS, ({}, [], 10**400, {"min": 2, "max": 1}, {"pattern": "*"}))
        condition["row"] = {pick(choices, ("id", "n", "meta.x", "messages", "")): test}
    if not condition:
        condition["turn"] = "a"
    return condition


def _example(choices: Choices) -> Any:
    said = text(choices)
    if choices.below(2):
        said = f"⟦{said}⟧{text(choices)}"
    if choices.below(3):
        return said
    return {"text": said, "user": text(choices), "stop": pick(choices, ("", "<|im_end|>"))}


def _swift(choices: Choices) -> bytes:
    marked = choices.below(2)

    def weights() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(choices.below(4)):
            key = pick(choices, PIECES) if marked else pattern(choices)
            count = 2 if marked else 1
            found[key] = [_weight(choices) for _ in range(count + once_in(choices, 15))]
        return found

    value: Any = weights()
    if once_in(choices, 3):
        asked = {text(choices): [_weight(choices)] for _ in range(choices.below(3))}
        value = {"query": asked, "response": value}
    return json.dumps(value, ensure_ascii=choices.below(2) == 0).encode("utf-8", "surrogatepass")
