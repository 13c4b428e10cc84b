"""The fixed set of strings on which a fast engine must equal the reference to be trusted."""

from __future__ import annotations

import itertools
import random
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.tokens.encoded import Int32, Int64
from pipeline.tokens.faults import encode_each
from pipeline.tokens.tokenizer import Engine

_CHUNK = 4096
_TABLE = 256  # an engine that differs on more code points than this has another Unicode
_ADDED = 150  # of many added tokens (Gemma has 6,415) so many are tried, evenly spread
_MARKS = [*range(0x300, 0x346), *range(0x591, 0x5BE, 5), *range(0x64B, 0x656), 0x93C, 0x94D]
_MARKS += [0x9BE, 0x9D7, 0xBBE, 0xDCA, 0xE38, 0xE48, 0x1DC4, 0x20D0, 0x302A, 0x3099, 0x309A, 0xFE20]
# Those whose pairs compose in one order and not in the other, or are reordered.
_PAIRED = [*range(0x300, 0x305), *range(0x306, 0x309), 0x30A, 0x30C, 0x31B, 0x323, 0x327, 0x328]
_PAIRED += [0x342, 0x345, 0x5B0, 0x64B, 0x654, 0x93C, 0x94D, 0xE38, 0x20D0, 0x3099]
_BASES = "aAeEoOuyczdlnsqZ1 \n<'ÅéḌäσώЙиअकড়জদசසกㄱかハ中ﷺﬁẞ"
_RUNS = " \n\t\r\u00a0\u3000\u200b\u200da0.-=#*_!'/<|中あ가éя٣\u0301\u0308😀\U0001f1e6\x00\ufffd"
_SIZES = [*range(2, 20), 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257, 400, 511, 512]
_SIZES += [513, 1000, 1024, 2048, 4096]
_WORDS = (
    "the of and Hello world's I'm THEY'LL don't naïve café Straße ﬁn İstanbul ǅ ẞ œuvre über Ωmega "
    "Привет мир שלום עולם مرحبا بالعالم नमस्ते দেশ தமிழ் ภาษาไทย 你好 世界 日本語 カタカナ ﾊﾝｶｸ 한국 "
    "ᄒ ᅡ ᆫ 𝒜𝓫 𠀀 👩\u200d👩\u200d👧 🇩🇪 ❤\ufe0f 1 12 123 1234 3.14 ٣٤ Ⅷ ½ ² x=1; def f(x): return "
    "{'a': [null, true]} <html> </p> &amp; http://a.b/c?d=e C:\\x \\n $$ \\frac{1}{2} == != -> "
    "// /* # ### --- ... “ ” ‘ ’ — … ¿ ¡ 、。 ，！ <|im_start|> <think> </think> [INST] ``` | || "
    "▁ ▁▁ Ġ Ċ <0x0A> e\u0301 A\u030a q\u0323\u0307 \u0e33 \u180e \ufeff \u00ad \u200b "
    "'ſ 'S 's 'd 'LL"
)
_SPACES = ["", " ", "  ", "    ", "\n", "\n\n", " \n", "\r\n", "\t", "\u00a0", "\u2028", "\u3000"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What differed: code points, and a first string that they do not explain ("" if none)."""

    code_points: tuple[int, ...]
    difference: str
    strings: int


def compare(
    fast: Engine, reference: Engine, *, added: Sequence[str], words: Sequence[str]
) -> Finding:
    """Encode the set with both: *added* are the tokenizer's added tokens, *words* other ones.

    The fast engine is rejected by any difference that single code points do not explain, by one
    in ASCII, or by more than 256 of them.
    """
    table: set[int] = set()
    strings = 0
    for chunk in _chunks(_sweep()):
        strings += len(chunk)
        for group in _differing(fast, reference, chunk, [_sweep_text(g) for g in chunk]):
            points = [*_differing(fast, reference, group, [_contexts(p) for p in group])]
            table.update(map(ord, points))
            if not points or len(table) > _TABLE or any(point < 0x80 for point in table):
                return Finding(tuple(sorted(table)), _sweep_text(group), strings)
    known = set(map(chr, table))
    for chunk in _chunks(text for text in _strings(added, words) if known.isdisjoint(text)):
        strings += len(chunk)
        for text in _differing(fast, reference, chunk, chunk):
            return Finding(tuple(sorted(table)), text, strings)
    return Finding(tuple(sorted(table)), "", strings)


def _differing(
    fast: Engine, reference: Engine, items: Sequence[str], texts: Sequence[str]
) -> Iterator[str]:
    """The *items* whose *texts* have other ids; a text on which just one engine fails is one."""
    ids, firsts, faults = encode_each(fast.encode, texts)
    other_ids, other_firsts, other_faults = encode_each(reference.encode, texts)
    same = np.array_equal(ids, other_ids) and np.array_equal(firsts, other_firsts)
    if same and faults.keys() == other_faults.keys():
        return
    rows, other_rows = _rows(ids, firsts), _rows(other_ids, other_firsts)
    for i, (item, row, other) in enumerate(zip(items, rows, other_rows, strict=True)):
        if not np.array_equal(row, other) or (i in faults) != (i in other_faults):
            yield item


def _rows(ids: Int32, firsts: Int64) -> list[Int32]:
    return [ids[a:b] for a, b in itertools.pairwise(firsts.tolist())]


def _chunks(items: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        yield chunk


def _sweep() -> Iterator[str]:
    """Every code point that Unicode has use for, ideographs beyond the first plane 16 together.

    Planes 4 to 13 are unassigned, 15 and 16 private; blocks are whole columns of 16 code points,
    so there one of each column is tried, another place in each.
    """
    for point in (*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200)):
        yield chr(point)
    for first in range(0x20000, 0x32400, 16):
        yield "".join(map(chr, range(first, first + 16)))
    for first in (*range(0x32400, 0xE0000, 256), *range(0xE0200, 0x110000, 256)):
        yield "".join(chr(first + 16 * column + column) for column in range(16))


def _sweep_text(group: str) -> str:
    return _contexts(group) if len(group) == 1 else "".join(f"{c} {c}a" for c in group)


def _contexts(c: str) -> str:
    """One character at both ends of a text, and beside a letter, space, digit, quote, newline."""
    return f"{c}a{c} {c}1{c}'{c}\n{c}"


def _strings(added: Sequence[str], words: Sequence[str]) -> Iterator[str]:
    tried = added[:: max(1, len(added) // _ADDED)]
    yield from words
    yield from (f" {word}\n{word}" for word in words)
    yield from _compositions()
    yield from _contractions()
    yield from _fragments(tried)
    yield from _runs()
    yield from _mixes(tried)


def _compositions() -> Iterator[str]:
    marks = list(map(chr, _MARKS))
    for base, mark in itertools.product(_BASES, marks):
        yield base + mark
        yield f"x{unicodedata.normalize('NFD', base)}{mark}a"
    paired = list(map(chr, _PAIRED))
    for base, one, two in itertools.product("aouqक", paired, paired):
        yield base + one + two
    for lead, vowel in itertools.product(range(0x1100, 0x1113), range(0x1161, 0x1176)):
        yield chr(lead) + chr(vowel)
    for syllable, tail in itertools.product(range(0xAC00, 0xD7A4, 337), range(0x11A7, 0x11C3)):
        yield chr(syllable) + chr(tail)


def _contractions() -> Iterator[str]:
    cases = [
        "".join(letters)
        for end in ("s", "t", "re", "ve", "m", "ll", "d", "ſ", "K", "n")
        for letters in itertools.product(*((c, c.upper()) for c in end))
    ]
    for start, quote, end, after in itertools.product(
        ("", "it", " ", "中", "1", "!", "\n"), "'’ʼ", cases, ("", "x", " ", "'s", "1")
    ):
        yield start + quote + end + after


def _fragments(added: Sequence[str]) -> Iterator[str]:
    for token, following in itertools.pairwise([*added, *added[:1], *added[:1]]):
        for before, after in itertools.product(
            ("", " ", "\n", "a", "  ", " \n"), ("", " ", "\n", "a", "  ", "\n ")
        ):
            yield before + token + after
        yield from (token * 2, token * 5, token + following, f"{token} {following}", token.upper())
        yield unicodedata.normalize("NFD", token)
        for cut in range(1, min(len(token), 12)):
            yield from (token[:cut], token[cut:], token[:cut] + " " + token[cut:])
            yield from (token[:cut] + token, token[:cut] + "\u0301" + token[cut:])


def _runs() -> Iterator[str]:
    for character, size in itertools.product(_RUNS, _SIZES):
        yield character * size
        yield f"a{character * size}b"
        yield f"{character * size} 1"


def _mixes(added: Sequence[str]) -> Iterator[str]:
    # Only random(): of all generators its sequence is what Python promises to keep.
    draw = random.Random(20240229).random
    pool = [*_WORDS.split(), *added]

    def pick(items: Sequence[str]) -> str:
        return items[int(draw() * len(items))]

    def mix(size: int) -> str:
        return "".join(pick(pool) + pick(_SPACES[: 2 + int(draw() * 11)]) for _ in range(size))

    for _ in range(30_000):
        yield mix(1 + int(draw() * 12))
    for _ in range(100):
        # Long enough for engines that cut a text in pieces, or cache what they have seen.
        yield mix(1 + int(draw() * 4000))
    planes = (0x80, 0x800, 0x3000, 0xD800, 0x1FFFF)
    for _ in range(8_000):
        points = (int(draw() * planes[int(draw() * 5)]) for _ in range(1 + int(draw() * 8)))
        yield "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
