"""What ``show`` prints is what a build writes, and each token's reason accounts for its weight."""

from __future__ import annotations

import html.parser
import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from pipeline import cli, dataset, show
from pipeline.batch import Encoder
from pipeline.building import make_encoder
from pipeline.explanation import Explanation
from pipeline.page import make_page, visible, width
from pipeline.recipe import BUNDLED, Recipe, make_recipe
from pipeline.regions import Turn, divide, restore_turns
from pipeline.scales import Scale, cut_regions, restore_scales
from pipeline.source import read
from pipeline.source.record import Piece, Record
from pipeline.spans import Span
from pipeline.tokens.trust import Certificate, engine_versions
from pipeline.tokens.vocabulary import TOKENIZER, Vocabulary

GOLDEN = Path(__file__).parent / "golden"
EMBEDDED = str(BUNDLED / "tokenizer")
SAMPLE = BUNDLED / "sample.jsonl"

CHAT = r"""
{%- if tools %}{{ '<|start|>system\n' + tools | tojson + '<|end|>\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|start|>' + message.role + '\n' }}
    {%- if message.reasoning_content %}
        {{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}
    {%- endif %}
    {{- message.content or '' }}
    {%- for call in message.tool_calls or [] %}
        {{- '<call>' + call.function.name + call.function.arguments | tojson + '</call>' }}
    {%- endfor %}
    {{- '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}
"""
# Its prompt ends with a space, which is one token with the word that follows.
SPACED = r"""
{%- for message in messages %}
    {{- message.role + ': ' + message.content + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}
"""
BARE = r"{% for message in messages %}{{ message.content + '\n' }}{% endfor %}"
TAGGED = r"""
{%- for message in messages %}
    {{- message.role + ':' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content }}{% endgeneration %}{{ '(seen)' }}
        {%- generation %}{{ 'and ' + message.content + '<|end|>' }}{% endgeneration %}
    {%- else %}{{ message.content }}{% endif %}
    {{- '\n' }}
{%- endfor %}
"""
LINES = (">\n\n", ">\n", "\n\n")
WORDS = """
assistant user system tool think call lookup city name type function Paris Hello Capital of France
It is in short 你好 世界 </
"""
EDGES = r"""
version: 1
name: edges
rules:
  - {pattern: '</think>\n', weight: 0.5}
  - {pattern: 'P', weight: 0}
  - {pattern: ' ?is\b', weight: 3}
  - {pattern: '>\s*P', weight: 0}
"""
EMPTY_THINK = "<think>\n\n</think>\n\nParis 🦜, 你好 世界 们."


def write_tokenizer(folder: Path, template: str, **changes: Any) -> str:
    """Tokens are listed words, with or without a space before them, and single bytes."""
    coder = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    coder["trim_offsets"] = False
    spelled = ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = [*WORDS.split(), *LINES]
    words = [spelled.pre_tokenize_str(space + w)[0][0] for space in ("", " ") for w in tokens]
    vocab = [*sorted(ByteLevel.alphabet()), *words]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    pattern = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    definition = {
        "version": "1.0",
        "added_tokens": [
            {"id": len(vocab) + i, "content": content, "special": True, **flags}
            for i, content in enumerate(("<|start|>", "<|end|>"))
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{**split, "invert": False}, coder],
        },
        "decoder": coder,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(vocab)},
            "merges": [],
            "ignore_merges": True,
        },
    }
    folder.mkdir(parents=True)
    (folder / TOKENIZER).write_text(json.dumps(definition | changes), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}', encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return str(folder)


def write_lines(path: Path, *records: Any) -> str:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def write_rules(path: Path, text: str = EDGES) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def dialogue(*contents: str) -> dict[str, Any]:
    """The user and the assistant in turns."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]}


def trust_nothing(vocabulary: Vocabulary) -> Certificate:
    """A certificate without the seconds of examining the engines."""
    digest = vocabulary.digests[TOKENIZER]
    return Certificate("reference", "not asked", (), 0, digest, engine_versions())


def recipe_of(tokenizer: str, *rules: str, form: str = "parquet") -> Recipe:
    return make_recipe(
        rules=rules,
        tokenizer=tokenizer,
        chat_template=None,
        template_kwargs={},
        date="2024-05-01",
        schema="auto",
        form=form,
    )


def build_shards(source: str, output: Path, recipe: Recipe, *, shard_size: int = 1 << 20) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "find_certificate", trust_nothing)
        dataset.build_dataset([source], recipe, output, shard_size=shard_size)
    return output


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """The lines that the command prints; it must end well."""
    assert cli.run(show.main, argv) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The command's one error."""
    assert cli.run(show.main, argv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def table(lines: list[str]) -> list[str]:
    """The lines of tokens, which follow the heading and the names of columns."""
    return [line for line in lines[lines.index("") + 2 :] if line]


def equals_golden(name: str, text: str) -> None:
    """Compare with the golden file; ``UPDATE_GOLDEN=1`` writes it, to be read line by line."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
        pytest.fail(f"{path} written: read it, then run the tests without UPDATE_GOLDEN")
    assert text == path.read_text(encoding="utf-8")


@pytest.fixture
def chat(tmp_path: Path) -> str:
    return write_tokenizer(tmp_path / "chat", CHAT)


# The plain table, by hand-made tokenizers whose every token can be checked with a pencil.


def test_golden_an_empty_think_block_is_silenced(
    chat: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "d.jsonl", dialogue("Capital of France?", EMPTY_THINK))
    rules = ("--rules", "ignore_empty_think")
    lines = shown(capsys, source, "--tokenizer", chat, *rules)
    equals_golden("empty_think.txt", "\n".join(lines) + "\n")


def test_golden_tools_reasoning_and_calls(
    chat: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = {"type": "function", "function": {"name": "lookup", "arguments": {"city": "Paris"}}}
    record = {
        "messages": [
            {"role": "user", "content": "Hello"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "short",
                "tool_calls": [{"id": "1", **call}],
            },
            {"role": "tool", "content": "It\tis\\in", "tool_call_id": "1"},
            {"role": "assistant", "content": " It is  "},
        ],
        "tools": [{"type": "function", "function": {"name": "lookup"}}],
    }
    source = write_lines(tmp_path / "d.jsonl", record)
    equals_golden("tools.txt", "\n".join(shown(capsys, source, "--tokenizer", chat)) + "\n")


def test_golden_edges_tell_the_bytes_that_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = write_tokenizer(tmp_path / "spaced", SPACED)
    contents = ("Hello", "Paris", "France", "<think>\n\n</think>\n\nParis is in")
    source = write_lines(tmp_path / "d.jsonl", dialogue(*contents))
    rules = ("--rules", write_rules(tmp_path / "e.yaml"), "ignore_empty_think")
    lines = shown(capsys, source, "--tokenizer", tokenizer, *rules)
    equals_golden("edges.txt", "\n".join(lines) + "\n")


def test_golden_the_first_token_of_a_row_that_begins_with_the_assistant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = write_tokenizer(tmp_path / "bare", BARE)
    messages = [{"role": "assistant", "content": "Hello is"}, {"role": "user", "content": "is"}]
    source = write_lines(tmp_path / "d.jsonl", {"messages": messages})
    equals_golden("bare.txt", "\n".join(shown(capsys, source, "--tokenizer", tokenizer)) + "\n")


def test_golden_generation_tags_with_text_between_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = write_tokenizer(tmp_path / "tagged", TAGGED)
    source = write_lines(tmp_path / "d.jsonl", dialogue("Hello", "It is"))
    equals_golden("tags.txt", "\n".join(shown(capsys, source, "--tokenizer", tokenizer)) + "\n")


def test_golden_page(chat: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = "</script> <b title=\"x\" id='y'>&amp; مرحبا \u202e 🦜\ttab\r\n"
    source = write_lines(tmp_path / "d.jsonl", dialogue(asked, EMPTY_THINK))
    page = tmp_path / "page.html"
    rules = ("--rules", "ignore_empty_think", "--html", str(page))
    lines = shown(capsys, source, "--tokenizer", chat, *rules)
    assert lines[-1].split() == ["page", str(page)]
    assert "" not in lines, "the table is in the page"
    equals_golden("page.html", page.read_text(encoding="utf-8"))


# What every explanation must hold.


@pytest.fixture(scope="module")
def sample() -> list[Record]:
    lines = SAMPLE.read_bytes().splitlines()
    return [Record("sample.jsonl", i, i + 1, line) for i, line in enumerate(lines)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    text = EDGES + "  - {pattern: '.e [a-z]', weight: 0.75}\n"
    rules = write_rules(tmp_path_factory.mktemp("rules") / "edges.yaml", text)
    recipe = recipe_of(EMBEDDED, "ignore_empty_think", rules)
    return make_encoder(recipe, trust_nothing(recipe.vocabulary))


def require_sound(explanation: Explanation, text: str) -> None:
    """Tokens tile the text, and the reasons, read as a person would, give the weights."""
    assert b"".join(token.piece for token in explanation.tokens) == text.encode()
    starts = np.cumsum([0, *(len(c.encode()) for c in text)])
    position = 0
    for token in explanation.tokens:
        end = position + len(token.piece)
        assert starts[token.start] <= position
        assert end <= starts[token.end]
        assert token.end - token.start <= len(token.piece)
        position = end
        factors = [float(f) for f in re.findall(r"×([\d.e+-]+)", token.why)]
        weight = math.prod(factors) if token.why.startswith("assistant") else 0
        assert token.weight == pytest.approx(weight, rel=1e-6)
        assert token.region in show_regions(token.role)


def show_regions(role: str) -> set[str]:
    if not role:
        return {"template"}
    if role != "assistant":
        return {"input"}
    return {"header", "reasoning", "content", "tool_call", "stop", "trailing"}


def test_ids_and_weights_are_those_of_the_row(sample: list[Record], encoder: Encoder) -> None:
    rows = encoder.encode(sample)
    assert not rows.rejects
    straddles = 0
    for record, row in zip(sample, rows.rows.to_pylist(), strict=True):
        explanation = show.explain_record(record, encoder)
        assert [token.id for token in explanation.tokens] == row["input_ids"]
        assert [token.weight for token in explanation.tokens] == row["loss_scale"]
        assert explanation.targets == row["num_target_tokens"]
        require_sound(explanation, encoder.prepare([record])[0][0].text)
        straddles += sum("bytes inside)" in token.why for token in explanation.tokens)
    assert straddles, "the rules must cut some tokens, else this test shows little"


def test_turns_come_back_from_their_regions(sample: list[Record], encoder: Encoder) -> None:
    for prepared in encoder.prepare(sample)[0]:
        regions = [region for turn in prepared.turns for region in divide(turn, prepared.text)]
        expected = [turn._replace(found="", opened=False) for turn in prepared.turns]
        assert list(restore_turns(regions)) == expected


def test_regions_that_weights_cut_come_back_as_one_output() -> None:
    turn = Turn(0, "assistant", [Span(0, 9)], [Span(2, 8)], 7, "tags", False)
    scales = [Scale(2, 4, 0.5), Scale(5, 6, 0.0)]
    regions = list(cut_regions(divide(turn, "abcdefghi"), scales))
    assert [(r.name, r.start, r.end, r.weight) for r in regions] == [
        ("header", 0, 2, 1.0),
        ("content", 2, 4, 0.5),
        ("content", 4, 5, 1.0),
        ("content", 5, 6, 0.0),
        ("content", 6, 7, 1.0),
        ("stop", 7, 8, 1.0),
        ("trailing", 8, 9, 1.0),
    ]
    assert list(restore_turns(regions)) == [turn._replace(found="")]
    assert restore_scales(regions) == scales


def test_the_embedded_sample_is_shown_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys)
    assert lines[0].split() == ["source", "sample.jsonl:1"]
    first = json.loads(SAMPLE.read_bytes().splitlines()[0])
    (page,) = (t for t in table(lines) if " stop " in t)
    assert page.split()[-1] == "assistant"
    assert f"{len(table(lines))} tokens" in lines[1]
    assert len(first["messages"]) == 1 + max(int(line.split()[4]) for line in table(lines)[:-1])


@pytest.mark.corpus
def test_a_real_tokenizer_on_real_records(shared: Path) -> None:
    with (
        (shared / "data" / "bench_messages.jsonl.zst").open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file) as stream,
    ):
        lines = io.BufferedReader(stream).readlines(1 << 18)[:20]
    recipe = recipe_of(str(shared / "tokenizers" / "qwen3"), "ignore_empty_think")
    encoder = make_encoder(recipe, trust_nothing(recipe.vocabulary))
    records = [Record("bench", i, i + 1, line) for i, line in enumerate(lines)]
    rows = encoder.encode(records).rows.to_pylist()
    assert len(rows) == 20
    for record, row in zip(records, rows, strict=True):
        explanation = show.explain_record(record, encoder)
        assert [token.id for token in explanation.tokens] == row["input_ids"]
        assert [token.weight for token in explanation.tokens] == row["loss_scale"]
        require_sound(explanation, encoder.prepare([record])[0][0].text)


# Records and rows, wherever they are.


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three shards in each form, of four records, one of which nothing but a reject comes of."""
    folder = tmp_path_factory.mktemp("shards")
    tokenizer = write_tokenizer(folder / "chat", CHAT)
    write_tokenizer(folder / "other", CHAT, decoder=None)
    records = [
        dialogue("Hello", EMPTY_THINK),
        dialogue("Hello"),
        dialogue("It is", "short", "你好", "<think>\nis\n</think>\n\n世界\n\n🦜"),
        dialogue("is", "Paris"),
    ]
    source = write_lines(folder / "d.jsonl", *records)
    for form in ("parquet", "arrow"):
        recipe = recipe_of(tokenizer, "ignore_empty_think", form=form)
        build_shards(source, folder / form, recipe, shard_size=150)
    names = ("parquet", "arrow", "chat", "other")
    return {"source": Path(source), **{name: folder / name for name in names}}


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_row_of_a_build_shows_as_its_source_record(
    form: str, shards: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = ("--tokenizer", str(shards["chat"]))
    for row, record in enumerate((0, 2, 3)):
        found = shown(capsys, str(shards[form]), "--index", str(row), *tokenizer)
        rules = ("--rules", "ignore_empty_think")
        source = shown(capsys, str(shards["source"]), "--index", str(record), *tokenizer, *rules)
        assert found[0].endswith(f"made of d.jsonl[{record}]")
        assert table(found) == table(source)
        assert [line.replace("as stored", "found by prompt") for line in found[1:]] == source[1:]


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_shard_counts_its_own_rows(
    form: str, shards: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = ("--tokenizer", str(shards["chat"]))
    files = sorted(shards[form].glob(f"*-of-*.{form}"))
    assert len(files) > 1, "rows must be spread for this test"
    every = [shown(capsys, str(shards[form]), "--index", str(i), *tokenizer) for i in range(3)]
    counts = [len(pq.read_table(f) if form == "parquet" else read_arrow(f)) for f in files]
    alone = [
        shown(capsys, str(file), "--index", str(i), *tokenizer)
        for file, count in zip(files, counts, strict=True)
        for i in range(count)
    ]
    assert alone == every


def read_arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file).read_all()


def test_other_rules_show_what_would_be(
    shards: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = ("--tokenizer", str(shards["chat"]))
    rules = ("--rules", write_rules(tmp_path / "edges.yaml"))
    found = shown(capsys, str(shards["parquet"]), *tokenizer, *rules)
    source = shown(capsys, str(shards["source"]), *tokenizer, *rules)
    assert table(found) == table(source)
    assert table(found) != table(shown(capsys, str(shards["parquet"]), *tokenizer))


def test_the_embedded_tokenizer_is_taken_where_it_is_the_builds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "d.jsonl", dialogue("Hi", "Hello."))
    output = build_shards(source, tmp_path / "shards", recipe_of(EMBEDDED))
    found = shown(capsys, str(output))
    assert table(found) == table(shown(capsys, source, "--tokenizer", EMBEDDED))


def test_a_record_is_read_from_its_piece_alone(
    chat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "_PIECE", 300)
    pieces: list[Piece] = []

    def watched(piece: Piece) -> Iterator[list[Record]]:
        pieces.append(piece)
        return read(piece)

    monkeypatch.setattr("pipeline.show.read", watched)
    records = [dialogue(f"{i}", f"{i * i}") for i in range(40)]
    source = write_lines(tmp_path / "d.jsonl", *records)
    for i in (0, 3, 17, 39):
        lines = shown(capsys, source, "--index", str(i), "--tokenizer", chat)
        assert lines[0].endswith(f"d.jsonl:{i + 1}")
        text = "".join(line.split()[2] for line in table(lines) if " content " in line)
        assert text == str(i * i)
    assert len(pieces) == 4
    assert max(piece.end - piece.start for piece in pieces) < 500


def test_a_table_of_conversations_is_no_shard(
    chat: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [dialogue("Hello", f"{i}") for i in range(5)]
    path = tmp_path / "d.parquet"
    pq.write_table(pa.Table.from_pylist(records), path)
    lines = shown(capsys, str(path), "--index", "3", "--tokenizer", chat)
    assert lines[0].endswith("d.parquet[3]")
    (line,) = (line for line in table(lines) if " content " in line)
    assert line.split()[2] == "3"


@pytest.mark.parametrize("indent", [None, 2])
def test_standard_input_is_one_record_or_many(
    indent: int | None,
    chat: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = [dialogue("Hello", "It is"), dialogue("Hello", "Paris")]
    text = "\n".join(json.dumps(record, indent=indent) for record in records)
    for index, word in enumerate(("It", "Paris")):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
        lines = shown(capsys, "-", "--index", str(index), "--tokenizer", chat)
        (first, *_) = (line for line in table(lines) if " content " in line)
        assert first.split()[2] == word


# Errors say what is wrong and what to do.


def test_a_record_that_would_be_rejected_says_why(
    chat: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "d.jsonl", dialogue("Hello", "It is"), {"messages": [7]})
    line = Path(source).read_bytes().splitlines()[1]
    recipe = recipe_of(chat)
    encoder = make_encoder(recipe, trust_nothing(recipe.vocabulary))
    (reject,) = encoder.encode([Record("d.jsonl", 1, 2, line)]).rejects
    error = refused(capsys, source, "--index", "1", "--tokenizer", chat)
    assert error == f"error: {reject.message}"


def test_a_row_that_trains_nothing_is_shown_with_its_reject(
    chat: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "version: 1\nname: nothing\nrules:\n  - {weight: 0}\n"
    rules = write_rules(tmp_path / "nothing.yaml", text)
    source = write_lines(tmp_path / "d.jsonl", dialogue("Hello", "It is"))
    recipe = recipe_of(chat, rules)
    encoder = make_encoder(recipe, trust_nothing(recipe.vocabulary))
    line = Path(source).read_bytes().splitlines()[0]
    (reject,) = encoder.encode([Record("d.jsonl", 0, 1, line)]).rejects
    assert cli.run(show.main, [source, "--tokenizer", chat, "--rules", rules]) == 1
    out, err = capsys.readouterr()
    assert err == f"error: {reject.message}\n"
    assert "nothing ×0" in out


def damage(shards: dict[str, Path], folder: Path, column: str, change: Callable[[Any], Any]) -> str:
    """A copy of the Parquet build with one value of its first row changed."""
    folder.mkdir()
    for path in sorted(shards["parquet"].glob("*-of-*.parquet")):
        rows = pq.read_table(path)
        if path.name.startswith("train-00000"):
            values = rows[column].to_pylist()
            values[0] = change(values[0])
            index = rows.schema.get_field_index(column)
            rows = rows.set_column(
                index, rows.schema.field(column), pa.array(values, rows.schema.field(column).type)
            )
        pq.write_table(rows, folder / path.name)
    manifest = (shards["parquet"] / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(manifest)
    return str(folder)


@pytest.mark.parametrize(
    ("column", "change", "fact"),
    [
        ("loss_scale", lambda v: [*v[:-2], 0.25, v[-1]], r"stored 0\.25, computed 1\)"),
        ("loss_scale", lambda v: v[:-1], r"\d+ weights for \d+ tokens"),
        ("input_ids", lambda v: [*v[:3], 72, 82, *v[3:]], r"\d+ weights for \d+ tokens"),
        ("input_ids", lambda v: [*v[:-1], -5], "cannot be had back"),
        ("input_ids", lambda v: [*v[:-1], 1 << 30], "cannot be had back"),
        ("input_ids", lambda v: v[:0], "cannot be had back"),
        ("spans", lambda v: [{**s, "end": s["end"] + 9} for s in v], "cannot be had back"),
        ("spans", lambda v: [{**s, "region": "input"} for s in v], "its weights are not"),
        ("source", lambda v: v[:0] or None, "not a row of a shard"),
    ],
)
def test_a_damaged_row_is_an_error(
    column: str,
    change: Callable[[Any], Any],
    fact: str,
    shards: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = damage(shards, tmp_path / "damaged", column, change)
    error = refused(capsys, folder, "--tokenizer", str(shards["chat"]))
    assert error.startswith("error: train-00000-of-0000")
    assert re.search(fact, error), error


@pytest.mark.parametrize(("form", "text"), [("NFC", "cafe\u0301"), ("NFKC", "\ufb01")])
def test_text_that_the_tokenizer_normalized_is_shown_as_it_was_written(
    form: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = write_tokenizer(tmp_path / "normalizing", CHAT, normalizer={"type": form})
    source = write_lines(tmp_path / "d.jsonl", dialogue("Hello", "It is"), dialogue(text, "It is"))
    output = build_shards(source, tmp_path / "shards", recipe_of(tokenizer))
    options = ("--tokenizer", tokenizer, "--index", "1")
    assert table(shown(capsys, str(output), *options)) == table(shown(capsys, source, *options))


@pytest.mark.parametrize(
    ("argv", "fact"),
    [
        (["{source}"], "error: --tokenizer: missing; name the folder"),
        (
            ["{parquet}"],
            r"--tokenizer: missing; the embedded one's tokenizer\.json is \w{12}\.\.\.",
        ),
        (
            ["{parquet}", "--tokenizer", "{other}"],
            r"other: its tokenizer\.json is \w{12}\.\.\., but",
        ),
        (
            ["{parquet}", "--index", "3"],
            "holds 3 rows, --index 3 asks for another; use --index 0 to 2",
        ),
        (["{source}", "--index", "4", "--tokenizer", "{chat}"], "holds 4 records, --index 4 asks"),
        (["--index", "9999"], r"sample\.jsonl: holds \d+ records, --index 9999 asks"),
        (["{parquet}", "--schema", "alpaca"], "--schema: the rows of a shard are rendered already"),
        (["{parquet}", "--chat-template", "x"], "--chat-template: the rows"),
        (["{parquet}", "--template-kwargs", '{"a": 1}'], "--template-kwargs: the rows"),
        (["absent.jsonl", "--tokenizer", "{chat}"], "absent.jsonl: no such file"),
        (["--html", "{chat}"], "chat: cannot be written"),
        (["--rules", "absent"], "absent: no such rule file"),
    ],
)
def test_errors_name_the_remedy(
    argv: list[str], fact: str, shards: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        word.format(**shards) if word.startswith("{") and word[1] != '"' else word for word in argv
    ]
    assert re.search(fact, refused(capsys, *words))


def test_a_shard_without_its_manifest_is_an_error(
    shards: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source, *_) = sorted(shards["parquet"].glob("*-of-*.parquet"))
    (tmp_path / source.name).write_bytes(source.read_bytes())
    error = refused(capsys, str(tmp_path / source.name), "--tokenizer", str(shards["chat"]))
    assert "no manifest.json there" in error


@pytest.mark.parametrize("index", ["-1", "x", "1.5", "²"])
def test_an_index_is_a_whole_number(index: str) -> None:
    with pytest.raises(SystemExit) as exited:
        show.main([f"--index={index}"])
    assert exited.value.code == 2


# How it looks.


@given(st.binary(max_size=12) | st.text(max_size=8).map(str.encode))
def test_visible_text_shows_every_byte_and_nothing_else(piece: bytes) -> None:
    text = visible(piece)
    assert read_back(text) == piece
    assert not any(unicodedata.category(c)[0] in "CZ" for c in text.replace(" ", ""))
    assert text == text.strip(" ")


def read_back(text: str) -> bytes:
    """The inverse of ``visible``, from its description."""
    simple = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}
    out = b""
    for part in re.findall(r"\\x..|\\u.{4}|\\U.{8}|\\.|.", text, re.DOTALL):
        if part.startswith("\\x"):
            out += bytes([int(part[2:], 16)])
        elif part[:2] in ("\\u", "\\U"):
            out += chr(int(part[2:], 16)).encode()
        else:
            out += simple.get(part, part.replace("·", " ").replace("◌", "")).encode()
    return out


@pytest.mark.parametrize(
    ("text", "columns"), [("ab", 2), ("你好，", 6), ("e\u0301", 1), ("🦜", 2), ("｜▁", 3), ("", 0)]
)
def test_width_is_in_columns_of_a_terminal(text: str, columns: int) -> None:
    assert width(text) == columns


def test_colours_are_asked_for_or_come_with_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = shown(capsys, "--rules", "ignore_empty_think")
    coloured = shown(capsys, "--color", "always", "--rules", "ignore_empty_think")
    assert not any("\x1b" in line for line in plain)
    assert [re.sub(r"\x1b\[\d+m", "", line).rstrip() for line in coloured] == plain
    (silenced,) = (line for line in coloured if "<think>" in line)
    assert silenced.startswith("\x1b[31m")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert any("\x1b" in line for line in shown(capsys))
    assert not any("\x1b" in line for line in shown(capsys, "--color", "never"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any("\x1b" in line for line in shown(capsys))
    assert any("\x1b" in line for line in shown(capsys, "--color", "always"))


def test_an_output_that_knows_few_characters_gets_escapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    assert show.main([]) == 0
    stream.flush()
    assert "\\xb7is" in stream.buffer.getvalue().decode("ascii")


class Page(html.parser.HTMLParser):
    """The page as a browser has it: the flowing text, what links where, and all tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.flow = self.all = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert name in {"lang", "charset", "http-equiv", "content", "name", "class", "id"} | {
                "href",
                "tabindex",
                "title",
                "data-mark",
            }
            if name == "id":
                self.ids.append(str(value))
            if name == "href":
                self.links.append(str(value))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.all += data
        if "p" in self.open:
            self.flow += data


@pytest.mark.parametrize("index", range(3))
def test_a_page_holds_the_text_and_runs_nothing(index: int, chat: str) -> None:
    contents = (
        ("</script><script>alert(1)</script>", "<!-- ]]> </p></a><img src=x onerror=alert(1)>"),
        ("\"' & &lt; &#60; <b>", "a\u202eb\u0000 🦜 مرحبا שלום"),
        ("x\r\ny", "\n\n\tHello\n"),
    )[index]
    recipe = recipe_of(chat)
    encoder = make_encoder(recipe, trust_nothing(recipe.vocabulary))
    line = json.dumps(dialogue(*contents)).encode()
    record = Record("</title><script>.jsonl", 0, 1, line)
    text = encoder.prepare([record])[0][0].text
    page = Page(make_page(show.explain_record(record, encoder)))
    assert not page.open, "every tag is closed"
    for character in ("\u202e", "\u0000", "\r"):
        text = text.replace(character, visible(character.encode()))
    assert page.flow == text
    assert not {"script", "img", "b", "link"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert all(link.startswith("#") for link in page.links)


def test_a_page_asks_for_nothing_from_anywhere(chat: str) -> None:
    encoder = make_encoder(recipe_of(chat), trust_nothing(recipe_of(chat).vocabulary))
    line = json.dumps(dialogue("Hello", "It is")).encode()
    page = make_page(show.explain_record(Record("d.jsonl", 0, 1, line), encoder))
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|//|@import|url\(|src=", page)
