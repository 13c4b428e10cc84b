"""Where tokens end in a text that a normalization form changes here and there.

The form leaves most of a long text alone, and there bytes of tokens are bytes of text. Only the
stretches that it changes are shown to the reference, all at once: it tells which character each
byte of their normal form came from. A stretch begins with a character of which all four forms
make a starter that nothing before it composes with, and ends before one, or with the text: so a
form, and what the reference tells of it, is the same in a stretch as in the text (Unicode's
annex 15, "stable code points").

What is found is held to the ids: unchanged text and normal forms must be, byte for byte, what the
ids spell. Where that fails nothing is told, and the caller asks the reference about all of the
text. Added tokens are split out before the form, or match after it, so a stretch that one touches
is left to the reference too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import RecordError
from pipeline.tokens.controls import Make, rewrite
from pipeline.tokens.encoded import Int32, Int64
from pipeline.tokens.offsets import (
    Form,
    Model,
    byte_alphabet,
    character_starts,
    divide_characters,
    flatten_steps,
    is_byte_level,
    is_normalized,
)
from pipeline.tokens.spelling import Spellings
from pipeline.tokens.vocabulary import Definition

# Not all such characters: those that texts are made of, all of them in Unicode before 2016.
_STABLE = (
    "\x00-\x7f\u00a0-\u02ff\u0384-\u038a\u038c\u038e-\u03a1\u03a3-\u03ff\u0400-\u0482\u048a-\u052f"
    "\u05d0-\u05ea\u0620-\u064a\u0904-\u0939\u0958-\u0961\u0e01-\u0e30\u2010-\u2027\u2030-\u205e"
    "\u2190-\u22ff\u2500-\u257f\u3000-\u3029\u3041-\u3096\u30a0-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
    "\uff01-\uff5e\U0001f300-\U0001f5ff\U0001f600-\U0001f64f\U00020000-\U0002a6d6"
)
STABLE = re.compile(f"[{_STABLE}]")
_LAST = re.compile(f".*(?=[{_STABLE}])", re.DOTALL)
_END = "."  # follows the stretches: if the reference places it, it has placed all


@dataclass(frozen=True, slots=True)
class Aligned:
    """A text's tokens: ``ends`` int64 [tokens], bytes of text; those that touch each change.

    ``touching`` int64 [changes, 2]: first and stop.
    """

    ends: Int64
    touching: Int64


@dataclass(frozen=True, slots=True)
class _Normal:
    """Normal forms of stretches, ``firsts[k]:firsts[k+1]`` of ``form`` is the k-th's.

    ``ends`` int64 [bytes of form]: at which character of its stretch each byte's own ends.
    """

    form: bytes
    firsts: Int64
    ends: Int64


class Changes:
    """Byte-level tokenizers whose whole normalizer is one form; made where such a row comes."""

    def __init__(
        self, definition: Definition, *, raw: bytes, model: Model, spellings: Spellings, make: Make
    ) -> None:
        """*raw* is the ``tokenizer.json`` that the others were read from."""
        steps = list(flatten_steps(definition.normalizer, "normalizers"))
        self._form: Form | None = None
        if len(steps) == len(model.forms) == 1 and is_byte_level(definition):
            self._form = model.forms[0]
            cut = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
            parts: dict[str, Any] = {"added_tokens": [], "post_processor": None}
            parts |= {"model": byte_model(), "pre_tokenizer": {"type": "ByteLevel", **cut}}
            self._engine = make(rewrite(raw, **parts))
        self._lengths, self._spellings = model.lengths, spellings
        self._added = np.zeros(model.size, np.bool_)
        self._added[[token.id for token in definition.added_tokens]] = True

    def align(self, text: str, ids: Int32) -> Aligned | None:
        """*ids* are those of *text*; None where their ends are not told surely."""
        if self._form is None or self._lengths is None:
            return None
        spelled, ends = self._spellings.spell(ids)
        widths = np.diff(ends, prepend=0)
        stretches = list(find_changes(text, self._form))
        if not stretches or not widths.all() or not np.array_equal(widths, self._lengths[ids]):
            return None
        normal = self._normalize([text[start:end] for start, end in stretches])
        if normal is None:
            return None
        pieces = list(_pieces(text, stretches, normal))
        if b"".join(pieces) != spelled.tobytes():
            return None
        places = np.cumsum([0, *map(len, pieces)])
        starts, stops = places[1:-1:2], places[2::2]
        touching = np.stack(
            (np.searchsorted(ends, starts, "right"), np.searchsorted(ends - widths, stops)), axis=1
        )
        added = np.concatenate(([0], np.cumsum(self._added[ids])))[touching]
        if (added[:, 0] != added[:, 1]).any():
            return None
        return Aligned(_place(text, ends, np.array(stretches), (starts, stops), normal), touching)

    def _normalize(self, stretches: Sequence[str]) -> _Normal | None:
        """By the reference; None where it does not place each of them where it is."""
        try:
            found, offsets = self._engine.read("".join([*stretches, _END]))
        except RecordError:
            return None
        edges = np.cumsum([0, *map(len, stretches)])
        begins, ends = np.array(offsets, np.int64).reshape(-1, 2).T
        firsts = np.searchsorted(begins, edges)
        if (np.diff(begins) < 0).any() or firsts[-1] != len(found) - 1:
            return None
        if not np.array_equal(begins[firsts], edges) or found[-1] != ord(_END):
            return None
        ends = ends[:-1] - np.repeat(edges[:-1], np.diff(firsts))
        return _Normal(found[:-1].astype(np.uint8).tobytes(), firsts, ends)


def byte_model() -> dict[str, Any]:
    """A ``model`` with one token a byte, whose id is the byte."""
    vocab = {character: byte for byte, character in enumerate(byte_alphabet())}
    return {"type": "BPE", "vocab": vocab, "merges": []}


def find_changes(text: str, form: Form) -> Iterator[tuple[int, int]]:
    """The stretches of *text* that *form* changes, in order; none is cut by a stable character.

    By halves: n log n in the text's length. Without normalizing, which is quadratic in marks.
    """
    rest = [(0, len(text))]
    while rest:
        start, end = rest.pop()
        if is_normalized(text[start:end], (form,)):
            continue
        cut = _cut(text, start, end)
        if cut is None:
            yield start, end
        else:
            rest += [(cut, end), (start, cut)]


def _cut(text: str, start: int, end: int) -> int | None:
    """A stable character about the middle, but not the first; the last before, if none is after."""
    middle = max((start + end) // 2, start + 1)
    after = STABLE.search(text, middle, end)
    if after is not None:
        return after.start()
    before = _LAST.match(text, start + 1, middle)
    return None if before is None else before.end()


def _pieces(text: str, stretches: Sequence[tuple[int, int]], normal: _Normal) -> Iterator[bytes]:
    """What is unchanged, a normal form, and so on; what is unchanged begins and ends it."""
    at = 0
    for (start, end), first, stop in zip(
        stretches, normal.firsts[:-1].tolist(), normal.firsts[1:].tolist(), strict=True
    ):
        yield text[at:start].encode()
        yield normal.form[first:stop]
        at = end
    yield text[at:].encode()


def _place(
    text: str,
    ends: Int64,
    stretches: npt.NDArray[np.int64],
    placed: tuple[Int64, Int64],
    normal: _Normal,
) -> Int64:
    """Bytes of *text* for *ends* of tokens in the normalized text, where stretches are *placed*."""
    before = character_starts(text)
    starts, stops = placed
    last = ends - 1
    nearest = np.searchsorted(starts, last, "right") - 1  # -1 before the first stretch
    inside = (nearest >= 0) & (last < stops[nearest])
    shifts = np.concatenate((before[stretches[:, 1]] - stops, [0]))[nearest]
    characters = np.searchsorted(before, ends + shifts)
    at = nearest[inside]
    byte = normal.firsts[at] + last[inside] - starts[at]
    characters[inside] = stretches[at, 0] + normal.ends[byte]
    return divide_characters(before, characters)
