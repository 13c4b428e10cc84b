"""A pattern that is safe to compile, and the text that it cannot match without."""

from __future__ import annotations

import re

import regex

from pipeline.rules.entry import Pattern

_LONGEST = 20_000  # characters of a pattern; a thousand of them compile in 3 ms
_MOST_REPEATS = 1_000_000  # the product of all counts: the regex module compiles each repetition
_COUNT = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d*)(?:,(\d*))?\}", re.DOTALL)
_INLINE = re.compile(r"\(\?[a-zA-Z-]+[):]")  # (?i), (?s:, (?R)
_CLASSES = [f"\\{letter}" for letter in "sSdDwWbBAZzntrfvRX"]
_PLAIN = re.compile(r"[\w<>/:,;=@#%&\"'~`! \n\t✿-]")


def compile_pattern(source: str, flags: int = regex.VERSION1) -> Pattern:
    """Raises ValueError, in words for a rule file, for what is no pattern or matches nothing.

    A pattern that matches the empty string claims nothing useful everywhere; counts that multiply
    to more than a million take the regex module gigabytes to compile.
    """
    if len(source) > _LONGEST:
        raise ValueError(f"is {len(source):,} characters long; use at most {_LONGEST:,}")
    product = 1
    for match in _COUNT.finditer(source):
        digits = match[2] or match[1]
        # Before int(): Python refuses to read thousands of digits.
        product *= max(1, int(digits[:9])) if digits else 1
    if product > _MOST_REPEATS:
        raise ValueError(f"repeats {product:,} times; use + or *, or counts that are smaller")
    try:
        pattern = regex.compile(source, flags)
    except (regex.error, RecursionError, OverflowError, MemoryError, ValueError) as error:
        raise ValueError(f"is no pattern: {error or type(error).__name__}; mend it") from error
    if pattern.search("", timeout=1.0) is not None:
        raise ValueError("matches the empty string; use + instead of *, or anchor it with text")
    return pattern


def required_texts(source: str) -> tuple[str, ...]:
    """Literals of which each match contains one, none where that is not plain.

    The longest of each alternative, of what stands outside of groups and classes; nothing where an
    inline flag, a set operation or an escape with arguments may change what it means. A look for
    it (0.1 us) saves a search (5 us).
    """
    if _INLINE.search(source):
        return ()
    longest: list[str] = []
    best, run, depth, i = "", "", 0, 0
    while i < len(source):
        token = _token(source, i)
        i += len(token)
        if "[" in token[1:] or (token[0] == "\\" and token[1:].isalnum() and token not in _CLASSES):
            return ()
        depth += (token == "(") - (token == ")")
        literal = "" if depth or token == ")" else _literal(token)
        follows = source[i : i + 1]
        if literal and follows not in ("*", "?", "{"):
            run += literal
            if follows != "+":
                continue
        best, run = max(best, run, key=len), ""
        if depth == 0 and token == "|":
            longest.append(best)
            best = ""
    longest.append(max(best, run, key=len))
    return tuple(longest) if all(longest) else ()


def is_anchored(pattern: Pattern) -> bool:
    """Whether it matches at a text's start only: then `match` does what `search` does, faster."""
    source = pattern.pattern
    plain = source.startswith("^") and not _INLINE.search(source) and "|" not in source
    return plain and not pattern.flags & (regex.MULTILINE | regex.REVERSE)


def _token(source: str, i: int) -> str:
    """One escape, one class, or one character."""
    if source[i] == "\\":
        return source[i : i + 2]
    if source[i] == "[":
        found = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL).match(source, i)
        return found[0] if found else source[i:]
    return source[i]


def _literal(token: str) -> str:
    if len(token) == 2 and token[0] == "\\" and not token[1].isalnum():
        return token[1]
    return token if len(token) == 1 and _PLAIN.match(token) else ""
