"""A pattern that is safe to compile, and the text that it cannot match without."""

from __future__ import annotations

import re

import regex

from pipeline.rules.entry import Pattern

_LONGEST = 20_000  # characters of a pattern; a thousand of them compile in 3 ms
# The regex module compiles each repetition: 100,000 take 0.3 s and 160 MB; (?:a|b?){999999} is a
# segmentation fault (regex 2026.11).
_MOST_NODES = 100_000
_CLASS_NODES = 50  # [\p{L}\p{M}]{99000} with ignorecase took 13 s and 2.8 GB
_COUNT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_FUZZY = re.compile(r"\{\s*[\deids]")
_RECURSIVE = re.compile(r"\(\?(?:R|[+-]?\d+|&|P>)")
_ESCAPE = re.compile(r"\\.", re.DOTALL)
_INLINE = re.compile(r"\(\?[\w-]+[):]")  # (?i), (?V1s:, (?R)
_ESCAPED = "sSdDwWbBAZzntrfvRX"
_CLASSES = [f"\\{letter}" for letter in _ESCAPED]
_SIMPLE = {*_ESCAPED, *(mark for mark in "^$.|?*+()[]{}\\/-<>\"'`~!@#%&=:;, _")}
_SLOW = regex.BESTMATCH | regex.ENHANCEMATCH
_LOOKING = frozenset("bBAZGKzRX")  # after a backslash: what depends on characters around
_HARMLESS = (
    regex.ASCII
    | regex.DOTALL
    | regex.FULLCASE
    | regex.IGNORECASE
    | regex.UNICODE
    | regex.VERSION0
    | regex.VERSION1
)
_STEPS = 20_000_000  # of a search without a time limit: some 0.1 s
_PLAIN = re.compile(r"[\w<>/:,;=@#%&\"'~`! \n\t✿-]")


def compile_pattern(source: str, flags: int = regex.VERSION1) -> Pattern:
    """Raises ValueError, in words for a rule file, for what is no pattern or matches nothing.

    A pattern that matches the empty string claims nothing useful everywhere; counts within counts
    multiply to what takes the regex module gigabytes to compile.
    """
    if len(source) > _LONGEST:
        raise ValueError(f"is {len(source):,} characters long; use at most {_LONGEST:,}")
    if _RECURSIVE.search(source):
        # (?P<x>(?&x)a|b) takes 500 MB a second before its time is over.
        raise ValueError("calls itself; spell out what it repeats")
    nodes = _count_nodes(source)
    if nodes > _MOST_NODES:
        raise ValueError(f"expands to {nodes:,} characters; use + or *, or smaller counts")
    try:
        pattern = regex.compile(source, flags)
    except (regex.error, RecursionError, OverflowError, MemoryError, ValueError) as error:
        raise ValueError(f"is no pattern: {error or type(error).__name__}; mend it") from error
    if pattern.flags & regex.LOCALE:  # another machine would claim something else
        raise ValueError("depends on the locale; take (?L) out")
    try:
        found = pattern.search("", timeout=0.5)
    except TimeoutError as error:  # (?P<x>(?&x)a|b) calls itself before it reads a character
        raise ValueError("runs away on the empty string; mend its recursion") from error
    if found is not None:
        raise ValueError("matches the empty string; use + instead of *, or anchor it with text")
    return pattern


def _count_nodes(source: str) -> int:
    """Characters, classes and escapes of a pattern, with its counts multiplied out."""
    sums, last, i = [0], 0, 0
    while i < len(source):
        token = _token(source, i)
        i += len(token)
        count = _COUNT.fullmatch(token)
        if count:
            digits = count[2] or count[1]
            # Nine digits: Python refuses to read thousands of them.
            times = max(1, int(digits[:9])) if digits else 1
            sums[-1] += last * (times - 1)
            last *= times
            continue
        if token == "(":
            sums.append(0)
            continue
        single = _CLASS_NODES if token[0] == "[" else 1
        last = max(1, sums.pop()) if token == ")" and len(sums) > 1 else single
        sums[-1] += last
    return sum(sums)


def required_texts(source: str) -> tuple[str, ...]:
    """Literals of which each match contains one, none where that is not plain.

    The longest of each alternative, of what stands outside of groups and classes; nothing where an
    inline flag, a set operation, a fuzzy match or an escape with arguments may change what it
    means. A look for it (0.1 us) saves a search (5 us).
    """
    if _INLINE.search(source) or "(?#" in source:
        return ()
    longest: list[str] = []
    best, run, depth, i = "", "", 0, 0
    while i < len(source):
        token = _token(source, i)
        if token == "{" and _FUZZY.match(source, i):
            return ()
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
    starts = source.startswith("^") and source[1:2] not in tuple("*?+{")
    either = "|" in _ESCAPE.sub("", source)
    plain = starts and not _INLINE.search(source) and not either and "(?#" not in source
    return plain and not pattern.flags & (regex.MULTILINE | regex.REVERSE)


def is_local(pattern: Pattern) -> bool:
    """Whether a match depends on the characters that it takes, and on no other.

    Then what it finds in a part of a text is what it finds in all of it, but for matches across the
    part's ends. Only of characters, classes and plain groups is that plain; what never gives back
    (``a++``) looks at what it does not take.
    """
    source, i, before = pattern.pattern, 0, ""
    if pattern.flags & ~_HARMLESS or "(?" in source.replace("(?:", "("):
        return False
    while i < len(source):
        token = _token(source, i)
        repeats = token in ("*", "+", "?") or bool(_COUNT.fullmatch(token))
        if token in ("^", "$", "{") or "[" in token[1:] or (token == "+" and before):
            return False
        if token[0] == "\\" and (token[1:] not in _SIMPLE or token[1:] in _LOOKING):
            return False
        before = token if repeats else ""
        i += len(token)
    return True


def opening_of(pattern: Pattern) -> str:
    """The text that a match at a text's start begins with, after white space; empty if unknown."""
    if not is_anchored(pattern) or pattern.flags & ~_HARMLESS or pattern.flags & regex.IGNORECASE:
        return ""
    source, found = pattern.pattern, ""
    i = 4 if source.startswith("^\\s*") else 1
    while i < len(source):
        token = _token(source, i)
        literal = _literal(token)
        i += len(token)
        if not literal or source[i : i + 1] in ("*", "?", "{"):
            break
        found += literal
        if source[i : i + 1] == "+":
            break
    return found


def quick_length(pattern: Pattern) -> int:
    """Up to how many characters of text a search cannot take long, 0 where that is not plain.

    A pattern of single characters and classes, *k* of them repeated or optional with more to match
    after them, takes at most the (k + 1)-th power of the text's length in steps. To set a time
    limit costs 1.9 us a search, and the search itself 0.4 to 1.
    """
    source = pattern.pattern
    if _INLINE.search(source) or "(?" in source.replace("(?:", "(") or pattern.flags & _SLOW:
        return 0
    # Of an alternative: choices that a failure after them makes anew, and those at its end.
    most = made = pending = depth = i = 0
    before = ""
    while i < len(source):
        token = _token(source, i)
        if token == "{" or "[" in token[1:] or (token[0] == "\\" and token[1:] not in _SIMPLE):
            return 0
        i += len(token)
        depth += (token == "(") - (token == ")")
        if token in ("*", "+", "?") or _COUNT.fullmatch(token):
            if before == ")":
                return 0  # a repeated group
            pending += not (token == "?" and before in ("*", "+", "?"))  # that makes it lazy
        elif token == "|" and not depth:
            made = pending = 0
        elif token == "|":
            pending += 1
        elif token not in ("(", ")"):
            made, pending = made + pending, 0
            most = max(most, made)
        before = token
    return int(_STEPS ** (1 / (most + 1)))


def _token(source: str, i: int) -> str:
    """One escape, one class, one count, or one character."""
    if source[i] == "\\":
        return source[i : i + 2]
    if source[i] == "[":
        found = _CLASS.match(source, i)
        return found[0] if found else source[i:]
    count = _COUNT.match(source, i) if source[i] == "{" else None
    return count[0] if count else source[i]


def _literal(token: str) -> str:
    if len(token) == 2 and token[0] == "\\" and not token[1].isalnum():
        return token[1]
    return token if len(token) == 1 and _PLAIN.match(token) else ""
