"""The fast engine is trusted where it equals the reference, and not a code point further."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline import certify
from pipeline.tokens import certificate, trial, trust
from pipeline.tokens.certificate import examine
from pipeline.tokens.encoded import Int32, Int64
from pipeline.tokens.tokenizer import load_tokenizer
from pipeline.tokens.trust import (
    SHIPPED,
    Certificate,
    EngineName,
    engine_versions,
    read_shipped,
)
from pipeline.tokens.vocabulary import Vocabulary, read_vocabulary
from tests import vocabularies


class Bytes:
    """An engine whose ids are the texts' bytes; where *mark* is in a text, one byte is another."""

    name: EngineName = "fast"

    def __init__(self, lies: Callable[[str], bool] = lambda _: False) -> None:
        self._lies = lies

    def encode(self, texts: Sequence[str]) -> tuple[Int32, Int64]:
        raws = [b"?" + t.encode()[1:] if self._lies(t) else t.encode() for t in texts]
        firsts = np.cumsum([0, *map(len, raws)], dtype=np.int64)
        return np.frombuffer(b"".join(raws), np.uint8).astype(np.int32), firsts


def compare(lies: Callable[[str], bool]) -> trial.Finding:
    return trial.compare(Bytes(lies), Bytes(), added=["<|im_end|>", "<think>"], words=["the"])


def test_an_honest_engine_is_trusted() -> None:
    finding = compare(lambda _: False)
    assert (finding.code_points, finding.difference) == ((), "")
    assert finding.strings > 150_000


@pytest.mark.parametrize("point", [0x80, 0x17F, 0x180E, 0xFFFF, 0x1F600, 0x2A6D6, 0x323AF, 0xE01EF])
def test_a_differing_code_point_goes_into_the_table(point: int) -> None:
    finding = compare(lambda text: chr(point) in text)
    assert (finding.code_points, finding.difference) == ((point,), "")


def test_many_differing_code_points_reject() -> None:
    finding = compare(lambda text: any("一" <= c <= "龥" for c in text))
    assert finding.difference
    assert len(finding.code_points) > 256


@pytest.mark.parametrize(
    "lies",
    [
        lambda text: "a" in text,
        lambda text: " " * 128 in text,
        lambda text: text == "\n" * 4096,
        lambda text: "<|im_end|>\n" in text,
        lambda text: text.endswith("<|im_en"),
        lambda text: text == "<THINK>",
        lambda text: "'LL" in text,
        lambda text: "'ſ" in text and text != trial._contexts("ſ"),
        lambda text: "a\u0323\u0307" in text or "o\u0323\u0307" in text,
        lambda text: "ᄒ" + "ᅡ" in text,
        lambda text: len(text) > 10_000,
        lambda text: text == "the",
    ],
)
def test_what_code_points_do_not_explain_rejects(lies: Callable[[str], bool]) -> None:
    difference = compare(lies).difference
    assert difference
    assert lies(difference)


def test_an_engine_that_fails_alone_is_rejected() -> None:
    def lies(text: str) -> bool:
        if "\x00" * 64 in text:
            raise ValueError("boom")
        return False

    assert "\x00" * 64 in compare(lies).difference
    both = trial.compare(Bytes(lies), Bytes(lies), added=[], words=[])
    assert not both.difference


def test_the_sweep_touches_every_column_of_code_points() -> None:
    points = set(map(ord, "".join(trial._sweep())))
    assert points.isdisjoint(range(0xD800, 0xE000))
    assert points >= {*range(0xD800), *range(0xE000, 0x32400)}
    columns = {point // 16 for point in range(0x110000) if not 0xD800 <= point < 0xE000}
    assert {point // 16 for point in points} == columns


@pytest.fixture(scope="module")
def other_whitespace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vocabulary, Certificate]:
    folder = tmp_path_factory.mktemp("other") / "whitespace"
    vocabularies.write(folder, vocabularies.with_other_whitespace())
    vocabulary = read_vocabulary(folder)
    return vocabulary, examine(vocabulary)


def test_a_real_difference_is_found(other_whitespace: tuple[Vocabulary, Certificate]) -> None:
    _, found = other_whitespace
    assert (found.engine, found.code_points) == ("fast", (0x180E,))
    assert pickle.loads(pickle.dumps(found)) == found
    assert found.summary()["distrusted"] == ["U+180E"]


def test_texts_of_the_table_get_the_reference_ids(
    other_whitespace: tuple[Vocabulary, Certificate],
) -> None:
    vocabulary, found = other_whitespace
    text = "x\u180e1"
    certified = load_tokenizer(vocabulary, certificate=found).encode([text]).ids.tolist()
    unchecked = load_tokenizer(vocabulary, engine="fast").encode([text]).ids.tolist()
    reference = load_tokenizer(vocabulary, engine="reference").encode([text]).ids.tolist()
    assert unchecked != reference
    assert certified == reference


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        # The vocabulary holds it as the byte 0, and no merge makes it of its characters.
        ("byte_fallback", "other ids for '<0x00>'"),
        ("nfkc", "fastokens cannot load it: "),
        ("unigram", "ids do not tell offsets"),
    ],
)
def test_a_rejected_engine_is_no_error(kind: str, reason: str, tmp_path: Path) -> None:
    vocabulary = read_vocabulary(vocabularies.write(tmp_path, vocabularies.KINDS[kind]()))
    found = examine(vocabulary)
    assert found.engine == "reference"
    assert found.reason.startswith(reason)
    assert load_tokenizer(vocabulary, certificate=found).engine == "reference"


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    return read_vocabulary(vocabularies.write(tmp_path / "t", vocabularies.byte_level()))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Vocabulary]:
    """Every vocabulary that `find_certificate` had to examine, which takes no time here."""
    seen: list[Vocabulary] = []

    def examined(vocabulary: Vocabulary) -> Certificate:
        seen.append(vocabulary)
        digest = vocabulary.digests["tokenizer.json"]
        return Certificate("fast", "equal ids", (0x180E,), 7, digest, engine_versions())

    monkeypatch.setattr(certificate, "examine", examined)
    return seen


def test_a_certificate_is_made_once(
    vocabulary: Vocabulary, runs: list[Vocabulary], tmp_path: Path
) -> None:
    first = certificate.find_certificate(vocabulary, cache=tmp_path / "c")
    assert certificate.find_certificate(vocabulary, cache=tmp_path / "c") == first
    assert len(runs) == 1
    assert [path.suffix for path in (tmp_path / "c").iterdir()] == [".json"]


def test_the_cache_is_where_the_environment_says(
    vocabulary: Vocabulary, runs: list[Vocabulary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    certificate.find_certificate(vocabulary)
    assert len([*(tmp_path / "cache" / "weighted-shards" / "certificates").iterdir()]) == len(runs)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda _: b"\xff{",
        lambda raw: raw[:-9],
        lambda raw: raw.replace(b'"fast"', b'"quick"'),
        lambda raw: json.dumps({**json.loads(raw), "tokenizer": "0"}).encode(),
    ],
)
def test_a_corrupt_entry_is_made_anew(
    change: Callable[[bytes], bytes], vocabulary: Vocabulary, runs: list[Vocabulary], tmp_path: Path
) -> None:
    first = certificate.find_certificate(vocabulary, cache=tmp_path / "c")
    (entry,) = (tmp_path / "c").iterdir()
    entry.write_bytes(change(entry.read_bytes()))
    assert certificate.find_certificate(vocabulary, cache=tmp_path / "c") == first
    assert len(runs) == 2
    assert certificate.find_certificate(vocabulary, cache=tmp_path / "c") == first
    assert len(runs) == 2


def test_a_cache_that_cannot_be_written_is_done_without(
    vocabulary: Vocabulary, runs: list[Vocabulary], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert certificate.find_certificate(vocabulary, cache=tmp_path / "file" / "c").engine == "fast"
    assert len(runs) == 1


@pytest.mark.parametrize("part", ["tokenizer", "versions", "set"])
def test_another_tokenizer_version_or_set_is_another_key(
    part: str,
    vocabulary: Vocabulary,
    runs: list[Vocabulary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificate.find_certificate(vocabulary, cache=tmp_path / "c")
    if part == "tokenizer":
        vocabulary = read_vocabulary(vocabularies.write(tmp_path / "u", vocabularies.stripping()))
    elif part == "versions":
        versions = {"fastokens": "9", "tokenizers": "0.23.1"}
        monkeypatch.setattr(trust, "engine_versions", lambda: versions)
    else:
        monkeypatch.setattr(trust, "SET", trust.SET + 1)
    certificate.find_certificate(vocabulary, cache=tmp_path / "c")
    assert len(runs) == 2


def test_trust_can_be_withdrawn(
    vocabulary: Vocabulary, runs: list[Vocabulary], tmp_path: Path
) -> None:
    assert certificate.find_certificate(vocabulary, cache=tmp_path).engine == "fast"
    withdrawn = certificate.distrust(vocabulary, "crc32 0: token 3 differs", cache=tmp_path)
    assert withdrawn.engine == "reference"
    assert certificate.find_certificate(vocabulary, cache=tmp_path) == withdrawn
    assert len(runs) == 1
    assert "token 3" not in str(withdrawn.summary())  # it may quote a text, and depends on the run


def test_the_shipped_list_is_asked_before_a_run(
    vocabulary: Vocabulary, runs: list[Vocabulary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = certificate.examine(vocabulary)
    certificate.write_shipped({trust.certificate_key(known): known}, tmp_path / "list.json")
    monkeypatch.setattr(trust, "SHIPPED", tmp_path / "list.json")
    assert certificate.find_certificate(vocabulary, cache=tmp_path / "c") == known
    assert len(runs) == 1


def test_the_command_writes_the_list(
    vocabulary: Vocabulary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trial, "_sweep", lambda: iter("ab\u180e"))
    monkeypatch.setattr(trial, "_strings", lambda _, words: iter(words))
    target = tmp_path / "list.json"
    other = vocabularies.write(tmp_path / "u", vocabularies.unigram())
    for folders in ([str(vocabulary.folder)], [str(other)]):
        assert certify.main([*folders, "--write", str(target)]) == 0
    shipped = read_shipped(target)
    assert sorted(c.engine for c in shipped.values()) == ["fast", "reference"]
    assert all(trust.certificate_key(c) == key for key, c in shipped.items())
    assert target.read_bytes().endswith(b"}\n")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{vocabulary.folder}: fast (equal ids); ")
    assert second.startswith(f"{other}: reference (ids do not tell offsets")


def test_the_shipped_list_is_of_this_set_and_quotes_no_text() -> None:
    """A key that does not fit means: run `python -m pipeline.certify --write` again."""
    for key, known in read_shipped(SHIPPED).items():
        assert trust.certificate_key(known) == key
        assert known.engine == "reference" or known.reason.startswith("equal ids")


@pytest.mark.corpus
def test_the_shipped_list_knows_the_tokenizers_of_the_corpus(shared: Path) -> None:
    known = {c.tokenizer: c for c in read_shipped(SHIPPED).values()}
    for folder in sorted((shared / "tokenizers").iterdir()):
        found = known[read_vocabulary(folder).digests["tokenizer.json"]]
        assert (found.engine, found.code_points) == ("fast", ()), folder.name


@pytest.mark.corpus
@pytest.mark.slow
def test_a_shipped_certificate_comes_out_again(shared: Path) -> None:
    vocabulary = read_vocabulary(shared / "tokenizers" / "qwen3")
    found = examine(vocabulary)
    known = {c.tokenizer: c for c in read_shipped(SHIPPED).values()}[found.tokenizer]
    assert (known.engine, known.code_points, known.strings) == (
        found.engine,
        found.code_points,
        found.strings,
    )
