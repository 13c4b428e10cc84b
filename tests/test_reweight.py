"""Reweighted shards equal those of a build with the new rules, wherever both have the columns."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from pipeline import build, cli, reweight, show
from pipeline.divided import read_regions
from pipeline.errors import BuildError
from pipeline.files import file_digest
from pipeline.lineage import require_digest
from pipeline.manifest import read_manifest
from pipeline.regions import Region, restore_turns
from pipeline.scales import restore_scales
from pipeline.shards import SCHEMA, SPAN_TYPE
from pipeline.tokens.alignment import Alignment
from pipeline.tokens.faults import EncodeFailure
from pipeline.tokens.spelling import read_spellings
from pipeline.tokens.tokenizer import load_tokenizer
from pipeline.tokens.vocabulary import TOKENIZER, read_definition, read_vocabulary
from tests import vocabularies
from tests.test_show import CHAT, write_tokenizer
from tests.test_tokens import TEXTS

RULES = {
    "none": None,
    "mild": "version: 1\nname: mild\nrules:\n"
    "  - {pattern: '<think>[\\s\\S]*?</think>\\s*', weight: 0.5}\n"
    "  - {pattern: '[A-Z]\\w+ ?', weight: 3}\n",
    "harsh": "version: 1\nname: harsh\nrules:\n  - {unless: {turn: '4'}, weight: 0}\n",
}


def talk(*contents: str, **extra: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"messages": messages, **extra}


def weighed(weight: float, *contents: str) -> dict[str, Any]:
    record = talk(*contents)
    record["messages"][-1]["weight"] = weight
    return record


RECORDS = [
    talk("Capital of France?", "<think>\n\n</think>\n\nParis 🦜."),
    talk("你好", "<think>\n世界\n</think>\n\nHello 4 you", "And?", "It is 4."),
    talk("say <|end|> twice", "<|end|><|end|> 4"),
    talk("cafe\u0301 a\u0323\u0307", "<|end|> e\u0301 4 Paris is e\u0301 4"),
    weighed(0.25, "Weigh this", "<think>\nHm\n</think>\n\nHello Paris 4"),
    weighed(0.25, "And e\u0301 this", "<think>\nHm\n</think>\n\nHello Paris 4 <call>"),
    talk("only text", "without the number", extra={"kind": "b"}),
    talk("Row", "Weight 4 it", weight=2.5),
]


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "d.jsonl"
    numbers = random.Random(4)
    records = RECORDS + [
        talk(*("".join(numbers.choices("Paris 4e\u0301\n<>你 is", k=9)) + "." for _ in "abcd"))
        for _ in range(40)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """One that normalizes: ids of some rows do not tell their text."""
    return write_tokenizer(tmp_path / "tokenizer", CHAT, normalizer={"type": "NFC"})


@pytest.fixture
def rules(tmp_path: Path) -> Callable[[str], list[str]]:
    def write(name: str) -> list[str]:
        text = RULES[name]
        if text is None:
            return []
        path = tmp_path / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        return [str(path)]

    return write


Run = Callable[..., Path]


@pytest.fixture
def built(source: str, tokenizer: str, rules: Callable[[str], list[str]], tmp_path: Path) -> Run:
    def run(name: str, *flags: str) -> Path:
        output = tmp_path / "-".join(["built", name, *flags])
        files = rules(name)
        given_rules = ["--rules", *files] if files else []
        arguments = ["--input", source, "--tokenizer", tokenizer, "--output", str(output)]
        arguments += ["--shard-size", "2500", "--workers", "1", "--quiet", *flags]
        arguments += ["--max-reject-rate", "1", *given_rules]
        assert cli.run(build.main, arguments) == 0
        return output

    return run


@pytest.fixture
def made(tokenizer: str, rules: Callable[[str], list[str]], tmp_path: Path) -> Run:
    def run(shards: Path, name: str, *flags: str, output: str = "", code: int = 0) -> Path:
        folder = tmp_path / (output or f"{shards.name}-{name}")
        arguments = [str(shards), "--tokenizer", tokenizer, "--output", str(folder), "--quiet"]
        arguments += ["--max-reject-rate", "1", "--workers", "1", *flags]
        assert cli.run(reweight.main, [*arguments, "--rules", *rules(name)]) == code
        return folder

    return run


def shards_of(folder: Path) -> dict[str, bytes]:
    paths = [*folder.glob("*-of-*.parquet"), *folder.glob("*-of-*.arrow")]
    return {path.name: path.read_bytes() for path in paths}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*-of-*")):
        table = pa.ipc.open_stream(path).read_all() if path.suffix == ".arrow" else None
        rows += (table or pq.read_table(path)).to_pylist()
    return rows


def counts_of(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest.counts


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize(("old", "new"), [("none", "mild"), ("mild", "none"), ("mild", "mild")])
def test_it_equals_a_build_byte_for_byte(
    old: str, new: str, form: str, built: Run, made: Run
) -> None:
    fresh = built(new, "--format", form)
    again = made(built(old, "--format", form), new)
    assert len(shards_of(fresh)) > 2
    assert shards_of(again) == shards_of(fresh)
    expected = {"missing": 0, **counts_of(fresh)}
    assert counts_of(again) == expected


LANGUAGE = {
    "everything": "base: all\n",
    "last": "base: last_turn\n",
    "placed": "rules:\n"
    "  - {where: {turn: -1, region: [reasoning, content]}, weight: 0.25}\n"
    "  - {pattern: 'P(?P<rest>aris)', group: rest, weight: 2, edge: any}\n"
    "  - {pattern: 'is', where: {first: true}, weight: 3, edge: fraction}\n"
    "  - {pattern: '[4e]+', weight: 0, count: true, edge: contained}\n"
    "  - {pattern: 'Hm', weight: -0.5, negative: true}\n",
    "asked": "rules:\n"
    "  - {when: {user: 'And|say'}, unless: {turn: '<call>'}, weight: 0.5}\n"
    "  - {pattern: '4', sample_weight: 0.125}\n"
    "  - sections:\n"
    "      - {marker: 'Hello', weight: 2, body: 0.5}\n"
    "      - {marker: 'Paris', weight: 1, body: 3}\n",
    "others": "base: all\nrules:\n"
    "  - {where: {role: user}, weight: 0.5}\n"
    "  - {pattern: '[A-Z]', weight: 2}\n",
    "kept": "rules:\n  - {when: {row: {weight: {min: 2}}}, weight: 4}\n",
}


@pytest.mark.parametrize("new", LANGUAGE)
@pytest.mark.parametrize("old", ["mild", "everything"])
def test_the_whole_language_equals_a_build(
    old: str, new: str, built: Run, made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in LANGUAGE.items():
        monkeypatch.setitem(RULES, name, f"version: 1\nname: {name}\n{text}")
    fresh = built(new, "--keep", "weight")
    again = made(built(old, "--keep", "weight"), new)
    assert shards_of(again) == shards_of(fresh)
    assert counts_of(again) == {"missing": 0, **counts_of(fresh)}


def test_fields_that_were_not_kept_are_asked_for(
    built: Run, made: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RULES, "kept", f"version: 1\nname: kept\n{LANGUAGE['kept']}")
    made(built("none"), "kept", code=1)
    assert "build again with the new rules, or once with --keep weight" in capsys.readouterr().err


def test_a_field_that_holds_another_serves_it(
    built: Run, made: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "rules:\n  - {when: {row: {extra.kind: b}}, weight: 4}\n"
    monkeypatch.setitem(RULES, "dotted", f"version: 1\nname: dotted\n{text}")
    fresh = built("dotted", "--keep", "extra")
    assert rows_of(made(built("none", "--keep", "extra"), "dotted")) == rows_of(fresh)
    assert max(w for row in rows_of(fresh) for w in row["loss_scale"]) >= 4
    unkept = built("dotted")
    arguments = [str(unkept), "--tokenizer", str(unkept.parent / "tokenizer")]
    assert cli.run(show.main, arguments) == 1
    assert "ask for the record's extra.kind, which its row does not keep" in capsys.readouterr().err


def test_ids_that_rules_decided_are_not_reweighted(
    built: Run, made: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    made(built("mild", "--edge", "split"), "none", code=1)
    assert "edges that split change ids" in capsys.readouterr().err


def test_edges_may_change(built: Run, made: Run) -> None:
    fresh, again = built("mild", "--edge", "any"), made(built("none"), "mild", "--edge", "any")
    assert rows_of(again) == rows_of(fresh) != rows_of(built("mild"))


def test_the_data_tries_what_can_differ(built: Run) -> None:
    rows = rows_of(built("mild"))
    assert 3 < sum(row["text"] is not None for row in rows) < len(rows) - 3
    weights = {span["weight"] for row in rows for span in row["spans"]}
    assert weights == {0.25, 1.0, 2.5}
    assert counts_of(built("none"))["quoted_control_tokens"] == 4


def test_rows_that_would_train_nothing_become_rejects(built: Run, made: Run) -> None:
    fresh, again = built("harsh"), made(built("none"), "harsh")
    assert rows_of(again) == rows_of(fresh)
    lines = [(f / "rejects.jsonl").read_text().splitlines() for f in (fresh, again)]
    expected, found = ([json.loads(line) for line in part] for part in lines)
    assert len(found) > 1
    for key in ("source", "row", "stage", "reason", "field"):
        assert [r[key] for r in found] == [r[key] for r in expected]
    assert found[0]["place"] == f"d.jsonl[{found[0]['row']}]"
    assert found[0]["raw"] == "null"
    for key in ("rejects", "reject.weigh.nothing_to_train", "rows", "tokens", "turns"):
        assert counts_of(again)[key] == counts_of(fresh)[key]
    assert not any(key.startswith("found.") for key in counts_of(again))


def test_what_the_old_rules_rejected_is_told_as_missing(
    built: Run, made: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    harsh, fresh = built("harsh"), built("none")
    again = made(harsh, "none")
    lost = counts_of(harsh)["rejects"]
    assert lost > 1
    there = {row["row"] for row in rows_of(harsh)}
    assert rows_of(again) == [row for row in rows_of(fresh) if row["row"] in there]
    assert counts_of(again)["missing"] == lost
    assert counts_of(again)["rejects"] == 0
    assert counts_of(made(again, "mild"))["missing"] == lost
    capsys.readouterr()
    arguments = [str(harsh), "--rules", "--output", str(again), "--tokenizer"]
    assert cli.run(reweight.main, [*arguments, str(harsh.parent / "tokenizer")]) == 0
    assert re.search(rf"^missing +{lost}: rules before", capsys.readouterr().out, re.MULTILINE)


def test_the_bytes_are_the_same_for_any_number_of_workers(built: Run, made: Run) -> None:
    old = built("none")
    folders = [made(old, "mild", "--workers", n, output=n) for n in ("1", "3")]
    one, three = ({p.name: p.read_bytes() for p in f.iterdir() if p.is_file()} for f in folders)
    assert one == three


def test_the_second_run_makes_only_what_is_not_there(built: Run, made: Run) -> None:
    old = built("none")
    folder = made(old, "mild")
    before, kept, *_ = sorted(folder.glob("*-of-*"))
    expected, touched = before.read_bytes(), kept.stat().st_mtime_ns
    before.unlink()
    assert made(old, "mild") == folder
    assert before.read_bytes() == expected
    assert kept.stat().st_mtime_ns == touched
    made(old, "none", output=folder.name, code=1)  # another fingerprint
    made(old, "none", "--overwrite", output=folder.name)
    assert shards_of(folder) == shards_of(old)


def test_the_manifest_tells_the_descent(built: Run, made: Run) -> None:
    old = built("none")
    first, second = read_manifest(old), read_manifest(made(old, "mild"))
    assert first is not None
    assert second is not None
    assert second.parts["reweighted_from"] == first.fingerprint != second.fingerprint
    assert second.parts["inputs"] == first.parts["inputs"]
    assert list(second.rules) == list(second.parts["rules"]) == ["mild"]


def cut(folder: Path, _: Path) -> None:
    path = min(folder.glob("*-of-*"))
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path, _: Path) -> None:
    path = min(folder.glob("*-of-*"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def age(folder: Path, _: Path) -> None:
    """A shard of a version that had no texts, and a manifest that knows it."""
    path = min(folder.glob("*-of-*"))
    pq.write_table(pq.read_table(path).drop_columns(["text", "fields"]), path)
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = manifest["shards"][0]
    shard["bytes"], shard["sha256"] = path.stat().st_size, file_digest(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def retrain(_: Path, tokenizer: Path) -> None:
    path = tokenizer / TOKENIZER
    path.write_text(path.read_text() + "\n")


def drop_manifest(folder: Path, _: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (drop_manifest, "an unfinished build: it has no manifest.json yet; run its command again"),
        (cut, "bytes, but manifest.json says"),
        (lambda folder, _: min(folder.glob("*-of-*")).unlink(), "is missing, but manifest.json"),
        (flip, "its sha256 is not the one in manifest.json"),
        (age, "not a shard of this version"),
        (retrain, "tokenizer.json is"),
    ],
)
def test_shards_that_are_not_what_was_built_are_refused(
    change: Callable[[Path, Path], None],
    fact: str,
    built: Run,
    made: Run,
    tokenizer: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = built("none")
    change(old, Path(tokenizer))
    output = made(old, "mild", code=1)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert fact in error
    assert not (output / "manifest.json").exists()


def test_no_build_and_the_same_folder_are_refused(
    built: Run, made: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = built("none")
    before = {p.name: p.read_bytes() for p in old.iterdir() if p.is_file()}
    made(old, "mild", "--overwrite", output=old.name, code=1)
    assert "is the folder of the shards; choose another" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in old.iterdir() if p.is_file()} == before
    made(tmp_path / "absent", "mild", code=1)
    assert "give the folder of a finished build" in capsys.readouterr().err


@pytest.mark.parametrize("turns", ["fan_out", "last_turn"])
def test_rows_of_one_turn_each_equal_a_build(built: Run, made: Run, turns: str) -> None:
    fresh, again = built("mild", "--turns", turns), made(built("none", "--turns", turns), "mild")
    assert rows_of(again) == rows_of(fresh)


def test_too_many_rejects_are_an_error(built: Run, made: Run) -> None:
    made(built("none"), "harsh", "--max-reject-rate", "0.01", code=1)


WORDS = ("input", "header", "reasoning", "content", "tool_call", "stop", "trailing")


@st.composite
def divided_rows(draw: st.DrawFn) -> list[list[Region]]:
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        position, row = 0, list[Region]()
        for message in range(draw(st.integers(0, 4))):
            role = draw(st.sampled_from(("user", "assistant", "tool")))
            for _ in range(draw(st.integers(1, 5))):
                position += draw(st.sampled_from((0, 0, 3)))
                end = position + draw(st.integers(1, 3))
                weight = draw(st.sampled_from((1.0, 1.0, 0.5, 0.0)))
                name = draw(st.sampled_from(WORDS))
                row.append(Region(message, role, name, position, end, weight))
                position = end
        rows.append(row)
    return rows


@given(divided_rows())
def test_turns_and_scales_of_many_rows_are_those_of_each(rows: Sequence[list[Region]]) -> None:
    """The slow reference goes row by row, region by region."""
    names = [field.name for field in SPAN_TYPE]
    column = pa.chunked_array(
        [[[dict(zip(names, region, strict=True)) for region in row] for row in rows]],
        pa.list_(SPAN_TYPE),
    )
    regions = read_regions(column)
    turns = regions.turns(["<think>" * 20] * len(rows))
    found = [turns.of(row) for row in range(len(rows))]
    assert [[t._replace(opened=False) for t in row] for row in found] == [
        list(restore_turns(row)) for row in rows
    ]
    assert regions.scales() == [restore_scales(row) for row in rows]
    lengths = np.array([max((r.end for r in row), default=0) for row in rows], np.int64)
    assert not len(regions.outside(lengths))
    assert regions.outside(lengths - 1).tolist() == [i for i, row in enumerate(rows) if row]


@pytest.mark.parametrize("kind", sorted(vocabularies.KINDS))
def test_ids_spell_their_text_or_say_that_they_do_not(kind: str, tmp_path: Path) -> None:
    """The reference's own ids; all the words' bytes, joined by hand."""
    vocabularies.write(tmp_path, vocabularies.KINDS[kind]())
    tokenizer = load_tokenizer(read_vocabulary(tmp_path))
    path = tmp_path / TOKENIZER
    words = read_spellings(read_definition(path.read_bytes(), path)).words.to_pylist()

    @given(st.lists(TEXTS, max_size=4))
    def holds(texts: list[str]) -> None:
        try:
            encoded = tokenizer.encode(texts)
        except EncodeFailure:
            reject()
        for row, told in enumerate(tokenizer.spelled(encoded).tolist()):
            tokens = slice(*encoded.firsts[row : row + 2].tolist())
            parts = [words[i] for i in encoded.ids[tokens].tolist()]
            ends = (encoded.ends[tokens] - encoded.starts[row]).tolist()
            same = b"".join(parts) == texts[row].encode()
            same = same and np.cumsum([0, *map(len, parts)])[1:].tolist() == ends
            assert told == same

    holds()


@pytest.mark.parametrize("kind", ["byte_level", "nfc", "nfkc", "lowercase", "stripping"])
def test_tokens_end_in_normalized_text_where_the_reference_says(kind: str, tmp_path: Path) -> None:
    """Found with one token a byte, or not told; the whole model's are the reference."""
    vocabularies.write(tmp_path, vocabularies.KINDS[kind]())
    tokenizer = load_tokenizer(read_vocabulary(tmp_path))
    raw = (tmp_path / TOKENIZER).read_bytes()
    definition = read_definition(raw, tmp_path / TOKENIZER)
    alignment = Alignment(definition, raw=raw, spellings=read_spellings(definition))
    told: list[bool] = []

    @given(TEXTS)
    def holds(text: str) -> None:
        try:
            encoded = tokenizer.encode([text])
        except EncodeFailure:
            reject()
        if tokenizer.spelled(encoded)[0]:  # ids tell more: where in a character a token ends
            return
        widths = alignment.widths(text, encoded.ids)
        told.append(widths is not None)
        assert widths is None or np.cumsum(widths).tolist() == encoded.ends.tolist()

    holds()
    assert any(told) == (kind != "byte_level")


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_plain_text_is_spelled_by_its_ids(kind: str, tmp_path: Path) -> None:
    name = next(k for k in vocabularies.KINDS if k.replace("-", "_").startswith(kind))
    vocabularies.write(tmp_path, vocabularies.KINDS[name]())
    tokenizer = load_tokenizer(read_vocabulary(tmp_path))
    texts = ["The fox  jumps\n\n\tover 你好 😀 <|im_end|>\n", "", "\u0378\x00"]
    assert tokenizer.spelled(tokenizer.encode(texts)).all()


def test_the_columns_stand_in_the_schema() -> None:
    assert SCHEMA.names[-3:] == ["text", "fields", "spans"]


def test_shards_of_the_profile_are_not_reweighted(
    built: Run, made: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    made(built("mild", "--profile", "ms-swift", "--edge", "majority"), "none", code=1)
    assert "made with --profile ms-swift" in capsys.readouterr().err


def test_rejects_do_not_overwrite_a_shard_folder(
    built: Run, made: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = built("none")
    before = (shards / "manifest.json").read_bytes()
    made(shards, "mild", "--rejects", str(shards / "manifest.json"), code=1)
    assert "lies among the shards" in capsys.readouterr().err
    assert (shards / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "break_it",
    [
        lambda m: m.update(version=99),
        lambda m: m.update(parts=[]),
        lambda m: m["parts"].pop("policy"),
        lambda m: m["parts"]["policy"].update(edge="most"),
        lambda m: m["parts"].pop("tokenizer"),
        lambda m: m.update(shards=None),
        lambda m: m["shards"][0].pop("sha256"),
        lambda m: m["shards"][0].update(file=3),
        lambda m: m["counts"].pop("rows"),
        lambda m: m.update(rules={"a": 1}),
        lambda m: m.update(format="csv"),
        lambda m: m.update(chat_templates={}),
    ],
)
def test_a_manifest_that_is_not_ours_is_an_error(
    break_it: Callable[[Any], Any], built: Run, made: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = built("none")
    manifest = json.loads((shards / "manifest.json").read_text())
    break_it(manifest)
    (shards / "manifest.json").write_text(json.dumps(manifest))
    made(shards, "mild", code=1)
    assert "not a manifest of this version" in capsys.readouterr().err


def test_a_shard_that_cannot_be_read_is_told_as_such(tmp_path: Path) -> None:
    """Not as one that cannot be written, as a worker tells what else goes wrong with files."""
    (tmp_path / "train-00000-of-00001.parquet").mkdir()
    shard = {"file": "train-00000-of-00001.parquet", "sha256": ""}
    with pytest.raises(BuildError, match=r"00001\.parquet: cannot be read \(Is a directory\); see"):
        require_digest(tmp_path, shard)
