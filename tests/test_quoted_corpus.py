"""Real tokenizers: control tokens as content in real and in fuzzed text, held to pieces by hand."""

from __future__ import annotations

import itertools
import random
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.spans import Span
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from pipeline.tokens.vocabulary import read_vocabulary
from tests.test_quoted import PIECES, ByHand, occurrences, row_ids
from tests.test_tokens import row_ends
from tests.test_tokens_corpus import NAMES, conversations

pytestmark = [pytest.mark.corpus, pytest.mark.slow]
AROUND = [
    "<",
    ">",
    "|",
    "｜",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\u0301",
    "e\u0301",
    "😀",
    "a",
    "日",
    "<think>",
]


def fuzzed(controls: Sequence[str], *, count: int, draw: random.Random) -> Iterator[str]:
    """Control tokens whole, cut, decomposed, one in another, side by side; and what is around."""
    for _ in range(count):
        pieces = []
        for _ in range(draw.randint(1, 12)):
            token, other = draw.choice(controls), draw.choice(controls)
            cut = draw.randrange(len(token))
            kinds = [token, token * 2, token[:cut], token[:cut] + other + token[cut:]]
            kinds += [unicodedata.normalize("NFD", token), draw.choice(AROUND), draw.choice(PIECES)]
            pieces.append(draw.choice(kinds))
        yield "".join(pieces)


def spliced(texts: Sequence[str], controls: Sequence[str], draw: random.Random) -> Iterator[str]:
    """Real texts with control tokens put in anywhere, also inside of words."""
    for text in texts:
        cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randint(1, 6)))
        ends = [0, *cuts, len(text)]
        pieces = [text[start:end] for start, end in itertools.pairwise(ends)]
        yield "".join(piece + draw.choice(controls) for piece in pieces)


def choose(text: str, controls: Sequence[str], draw: random.Random) -> list[Span]:
    chosen: list[Span] = []
    for span in occurrences(text, controls):
        if (not chosen or chosen[-1].end <= span.start) and draw.random() < 0.5:
            chosen.append(span)
    return chosen


def load(name: str, shared: Path) -> tuple[Tokenizer, ByHand]:
    folder = shared / "tokenizers" / name
    return load_tokenizer(read_vocabulary(folder), engine="fast"), ByHand(folder)


@pytest.mark.parametrize("name", NAMES)
def test_quoted_texts_are_encoded_as_by_hand(name: str, shared: Path) -> None:
    draw = random.Random(3)
    tokenizer, slow = load(name, shared)
    every = sorted(tokenizer.control_tokens)
    controls = [*every[:12], *draw.sample(every, min(4, len(every)))]
    real = [t[:3000] for t in itertools.islice(conversations(shared), 0, 30_000, 1500)]
    texts = [*fuzzed(controls, count=200, draw=draw), *spliced(real, controls, draw)]
    quoted = {row: choose(text, controls, draw) for row, text in enumerate(texts)}
    encoded = tokenizer.encode(texts, quoted=quoted)
    for row, text in enumerate(texts):
        ids, ends = slow.encode(text, quoted[row])
        assert row_ids(encoded, row) == ids
        assert row_ends(encoded, row) == ends
        back = tokenizer.quotes(text, ids)
        assert tokenizer.encode([text], quoted={0: back}).ids.tolist() == ids
    quotes = sum(map(bool, quoted.values()))
    assert encoded.paths.quoted == quotes > 120
    assert encoded.paths.fast + encoded.paths.reference == len(texts) - quotes
    assert encoded.text.tobytes().decode() == "".join(texts)


@pytest.mark.parametrize("name", NAMES)
def test_matches_are_what_the_reference_splits_out(name: str, shared: Path) -> None:
    draw = random.Random(4)
    tokenizer, slow = load(name, shared)
    for text in fuzzed(list(tokenizer.added_tokens), count=300, draw=draw):
        encoding = slow.whole.encode(text, add_special_tokens=False)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        split = [offset for id_, offset in pairs if id_ in slow.control]
        assert tokenizer.control_matches(text) == split


@pytest.mark.parametrize("name", NAMES)
def test_every_control_token_can_be_quoted(name: str, shared: Path) -> None:
    tokenizer, slow = load(name, shared)
    controls = list(tokenizer.control_tokens)
    texts = [f"a {content}{content} b" for content in controls]
    quoted = {row: [tokenizer.control_matches(text)[0]] for row, text in enumerate(texts)}
    encoded = tokenizer.encode(texts, quoted=quoted)
    for row, content in enumerate(controls):
        ids = row_ids(encoded, row)
        assert [id_ for id_ in ids if id_ in slow.control] == [tokenizer.control_tokens[content]]
        assert tokenizer.decode(ids) == texts[row]
