"""Rows that a normalization form changes: ends are those of the reference over the whole row."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import normalizers

from pipeline.errors import EngineMismatch
from pipeline.tokens.changes import Aligned, Changes
from pipeline.tokens.encoded import Int32, Int64
from pipeline.tokens.forms import FORMS, STABLE, Form, find_changes, is_normalized
from pipeline.tokens.offsets import byte_alphabet
from pipeline.tokens.tokenizer import (
    ReferenceEngine,
    Tokenizer,
    load_tokenizer,
    read_tokenizer,
)
from pipeline.tokens.trust import EngineName
from pipeline.tokens.vocabulary import read_vocabulary
from pipeline.tokens.windows import confirm
from tests import vocabularies

PIECES = [
    *("e\u0301", "a\u0323\u0307", "a\u0307\u0323", "\u0301", "\u0338", "=\u0338", "q\u0323", "é"),
    *("\u212b", "\u212a", "\u037e", "\u0340", "\u0344", "\u0958", "\u09dc", "\ufb1d", "\u0f73"),
    *("\u1112\u1161\u11ab", "\u1112", "\u1161", "\u11ab", "\uac00\u11a8", "\uac01", "\u3131"),
    *("か\u3099", "\uff76\uff9e", "\uf900", "\U0002f800", "\U0001d15e", "\ufb01", "\ufdfa", "½"),
    *(
        "👩\u200d👩\u200d👧",
        "❤\ufe0f",
        "🇩🇪",
        "\r\n",
        "\r",
        "\n\n",
        " ",
        "  ",
        "\t",
        "\u00a0",
        "\x00",
    ),
    *("Hello", " world", "it's", "12", "naïve", "Привет", "и\u0306", "日本語", "नमस्ते", "שלום", "<"),
    *("<think>", "</think>", "<|im_start|>", "<|im_end|>", "<l>", "<r>", "word", "e\u0301!"),
    *("\u0378", "\U000e0100", "\ufffd", "\U000f1234"),
]
TEXTS = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(max_size=5), st.sampled_from(["The fox", " x1 "])),
    max_size=16,
).map("".join)
KINDS: dict[str, Callable[[], Library]] = {
    "nfc": vocabularies.KINDS["nfc"],
    "nfkc": vocabularies.KINDS["nfkc"],
    "nfd": lambda: vocabularies.byte_level(normalizer=normalizers.NFD()),
    "nfkd": lambda: vocabularies.byte_level(normalizer=normalizers.NFKD()),
    "stripping": vocabularies.stripping,
}
# fastokens has no other form.
LOADED = [*((kind, "reference") for kind in KINDS), ("nfc", "fast"), ("stripping", "fast")]
# What else a normalizer does has no proof here: such rows go the long way.
OTHERS: dict[str, Any] = {
    "nfc and nfkc": normalizers.Sequence([normalizers.NFC(), normalizers.NFKC()]),
    "nfc and lowercase": normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
    "lowercase": normalizers.Lowercase(),
    "strip": normalizers.Strip(),
    "replace": normalizers.Replace("e", "é"),
    "prepend": normalizers.Prepend("x"),
}

Load = Callable[..., Tokenizer]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    made: dict[tuple[str, EngineName], Tokenizer] = {}

    def loaded(kind: str, engine: EngineName = "fast") -> Tokenizer:
        if (kind, engine) not in made:
            library = KINDS[kind]() if kind in KINDS else None
            library = library or vocabularies.byte_level(normalizer=OTHERS[kind])
            folder = vocabularies.write(tmp_path_factory.mktemp("changes"), library)
            made[kind, engine] = load_tokenizer(read_vocabulary(folder), engine=engine)
        return made[kind, engine]

    return loaded


def changes_of(tokenizer: Tokenizer) -> Changes:
    return tokenizer._find_changes()


def align(tokenizer: Tokenizer, text: str, ids: Int32) -> Aligned | None:
    changes = changes_of(tokenizer)
    return changes.align(text, text.encode(), ids, changes.find(text))


def whole(tokenizer: Tokenizer, text: str) -> tuple[Int32, list[int]]:
    """The reference's ids and ends of the whole text."""
    ids, ends, fault = tokenizer._refer().locate(text)
    assert fault is None
    return ids, ends.tolist()


@pytest.mark.parametrize(("kind", "engine"), LOADED)
def test_ends_are_those_of_the_whole_row(kind: str, engine: EngineName, load: Load) -> None:
    tokenizer, aligned, confirmed = load(kind, engine), 0, 0
    lengths = tokenizer._model.lengths
    assert lengths is not None

    @settings(max_examples=300, deadline=None)
    @given(TEXTS)
    def holds(text: str) -> None:
        nonlocal aligned, confirmed
        ids, ends = whole(tokenizer, text)
        found = align(tokenizer, text, ids)
        if found is not None:
            aligned += 1
            assert found.ends.tolist() == ends
            again = confirm(tokenizer._refer().encode, text.encode(), ids, found, lengths)
            confirmed += again
        encoded = tokenizer.encode([text])
        assert encoded.ids.tolist() == ids.tolist()
        if encoded.paths.repaired:
            assert encoded.ends.tolist() == ends

    holds()
    assert aligned > 30
    assert confirmed > aligned / 2


@pytest.mark.parametrize("kind", ["nfc", "stripping"])
def test_ends_of_long_rows_are_those_of_the_whole_row(kind: str, load: Load) -> None:
    """Too long for windows around what changes to hold them."""
    tokenizer, plain = load(kind), "The quick brown fox, 日本語 naïve.\n" * 30

    @settings(max_examples=60, deadline=None)
    @given(st.lists(TEXTS, min_size=1, max_size=4))
    def holds(texts: list[str]) -> None:
        text = plain.join(["", *texts, ""])
        ids, ends = whole(tokenizer, text)
        encoded = tokenizer.encode([text])
        assert encoded.ids.tolist() == ids.tolist()
        if encoded.paths.repaired:
            assert encoded.ends.tolist() == ends

    holds()


@pytest.mark.parametrize("kind", OTHERS)
def test_other_normalizers_take_the_long_way(kind: str, load: Load) -> None:
    tokenizer = load(kind, "reference")
    for text in [*PIECES, "".join(PIECES), "the e\u0301nd"]:
        ids, ends = whole(tokenizer, text)
        assert align(tokenizer, text, ids) is None
        encoded = tokenizer.encode([text] if len(ids) else [])
        if encoded.paths.repaired:
            assert encoded.ends.tolist() == ends


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("The e\u0301nd", True),
        ("\u212b\r\n👩\u200d👧 \u1112\u1161\u11ab", True),
        ("<think>e\u0301</think> a\u0307\u0323<|im_end|>", True),
        ("\u0301\u0323 x", True),
        ("plain", False),  # nothing is changed
        ("é", False),
        ("<think>\u0338", False),  # alone, > and U+0338 would be one character
        ("e\u0301!", False),  # an added token is in what is changed
        ("a <l>e\u0301", False),  # takes the space before it
    ],
)
def test_what_is_told_without_the_whole_row(text: str, told: bool, load: Load) -> None:
    tokenizer = load("stripping")
    ids, ends = whole(tokenizer, text)
    found = align(tokenizer, text, ids)
    assert (found is not None) is told
    assert found is None or found.ends.tolist() == ends


def test_ids_of_another_text_are_told_nothing(load: Load) -> None:
    tokenizer = load("nfc")
    ids, _ = whole(tokenizer, "The e\u0301nd")
    for text in ("The e\u0300nd", "tHe e\u0301nd", "The e\u0301nd.", "The e\u0301n"):
        assert align(tokenizer, text, ids) is None


@pytest.mark.parametrize("plain", ["", "日本語 naïve, " * 500])
@pytest.mark.parametrize("form", FORMS)
def test_a_form_acts_on_the_found_stretches_alone(form: Form, plain: str) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(TEXTS, min_size=1, max_size=3))
    def holds(texts: list[str]) -> None:
        text = plain.join(texts)
        at, normal = 0, ""
        for start, end in find_changes(text, form):
            assert at <= start < end <= len(text)
            changed = unicodedata.normalize(form, text[start:end])
            assert changed != text[start:end]
            assert not STABLE.search(text, start + 1, end)
            normal += text[at:start] + changed
            at = end
        assert normal + text[at:] == unicodedata.normalize(form, text)

    holds()


@pytest.mark.parametrize("plain", ["", "日本語 naïve, " * 500])
@pytest.mark.parametrize("form", FORMS)
def test_whether_a_text_is_normalized_is_whether_its_form_is_it(form: Form, plain: str) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(TEXTS, min_size=1, max_size=3))
    def holds(texts: list[str]) -> None:
        text = plain.join(texts)
        assert is_normalized(text, [form]) is (unicodedata.normalize(form, text) == text)

    holds()


def test_stable_characters_start_what_all_forms_make_of_them() -> None:
    """No form composes them with what is before: by Unicode's own tables."""
    seconds = {*map(chr, range(0x1161, 0x1176)), *map(chr, range(0x11A8, 0x11C3))}
    for character in map(chr, range(0x110000)):
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            seconds.add(chr(int(parts[1], 16)))
    stable = [c for c in map(chr, range(0x110000)) if STABLE.match(c)]
    assert len(stable) > 70_000
    for character in stable:
        assert unicodedata.category(character) != "Cn"  # a later Unicode could make it a mark
        for form in FORMS:
            first = unicodedata.normalize(form, character)[0]
            assert not unicodedata.combining(first)
            assert unicodedata.normalize("NFD", first)[0] not in seconds


class Counting:
    """An engine that counts the characters it is given."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.characters = engine, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def read(self, text: str) -> Any:
        self.characters += len(text)
        return self._engine.read(text)

    def locate(self, text: str) -> Any:
        self.characters += len(text)
        return self._engine.locate(text)

    def encode(self, texts: Sequence[str]) -> Any:
        self.characters += sum(map(len, texts))
        return self._engine.encode(texts)


def test_a_long_row_shows_the_reference_what_changes(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = "The quick brown fox jumps over the lazy dog, naïve café. 日本語\n" * 2000
    text = f"{plain}e\u0301{plain}\u212b Привет {plain}"
    tokenizer = load("nfc")
    _, ends = whole(tokenizer, text)
    align, read = Counting(changes_of(tokenizer)._engine), Counting(tokenizer._refer())
    monkeypatch.setattr(tokenizer._changes, "_engine", align)
    monkeypatch.setattr(tokenizer, "_reference", read)
    encoded = tokenizer.encode([text])
    assert (encoded.paths.repaired, encoded.ends.tolist()) == (1, ends)
    assert align.characters == len("e\u0301\n\u212b.")  # each from a stable character on
    assert 0 < read.characters < 1000


class Splitting:
    """A fast engine that spells one word in single bytes: other tokens, the same text."""

    name: EngineName = "fast"

    def __init__(self, raw: bytes, word: str) -> None:
        self._honest, self._word = ReferenceEngine(raw), word
        names = dict(enumerate(byte_alphabet()))
        self._bytes = [self._honest.find(names[byte]) for byte in word.encode()]

    def encode(self, texts: Sequence[str]) -> tuple[Int32, Int64]:
        rows = list[list[int]]()
        for text in texts:
            before, word, after = text.partition(self._word)
            parts = [self._honest.encode([part])[0].tolist() for part in (before, after)]
            rows.append(parts[0] + (self._bytes if word else []) + parts[1])
        firsts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return np.array([id_ for row in rows for id_ in row], np.int32), firsts


@pytest.mark.parametrize("text", ["Hello e\u0301\n", "e\u0301\nHello", "\u212b\nHello"])
@pytest.mark.parametrize("around", ["", "The fox jumps.\n" * 200])
def test_wrong_ids_about_a_change_are_found(text: str, around: str, load: Load) -> None:
    text = f"{around}{text}{around}"
    vocabulary = load("nfc").vocabulary
    raw = read_tokenizer(vocabulary)
    engine = Splitting(raw, "Hello")
    lying = Tokenizer(vocabulary, raw, engine=engine)
    assert align(lying, text, engine.encode([text])[0])
    with pytest.raises(EngineMismatch, match="encode with the reference"):
        lying.encode([text])


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["qwen3", "qwen2.5", "qwen3.5"])
def test_real_tokenizers(name: str, shared: Path) -> None:
    tokenizer = load_tokenizer(read_vocabulary(shared / "tokenizers" / name), engine="fast")
    aligned = 0

    @settings(max_examples=400, deadline=None)
    @given(TEXTS)
    def holds(text: str) -> None:
        nonlocal aligned
        ids, ends = whole(tokenizer, text)
        encoded = tokenizer.encode([text])
        assert encoded.ids.tolist() == ids.tolist()
        if encoded.paths.repaired:
            assert encoded.ends.tolist() == ends
            aligned += align(tokenizer, text, ids) is not None

    holds()
    assert aligned > 50
