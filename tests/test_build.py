"""The main job as a person runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build, cli
from pipeline.batch import Encoder
from pipeline.building import make_encoder
from pipeline.engine import local
from pipeline.manifest import Manifest, read_manifest
from pipeline.recipe import BUNDLED, make_recipe
from pipeline.tokens.certificate import find_certificate
from pipeline.weights import IGNORED

SAMPLE = str(BUNDLED / "sample.jsonl")
RULE = ["--rules", "ignore_empty_think.yaml"]
TOKENIZER = ["--tokenizer", str(BUNDLED / "tokenizer")]


def run(*argv: str) -> int:
    return cli.run(build.main, argv)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.parquet")):
        rows += pq.read_table(path).to_pylist()
    for path in sorted(folder.glob("*.arrow")):
        rows += pa.ipc.open_stream(path).read_all().to_pylist()
    return rows


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def write_lines(path: Path, records: Sequence[Any]) -> str:
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def manifest_of(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def talk(answer: str = "Four.", **extra: Any) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": "Two and two?"},
            {"role": "assistant", "content": answer},
        ],
        **extra,
    }


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    recipe = make_recipe(
        rules=["ignore_empty_think"],
        tokenizer=None,
        chat_template=None,
        template_kwargs={},
        date="2026-03-14",
        schema="auto",
    )
    return make_encoder(recipe, find_certificate(recipe.vocabulary))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("built") / "shards"
    assert run(*RULE, "--output", str(output), "--workers", "1", "--shard-size", "40000") == 0
    return output


def test_every_record_of_the_sample_is_a_row(built: Path) -> None:
    records = Path(SAMPLE).read_bytes().splitlines()
    rows = read_rows(built)
    assert [row["row"] for row in rows] == list(range(len(records)))
    assert {row["source"] for row in rows} == {"sample.jsonl"}
    assert len(list(built.glob("*.parquet"))) > 2


def test_the_data_contract_holds(built: Path) -> None:
    for row in read_rows(built):
        ids, labels, scale = (np.array(row[k]) for k in ("input_ids", "labels", "loss_scale"))
        assert len(ids) == len(labels) == len(scale) == row["length"]
        assert scale[0] == 0
        assert ((labels == IGNORED) == (scale == 0)).all()
        assert (labels[scale != 0] == ids[scale != 0]).all()
        assert row["num_target_tokens"] == (labels != IGNORED).sum() > 0
        assert row["weight_sum"] == scale.sum()


def test_ids_decode_to_what_the_template_writes(built: Path, encoder: Encoder) -> None:
    from pipeline.source import read, survey

    sources = survey([SAMPLE], spool=built / "unused", piece_bytes=1 << 20)
    records = [r for s in sources for p in s.pieces for batch in read(p) for r in batch]
    prepared, _ = encoder.prepare(records)
    for row, p in zip(read_rows(built), prepared, strict=True):
        assert encoder.tokenizer.decode(row["input_ids"]) == p.text


def test_what_trains_is_what_the_assistant_says(built: Path, encoder: Encoder) -> None:
    """Decoded alone, the trained tokens are the turns with their stop tokens and nothing else."""
    for row in read_rows(built):
        kept = [i for i, w in zip(row["input_ids"], row["loss_scale"], strict=True) if w]
        text = encoder.tokenizer.decode(kept)
        assert text.endswith("<|im_end|>")
        assert "<|im_start|>" not in text
        assert "<tool_response>" not in text
        assert "<think>\n\n</think>" not in text


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_the_bytes_are_the_same_for_any_number_of_workers(form: str, tmp_path: Path) -> None:
    outputs = []
    for workers in ("1", "2", "3"):
        folder = tmp_path / workers
        outputs.append(folder)
        flags = ["--format", form, "--output", str(folder), "--shard-size", "30000"]
        assert run(*RULE, *flags, "--workers", workers) == 0
    first, *others = [files_of(folder) for folder in outputs]
    assert len(first) > 5
    assert all(other == first for other in others)


def test_rules_never_change_ids(built: Path, tmp_path: Path) -> None:
    assert run("--output", str(tmp_path / "plain"), "--workers", "1") == 0
    plain = read_rows(tmp_path / "plain")
    ruled = read_rows(built)
    assert [r["input_ids"] for r in plain] == [r["input_ids"] for r in ruled]
    assert [r["spans"] for r in plain] == [r["spans"] for r in ruled]
    assert sum(r["num_target_tokens"] for r in plain) > sum(r["num_target_tokens"] for r in ruled)


def test_datasets_reads_both_forms(built: Path, tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = read_rows(built)
    parquet = datasets.load_dataset(str(built), split="train", cache_dir=str(tmp_path / "cache"))
    assert parquet["input_ids"][:] == [r["input_ids"] for r in rows]
    arrow = tmp_path / "arrow"
    assert run(*RULE, "--output", str(arrow), "--format", "arrow", "--workers", "1") == 0
    loaded = datasets.load_from_disk(str(arrow))
    assert loaded["loss_scale"][:] == [r["loss_scale"] for r in rows]
    assert loaded["spans"][0] == rows[0]["spans"]


def test_polars_reads_both_forms(built: Path, tmp_path: Path) -> None:
    rows = read_rows(built)
    frame = pl.read_parquet(built / "*.parquet")
    assert frame["input_ids"].to_list() == [r["input_ids"] for r in rows]
    assert run(*RULE, "--output", str(tmp_path), "--format", "arrow", "--workers", "1") == 0
    frame = pl.concat([pl.read_ipc_stream(p) for p in sorted(tmp_path.glob("*.arrow"))])
    assert frame["labels"].to_list() == [r["labels"] for r in rows]


def test_bad_records_are_rejected_with_place_and_reason(tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "train.jsonl",
        [
            talk(),
            "",
            '{"messages": [',
            talk(answer=None),  # type: ignore[arg-type] # the fault under test
            {"messages": [{"role": "wizard", "content": "x"}]},
            '{"messages": [{"role": "user", "content": "\\ud800"}]}',
            {"messages": [{"role": "user", "content": "alone"}]},
            talk("<think>\n\n</think>\n\n"),
            talk("Yes."),
        ],
    )
    output = tmp_path / "out"
    flags = ["--input", source, *TOKENIZER, "--output", str(output), "--workers", "1"]
    assert run(*RULE, *flags, "--max-reject-rate", "0.9") == 0
    assert [r["row"] for r in read_rows(output)] == [0, 6, 7]
    rejects = [json.loads(line) for line in (output / "rejects.jsonl").read_text().splitlines()]
    assert [(r["row"], r["line"], r["stage"]) for r in rejects] == [
        (1, 3, "read"),
        (2, 4, "parse"),
        (3, 5, "parse"),
        (4, 6, "read"),
        (5, 7, "parse"),
    ]
    lines = Path(source).read_text(encoding="utf-8").split("\n")
    for r in rejects:
        assert r["raw"] == lines[r["line"] - 1]
        assert r["message"].startswith(f"train.jsonl:{r['line']}: ")
    counts = manifest_of(output).counts
    assert counts["conversations"] == counts["rows"] + counts["rejects"] == 8


def test_a_row_that_would_train_nothing_is_a_reject(tmp_path: Path) -> None:
    rule = tmp_path / "nothing.yaml"
    rule.write_text("version: 1\nname: nothing\nrules:\n  - weight: 0\n")
    source = write_lines(tmp_path / "a.jsonl", [talk()])
    output = tmp_path / "out"
    flags = ["--input", source, *TOKENIZER, "--output", str(output), "--workers", "1"]
    assert run("--rules", str(rule), *flags, "--max-reject-rate", "1") == 0
    assert read_rows(output) == []
    reject = json.loads((output / "rejects.jsonl").read_text())
    assert (reject["stage"], reject["reason"]) == ("weigh", "nothing_to_train")


def test_too_many_rejects_end_with_1_after_keeping_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [talk(), "{"])
    output = tmp_path / "out"
    flags = ["--input", source, *TOKENIZER, "--output", str(output), "--workers", "1"]
    assert run(*RULE, *flags) == 1
    assert "1 of 2 conversations were rejected (50.00%), more than 1.00%" in capsys.readouterr().err
    assert len(read_rows(output)) == 1
    assert run(*RULE, *flags, "--max-reject-rate", "0.5") == 0


def test_a_second_run_builds_only_what_is_missing(tmp_path: Path) -> None:
    flags = [*RULE, "--output", str(tmp_path / "a"), "--workers", "1", "--shard-size", "30000"]
    assert run(*flags) == 0
    before = files_of(tmp_path / "a")
    shards = sorted((tmp_path / "a").glob("*.parquet"))
    stamps = [p.stat().st_mtime_ns for p in shards]
    shards[1].unlink()
    shards[2].write_bytes(b"damaged")
    assert run(*flags) == 0
    assert files_of(tmp_path / "a") == before
    kept = [p.stat().st_mtime_ns == old for p, old in zip(shards, stamps, strict=True)]
    assert kept == [i not in (1, 2) for i in range(len(shards))]


def test_another_build_in_the_folder_is_refused_with_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*RULE, "--output", str(tmp_path), "--workers", "1") == 0
    before = files_of(tmp_path)
    assert run("--output", str(tmp_path), "--workers", "1") == 1
    told = capsys.readouterr().err
    assert "holds another build: rules.ignore_empty_think: " in told
    assert "is no longer given; " in told
    assert "python -m pipeline.reweight" in told
    assert files_of(tmp_path) == before
    assert run("--output", str(tmp_path), "--workers", "1", "--overwrite") == 0
    assert manifest_of(tmp_path).rules == {}


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_folder_of_somebody_elses_files_is_left_alone(
    overwrite: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert run(*RULE, "--output", str(tmp_path), *overwrite) == 1
    assert "holds what no build wrote (thesis.txt)" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_manifest_names_no_path_time_or_host(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        source = write_lines(tmp_path / name / "x.jsonl", [talk(), talk("No.")])
        output = str(tmp_path / name / "out")
        assert run(*RULE, "--input", source, *TOKENIZER, "--output", output, "--workers", "1") == 0
    assert files_of(tmp_path / "a" / "out") == files_of(tmp_path / "b" / "out")
    assert str(tmp_path) not in (tmp_path / "a" / "out" / "manifest.json").read_text()


def test_the_summary_says_what_a_person_wants_to_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert run(*RULE, "--output", str(output), "--workers", "1") == 0
    told = capsys.readouterr()
    counts = manifest_of(output).counts
    for number in ("conversations", "rows", "tokens", "targets"):
        assert f"{counts[number]:,}" in told.out
    assert str(output) in told.out
    assert f"{counts['rule.ignore_empty_think.spans']:,} spans" in told.out
    assert "tokens/s" in told.out
    assert told.err == ""


def test_json_is_one_line_and_quiet_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*RULE, "--output", str(tmp_path), "--workers", "1"]
    assert run(*flags, "--json") == 0
    told = capsys.readouterr()
    assert told.out.count("\n") == 1
    assert json.loads(told.out)["counts"] == manifest_of(tmp_path).counts
    assert run(*flags, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--no-such-flag"], 2, "unrecognized arguments: --no-such-flag"),
        (["--workers", "0"], 2, "'0' is not a whole number above 0"),
        (["--template-kwargs", "{"], 2, "not JSON"),
        (["--template-kwargs", "[1]"], 2, "not a JSON object"),
        (["--max-reject-rate", "2"], 2, "is not a number from 0 to 1"),
        (["--date", "yesterday"], 2, "YYYY-MM-DD"),
        (["--resume", "--overwrite"], 2, "not allowed with"),
        (["--rules", "no_such_rule"], 1, "error: no_such_rule: no such rule file; "),
        (["--input", "x.jsonl"], 1, "error: --tokenizer: missing; "),
        (["--tokenizer", "./no/such"], 1, "error: ./no/such: "),
        (["--chat-template", "no.jinja"], 1, "error: --chat-template no.jinja: cannot be read"),
        (["--input", "no.jsonl", *TOKENIZER], 1, "error: no.jsonl: "),
    ],
)
def test_a_wrong_flag_is_told_in_one_message(
    flags: list[str], code: int, said: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pipeline.build", "--output", str(tmp_path / "o"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_template_file_and_its_variables_are_used(tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ note }}\n{{ m.content }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {{ note }}\n{% endif %}"
    )
    source = write_lines(tmp_path / "a.jsonl", [talk("Yes")])
    output = tmp_path / "out"
    flags = ["--input", source, *TOKENIZER, "--output", str(output), "--workers", "1"]
    more = ["--chat-template", str(template), "--template-kwargs", '{"note": "zzz"}']
    assert run(*RULE, *flags, *more) == 0
    (span,) = [s for s in read_rows(output)[0]["spans"] if s["region"] == "header"]
    assert span["end"] - span["start"] == len("<|im_start|>assistant zzz\n")


def test_standard_input_is_a_source(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.build", "--input", "-", *TOKENIZER, "--output"]
    record = json.dumps(talk()).encode()
    done = subprocess.run(
        [*command, str(tmp_path / "o")], input=record, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [r["source"] for r in read_rows(tmp_path / "o")] == ["stdin"]


def test_a_fast_engine_that_lies_is_found_out_and_nothing_of_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.errors import EngineMismatch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    honest = local.run
    engines = []

    def suspicious(tasks: Any, job: Any, **more: Any) -> Any:
        engines.append(job.certificate.engine)
        if job.certificate.engine == "fast":
            raise EngineMismatch("other ids")
        return honest(tasks, job, **more)

    monkeypatch.setattr(local, "run", suspicious)
    flags = [*RULE, "--output", str(tmp_path / "o"), "--workers", "1"]
    assert run(*flags) == 0
    assert engines == ["fast", "reference"]
    assert manifest_of(tmp_path / "o").engine["engine"] == "reference"
    assert run(*flags) == 0
    assert engines == ["fast", "reference", "reference"]


def test_a_terminal_sees_a_bar_and_a_pipe_does_not(tmp_path: Path) -> None:
    import fcntl
    import os
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "pipeline.build", *RULE, "--workers", "1", "--output"]
    done = subprocess.Popen(
        [*command, str(tmp_path / "a")], stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    assert done.stdout is not None
    told = done.stdout.read()
    assert done.wait() == 0
    done.stdout.close()
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "351/351" in shown
    assert "tokens/s" in shown
    assert "351/351" not in told
    piped = subprocess.run(
        [*command, str(tmp_path / "b")], capture_output=True, text=True, check=True
    )
    assert piped.stderr == ""


def test_a_message_that_the_template_leaves_out_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    messages = [{"role": "system", "content": "Secret rules."}, *talk()["messages"]]
    source = write_lines(tmp_path / "a.jsonl", [{"messages": messages}, talk()])
    output = tmp_path / "out"
    flags = ["--input", source, *TOKENIZER, "--output", str(output), "--workers", "1"]
    assert run(*RULE, *flags, "--chat-template", str(template)) == 0
    assert manifest_of(output).counts["unrendered.system"] == 1
    assert "left out (system)" in capsys.readouterr().out
    assert run(*RULE, *flags[:-4], "--output", str(tmp_path / "b"), "--workers", "1") == 0
    assert "unrendered.system" not in manifest_of(tmp_path / "b").counts


@pytest.mark.parametrize(
    ("index", "key", "value", "expected"),
    [
        (1, "weight", 0, "weigh.nothing_to_train"),
        (1, "weight", 1, 1.0),
        (1, "loss", False, "weigh.nothing_to_train"),
        (1, "loss", True, 1.0),
        (1, "train", None, 1.0),
        (1, "loss_scale", 0.5, 0.5),
        (1, "loss_scale", "1", "parse.bad_weight"),
        (0, "weight", 0, 1.0),
        (0, "weight", 1, "parse.unsupported_weight"),
        (None, "weight", 0.25, 0.25),
        (None, "sample_weight", True, "parse.bad_weight"),
    ],
)
def test_a_weight_in_the_data_is_never_passed_over(
    index: int | None, key: str, value: Any, expected: float | str, tmp_path: Path
) -> None:
    record = talk()
    (record if index is None else record["messages"][index])[key] = value
    source = write_lines(tmp_path / "a.jsonl", [record])
    flags = ["--input", source, *TOKENIZER, "--output", str(tmp_path / "o"), "--workers", "1"]
    assert run(*RULE, *flags, "--max-reject-rate", "1", "--quiet") == 0
    counts = manifest_of(tmp_path / "o").counts
    if isinstance(expected, str):
        assert counts[f"reject.{expected}"] == 1
        return
    (shard,) = (tmp_path / "o").glob("*.parquet")
    (row,) = pq.read_table(shard).to_pylist()
    assert {w for w in row["loss_scale"] if w} == {expected}
    assert {s["weight"] for s in row["spans"] if s["region"] in ("content", "stop")} == {expected}


def test_a_hub_datasets_own_files_are_never_overwritten(tmp_path: Path) -> None:
    """Their names are those that a build would give its shards."""
    mine = tmp_path / "train-00000-of-00001.parquet"
    mine.write_bytes(b"years of work")
    assert run(*RULE, "--output", str(tmp_path), "--overwrite") == 1
    (tmp_path / "manifest.json").write_text("{}")
    assert run(*RULE, "--output", str(tmp_path), "--overwrite") == 1
    assert mine.read_bytes() == b"years of work"


def test_a_copy_without_what_tells_that_it_is_finished_is_told_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, copy = tmp_path / "o", tmp_path / "copy"
    assert run(*RULE, "--output", str(made), "--workers", "1") == 0
    shutil.copytree(made, copy, ignore=shutil.ignore_patterns(".*"))
    assert run(*RULE, "--output", str(copy), "--workers", "1") == 1
    assert "holds a build without its folder .weighted-shards" in capsys.readouterr().err


def test_overwriting_waits_until_the_inputs_are_readable(tmp_path: Path) -> None:
    output = tmp_path / "o"
    assert run(*RULE, "--output", str(output), "--workers", "1") == 0
    before = files_of(output)
    gone = ["--input", str(tmp_path / "gone.jsonl"), *TOKENIZER]
    assert run(*RULE, "--output", str(output), "--overwrite", *gone) == 1
    assert files_of(output) == before


def test_rejects_never_replace_an_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(tmp_path / "a.jsonl", [talk()])
    flags = ["--input", source, *TOKENIZER, "--output", str(tmp_path / "o")]
    assert run(*RULE, *flags, "--rejects", f"{tmp_path}/./a.jsonl") == 1
    assert "is an input, and where the rejects would go; choose another" in capsys.readouterr().err
    assert Path(source).read_text() == json.dumps(talk()) + "\n"
    for word in (str(tmp_path), f"{tmp_path}/*.jsonl"):  # in a folder or a glob it is one too
        flags[1] = word
        assert run(*RULE, *flags, "--rejects", source) == 1
        assert (
            "is an input, and where the rejects would go; choose another" in capsys.readouterr().err
        )
        assert Path(source).read_text() == json.dumps(talk()) + "\n"
    (tmp_path / "file").write_text("")
    assert run(*RULE, *flags, "--rejects", str(tmp_path / "file" / "r.jsonl")) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["rejects.jsonl", "train-00000-of-00001.parquet"])
def test_overwriting_removes_no_input(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mended rejects, say, that are built into the folder where they lie."""
    folder, link = tmp_path / "o", tmp_path / "link"
    source = write_lines(tmp_path / "a.jsonl", [talk(), {"id": 1}])
    flags = [*TOKENIZER, "--output", str(folder), "--workers", "1"]
    run("--input", source, *flags)
    link.symlink_to(folder / name)
    before = files_of(folder)
    for word in (str(folder / name), str(link)):
        more = ["--overwrite", "--rejects", str(tmp_path / "new.jsonl")]
        assert run("--input", word, *flags, *more) == 1
        assert "would replace or remove" in capsys.readouterr().err
        assert files_of(folder) == before


def test_a_file_that_cannot_grow_ends_with_1_and_the_build_can_go_on(tmp_path: Path) -> None:
    """As a full disk does: the file-size limit makes writing fail."""
    flags = [*RULE, "--output", str(tmp_path / "o"), "--workers", "1", "--shard-size", "60000"]
    command = [sys.executable, "-m", "pipeline.build", *flags]
    limited = ["sh", "-c", 'ulimit -f 16; exec "$@"', "sh", *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
    assert not (tmp_path / "o" / "manifest.json").exists()
    assert run(*flags) == 0


def test_a_build_inside_its_input_folder_can_run_again(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [talk()])
    flags = ["--input", str(tmp_path), *TOKENIZER, "--output", str(tmp_path / "shards")]
    for _ in range(2):
        assert run(*RULE, *flags, "--workers", "1") == 0
    assert manifest_of(tmp_path / "shards").counts["rows"] == 1
