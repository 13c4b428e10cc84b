"""Where tokens end in a text that a normalization form changes here and there.

The form leaves most of a long text alone, and there bytes of tokens are bytes of text. Only the
stretches that it changes are shown to the reference, all at once: it tells which character each
byte of their normal form came from. A stretch begins with a stable character and ends before one,
or with the text: so a form, and what the reference tells of it, is the same in a stretch as in
the text.

What is found is held to the ids: unchanged text and normal forms must be, byte for byte, what the
ids spell. Where that fails nothing is told, and the caller asks the reference about all of the
text. Added tokens are split out before the form, or match after it, so a stretch that one touches
is left to the reference too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import RecordError
from pipeline.tokens.controls import Make, rewrite
from pipeline.tokens.encoded import Int32, Int64
from pipeline.tokens.forms import Form, find_changes
from pipeline.tokens.offsets import (
    Model,
    byte_alphabet,
    character_starts,
    divide_characters,
    flatten_steps,
    is_byte_level,
)
from pipeline.tokens.spelling import Spellings
from pipeline.tokens.vocabulary import Definition

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
    """Normal forms of stretches: the k-th's is bytes ``firsts[k]:firsts[k+1]`` of ``form``.

    ``starts`` and ``ends`` int64 [bytes of form]: of the character each byte came from, in UTF-8
    of the stretches, one after another; ``edges`` int64 [stretches + 1]: of them, there.
    """

    form: bytes
    firsts: Int64
    starts: Int64
    ends: Int64
    edges: Int64


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

    def find(self, text: str) -> list[tuple[int, int]]:
        """The stretches that the tokenizer's form changes; none where it is not one form."""
        return [] if self._form is None else list(find_changes(text, self._form))

    def align(
        self, text: str, raw: bytes, ids: Int32, stretches: Sequence[tuple[int, int]]
    ) -> Aligned | None:
        """*ids* and *stretches* are those of *text*, *raw* is its UTF-8; None if not surely told.

        Not told is what has no stretches.
        """
        if not stretches or self._lengths is None:
            return None
        spelled, ends = self._spellings.spell(ids)
        widths = np.diff(ends, prepend=0)
        if not widths.all() or not np.array_equal(widths, self._lengths[ids]):
            return None
        normal = self._normalize([text[start:end] for start, end in stretches])
        if normal is None:
            return None
        unchanged = _between(text, stretches)
        if _interleave(unchanged, normal) != spelled.tobytes():
            return None
        before = np.cumsum([len(piece) for piece in unchanged[:-1]])
        starts, stops = before + normal.firsts[:-1], before + normal.firsts[1:]
        first = np.searchsorted(ends, starts, "right")
        touching = np.stack((first, np.searchsorted(ends - widths, stops)), axis=1)
        added = np.searchsorted(np.flatnonzero(self._added[ids]), touching)
        if (added[:, 0] != added[:, 1]).any():
            return None
        return Aligned(_place(raw, ends, before, normal), touching)

    def _normalize(self, stretches: Sequence[str]) -> _Normal | None:
        """By the reference; None where it does not place each of them where it is."""
        joined = "".join([*stretches, _END])
        try:
            found, offsets = self._engine.read(joined)
        except RecordError:
            return None
        edges = np.cumsum([0, *map(len, stretches)])
        begins, ends = np.array(offsets, np.int64).reshape(-1, 2).T
        firsts = np.searchsorted(begins, edges)
        if (np.diff(begins) < 0).any() or firsts[-1] != len(found) - 1:
            return None
        if not np.array_equal(begins[firsts], edges) or found[-1] != ord(_END):
            return None
        form, before = found[:-1].astype(np.uint8).tobytes(), character_starts(joined)
        return _Normal(form, firsts, before[begins[:-1]], before[ends[:-1]], before[edges])


def byte_model() -> dict[str, Any]:
    """A ``model`` with one token a byte, whose id is the byte."""
    vocab = {character: byte for byte, character in enumerate(byte_alphabet())}
    return {"type": "BPE", "vocab": vocab, "merges": []}


def _between(text: str, stretches: Sequence[tuple[int, int]]) -> list[bytes]:
    """What is before, between and after them."""
    edges = [0, *itertools.chain.from_iterable(stretches), len(text)]
    return [text[start:end].encode() for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _interleave(unchanged: Sequence[bytes], normal: _Normal) -> bytes:
    forms = [normal.form[a:b] for a, b in itertools.pairwise(normal.firsts.tolist())]
    pairs = itertools.zip_longest(unchanged, forms, fillvalue=b"")
    return b"".join(itertools.chain.from_iterable(pairs))


def _place(raw: bytes, ends: Int64, before: Int64, normal: _Normal) -> Int64:
    """Bytes of text *raw* for *ends* of tokens in what it is normalized.

    *before* each stretch are that many unchanged bytes.
    """
    starts, stops = before + normal.firsts[:-1], before + normal.firsts[1:]
    last = ends - 1
    # Tokens by where they end: before the first stretch, in it, between it and the next, and so on.
    cuts = np.searchsorted(last, np.stack((starts, stops), axis=1).ravel())
    counts = np.diff(cuts, prepend=0, append=len(ends))
    shifts = np.zeros(len(counts), np.int64)
    shifts[2::2] = normal.edges[1:] - normal.firsts[1:]
    found = ends + np.repeat(shifts, counts)
    inside = np.flatnonzero(np.repeat(np.arange(len(counts)) % 2 == 1, counts))
    unchanged = np.repeat(before, counts[1::2])
    found[inside] = unchanged + normal.ends[last[inside] - unchanged]
    # A token ends with the whole of its last character.
    within = np.append(np.frombuffer(raw, np.uint8) & 0xC0 == 0x80, False)
    cut = np.flatnonzero(within[found])
    for _ in range(3):
        found[cut] += within[found[cut]]
    found = np.maximum.accumulate(found)
    found[-1] = len(raw)
    equal = found[1:] == found[:-1]
    if not equal.any():
        return found
    several = np.append(equal, False) | np.append(False, equal)
    begins = found[several] - 1
    for _ in range(3):
        begins -= within[begins]
    found[several] = divide_characters(begins, found[several])
    return found
