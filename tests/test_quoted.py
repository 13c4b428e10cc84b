"""Control tokens as content, held to texts cut at the acting ones by hand and encoded in pieces."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from pipeline.errors import RecordError
from pipeline.spans import Span
from pipeline.tokens.encoded import Encoded
from pipeline.tokens.faults import EncodeFailure
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from pipeline.tokens.trust import EngineName
from pipeline.tokens.vocabulary import read_vocabulary
from tests import vocabularies
from tests.test_tokens import row_ends

START, END = "<|im_start|>", "<|im_end|>"


def with_controls(library: Library) -> Library:
    """Control tokens that strip, nest, are each other's beginnings; and others in their way."""
    special = {"special": True, "normalized": False}
    library.add_tokens(
        [
            AddedToken("<l>", lstrip=True, **special),
            AddedToken("<r>", rstrip=True, **special),
            AddedToken("<lr>", lstrip=True, rstrip=True, **special),
            *(AddedToken(content, **special) for content in ("<a>", "<b>", "<a><b>", "é>", "👩>")),
            AddedToken("x<|im_end|>", normalized=False),
            AddedToken("|>\n", normalized=False),
            AddedToken("<|im_end|><|", normalized=True),
        ]
    )
    return library


def with_normalized_controls(library: Library) -> Library:
    """Found after the others, in normalized text; the beginning of one can be another's end."""
    library.add_tokens(
        [
            AddedToken("<n>", normalized=True, special=True),
            AddedToken("end|><m>", normalized=True, special=True),
            AddedToken("Å>", normalized=True, special=True),
            AddedToken("<a>", normalized=False, special=True),
        ]
    )
    return library


def with_words(library: Library) -> Library:
    """Control tokens that act only where they stand alone, or together with spaces."""
    library.add_tokens(
        [
            AddedToken("stop", single_word=True, normalized=False, special=True),
            AddedToken("<nl>", lstrip=True, rstrip=True, normalized=True, special=True),
        ]
    )
    return library


def _controlled(make: Callable[[], Library]) -> Library:
    return with_controls(make())


KINDS: dict[str, Callable[[], Library]] = {
    **vocabularies.KINDS,
    **{f"{kind}_controls": partial(_controlled, make) for kind, make in vocabularies.KINDS.items()},
    "two_passes": lambda: with_normalized_controls(vocabularies.byte_level()),
    "normalized": lambda: with_normalized_controls(
        vocabularies.byte_level(normalizer=normalizers.NFC())
    ),
    "words": lambda: with_words(vocabularies.byte_level(normalizer=normalizers.NFC())),
}
PLAIN = [kind for kind in KINDS if kind not in {"normalized", "words"}]
PIECES = [
    *vocabularies.ADDED,
    *(START, END, "<|im_end", "|>", "<|", "|", ">", "<", "im_end", "<l>", "<r>", "<lr>"),
    *(
        "<a>",
        "<b>",
        "<a><b>",
        "é>",
        "e\u0301>",
        "👩>",
        "👩\u200d👧",
        "<n>",
        "<m>",
        "Å>",
        "Å>",
        "A\u030a>",
    ),
    *("stop", "stops", "<nl>", "x", "Hello", " ", "  ", "\n", "\n\n", "\u0301", "\u0338", "日本"),
    *("<unk>", "[UNK]", "▁▁", "é", "1"),
]
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=2)), max_size=14).map("".join)

Load = Callable[..., Tokenizer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("quoted")

    def written(kind: str) -> Path:
        if not (root / kind).exists():
            vocabularies.write(root / kind, KINDS[kind]())
        return root / kind

    return written


@pytest.fixture(scope="module")
def load(folder: Callable[[str], Path]) -> Load:
    made: dict[tuple[str, EngineName], Tokenizer] = {}

    def loaded(kind: str, engine: EngineName = "reference") -> Tokenizer:
        if (kind, engine) not in made:
            made[kind, engine] = load_tokenizer(read_vocabulary(folder(kind)), engine=engine)
        return made[kind, engine]

    return loaded


class ByHand:
    """Cuts a text at its acting control tokens and encodes what is between them apart.

    The pieces go to a tokenizer whose definition has no control tokens; it numbers the others
    anew, so that ids are had back through contents.
    """

    def __init__(self, folder: Path) -> None:
        raw = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self.whole, definition = Library.from_str(raw), json.loads(raw)
        self.added: list[dict[str, Any]] = definition["added_tokens"]
        for token in self.added:  # what is written between bars controls, too
            content = token["content"]
            barred = content[:2] in ("<|", "<｜") and content[-2:] in ("|>", "｜>")
            token["control"] = token["special"] or (barred and len(content) > 4)
        others = [token for token in self.added if not token["control"]]
        self._pieces = Library.from_str(
            json.dumps({**definition, "added_tokens": others, "post_processor": None})
        )
        self.whole.post_processor = None
        self.control = {self.whole.token_to_id(t["content"]) for t in self.added if t["control"]}
        model = definition["model"]
        unknown = model["vocab"][model["unk_id"]][0] if "unk_id" in model else model["unk_token"]
        self.unknown = -1 if unknown is None else self.whole.token_to_id(unknown)
        self._tokens: dict[bool, dict[str, list[dict[str, Any]]]] = {False: {}, True: {}}
        for token in sorted(self.added, key=lambda t: -len(t["content"])):
            self._tokens[token["normalized"]].setdefault(token["content"][0], []).append(token)
        self.ids: dict[str, int] = {t["content"]: t["id"] for t in self.added}
        self._real = {
            self._pieces.token_to_id(content): self.ids[content]
            for content in (t["content"] for t in others)
        }

    def acting(self, text: str, quoted: Sequence[Span]) -> list[tuple[int, int, dict[str, Any]]]:
        """Control tokens, leftmost and longest, that no span of *quoted* forbids."""
        found: list[tuple[int, int, dict[str, Any]]] = []
        for normalized in (False, True):
            tokens = self._tokens[normalized]
            at = 0
            while at < len(text):
                inside = next((end for start, end, _ in found if start <= at < end), None)
                tried = tokens.get(text[at], [])
                hit = None if inside else self._hit(text, at, tried, quoted, found)
                if hit:
                    found.append(hit)
                at = inside or (hit[1] if hit else at + 1)
            found.sort(key=lambda hit: hit[0])
        return [hit for hit in found if hit[2]["control"]]

    def _hit(
        self, text: str, at: int, tokens: Any, quoted: Sequence[Span], found: Any
    ) -> tuple[int, int, dict[str, Any]] | None:
        for token in tokens:
            end = at + len(token["content"])
            taken = any(start < end and at < stop for start, stop, _ in found)
            forbidden = token["control"] and any(s.start < end and at < s.end for s in quoted)
            if text.startswith(token["content"], at) and not taken and not forbidden:
                return at, end, token
        return None

    def encode(self, text: str, quoted: Sequence[Span]) -> tuple[list[int], list[int]]:
        """Ids, and the character at which each ends; never falling, the last one the text's."""
        ids: list[int] = []
        ends: list[int] = []
        at = 0
        for begin, end, token in self.acting(text, quoted):
            before, start, at = at, begin, end
            while token["lstrip"] and start > before and is_space(text[start - 1]):
                start -= 1
            self._encode_piece(text[before:start], before, ids, ends)
            while token["rstrip"] and at < len(text) and is_space(text[at]):
                at += 1
            ids.append(self.ids[token["content"]])
            ends.append(at)
        self._encode_piece(text[at:], at, ids, ends)
        ends = np.maximum.accumulate(np.array(ends, np.int64)).tolist()
        return ids, [*ends[:-1], len(text)] if ends else []

    def _encode_piece(self, piece: str, at: int, ids: list[int], ends: list[int]) -> None:
        encoding = self._pieces.encode(piece, add_special_tokens=False)
        ids += [self._real.get(id_, id_) for id_ in encoding.ids]
        ends += [at + end for _, end in encoding.offsets]


def is_space(character: str) -> bool:
    """As Rust has it: White_Space, without the separators of files and records."""
    return character.isspace() and character not in "\x1c\x1d\x1e\x1f"


def occurrences(text: str, contents: Sequence[str]) -> Iterator[Span]:
    """All spellings, nested and overlapping ones too, by where they start."""
    alternatives = sorted(contents, key=len)
    for at in range(len(text)):
        yield from (Span(at, at + len(c)) for c in alternatives if c and text.startswith(c, at))


def choose(spans: Iterator[Span] | Sequence[Span], data: st.DataObject) -> list[Span]:
    """Some of them, disjoint."""
    chosen: list[Span] = []
    for span in spans:
        if (not chosen or chosen[-1].end <= span.start) and data.draw(st.booleans()):
            chosen.append(span)
    return chosen


def row_ids(encoded: Encoded, row: int) -> list[int]:
    ids: list[int] = encoded.ids[encoded.firsts[row] : encoded.firsts[row + 1]].tolist()
    return ids


@pytest.mark.parametrize("kind", PLAIN)
def test_ids_and_ends_are_those_of_pieces(
    kind: str, load: Load, folder: Callable[[str], Path]
) -> None:
    tokenizer, slow = load(kind), ByHand(folder(kind))

    @settings(max_examples=100)
    @given(TEXTS, st.data())
    def holds(text: str, data: st.DataObject) -> None:
        # The library reads "\n\n" after "<r>" twice: as the spaces it takes, and as a token.
        assume("\n\n" not in tokenizer.added_tokens or "\n\n" not in text)
        quoted = choose(occurrences(text, list(tokenizer.control_tokens)), data)
        ids, ends = slow.encode(text, quoted)
        try:
            encoded = tokenizer.encode(["before", text, "after"], quoted={1: quoted})
        except EncodeFailure:  # nothing is left of it, or its unknown part is a control token
            if ids and not (slow.unknown in slow.control and slow.unknown in ids):
                raise
            return
        assert row_ids(encoded, 1) == ids
        assert row_ends(encoded, 1) == ends
        assert encoded.text.tobytes() == f"before{text}after".encode()
        assert encoded.paths.quoted == bool(quoted)
        assert encoded.paths.fast + encoded.paths.reference == 3 - bool(quoted)

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_matches_are_what_the_engine_splits_out(
    kind: str, load: Load, folder: Callable[[str], Path]
) -> None:
    tokenizer, slow = load(kind), ByHand(folder(kind))

    @settings(max_examples=100)
    @given(TEXTS)
    def holds(text: str) -> None:
        encoding = slow.whole.encode(text, add_special_tokens=False)
        split = [
            (id_, *offset)
            for id_, offset in zip(encoding.ids, encoding.offsets, strict=True)
            if id_ in slow.control - {slow.unknown}
        ]
        matches = [
            m
            for m in tokenizer.control_matches(text)
            if tokenizer.control_tokens.get(text[m.start : m.end]) != slow.unknown
        ]
        assert len(matches) == len(split)
        for match, (_, start, end) in zip(matches, split, strict=True):
            assert start <= match.start < match.end <= end
            assert not text[start : match.start].strip()
            assert not text[match.end : end].strip()

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_quoted_text_has_no_control_tokens_and_the_rest_acts(
    kind: str, load: Load, folder: Callable[[str], Path]
) -> None:
    tokenizer, slow = load(kind), ByHand(folder(kind))
    control = set(tokenizer.control_tokens.values()) - {slow.unknown}

    @settings(max_examples=80)
    @given(TEXTS, st.data())
    def holds(text: str, data: st.DataObject) -> None:
        matches = tokenizer.control_matches(text)
        quoted = choose(matches, data)
        try:
            encoded = tokenizer.encode([text], quoted={0: quoted})
            plain = tokenizer.encode([text])
        except EncodeFailure:
            return
        kept = [span not in quoted for span in matches]
        acting = [id_ for id_ in plain.ids.tolist() if id_ in control]
        if len(acting) == len(matches):  # else some stand for unknown text
            expected = [id_ for id_, keep in zip(acting, kept, strict=True) if keep]
            assert [id_ for id_ in encoded.ids.tolist() if id_ in control] == expected

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_quotes_give_the_ids_back(kind: str, load: Load) -> None:
    tokenizer = load(kind)

    @settings(max_examples=80)
    @given(TEXTS, st.data())
    def holds(text: str, data: st.DataObject) -> None:
        quoted = choose(tokenizer.control_matches(text), data)
        try:
            ids = tokenizer.encode([text], quoted={0: quoted}).ids.tolist()
        except EncodeFailure:
            return
        again = tokenizer.quotes(text, ids)
        assert tokenizer.encode([text], quoted={0: again}).ids.tolist() == ids

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_quoted_is_the_common_path(kind: str, load: Load) -> None:
    tokenizer, texts = load(kind), [piece for piece in PIECES if piece.strip("\u0301\u0338 \n")]
    plain = tokenizer.encode(texts)
    empty = tokenizer.encode(texts, quoted={0: [], 3: ()})
    assert (empty.ids == plain.ids).all()
    assert (empty.ends == plain.ends).all()
    assert empty.paths == plain.paths
    assert plain.paths.quoted == 0


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_rows_without_quotes_keep_their_engine(engine: EngineName, load: Load) -> None:
    encoded = load("byte_level", engine).encode(["a", END, "b"], quoted={1: [Span(0, len(END))]})
    assert getattr(encoded.paths, engine) == 2
    assert encoded.paths.quoted == 1
    assert load("byte_level").decode(encoded.ids) == f"a{END}b"


def test_no_library_is_loaded_for_texts_without_quotes(folder: Callable[[str], Path]) -> None:
    code = (
        "import sys\nfrom pipeline.tokens.tokenizer import load_tokenizer\n"
        "from pipeline.tokens.vocabulary import read_vocabulary\n"
        f"t = load_tokenizer(read_vocabulary({str(folder('byte_level'))!r}), engine='fast')\n"
        f"t.encode(['x'], quoted={{}})\nt.control_matches('{END}')\n"
        "sys.exit('tokenizers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "quoted", "control"),
    [
        (END + END, [(0, 10)], [END]),
        (END + END, [(10, 20)], [END]),
        (END + END, [(0, 10), (10, 20)], []),
        (f"<{END}", [(1, 11)], []),
        (f"<{END}>", [], [END]),
        ("<a><b>", [(0, 6)], []),
        ("<a><b>", [(0, 3)], ["<b>"]),
        ("<a><b>", [(3, 6)], ["<a>"]),
        ("<a><b>", [], ["<a><b>"]),
        (f"a <l> {END}<r>  b", [(6, 16)], ["<l>", "<r>"]),
        (f"<think>{END}</think>{START}", [(7, 17)], [START]),
    ],
)
def test_what_is_not_quoted_acts(
    text: str, quoted: list[tuple[int, int]], control: list[str], load: Load
) -> None:
    tokenizer = load("byte_level_controls")
    encoded = tokenizer.encode([text], quoted={0: [Span(*span) for span in quoted]})
    names = {id_: content for content, id_ in tokenizer.control_tokens.items()}
    assert [names[id_] for id_ in encoded.ids.tolist() if id_ in names] == control


def test_other_added_tokens_stay_tokens_even_in_quoted_text(load: Load) -> None:
    tokenizer = load("byte_level_controls")
    encoded = tokenizer.encode([f"x{END}<think>"], quoted={0: [Span(1, 11)]})
    assert encoded.ids.tolist() == [
        tokenizer.added_tokens["x<|im_end|>"],
        tokenizer.added_tokens["<think>"],
    ]


def test_spaces_around_a_quoted_stripping_token_stay(load: Load) -> None:
    tokenizer = load("byte_level_controls")
    encoded = tokenizer.encode(["a <lr> b <lr> c"], quoted={0: [Span(2, 6)]})
    assert tokenizer.decode(encoded.ids) == "a <lr> b<lr>c"
    assert encoded.ends[-1] == 15


def spelled_in_vocabulary(kind: str) -> Library:
    """A model that makes a control token of its spelling, without any added token."""
    if kind == "merges":
        vocabulary = {c: i for i, c in enumerate("abens<>/? ")} | {"<s": 10, "<s>": 11, "<s>n": 12}
        merges = [("<", "s"), ("<s", ">"), ("<s>", "n")]
        library = Library(models.BPE(vocab=vocabulary, merges=merges))
    elif kind == "ignore_merges":
        vocabulary = {c: i for i, c in enumerate("abens<>/? ")} | {"<s>": 10}
        library = Library(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    elif kind == "unigram":
        pieces = [("<unk>", 0.0), ("<s>", 0.0), *((c, -5.0) for c in "abens<>/? ")]
        library = Library(models.Unigram(pieces, 0, byte_fallback=False))
    else:
        vocabulary = {"[UNK]": 0, "<s>": 1}
        for prefix in ("", "##"):
            vocabulary |= {prefix + c: len(vocabulary) + i for i, c in enumerate("abens<>/?")}
        library = Library(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
        library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["<s>"])
    return library


@pytest.mark.parametrize("kind", ["merges", "ignore_merges", "unigram", "word_piece"])
def test_a_model_cannot_make_a_control_token_either(kind: str, tmp_path: Path) -> None:
    library = spelled_in_vocabulary(kind)
    tokenizer = load_tokenizer(read_vocabulary(vocabularies.write(tmp_path, library)))
    encoded = tokenizer.encode(["<s>a <s> ben<s>"], quoted={0: [Span(5, 8)]})
    tokens = [str(library.id_to_token(id_)).removeprefix("##") for id_ in encoded.ids.tolist()]
    start = ["<s", ">"] if kind == "merges" else ["<", "s", ">"]
    assert [t for t in tokens if t != " "] == ["<s>", "a", *start, "b", "e", "n", "<s>"]
    assert encoded.ends.tolist()[-1] == 15
    assert tokenizer.encode(["<s>"]).ids.tolist() == [library.token_to_id("<s>")]


def test_a_spelling_that_only_the_unknown_token_covers_is_refused(load: Load) -> None:
    """This model has no bar: it makes its unknown token of one, which is a control token."""
    tokenizer = load("incomplete")
    with pytest.raises(EncodeFailure) as caught:
        tokenizer.encode([f"The {END}", "dog", "fox"], quoted={0: [Span(4, 14)]})
    assert caught.value.rows.keys() == {0}
    fault = caught.value.rows[0]
    assert (fault.stage, fault.reason) == ("encode", "control_token_inseparable")
    assert re.match(r"'<\|im_end\|>' at character 4 is content, .*; change it", str(fault))
    assert len(tokenizer.encode(["The |", "dog"], quoted={1: [Span(0, 1)]}).ids) > 3


def test_a_stand_in_of_the_text_itself_is_refused(load: Load) -> None:
    tokenizer = load("byte_level")
    text = f"{END}a{chr(0x10FFFC)}"
    with pytest.raises(EncodeFailure) as caught:
        tokenizer.encode([text, END, "\ud800"], quoted={0: [Span(0, 10)], 2: [Span(0, 1)]})
    assert {row: fault.reason for row, fault in caught.value.rows.items()} == {
        0: "control_token_inseparable",
        2: "lone_surrogate",
    }
    assert "character 11 is U+10FFFC" in str(caught.value.rows[0])
    assert isinstance(caught.value.rows[0], RecordError)
    assert tokenizer.decode(tokenizer.encode([text]).ids) == text
    other = f"{END}\U00100000\U0010fffd"
    again = tokenizer.encode([other], quoted={0: [Span(0, 10)]})
    assert tokenizer.decode(again.ids) == other


@pytest.mark.parametrize("spans", [[(3, 2)], [(0, 4), (3, 5)], [(4, 5), (0, 1)], [(0, 99)]])
def test_spans_out_of_order_are_a_bug(spans: list[tuple[int, int]], load: Load) -> None:
    with pytest.raises(ValueError, match="not sorted and disjoint"):
        load("byte_level").encode(["Hello world"], quoted={0: [Span(*s) for s in spans]})


def test_a_pickled_copy_quotes_the_same(load: Load) -> None:
    tokenizer, text = load("stripping_controls", "fast"), f"{START}a {END} e\u0301<r>  {END}"
    quoted = {0: tokenizer.control_matches(text)[1:2]}
    encoded = tokenizer.encode([text], quoted=quoted)
    again = pickle.loads(pickle.dumps(tokenizer)).encode([text], quoted=quoted)
    assert (again.ids == encoded.ids).all()
    assert (again.ends == encoded.ends).all()
