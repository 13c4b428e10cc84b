"""How many bytes of text a token covers: by its id where that is sure, else by an engine's offsets.

The table of lengths is sound because of one invariant: **a length never exceeds what the token
covers**, whichever way its id came about. Then a text whose tokens' lengths add up to its own
length has every single one right, and one comparison per text checks all of its offsets:
``lstrip`` tokens, dropped characters and a literal ``▁`` only ever make the sum too small.
Tokenizers that could put in a character of their own (``add_prefix_space``, ``Prepend``,
``Lowercase``...) get no table, and normalization forms are left to the caller to check
(``Model.forms``): ``a`` + U+0323 + U+0307 changes under NFC and keeps its length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.tokens.forms import FORMS, Form
from pipeline.tokens.vocabulary import AddedToken, Definition

SPACE = "▁"  # SentencePiece's visible space, U+2581
BYTE = re.compile("<0x[0-9A-F]{2}>")
UNKNOWN = 2**40  # longer than any text, so that no sum with it passes; 2**22 of them fit in int64


@dataclass(frozen=True, slots=True)
class Model:
    """What a ``tokenizer.json`` says about its ids.

    ``lengths[id]``: bytes of text that the token covers, int64 or UNKNOWN; None where ids do not
    tell. They hold for texts that are normalized in each of ``forms``. ``size`` is one more than
    the largest id.
    """

    size: int
    dropout: float | None
    lengths: npt.NDArray[np.int64] | None
    forms: tuple[Form, ...]


class _Merged(msgspec.Struct):
    """What of a ``model`` tells which words merges make."""

    vocab: Any = None
    merges: list[Any] = []


class _Model(msgspec.Struct):
    """A ``model`` object; ``vocab`` is a list for Unigram, else a mapping from tokens to ids."""

    type: str | None = None
    vocab: Any = None
    unk_token: Any = None
    byte_fallback: bool = False
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


def read_model(definition: Definition) -> Model:
    """Takes 0.1 s for 150,000 tokens; the definition must be one that the reference accepts."""
    model = msgspec.json.decode(definition.model, type=_Model)
    steps = list(flatten_steps(definition.normalizer, "normalizers"))
    forms = normal_forms(definition)
    others = [step for step in steps if step.get("type") not in FORMS]
    ids = model.vocab.values() if isinstance(model.vocab, dict) else range(len(model.vocab))
    size = 1 + max([*ids, *(token.id for token in definition.added_tokens)], default=-1)
    lengths = _lengths(definition, model, forms, others, size)
    return Model(size, model.dropout, lengths, forms if lengths is not None else ())


def normal_forms(definition: Definition) -> tuple[Form, ...]:
    """The normalization forms that its normalizer puts texts in."""
    kinds = {step.get("type") for step in flatten_steps(definition.normalizer, "normalizers")}
    return tuple(form for form in FORMS if form in kinds)


def is_byte_level(definition: Definition) -> bool:
    """Whether the characters of its words stand for bytes."""
    steps = flatten_steps(definition.pre_tokenizer, "pretokenizers")
    return any(step.get("type") == "ByteLevel" for step in steps)


def sample_words(definition: Definition, *, limit: int) -> dict[str, int]:
    """Tokens and ids of a BPE: those that no merge makes, and others, evenly about *limit* of each.

    fastokens 0.3.5 takes some of the former (a spelled-out ``<0x41>``) from the vocabulary at
    once, where the reference merges characters and never gets there.
    """
    model = msgspec.json.decode(definition.model, type=_Merged)
    if not isinstance(model.vocab, dict):
        return {}
    merges = (pair.split(" ") if isinstance(pair, str) else pair for pair in model.merges)
    made = {"".join(pair) for pair in merges}
    words = list(model.vocab.items())
    odd = [(token, id_) for token, id_ in words if len(token) > 1 and token not in made]
    return dict([*odd[:: 1 + len(odd) // limit], *words[:: 1 + len(words) // limit]])


def _lengths(
    definition: Definition,
    model: _Model,
    forms: tuple[Form, ...],
    others: list[dict[str, Any]],
    size: int,
) -> npt.NDArray[np.int64] | None:
    splits = list(flatten_steps(definition.pre_tokenizer, "pretokenizers"))
    byte_levels = sum(step.get("type") == "ByteLevel" for step in splits)
    if model.type != "BPE" or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    if not all(map(_keeps_text, splits)):
        return None
    if byte_levels == 1 and not others:
        covered, single, shortest = _byte_level(model.vocab), byte_alphabet(), _byte_length
    elif byte_levels == 0 and model.byte_fallback and [*map(_is_space_step, others)] == [True]:
        if SPACE not in model.vocab:  # then a space becomes three byte tokens
            return None
        covered, single, shortest = _byte_fallback(model.vocab), _byte_tokens(), _spaced_length
    else:
        return None
    table = _table(size, covered, definition.added_tokens, shortest, forms)
    if model.unk_token in model.vocab and not all(token in model.vocab for token in single):
        table[model.vocab[model.unk_token]] = UNKNOWN  # it can stand for any one byte or more
    return table


def _table(
    size: int,
    covered: Mapping[int, int],
    added: list[AddedToken],
    shortest: Callable[[str], int],
    forms: tuple[Form, ...],
) -> npt.NDArray[np.int64]:
    """Of two ways to an id (``▁▁`` from two spaces, or spelled out), the shorter counts."""
    table = np.full(size, UNKNOWN, np.int64)
    ids = np.fromiter(covered, np.int64, len(covered))
    table[ids] = np.fromiter(covered.values(), np.int64, len(covered))
    for token in added:
        length = _byte_length(token.content)
        if token.normalized:
            # What it matches is normalized text, which can be shorter than its own spelling.
            texts = [token.content, *(unicodedata.normalize(f, token.content) for f in forms)]
            length = min(map(shortest, texts))
        table[token.id] = min(length, int(table[token.id]))
    return table


def _byte_level(vocab: Mapping[str, int]) -> dict[int, int]:
    """A byte-level token has one character per byte; strings with others are never produced."""
    alphabet = re.compile(f"[{re.escape(''.join(byte_alphabet()))}]*")
    return {id_: len(token) for token, id_ in vocab.items() if alphabet.fullmatch(token)}


def byte_alphabet() -> list[str]:
    """GPT-2's ``bytes_to_unicode``: printable Latin-1 stands for itself, the rest for U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


def _byte_fallback(vocab: Mapping[str, int]) -> dict[int, int]:
    return {i: 1 if BYTE.fullmatch(token) else _spaced_length(token) for token, i in vocab.items()}


def _byte_tokens() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def _byte_length(token: str) -> int:
    return len(token.encode())


def _spaced_length(token: str) -> int:
    return len(token.replace(SPACE, " ").encode())


def flatten_steps(step: dict[str, Any] | None, children: str) -> Iterator[dict[str, Any]]:
    """The leaves of nested ``Sequence`` objects, in order."""
    if step is None:
        return
    if step.get("type") != "Sequence":
        yield step
        return
    for child in step[children]:
        yield from flatten_steps(child, children)


def _keeps_text(step: dict[str, Any]) -> bool:
    """Whether this pre-tokenizer only cuts; taking text away is harmless, putting in is not."""
    if step.get("type") == "ByteLevel":
        return step.get("add_prefix_space") is False
    return step.get("type") in ("Split", "Digits", "Punctuation", "UnicodeScripts")


def _is_space_step(step: dict[str, Any]) -> bool:
    kind, pattern, content = step.get("type"), step.get("pattern"), step.get("content")
    return (kind, pattern, content) == ("Replace", {"String": " "}, SPACE)


def ends_from_characters(text: str, offsets: list[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Byte ends of tokens by an engine's character *offsets*: non-decreasing, up to the text's end.

    Characters that lie in no token (spaces that a pre-tokenizer drops) go to the token after
    them, or to the last. Tokens that end with the same character divide its bytes, so that none
    is empty unless they outnumber the bytes; rounded up to whole characters, the ends are the
    engine's again.
    """
    if not offsets:
        return np.zeros(0, np.int64)
    ends: npt.NDArray[np.int64] = np.maximum.accumulate(np.array(offsets, np.int64)[:, 1])
    ends[-1] = len(text)
    before = character_starts(text)
    return divide_characters(before[np.maximum(ends - 1, 0)], before[ends])


def divide_characters(
    starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Byte ends of tokens from the bytes, non-decreasing, at which their last characters lie."""
    firsts = np.flatnonzero(np.diff(ends, prepend=-1))
    counts = np.diff(firsts, append=len(ends))
    place = np.arange(1, len(ends) + 1) - np.repeat(firsts, counts)
    # Rounded up, so that the first of them is never empty.
    shares: npt.NDArray[np.int64] = -((ends - starts) * place // -np.repeat(counts, counts))
    result: npt.NDArray[np.int64] = starts + shares
    return result


def character_starts(text: str) -> npt.NDArray[np.int64]:
    """int64 [characters + 1]: the UTF-8 byte at which each starts, then the number of bytes."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
    starts = np.zeros(len(text) + 1, np.int64)
    np.cumsum(widths, out=starts[1:])
    return starts
