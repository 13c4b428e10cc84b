"""An export is whole or absent, holds the build's very rows, and changes nothing unasked."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from pipeline import build, cli, export, exporting
from pipeline.errors import BuildError, ConfigurationError
from pipeline.exporting import export_dataset
from pipeline.targets import TARGETS, delivery
from pipeline.targets.rows import Wishes, open_rows

RULES = """
version: 1
name: graded
rules:
  - {pattern: '<think>[\\s\\S]*?</think>\\s*', weight: 0.5}
  - {pattern: '[A-Z]\\w+ ?', weight: 3}
"""
COUNTED = """
version: 1
name: counted
rules:
  - {pattern: '<think>\\s*</think>\\s*', weight: 0, count: true}
"""
NEGATIVE = """
version: 1
name: negative
rules:
  - {pattern: '<think>\\s*</think>\\s*', weight: -1, negative: true}
"""


def made(home: Path, rules: str, *words: str) -> Path:
    """A build of the embedded sample, in several shards."""
    if "\n" in rules:
        (home / "rules.yaml").write_text(rules)
        rules = str(home / "rules.yaml")
    output = home / "shards"
    words = ("--rules", rules, "--output", str(output), "--shard-size", "60000", *words)
    assert cli.run(build.main, [*words, "--workers", "1", "--quiet"]) == 0
    return output


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("binary"), "ignore_empty_think")


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("graded"), RULES)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("counted"), COUNTED)


def table(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("train-*.parquet")))


def run(*words: str | Path) -> int:
    return cli.run(export.main, [str(word) for word in words])


def test_rows_are_those_of_the_build_in_its_order(graded: Path, tmp_path: Path) -> None:
    export_dataset(graded, "datasets", tmp_path / "out")
    columns = ["input_ids", "labels", "loss_scale", "length"]
    assert table(tmp_path / "out").equals(table(graded).select(columns))
    assert len(list((tmp_path / "out").glob("train-*.parquet"))) > 1
    read = polars.read_parquet(tmp_path / "out" / "*.parquet")
    assert read["length"].to_list() == table(graded)["length"].to_pylist()


def test_arrow_shards_export_as_parquet_ones_do(graded: Path, tmp_path: Path) -> None:
    arrow = made(tmp_path, RULES, "--format", "arrow")
    export_dataset(graded, "datasets", tmp_path / "one")
    export_dataset(arrow, "datasets", tmp_path / "other")
    assert table(tmp_path / "one").equals(table(tmp_path / "other"))


def test_the_same_export_has_the_same_bytes(graded: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        export_dataset(graded, "datasets", tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "export.json" in files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_the_receipt_tells_each_file_and_the_build(graded: Path, tmp_path: Path) -> None:
    export_dataset(graded, "datasets", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    manifest = json.loads((graded / "manifest.json").read_text())
    assert told["fingerprint"] == manifest["fingerprint"]
    assert told["tokens"] == manifest["counts"]["tokens"]
    assert told["denominator"] == manifest["denominator"]
    listed = {item["file"] for item in told["files"]}
    assert listed == {p.name for p in (tmp_path / "out").iterdir()} - {"export.json"}
    for item in told["files"]:
        ran = subprocess.run(
            ["sha256sum", tmp_path / "out" / item["file"]], capture_output=True, check=True
        )
        assert ran.stdout.decode().split()[0] == item["sha256"]


def test_weights_that_a_target_cannot_hold_are_refused_with_their_place(
    graded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(graded, "--to", "axolotl", "--output", tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # The first odd weight, found by another way than the export's.
    for path in sorted(graded.glob("train-*.parquet")):
        rows = pq.read_table(path)["loss_scale"].to_pylist()
        odd = [(r, t) for r, row in enumerate(rows) for t, w in enumerate(row) if w not in (0, 1)]
        if odd:
            row, token = odd[0]
            assert f"{path}[{row}]: token {token} weighs {rows[row][token]:g}, " in told
            break
    else:
        pytest.fail("the build has no odd weight")
    assert "--binarize THRESHOLD" in told


@pytest.mark.parametrize("threshold", [0.25, 0.5, 1.0, 2.0])
def test_binarized_tokens_train_where_they_weigh_at_least_the_threshold(
    graded: Path, tmp_path: Path, threshold: float
) -> None:
    export_dataset(graded, "datasets", tmp_path / "out", binarize=threshold)
    before, after = table(graded), table(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "export.json").read_text())["changed"]
    changed = dict.fromkeys(("raised", "lowered", "dropped"), 0)
    for ids, old, labels, new in zip(
        *(before[name].to_pylist() for name in ("input_ids", "loss_scale")),
        *(after[name].to_pylist() for name in ("labels", "loss_scale")),
        strict=True,
    ):
        assert new == [1.0 if w >= threshold else 0.0 for w in old]
        assert labels == [i if w >= threshold else -100 for i, w in zip(ids, old, strict=True)]
        changed["raised"] += sum(threshold <= w < 1 for w in old)
        changed["lowered"] += sum(w >= threshold and w > 1 for w in old)
        changed["dropped"] += sum(0 < w < threshold for w in old)
    assert told.get("tokens_raised_to_1", 0) == changed["raised"]
    assert told.get("tokens_lowered_to_1", 0) == changed["lowered"]
    assert told.get("tokens_lowered_to_0", 0) == changed["dropped"]


def test_counted_zeros_are_kept_refused_or_dropped_on_request(
    counted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_dataset(counted, "datasets", tmp_path / "kept")
    assert table(tmp_path / "kept")["labels"].equals(table(counted)["labels"])
    zeros = json.loads((counted / "manifest.json").read_text())["counts"]["counted_zeros"]
    assert zeros > 0
    assert run(counted, "--to", "axolotl", "--output", tmp_path / "out") == 1
    assert "counts in a mean over labels" in capsys.readouterr().err
    made = export_dataset(counted, "axolotl", tmp_path / "out", uncount=True)
    assert made.receipt["changed"] == {"counted_zeros_dropped": zeros}


@pytest.mark.parametrize("target", ["ms-swift", "mosaic"])
def test_targets_with_labels_of_their_own_keep_counted_zeros(
    counted: Path, tmp_path: Path, target: str
) -> None:
    export_dataset(counted, target, tmp_path / "out")
    if target == "ms-swift":
        with pa.ipc.open_stream(tmp_path / "out" / "data-00000-of-00001.arrow") as stream:
            found = stream.read_all()["labels"].to_pylist()
    else:
        found = [labels for path in mds_files(tmp_path / "out") for labels in mds_labels(path)]
    assert found == table(counted)["labels"].to_pylist()


def mds_files(folder: Path) -> list[Path]:
    told = json.loads((folder / "index.json").read_text())["shards"]
    return [folder / shard["raw_data"]["basename"] for shard in told]


def mds_labels(path: Path) -> Iterator[list[int]]:
    """The second of three columns: a length of one or two bytes, then int32 (MDS, version 2)."""
    data = path.read_bytes()
    (count,) = struct.unpack_from("<I", data)
    for offset in struct.unpack_from(f"<{count}I", data, 4):
        ids, labels, _ = struct.unpack_from("<3I", data, offset)
        column = data[offset + 12 + ids : offset + 12 + ids + labels]
        yield np.frombuffer(column[1 + (1 << (column[0] & 3)) :], "<i4").tolist()


def test_negative_weights_do_not_train_where_binarized(tmp_path: Path) -> None:
    shards = made(tmp_path, NEGATIVE)
    with pytest.raises(BuildError, match="weighs -1, and axolotl"):
        export_dataset(shards, "axolotl", tmp_path / "out")
    told = export_dataset(shards, "axolotl", tmp_path / "out", binarize=0.5).receipt["changed"]
    weights = pc.list_flatten(table(shards)["loss_scale"]).to_numpy()
    assert told["negative_tokens_set_to_0"] == (weights < 0).sum() > 0


def test_what_lies_in_the_output_is_not_touched(
    binary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name, fact in (
        ("mine", "holds what no export wrote (thesis.txt)"),
        ("file", "is no folder"),
        ("link", "is no folder"),
    ):
        for more in ([], ["--overwrite"]):
            assert run(binary, "--to", "datasets", "--output", tmp_path / name, *more) == 1
            assert fact in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link", "mine"]


def test_an_export_is_replaced_only_when_told_to(
    binary: Path, graded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    assert run(binary, "--to", "datasets", "--output", out) == 0
    assert run(graded, "--to", "datasets", "--output", out) == 1
    assert "holds an export already" in capsys.readouterr().err
    assert run(graded, "--to", "datasets", "--output", out, "--overwrite") == 0
    assert table(out)["loss_scale"].equals(table(graded)["loss_scale"])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_shards_own_folder_is_no_output(
    binary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for output in (binary, binary / "inside", binary / ".." / binary.name / "x"):
        assert run(binary, "--to", "datasets", "--output", output) == 1
        assert "lies among the shards" in capsys.readouterr().err


def test_a_failure_leaves_what_was_there(
    binary: Path, graded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export_dataset(binary, "datasets", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for place in ("_sync", "file_digest"):
        with monkeypatch.context() as patch:
            patch.setattr(delivery if place == "_sync" else exporting, place, fail)
            with pytest.raises(BuildError, match="No space left"):
                export_dataset(graded, "datasets", out, overwrite=True)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_export_left_is_cleared_away(binary: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.exporting"
    (left / "sub").mkdir(parents=True)
    (left / "sub" / "half.parquet").write_text("x")
    export_dataset(binary, "datasets", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert table(tmp_path / "out").num_rows == table(binary).num_rows


def test_a_killed_export_is_no_export(binary: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from pipeline import exporting\n"
        "from pipeline.targets import delivery\n"
        "delivery._sync = lambda folder: os.kill(os.getpid(), 9)\n"
        "exporting.export_dataset(Path(sys.argv[1]), 'datasets', Path(sys.argv[2]))\n"
    )
    words = [sys.executable, "-c", code, str(binary), str(tmp_path / "out")]
    assert subprocess.run(words, check=False).returncode == -9
    assert not (tmp_path / "out").exists()
    export_dataset(binary, "datasets", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_damaged_and_unfinished_builds_are_refused(
    binary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for damage, fact in (
        (lambda f: (f / "manifest.json").unlink(), "unfinished build"),
        (lambda f: next(f.glob("*.parquet")).unlink(), "is missing"),
        (lambda f: flip(next(f.glob("*.parquet"))), "its sha256 is not the one"),
        (shutil.rmtree, "no manifest.json"),
    ):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(binary, folder)
        damage(folder)
        assert run(folder, "--to", "datasets", "--output", tmp_path / "out") == 1
        assert fact in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_flags_that_a_target_has_no_use_for_are_refused(
    binary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--output", tmp_path / "out")
    for words, code, fact in (
        (("--to", "axolotl", "--pack", "100"), 1, "it is for trl, levanter, megatron-bridge"),
        (("--to", "megatron-bridge"), 1, "--pack: missing"),
        (("--to", "trl", "--validation", "0.1"), 1, "it is for datasets, llamafactory"),
        (("--to", "llamafactory", "--validation", "1"), 1, "not a share between 0 and 1"),
        (("--to", "nobody"), 2, "invalid choice"),
        (("--to", "axolotl", "--binarize", "0"), 2, "not a number above 0"),
        (("--to", "axolotl", "--binarize", "nan"), 2, "not a number above 0"),
        (("--to", "trl", "--pack", "0"), 2, "not a whole number above 0"),
    ):
        assert run(binary, *words, *out) == code
        assert fact in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigurationError, match="no such target; choose datasets, trl"):
        export_dataset(binary, "nobody", tmp_path / "out")


def test_what_would_train_nothing_is_refused(
    graded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--to", "datasets", "--binarize", "100", "--output", tmp_path / "out")
    assert run(graded, *words) == 1
    assert "weighs that much, and none would train" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_lines_that_load_it_lie_in_the_folder_and_name_no_place(
    binary: Path, tmp_path: Path
) -> None:
    made = export_dataset(binary, "axolotl", tmp_path / "out")
    kept = (tmp_path / "out" / "recipe.txt").read_text(encoding="utf-8")
    assert str(tmp_path) not in kept
    assert made.recipe.replace(str(tmp_path / "out"), "DIR") in kept


def test_a_validation_set_is_a_split_of_its_own(binary: Path, tmp_path: Path) -> None:
    export_dataset(binary, "datasets", tmp_path / "out", validation=0.2)
    splits = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert 30 < splits["validation"].num_rows < 110  # 70 of 351, and five deviations
    both = [*splits["train"]["input_ids"], *splits["validation"]["input_ids"]]
    assert sorted(both) == sorted(table(binary)["input_ids"].to_pylist())
    again = [*export_splits(binary, tmp_path / "again", "llamafactory")]
    assert again == [splits["train"].num_rows, splits["validation"].num_rows]


def export_splits(shards: Path, output: Path, target: str) -> list[int]:
    told = export_dataset(shards, target, output, validation=0.2).receipt["told"]
    return [told["rows_of_train"], told["rows_of_validation"]]


def test_rows_longer_than_a_packed_sequence_are_counted(
    binary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = table(binary)["length"].to_pylist()
    over = sum(length > 200 for length in lengths)
    assert run(binary, "--to", "trl", "--pack", "200", "--output", tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert f"{over:,} of {len(lengths):,} rows are longer than --pack 200" in told
    assert f"the longest {max(lengths):,} tokens" in told


def test_one_json_line_on_success_and_on_failure(
    binary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (binary, "--to", "datasets", "--output", tmp_path / "out", "--json")
    for code in (0, 1):
        assert run(*words) == code
        (line,) = capsys.readouterr().out.splitlines()
        assert json.loads(line)["exit"] == code
    assert "already" in json.loads(line)["error"]


def test_validation_takes_about_its_share_and_all_rows_of_a_record(tmp_path: Path) -> None:
    shards = made(tmp_path, "default", "--turns", "fan_out")
    rows = open_rows(shards, lambda _, chunk: chunk, Wishes(validation=0.3))
    drawn = np.concatenate([chunk.held_out for chunk in rows])
    records = list(zip(*(table(shards)[n].to_pylist() for n in ("source", "row")), strict=True))
    assert len(records) == len(drawn) > len(set(records))
    held = {record for record, flag in zip(records, drawn, strict=True) if flag}
    kept = {record for record, flag in zip(records, drawn, strict=True) if not flag}
    assert not held & kept
    assert 0.2 < len(held) / len(held | kept) < 0.4  # 351 draws: 0.3 and four deviations


def test_shifting_moves_each_row_by_one(graded: Path) -> None:
    rows = open_rows(graded, lambda _, chunk: chunk)
    for chunk in rows:
        moved = chunk.shifted(chunk.weights, 7.0)
        for row in range(chunk.rows):
            a, b = chunk.firsts[row : row + 2]
            assert moved[a:b].tolist() == [*chunk.weights[a + 1 : b].tolist(), 7.0]
        some = np.arange(chunk.rows)[::-3]
        taken = chunk.taken(some)
        for at, row in enumerate(some):
            a, b = chunk.firsts[row : row + 2]
            c, d = taken.firsts[at : at + 2]
            assert taken.ids[c:d].tolist() == chunk.ids[a:b].tolist()
            assert taken.weights[c:d].tolist() == chunk.weights[a:b].tolist()
            assert taken.labels[c:d].tolist() == chunk.labels[a:b].tolist()


def test_it_imports_no_trainer(binary: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pipeline import cli, export\n"
        "assert cli.run(export.main, sys.argv[1:]) == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'tokenizers', 'fastokens'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    words = [str(binary), "--to", "datasets", "--output", str(tmp_path / "out"), "--quiet"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_a_folder_that_cannot_be_written_is_named(
    binary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert run(binary, "--to", "datasets", "--output", tmp_path / "file" / "out") == 1
    assert "choose another --output" in capsys.readouterr().err
    if os.geteuid() == 0:
        return
    (tmp_path / "closed").mkdir(mode=0o500)
    assert run(binary, "--to", "datasets", "--output", tmp_path / "closed" / "out") == 1
    assert "choose another --output" in capsys.readouterr().err


def test_the_documents_name_every_target_and_the_versions_that_its_tests_run() -> None:
    root = Path(__file__).resolve().parent.parent
    told = (root / "docs" / "trainers.md").read_text(encoding="utf-8")
    for name in TARGETS:
        assert f"--to {name}" in told
        assert f"`{name}`" in (root / "README.md").read_text(encoding="utf-8")
    rows = {
        "axolotl": "axolotl",
        "llamafactory": "LLaMA-Factory",
        "ms-swift": "ms-swift",
        "torchtune": "torchtune",
        "verl": "verl SFT",
        "megatron-bridge": "Megatron-Bridge",
        "ai2-olmo-core": "OLMo-core",
        "mosaicml-streaming": "MosaicML streaming",
        "litdata": "litdata",
    }
    pins = dict(
        line.split("#")[0].strip().split("==")
        for line in (root / "tests" / "trainers.txt").read_text().splitlines()
        if "==" in line
    )
    for package, trainer in rows.items():
        assert f"| {trainer} | {pins[package]} |" in told
    assert f"core {pins['megatron-core']}" in told
    assert pins["marin-levanter"].startswith("0.2.20.dev")
    assert "marin-levanter 0.2.20.dev" in told
