"""Marked strings are str to everybody, and no mark ever stands by another's character."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import operator
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup, escape

from pipeline.notation import trace_json, trace_str
from pipeline.provenance import UNKNOWN, Traced, TracedMarkup, marks_of

ALPHABET = st.sampled_from(
    [*"aAbB xX-%s{}\n\t\r\x0b\x85<&'\"\\", "ß", "İ", "ŉ", "Σ", "ς", "é", "😀"]
)
TEXTS = st.text(ALPHABET, max_size=12)
SEPARATORS = st.one_of(st.none(), st.text(ALPHABET, min_size=1, max_size=2))
COUNTS = st.integers(-1, 3)
PLACES = st.one_of(st.none(), st.integers(-14, 14))
MOVING = ("__add__", "__mul__", "__mod__", "__getitem__", "join", "replace", "center", "rjust")
CASES = ("lower", "upper", "title", "capitalize", "swapcase", "casefold")


class Marker:
    """Gives every character of every input a mark of its own, and knows each again."""

    def __init__(self) -> None:
        self.characters = {UNKNOWN: ""}

    def trace(self, text: str) -> Traced:
        marks = ""
        for character in text:
            mark = chr(0x4E00 + len(self.characters))
            self.characters[mark] = character
            marks += mark
        return Traced(text, marks)

    def holds(self, result: object, expected: object) -> None:
        """*result* is *expected*, and each marked character is the one that was marked so."""
        assert result == expected
        if isinstance(result, list | tuple):
            assert isinstance(expected, list | tuple)
            assert len(result) == len(expected)
            for one, other in zip(result, expected, strict=True):
                self.holds(one, other)
        elif isinstance(result, str):
            marks = marks_of(result)
            assert len(marks) == len(result)
            for character, mark in zip(str.__str__(result), marks, strict=True):
                was = self.characters[mark]
                assert mark == UNKNOWN or character in _forms(was), (result, character, was)


@functools.cache
def _forms(character: str) -> frozenset[str]:
    """A character and whatever changes of case make of it."""
    forms: set[str] = set()
    following = {character, "ς"} if character in "Σσς" else {character}
    while following:
        forms |= following
        changed = {getattr(form, case)() for form in following for case in CASES}
        following = {form for text in changed for form in text} - forms
    return frozenset(forms)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, tuple[Any, ...]]:
    """A method of str and arguments for it."""
    optional = st.one_of(st.none(), TEXTS)
    arguments: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
        "__add__": (TEXTS,),
        "__mul__": (st.integers(-1, 3),),
        "__mod__": (st.one_of(TEXTS, st.tuples(), st.tuples(TEXTS), st.tuples(TEXTS, TEXTS)),),
        "strip": (optional,),
        "lstrip": (optional,),
        "rstrip": (optional,),
        "removeprefix": (TEXTS,),
        "removesuffix": (TEXTS,),
        "split": (SEPARATORS, COUNTS),
        "rsplit": (SEPARATORS, COUNTS),
        "splitlines": (st.booleans(),),
        "partition": (st.text(ALPHABET, min_size=1, max_size=2),),
        "rpartition": (st.text(ALPHABET, min_size=1, max_size=2),),
        "replace": (st.text(ALPHABET, max_size=2), TEXTS, COUNTS),
        "join": (st.lists(TEXTS, max_size=4),),
        "center": (st.integers(0, 16), ALPHABET),
        "ljust": (st.integers(0, 16), ALPHABET),
        "rjust": (st.integers(0, 16), ALPHABET),
        "zfill": (st.integers(0, 16),),
        "expandtabs": (st.integers(0, 5),),
        "__getitem__": (st.slices(12),),
        **dict.fromkeys(CASES, ()),
    }
    name = draw(st.sampled_from(sorted(arguments)))
    return name, tuple(draw(argument) for argument in arguments[name])


def _traced(value: Any, marker: Marker) -> Any:
    if isinstance(value, str):
        return marker.trace(value)
    if isinstance(value, list | tuple):
        return type(value)(_traced(item, marker) for item in value)
    if isinstance(value, dict):
        return {_traced(k, marker): _traced(v, marker) for k, v in value.items()}
    return value


def _do(text: str, name: str, arguments: tuple[Any, ...]) -> Any:
    """The result, or the type of what is raised; operators as operators, for their dispatch."""
    does: Callable[..., Any] = {
        "__add__": operator.add,
        "__mul__": operator.mul,
        "__mod__": operator.mod,
        "__getitem__": operator.getitem,
    }.get(name) or getattr(str if type(text) is str else type(text), name)
    try:
        return does(text, *arguments)
    except (TypeError, ValueError) as error:
        return type(error)


@settings(max_examples=1500)
@given(TEXTS, calls(), st.sampled_from(["both", "receiver", "arguments"]))
def test_every_operation_gives_the_text_of_a_plain_str_and_no_wrong_mark(
    text: str, call: tuple[str, tuple[Any, ...]], traced: str
) -> None:
    name, arguments = call
    marker = Marker()
    result = _do(
        marker.trace(text) if traced != "arguments" else text,
        name,
        _traced(arguments, marker) if traced != "receiver" else arguments,
    )
    marker.holds(result, _do(text, name, arguments))
    if name not in MOVING and not isinstance(result, type):
        pieces = [result] if isinstance(result, str) else result
        known = [mark for piece in pieces for mark in marks_of(piece) if mark != UNKNOWN]
        assert known == sorted(known), "an equal character elsewhere was taken for this one"


@settings(max_examples=300)
@given(TEXTS, st.lists(calls(), min_size=2, max_size=6))
def test_operations_in_a_row_give_no_wrong_mark(
    text: str, chain: list[tuple[str, tuple[Any, ...]]]
) -> None:
    marker = Marker()
    plain: Any = text
    traced: Any = marker.trace(text)
    for name, arguments in chain:
        if not isinstance(plain, str):
            plain, traced = (plain or ["x"])[0], (traced or ["x"])[0]
        if not isinstance(plain, str) or len(plain) > 1000:
            break
        plain = _do(plain, name, arguments)
        traced = _do(traced, name, _traced(arguments, marker))
        if isinstance(plain, type):
            assert plain == traced
            break
        marker.holds(traced, plain)


FOLLOWED: list[tuple[str, Callable[[Any], Any]]] = [
    ("added before", lambda t: t("ab") + "cd"),
    ("added after a plain str", lambda t: "cd" + t("ab")),
    ("repeated", lambda t: 2 * t("ab")),
    ("reversed", lambda t: t("abc")[::-1]),
    ("indexed", lambda t: t("abc")[-1]),
    ("stripped", lambda t: t("  a b \n").strip()),
    ("stripped of everything", lambda t: t("   ").lstrip()),
    ("split at white space", lambda t: t(" a  a\n b ").split()),
    ("split from the right", lambda t: t(" a  a\n b ").rsplit(None, 1)),
    ("split at a tag", lambda t: t("a</x>b</x>c").split("</x>", 1)),
    ("split into lines", lambda t: t("a\r\nb\x85\nc").splitlines()),
    ("replaced in part", lambda t: t("aXbXc").replace("X", t("--"), 1)),
    ("joined", lambda t: t(", ").join([t("a"), t("b")])),
    ("joined by a plain receiver's twin", lambda t: Traced("").join([t("a"), t("b")])),
    ("in upper case", lambda t: t("aßb").upper()),
    ("interpolated", lambda t: t("%s!") % t("v")),
    ("interpolated by name", lambda t: t("a%(k)s%%") % {"k": t("v")}),
    ("centred", lambda t: t("ab").center(7, t("*"))),
    ("without a prefix", lambda t: t("<a>b").removeprefix("<a>")),
    ("iterated", lambda t: list(t("abc"))),
    ("as a str", lambda t: str(t("abc"))),
    ("written as JSON and stripped", lambda t: trace_json(t("a<é"))[1:-1]),
]


@pytest.mark.parametrize(("name", "change"), FOLLOWED, ids=[name for name, _ in FOLLOWED])
def test_what_templates_do_to_strings_is_followed(name: str, change: Callable[[Any], Any]) -> None:
    """Nothing of a traced string ends as unknown: safety alone would be met by forgetting all."""
    marker = Marker()
    result = change(marker.trace)
    pieces = result if isinstance(result, list) else [result]
    unknown = 2 if name.startswith("added") else 0
    assert sum(marks_of(piece).count(UNKNOWN) for piece in pieces) == unknown
    marker.holds(result, change(str))


@pytest.mark.parametrize("case", CASES)
def test_no_character_vanishes_by_its_case(case: str) -> None:
    """So a string that is as long as before changed one for one."""
    change = getattr(str, case)
    assert all(change(chr(code)) for code in range(sys.maxunicode + 1))


def test_a_traced_string_is_a_str_to_everybody() -> None:
    text = Traced("ab", "12")
    assert text == "ab"
    assert hash(text) == hash("ab")
    assert {"ab": 1}[text] == 1
    assert {text: 1}.get("ab") == 1  # type: ignore[call-overload]  # a str finds it
    assert "b" in text
    assert isinstance(text, str)
    assert repr(text) == "'ab'"
    assert f"{text}" == "ab"
    assert json.dumps({text: [text]}) == '{"ab": ["ab"]}'
    assert sorted([Traced("b"), "a", text]) == ["a", "ab", "b"]
    assert getattr("ab", Traced("upper"))() == "AB"


def test_marks_survive_copies_and_pickles() -> None:
    text = Traced("ab", "12")
    for same in (copy.deepcopy(text), copy.copy(text), pickle.loads(pickle.dumps(text))):
        assert (same, same.marks) == ("ab", "12")


def test_a_plain_operand_is_unknown() -> None:
    assert ("x" + Traced("a", "1") + "yz").marks == UNKNOWN + "1" + UNKNOWN * 2


@settings(max_examples=300)
@given(TEXTS, TEXTS, st.sampled_from(["safe left", "safe right", "both safe"]))
def test_what_is_added_to_safe_text_is_escaped_and_keeps_no_wrong_mark(
    left: str, right: str, kind: str
) -> None:
    marker = Marker()

    def add(trace: Callable[[str], str], safe: Callable[[str], str]) -> str:
        a, b = trace(left), trace(right)
        return (safe(a) if kind != "safe right" else a) + (safe(b) if kind != "safe left" else b)

    plain = add(str, Markup)
    traced = add(marker.trace, lambda text: TracedMarkup(text, marks_of(text)))
    marker.holds(traced, plain)
    marker.holds(str(traced), str(plain))
    assert type(str(traced)) in (str, Traced)
    if str(escape(left + right)) == left + right:
        assert UNKNOWN not in marks_of(traced)


KEYS = st.one_of(TEXTS, st.integers(), st.booleans(), st.none())
LEAVES = st.one_of(KEYS, st.floats(), st.characters(), st.just("\ud800"))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)
OPTIONS = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 0, 1, 4, "\t"]),
        "separators": st.sampled_from([None, (",", ":"), (" ; ", " = ")]),
        "sort_keys": st.booleans(),
    }
)


@settings(max_examples=500)
@given(VALUES, OPTIONS)
def test_json_is_that_of_json_dumps_and_has_no_wrong_mark(
    value: Any, options: dict[str, Any]
) -> None:
    marker = Marker()
    try:
        expected = json.dumps(value, **options)
    except TypeError:  # keys that cannot be sorted
        with pytest.raises(TypeError):
            trace_json(_traced(value, marker), **options)
        return
    result = trace_json(_traced(value, marker), **options)
    assert result == expected
    _no_wrong_escape(result, marker)


@settings(max_examples=500)
@given(VALUES)
def test_a_printed_list_is_that_of_str_and_has_no_wrong_mark(value: Any) -> None:
    marker = Marker()
    result = trace_str(_traced(value, marker))
    assert result == str(value)
    _no_wrong_escape(result, marker)


def _no_wrong_escape(text: str, marker: Marker) -> None:
    """Characters of one mark spell the character that was marked so; every mark is there."""
    marks, start = marks_of(text), 0
    for mark, run in itertools.groupby(marks):
        end = start + len(list(run))
        spelled, start = str.__getitem__(text, slice(start, end)), end
        was = marker.characters[mark]
        forms = {was, repr(was)[1:-1], json.dumps(was)[1:-1], "\\" + was}
        assert mark == UNKNOWN or spelled in forms, (text, spelled, was)
    assert set(marks) >= set(marker.characters) - {UNKNOWN}


def test_json_that_cannot_be_written_raises_as_json_does() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="Circular"):
        trace_json(loop)
    with pytest.raises(TypeError, match="not JSON serializable"):
        trace_json({"a": object()})
