"""The bytes that each id stands for: text from ids by one gather, without an engine.

The table is a claim, not a proof: which text a token covers can depend on what is around it (a
normalizer, ``lstrip``, a spelled-out ``▁``). So a build compares what a row's ids spell with the
row's text and ends (`Spellings.spelled`) and keeps the text of every row where they differ.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns import column
from pipeline.tokens.encoded import Encoded, Int32, Int64
from pipeline.tokens.offsets import (
    BYTE,
    SPACE,
    Form,
    byte_alphabet,
    is_byte_level,
    normal_forms,
)
from pipeline.tokens.vocabulary import AddedToken, Definition

Bytes = npt.NDArray[np.uint8]


class _Vocabulary(msgspec.Struct):
    vocab: Any = None


@dataclass(frozen=True, slots=True)
class Spellings:
    """``words[id]``: bytes, empty where an id is none or its text is not told by the id alone."""

    words: pa.BinaryArray

    def knows(self, ids: Int32) -> bool:
        """Whether all *ids* are in the table: others cannot be spelled."""
        return not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < len(self.words))

    def spell(self, ids: Int32) -> tuple[Bytes, Int64]:
        """What *ids* spell, one after another, in UTF-8; and int64 [tokens], where each ends."""
        taken = self.words.take(column(ids))
        _, offsets, data = taken.buffers()
        ends = np.frombuffer(offsets, np.int32, len(ids) + 1)[1:].astype(np.int64)
        size = int(ends[-1]) if len(ends) else 0
        return np.frombuffer(data, np.uint8, size) if size else np.zeros(0, np.uint8), ends

    def spelled(self, encoded: Encoded) -> npt.NDArray[np.bool_]:
        """bool [rows]: whether a row's ids spell its text, each token ending where it does."""
        rows = len(encoded.firsts) - 1
        if not self.knows(encoded.ids):
            return np.zeros(rows, np.bool_)
        text, ends = self.spell(encoded.ids)
        if np.array_equal(ends, encoded.ends) and np.array_equal(text, encoded.text):
            return np.ones(rows, np.bool_)
        differs = np.diff(ends, prepend=0) != np.diff(encoded.ends, prepend=0)
        faults = np.concatenate(([0], np.cumsum(differs)))[encoded.firsts]
        starts = np.concatenate(([0], ends))[encoded.firsts]
        spans = zip(starts[:-1], starts[1:], encoded.starts[:-1], encoded.starts[1:], strict=True)
        same = [np.array_equal(text[a:b], encoded.text[c:d]) for a, b, c, d in spans]
        return np.array(same, np.bool_) & np.equal(np.diff(faults), 0)


def read_spellings(definition: Definition) -> Spellings:
    """Takes 0.3 s for 150,000 tokens; right for byte-level BPE, and for visible spaces.

    Of other models (WordPiece) the words are spellings that no text passes.
    """
    vocab = msgspec.json.decode(definition.model, type=_Vocabulary).vocab
    if isinstance(vocab, list):  # Unigram: pairs of a word and its score
        vocab = {word: id_ for id_, (word, _) in enumerate(vocab)}
    spelled = (_byte_words if is_byte_level(definition) else _spaced_words)(list(vocab))
    size = 1 + max([*vocab.values(), *(token.id for token in definition.added_tokens)], default=-1)
    words = [b""] * size
    for id_, word in zip(vocab.values(), spelled, strict=True):
        words[id_] = word
    forms = normal_forms(definition)
    for token in definition.added_tokens:
        words[token.id] = _added(token, words[token.id], forms)
    lengths = np.fromiter(map(len, words), np.int64, size)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(words))]
    return Spellings(pa.BinaryArray.from_buffers(pa.binary(), size, buffers))


def _byte_words(words: Sequence[str]) -> list[bytes]:
    """Bytes that byte-level words stand for; none of one with others: no text gives it."""
    alphabet = byte_alphabet()
    pattern = re.compile(f"[{re.escape(''.join(alphabet))}]*")
    known = [word if pattern.fullmatch(word) else "" for word in words]
    codes = {ord(character): byte for byte, character in enumerate(alphabet)}
    raw = "".join(known).translate(codes).encode("latin-1")
    ends = [*itertools.accumulate(map(len, known), initial=0)]
    return [raw[start:end] for start, end in itertools.pairwise(ends)]


def _spaced_words(words: Sequence[str]) -> list[bytes]:
    return [
        bytes([int(w[3:5], 16)]) if BYTE.fullmatch(w) else w.replace(SPACE, " ").encode()
        for w in words
    ]


def _added(token: AddedToken, word: bytes, forms: Sequence[Form]) -> bytes:
    """Of several ways to an id (``▁▁`` from two spaces, or spelled out) the shortest.

    It is the one that `offsets.Model.lengths` counts; a text that has another is kept.
    """
    ways = [token.content.encode()]
    if token.normalized:  # what it matches is normalized text
        ways += [unicodedata.normalize(form, token.content).encode() for form in forms]
        ways.append(token.content.replace(SPACE, " ").encode())
    return min([*ways, *([word] if word else [])], key=len)
