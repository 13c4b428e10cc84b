"""The main job on real data: 50,000 conversations, three families of tokenizers."""

from __future__ import annotations

import datetime
import io
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer

from pipeline import build, cli
from pipeline.tokens.vocabulary import read_vocabulary
from pipeline.weights import IGNORED
from tests.reference import plain_template, render_plainly

pytestmark = [pytest.mark.corpus, pytest.mark.slow]
BENCH = "bench_messages.jsonl.zst"
DAY = datetime.date(2026, 3, 14)


def build_bench(shared: Path, name: str, output: Path, workers: int) -> None:
    flags = ["--rules", "ignore_empty_think", "--input", str(shared / "data" / BENCH)]
    flags += ["--tokenizer", str(shared / "tokenizers" / name), "--output", str(output)]
    flags += ["--workers", str(workers), "--max-reject-rate", "0.2", "--quiet"]
    assert cli.run(build.main, [*flags, "--date", DAY.isoformat()]) == 0


def conversations(shared: Path) -> Iterator[list[dict[str, Any]]]:
    with (shared / "data" / BENCH).open("rb") as file:
        text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), "utf-8")
        for line in text:
            yield json.loads(line)["messages"]


def rows_of(output: Path) -> Iterator[dict[str, Any]]:
    columns = ["input_ids", "labels", "loss_scale", "length", "num_target_tokens", "row"]
    for path in sorted(output.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(1000, columns=columns):
            for i in range(batch.num_rows):
                yield {name: batch.column(name)[i] for name in columns}


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1", "gemma3"])
def test_no_conversation_is_lost_and_each_decodes_to_what_the_template_writes(
    shared: Path, name: str, tmp_path: Path
) -> None:
    """Row for row: either the row, whole, or a reject that the plain template refuses as well."""
    build_bench(shared, name, tmp_path, workers=2)
    vocabulary = read_vocabulary(shared / "tokenizers" / name)
    template = plain_template(vocabulary.templates["default"], DAY)
    tokenizer = Tokenizer.from_file(str(shared / "tokenizers" / name / "tokenizer.json"))
    lines = (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    rejected = {r["row"]: r for r in map(json.loads, lines)}
    rows = rows_of(tmp_path)
    built = 0
    for number, messages in enumerate(conversations(shared)):
        if number in rejected:
            with pytest.raises(jinja2.TemplateError):
                render_plainly(template, messages, **vocabulary.special_tokens)
            assert rejected[number]["reason"] == "template_error"
            continue
        row = next(rows)
        built += 1
        assert row["row"].as_py() == number
        text = render_plainly(template, messages, **vocabulary.special_tokens)
        ids = row["input_ids"].values.to_numpy()
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        if decoded != text:
            assert decoded == unicodedata.normalize("NFC", text), number
        scale = row["loss_scale"].values.to_numpy()
        labels = row["labels"].values.to_numpy()
        assert scale[0] == 0
        assert ((labels == IGNORED) == (scale == 0)).all()
        assert (labels[scale != 0] == ids[scale != 0]).all()
        assert row["length"].as_py() == len(ids) == len(labels) == len(scale)
        assert row["num_target_tokens"].as_py() == np.count_nonzero(scale) > 0
    assert next(rows, None) is None
    assert built + len(rejected) == 50_000
    assert len(rejected) == {"qwen3": 0, "deepseek_r1": 0, "gemma3": 5195}[name]


def test_one_worker_writes_the_bytes_that_two_write(shared: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        build_bench(shared, "qwen3", tmp_path / str(workers), workers)
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / w).iterdir() if p.is_file()} for w in "12"
    )
    assert len(one) > 10
    assert one == two


FORMATS = {
    "alpaca_en_demo.json": 999,
    "alpaca_zh_demo.json": 1000,
    "dummy_conversation.json": 500,
    "glaive_toolcall_en_demo.json": 300,
    "hotpotqa.jsonl": 500,
    "reason_tool_use_demo_50.jsonl": 50,
    "tau_bench_airline_60.json": 60,
    "webdancer_50.jsonl": 50,
    "xtuner_conversation_zh_300.json": 300,
}


@pytest.mark.parametrize("file", sorted(FORMATS))
def test_every_format_builds_without_a_reject(file: str, shared: Path, tmp_path: Path) -> None:
    flags = ["--input", str(shared / "data" / "formats" / file), "--output", str(tmp_path)]
    flags += ["--tokenizer", str(shared / "tokenizers" / "qwen3"), "--workers", "1", "--quiet"]
    assert cli.run(build.main, ["--rules", "ignore_empty_think", *flags]) == 0
    counts = json.loads((tmp_path / "manifest.json").read_text())["counts"]
    assert (counts["rows"], counts["rejects"]) == (FORMATS[file], 0)


def test_all_formats_build_in_one_folder(shared: Path, tmp_path: Path) -> None:
    flags = ["--input", str(shared / "data" / "formats"), "--output", str(tmp_path)]
    flags += ["--tokenizer", str(shared / "tokenizers" / "qwen3"), "--workers", "2"]
    assert cli.run(build.main, ["--rules", "ignore_empty_think", *flags, "--quiet"]) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {s["name"] for s in manifest["parts"]["inputs"]} == set(FORMATS)
    assert manifest["counts"]["rows"] == sum(FORMATS.values())
