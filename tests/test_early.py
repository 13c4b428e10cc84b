"""What a worker loads before its job is known: the same engine, or none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tokens import trust
from pipeline.tokens.certificate import write_shipped
from pipeline.tokens.fast import Ahead, FastEngine, Loading
from pipeline.tokens.merges import join_merges
from pipeline.tokens.tokenizer import load_tokenizer, read_tokenizer
from pipeline.tokens.trust import Certificate, EngineName, engine_versions
from pipeline.tokens.vocabulary import TOKENIZER, Vocabulary, read_vocabulary
from tests import vocabularies

WORD = st.text(st.characters(codec="utf-8", exclude_characters=" "), min_size=1, max_size=4)
TEXTS = ["Hello  world\n", "", "naïve 🙂 a b"]


def definition(merges: Any) -> dict[str, Any]:
    model = {"type": "BPE", "vocab": {'"],["': 0}, "merges": merges}
    return {"version": "1.0", "added_tokens": [{"id": 7, "content": "[\n"}], "model": model}


@given(st.lists(st.tuples(WORD, WORD), min_size=1), st.sampled_from([None, 1]))
def test_joined_merges_are_the_pairs_and_nothing_else_changes(
    pairs: list[tuple[str, str]], indent: int | None
) -> None:
    raw = json.dumps(definition(pairs), indent=indent, ensure_ascii=False).encode()
    joined = json.loads(join_merges(raw))
    merges = joined["model"].pop("merges")
    assert [tuple(merge.split(" ")) for merge in merges] == pairs
    expected = definition(pairs)
    del expected["model"]["merges"]
    assert joined == expected


@pytest.mark.parametrize(
    "merges", [[["a ", "b"]], [["a", "b"], ["", " "]], ["a b"], [], None, [["a", "b", "c"]], 3]
)
def test_merges_that_cannot_be_joined_stay(merges: Any) -> None:
    raw = json.dumps(definition(merges)).encode()
    assert join_merges(raw) is raw


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"model": 1}', b"\xff"])
def test_what_is_no_tokenizer_stays(raw: bytes) -> None:
    assert join_merges(raw) is raw


@pytest.mark.corpus
def test_joined_merges_are_those_of_the_corpus(shared: Path) -> None:
    changed = 0
    for folder in sorted((shared / "tokenizers").iterdir()):
        raw = (folder / TOKENIZER).read_bytes()
        before, after = json.loads(raw), json.loads(join_merges(raw))
        for value in (before, after):
            merges = value["model"]["merges"]
            value["model"]["merges"] = [m.split(" ") if isinstance(m, str) else m for m in merges]
        assert before == after, folder.name
        changed += join_merges(raw) is not raw
    assert changed


@pytest.fixture
def vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vocabulary:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return read_vocabulary(vocabularies.write(tmp_path / "t", vocabularies.byte_level()))


def certify(
    vocabulary: Vocabulary, engine: EngineName, monkeypatch: pytest.MonkeyPatch
) -> Certificate:
    """A certificate of the vocabulary, shipped with the package."""
    digest = vocabulary.digests[TOKENIZER]
    made = Certificate(engine, "", (), 1, digest, engine_versions())
    path = vocabulary.folder.parent / "shipped.json"
    write_shipped({trust.certificate_key(made): made}, path)
    monkeypatch.setattr(trust, "SHIPPED", path)
    return made


def test_an_engine_loaded_ahead_encodes_as_one_loaded_later(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certify(vocabulary, "fast", monkeypatch)
    later = load_tokenizer(vocabulary, certificate=certificate)
    loading = Ahead(str(vocabulary.folder)).begin()
    tokenizer = load_tokenizer(vocabulary, certificate=certificate, loading=loading)
    tokenizer.load()
    assert tokenizer.engine == "fast"
    assert tokenizer.encode(TEXTS).ids.tolist() == later.encode(TEXTS).ids.tolist()
    assert loading.take(vocabulary.digests[TOKENIZER]) is None  # it has been taken


@pytest.mark.parametrize("engine", [None, "reference"])
def test_an_engine_that_is_not_trusted_is_not_loaded(
    engine: EngineName | None, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine:
        certify(vocabulary, engine, monkeypatch)
    loading = Loading(vocabulary.folder / TOKENIZER)
    assert loading.take(vocabulary.digests[TOKENIZER]) is None


def test_an_engine_of_another_file_is_not_taken(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file may change between two looks at it."""
    certify(vocabulary, "fast", monkeypatch)
    loading = Loading(vocabulary.folder / TOKENIZER)
    assert loading.take(hashlib.sha256(b"another").hexdigest()) is None


@pytest.mark.parametrize("broken", ["no file", "a panic"])
def test_what_fails_ahead_is_done_again_later(
    broken: str, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certify(vocabulary, "fast", monkeypatch)
    path = vocabulary.folder / TOKENIZER
    with monkeypatch.context() as patch:
        if broken == "a panic":
            panic = type("PanicException", (BaseException,), {})

            def fail(*_: object) -> None:
                raise panic("in the thread")

            patch.setattr(FastEngine, "__init__", fail)
        loading = Loading(path if broken == "a panic" else path / "none")
        assert loading.take("") is None
    tokenizer = load_tokenizer(vocabulary, certificate=certificate, loading=loading)
    fast = FastEngine(read_tokenizer(vocabulary))
    assert tokenizer.encode(TEXTS).ids.tolist() == fast.encode(TEXTS)[0].tolist()
