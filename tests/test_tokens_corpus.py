"""Real tokenizers on real and on fuzzed text: ids and ends are the reference's."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from tokenizers import Tokenizer as Library

from pipeline.tokens.tokenizer import load_tokenizer
from pipeline.tokens.vocabulary import read_vocabulary
from tests.test_tokens import PIECES, row_ends, slow_ends

pytestmark = pytest.mark.corpus
NAMES = [
    "qwen3",
    "qwen2.5",
    "qwen3.5",
    "deepseek_r1",
    "llama8b-r1distill",
    "glm-4.7-flash",
    "gemma3",
]


@pytest.fixture(scope="module")
def texts(shared: Path) -> list[str]:
    """Every hundredth of the first 30,000 conversations, and mixes of hard pieces."""
    draw = random.Random(7)
    mixed = ["".join(draw.choices(PIECES, k=draw.randint(1, 30))) for _ in range(500)]
    return [*itertools.islice(conversations(shared), 0, 30_000, 100), *mixed, "", " ", "\n"]


def conversations(shared: Path) -> Iterator[str]:
    path = shared / "data" / "bench_messages.jsonl.zst"
    with zstandard.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            contents = [message.get("content") for message in json.loads(line)["messages"]]
            yield "\n".join(content for content in contents if isinstance(content, str))


@pytest.mark.parametrize("name", NAMES)
def test_real_texts(name: str, texts: list[str], shared: Path) -> None:
    folder = shared / "tokenizers" / name
    library = Library.from_file(str(folder / "tokenizer.json"))
    encoded = load_tokenizer(read_vocabulary(folder), engine="fast").encode(texts)
    assert encoded.paths.fast == len(texts)
    assert encoded.paths.checked > 0
    assert encoded.text.tobytes().decode() == "".join(texts)
    for row, text in enumerate(texts):
        ids = encoded.ids[encoded.firsts[row] : encoded.firsts[row + 1]]
        assert ids.tolist() == library.encode(text, add_special_tokens=False).ids
        assert row_ends(encoded, row) == slow_ends(library, text)
    assert (encoded.ends[encoded.firsts[1:] - 1] <= encoded.starts[1:]).all()


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "deepseek_r1"])
def test_the_bytes_of_a_token_are_what_it_decodes_to(
    name: str, texts: list[str], shared: Path
) -> None:
    """Wherever it decodes to whole characters."""
    tokenizer = load_tokenizer(read_vocabulary(shared / "tokenizers" / name), engine="fast")
    text = next(t for t in texts if not t.isascii() and len(t) > 500)
    encoded = tokenizer.encode([text])
    assert encoded.paths.repaired == 0
    starts = np.concatenate(([0], encoded.ends[:-1]))
    for start, end, id_ in zip(starts, encoded.ends, encoded.ids, strict=True):
        alone = tokenizer.decode([int(id_)])
        if "\ufffd" not in alone:
            assert encoded.text[start:end].tobytes().decode() == alone
