"""Whatever is damaged is found, nothing crashes, and what a build or a reweighting made passes."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build, cli, reweight, verify
from pipeline.contract import Sums
from pipeline.files import WORK, file_digest
from pipeline.findings import SHOWN
from pipeline.ledger import MOST
from pipeline.lock import locked
from pipeline.plan import Plan
from pipeline.shards import SCHEMA
from pipeline.task import sidecar
from pipeline.terminal import harmless
from pipeline.verification import Verified, verify_output
from pipeline.weights import IGNORED
from tests.test_reweight import RECORDS, talk
from tests.test_show import CHAT, write_tokenizer

RULES = {
    "mild": "rules:\n  - {pattern: '[A-Z]\\w+ ?', weight: 0.3}\n",
    "harsh": "rules:\n  - {unless: {turn: '4'}, weight: 0}\n",
    "all": "base: all\n",
    "zeros": "rules:\n  - {pattern: '[4e]+', weight: 0, count: true}\n",
    "against": "rules:\n  - {pattern: 'Hm', weight: -0.5, negative: true}\n",
}
BAD = ["{", '{"messages": []}', '{"messages": [{"role": "robot", "content": "x"}]}']

Row = dict[str, Any]


class Yard:
    """Where the tests' builds lie; each is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = write_tokenizer(folder / "tokenizer", CHAT, normalizer={"type": "NFC"})
        numbers = random.Random(4)
        records = RECORDS + [
            talk(*("".join(numbers.choices("Paris 4e\u0301\n<>你 is", k=9)) + "." for _ in "abcd"))
            for _ in range(40)
        ]
        lines = [json.dumps(record) for record in records]
        self.inputs: list[str] = []
        for name, part in (("a.jsonl", lines[:30]), ("b.jsonl", [*BAD, *lines[30:], BAD[0]])):
            path = folder / name
            path.write_text("".join(f"{line}\n" for line in part), encoding="utf-8")
            self.inputs.append(str(path))
        for name, text in RULES.items():
            path = folder / f"{name}.yaml"
            path.write_text(f"version: 1\nname: {name}\n{text}", encoding="utf-8")

    def rules(self, name: str) -> list[str]:
        return [str(self.folder / f"{name}.yaml")] if name else []

    def build(self, rules: str, *flags: str) -> Path:
        output = self.folder / "-".join(["built", rules, *map(os.path.basename, flags)])
        if not output.exists():
            arguments = ["--input", *self.inputs, "--tokenizer", self.tokenizer, "--quiet"]
            arguments += ["--output", str(output), "--shard-size", "2500", "--workers", "1"]
            arguments += ["--max-reject-rate", "1", *flags, "--rules", *self.rules(rules)]
            if not rules:
                arguments.pop()
            assert cli.run(build.main, arguments) == 0
        return output

    def reweight(self, shards: Path, rules: str) -> Path:
        output = self.folder / f"{shards.name}-as-{rules}"
        if not output.exists():
            arguments = [str(shards), "--tokenizer", self.tokenizer, "--output", str(output)]
            arguments += ["--quiet", "--max-reject-rate", "1", "--workers", "1", "--rules"]
            assert cli.run(reweight.main, [*arguments, *self.rules(rules)]) == 0
        return output


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Yard:
    return Yard(tmp_path_factory.mktemp("yard"))


def copied(folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "shards"
    shutil.copytree(folder, target)
    return target


def verified(folder: Path, tmp_path: Path, *inputs: str) -> Verified:
    return verify_output(folder, spool=tmp_path / "spool", inputs=inputs)


def faults(folder: Path, tmp_path: Path, *inputs: str) -> list[str]:
    return verified(folder, tmp_path, *inputs).findings.lines()


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def write_manifest(folder: Path, manifest: Any, *, hashed: bool = False) -> None:
    if hashed:
        manifest["fingerprint"] = Plan((), manifest["parts"]).fingerprint
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


KINDS: dict[str, tuple[str, ...]] = {
    "plain": ("",),
    "weighed": ("mild",),
    "arrow": ("mild", "--format", "arrow"),
    "fan_out": ("mild", "--turns", "fan_out"),
    "last_turn": ("", "--turns", "last_turn"),
    "counted zeros": ("zeros",),
    "base all": ("all",),
    "negative": ("against",),
    "rejecting": ("harsh",),
    "fan_out rejecting": ("harsh", "--turns", "fan_out"),
    "ms-swift": ("", "--profile", "ms-swift"),
    "split": ("mild", "--edge", "split"),
    "kept": ("", "--keep", "extra", "weight"),
}


# Why no shard of these tells what it should weigh.
UNWEIGHED = {
    "ms-swift": "the shards were made with --profile ms-swift, whose weights depend on what no "
    "shard keeps (which messages had a weight of 1, or were switched on)",
    "split": "edges that split change ids, which stay as they are in finished shards",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_passes(kind: str, yard: Yard, tmp_path: Path) -> None:
    folder = yard.build(*KINDS[kind])
    spool = tmp_path / "spool"
    found = verify_output(folder, spool=spool, inputs=yard.inputs, tokenizer=yard.tokenizer)
    unknown = [f"not checked: labels and weights: {why}" for why in [UNWEIGHED.get(kind)] if why]
    assert found.findings.lines() == unknown
    counts = manifest_of(folder)["counts"]
    assert found.sums.rows == counts["rows"] > 10
    assert found.sums.tokens == counts["tokens"]
    assert found.records + found.rejects == counts["conversations"] == 52
    assert found.rejects >= 4
    assert found.inputs == 2
    assert found.sidecars == found.shards > 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("plain", "mild"),
        ("arrow", "zeros"),
        ("plain", "harsh"),
        ("rejecting", "all"),
        ("fan_out", "harsh"),
        ("fan_out rejecting", "mild"),
        ("base all", ""),
    ],
)
def test_a_reweighting_passes(old: str, new: str, yard: Yard, tmp_path: Path) -> None:
    folder = yard.reweight(yard.build(*KINDS[old]), new)
    assert faults(folder, tmp_path, *yard.inputs) == []
    assert faults(yard.reweight(folder, "mild"), tmp_path, *yard.inputs) == []


def test_the_embedded_sample_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shards"
    rules = ["--rules", "ignore_empty_think"]
    assert cli.run(build.main, [*rules, "--output", str(folder), "--workers", "1"]) == 0
    capsys.readouterr()
    assert cli.run(verify.main, [str(folder)]) == 0
    out, err = capsys.readouterr()
    assert not err
    counts = manifest_of(folder)["counts"]
    assert f"{counts['tokens']:,}, {counts['targets']:,} of them trained" in out
    assert "not given (--input), so not read again" in out
    assert cli.run(verify.main, [str(folder), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.run(verify.main, [str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sound"] is True
    assert told["rows"] == counts["rows"]
    assert told["faults"] == {}


def test_a_build_of_nothing_passes(yard: Yard, tmp_path: Path) -> None:
    source, folder = tmp_path / "none.jsonl", tmp_path / "shards"
    source.write_bytes(b"{}\n")  # a record that becomes no row
    arguments = ["--input", str(source), "--tokenizer", yard.tokenizer, "--output", str(folder)]
    assert cli.run(build.main, [*arguments, "--quiet", "--max-reject-rate", "1"]) == 0
    assert faults(folder, tmp_path, str(source)) == []


def test_shards_without_sidecars_pass(yard: Yard, tmp_path: Path) -> None:
    folder = copied(yard.build("mild"), tmp_path)
    shutil.rmtree(folder / WORK)
    found = verified(folder, tmp_path)
    assert found.findings.lines() == []
    assert found.sidecars == 0


def test_rejects_may_lie_elsewhere(
    yard: Yard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(yard.build("mild"), tmp_path)
    elsewhere = tmp_path / "left_out.jsonl"
    (folder / "rejects.jsonl").rename(elsewhere)
    assert cli.run(verify.main, [str(folder), "--quiet"]) == 1
    assert "counts 4 rejects; name the file with --rejects" in capsys.readouterr().err
    assert cli.run(verify.main, [str(folder), "--quiet", "--rejects", str(elsewhere)]) == 0


# Damage that no hash shows, because manifest and sidecar are made to agree.

Change = Callable[[list[Row]], object]


def edited(folder: Path, change: Change, *, index: int = 0, counts: bool = True) -> None:
    """Shard *index* with *change* made to its rows, and all that tells its bytes or sums anew."""
    manifest = manifest_of(folder)
    shard = manifest["shards"][index]
    path = folder / shard["file"]
    rows = pq.read_table(path).to_pylist()
    found = change(rows)
    table = found if isinstance(found, pa.Table) else pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table, path)
    told = json.loads(sidecar(folder, index).read_text())
    shard["bytes"] = told["bytes"] = path.stat().st_size
    shard["sha256"] = told["sha256"] = file_digest(path)
    if counts and not isinstance(found, pa.Table):
        before, after = told["counts"], sums_of(rows)
        for name, number in after.items():
            manifest["counts"][name] += number - before[name]
            before[name] = number
        told["rows"] = shard["rows"] = after["rows"]
        shard["tokens"], shard["targets"] = after["tokens"], after["targets"]
    sidecar(folder, index).write_text(json.dumps(told))
    write_manifest(folder, manifest)


def sums_of(rows: list[Row]) -> dict[str, Any]:
    labels = [label for row in rows for label in row["labels"] or () if label is not None]
    weights = [w for row in rows for w in row["loss_scale"] or () if w and math.isfinite(w)]
    return {
        "rows": len(rows),
        "tokens": sum(len(row["input_ids"] or ()) for row in rows),
        "targets": sum(label != -100 for label in labels),
        "weight_sum": math.fsum(weights),
    }


def setting(column: str, value: Any, *, row: int = 1) -> Change:
    return lambda rows: rows[row].update({column: value})


def at(column: str, token: int, value: Any, *, row: int = 1) -> Change:
    return lambda rows: rows[row][column].__setitem__(token, value)


def in_span(field: str, value: Any, *, span: int = 1) -> Change:
    return lambda rows: rows[1]["spans"][span].__setitem__(field, value)


def of_text(rows: list[Row]) -> None:
    row = next(row for row in rows if row["text"] is not None)
    row["spans"][-1]["end"] = len(row["text"]) + 1


def silent(rows: list[Row]) -> None:
    row = rows[1]
    row["labels"] = [-100] * row["length"]
    row["loss_scale"] = [0.0] * row["length"]
    row["num_target_tokens"], row["weight_sum"] = 0, 0.0


def of_last(column: str, value: Any) -> Change:
    """Of the last token that trains, in row 1."""

    def change(rows: list[Row]) -> None:
        row = rows[1]
        token = max(i for i, w in enumerate(row["loss_scale"]) if w)
        row[column][token] = value

    return change


def swapped(rows: list[Row]) -> None:
    rows[0], rows[1] = rows[1], rows[0]


EDITS: dict[str, tuple[Change, str]] = {
    "label": (of_last("labels", 7), "labels: 7, neither -100 nor its id"),
    "masked label": (of_last("labels", -100), "labels: -100, but loss_scale is"),
    "lost weight": (of_last("loss_scale", 0.0), ", but loss_scale is 0"),
    "NaN": (of_last("loss_scale", math.nan), "loss_scale: nan, not a finite number"),
    "infinity": (of_last("loss_scale", math.inf), "loss_scale: inf, not a finite number"),
    "first weight": (at("loss_scale", 0, 0.5), "[1]: token 0: loss_scale: 0.5, not 0"),
    "first label": (
        lambda rows: rows[1]["labels"].__setitem__(0, rows[1]["input_ids"][0]),
        "[1]: token 0: labels: ",
    ),
    "id": (at("input_ids", 2, -3), "[1]: token 2: input_ids: -3, which is no id"),
    "length": (setting("length", 3), "[1]: length: 3, but its lists have"),
    "targets": (setting("num_target_tokens", 1), "[1]: num_target_tokens: 1, but its lists"),
    "sum": (setting("weight_sum", 0.75), "[1]: weight_sum: 0.75, but its loss_scale adds up to"),
    "no sum": (setting("weight_sum", math.nan), "[1]: weight_sum: nan, but"),
    "untrained": (silent, "[1]: loss_scale: no token trains"),
    "short labels": (lambda rows: rows[1]["labels"].pop(), "[1]: labels: "),
    "long weights": (lambda rows: rows[1]["loss_scale"].append(0.0), "[1]: loss_scale: "),
    **{
        f"null {name}": (setting(name, None), f"[1]: {name}: null")
        for name in SCHEMA.names
        if name not in ("text", "fields")
    },
    "null id": (at("input_ids", 1, None), "[1]: input_ids: null"),
    "null weight": (at("loss_scale", 1, None), "[1]: loss_scale: null"),
    "null span": (at("spans", 1, None), "[1]: spans: null"),
    "null role": (in_span("role", None), "[1]: spans.role: null"),
    "empty span": (in_span("end", 2), "to 2: no range"),
    "span below": (in_span("start", -4, span=0), "spans[0]: characters -4 to"),
    "overlap": (in_span("start", 2), ": out of order"),
    "order": (lambda rows: rows[1]["spans"].reverse(), ": out of order"),
    "role": (in_span("role", "robot"), "role 'robot'"),
    "region": (in_span("region", "thought"), "region 'thought'"),
    "nobody": (in_span("message", -1), "of message -1: unknown"),
    "span weight": (in_span("weight", math.nan), "weight nan: no weight"),
    "span beyond": (of_text, "outside of the row's text"),
    "fields": (setting("fields", "{"), "[1]: fields: not JSON"),
    "fields list": (setting("fields", "[1]"), "[1]: fields: '[1]' is no object"),
    "fields empty": (setting("fields", "{}"), "[1]: fields: '{}' is no object with a field"),
    "fields unkept": (setting("fields", '{"x": 1}'), "[1]: fields: holds 'x', which --keep did"),
    "source": (setting("source", "c.jsonl"), "[1]: source: 'c.jsonl', which is no input"),
    "row": (setting("row", 99), "[1]: row: 99, but a.jsonl has 30"),
    "row below": (setting("row", -1), "[1]: row: -1, but a.jsonl has 30"),
    "twice": (lambda rows: rows.insert(1, rows[0]), "a.jsonl[0] has a row before already"),
    "swapped": (swapped, "a.jsonl[0] comes after a later record's row"),
    "lost": (lambda rows: rows.pop(1), "a.jsonl[1]: it is no row and no reject"),
    "lost two": (
        lambda rows: rows.__delitem__(slice(1, 3)),
        "a.jsonl[1]: it and the 1 after it are no row and no reject",
    ),
    "column": (
        lambda rows: pa.Table.from_pylist(rows, SCHEMA).drop_columns(["fields"]),
        "not a shard of this version",
    ),
    "type": (
        lambda rows: pa.Table.from_pylist(rows, SCHEMA.set(3, pa.field("length", pa.int64()))),
        "not a shard of this version",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_the_contract_finds_what_no_hash_shows(edit: str, yard: Yard, tmp_path: Path) -> None:
    folder = copied(yard.build("mild"), tmp_path)
    change, fact = EDITS[edit]
    edited(folder, change)
    lines = faults(folder, tmp_path)
    assert any(fact in line for line in lines), lines
    assert not any("sha256" in line for line in lines)
    assert all("; " in line or line.startswith("not checked: ") for line in lines), lines


def test_an_id_outside_of_the_vocabulary_is_found(yard: Yard, tmp_path: Path) -> None:
    folder = copied(yard.build("mild"), tmp_path)
    edited(folder, at("input_ids", 2, 1_000_000))
    assert faults(folder, tmp_path) == []  # no manifest tells how large a vocabulary is
    found = verify_output(folder, spool=tmp_path, tokenizer=yard.tokenizer)
    assert "[1]: token 2: input_ids: 1000000, which is no id" in found.findings.lines()[0]


def shifted(rows: list[Row]) -> None:
    """The mask one token to the right, where both ends of the row weigh nothing."""
    row = next(r for r in rows if r["labels"][-1] == IGNORED == r["labels"][0])
    ids, scale = row["input_ids"], [0.0, *row["loss_scale"][:-1]]
    row["loss_scale"] = scale
    row["labels"] = [i if s else IGNORED for i, s in zip(ids, scale, strict=True)]


def exchanged(rows: list[Row]) -> None:
    """Two weights of a row, at the same sum."""
    row = next(r for r in rows if len({*r["loss_scale"]} - {0.0}) > 1)
    scale = row["loss_scale"]
    a, b = (next(i for i, s in enumerate(scale) if s == w) for w in sorted({*scale} - {0.0})[:2])
    scale[a], scale[b] = scale[b], scale[a]


@pytest.mark.parametrize("change", [shifted, exchanged])
def test_weights_that_the_rules_do_not_give_are_found_with_the_tokenizer(
    change: Change, yard: Yard, tmp_path: Path
) -> None:
    folder = copied(yard.build("mild"), tmp_path)
    edited(folder, change)
    assert faults(folder, tmp_path) == []  # the contract alone allows it
    found = verify_output(folder, spool=tmp_path, tokenizer=yard.tokenizer)
    assert set(found.findings.found) == {"weights"}
    assert ", but the rules give " in found.findings.lines()[0]


@pytest.mark.parametrize("more", [-1, 1])
def test_counted_zeros_are_exactly_those_that_are_counted(
    more: int, yard: Yard, tmp_path: Path
) -> None:
    folder = copied(yard.build("zeros"), tmp_path)

    def change(rows: list[Row]) -> None:
        for row in rows:
            for i, (weight, label) in enumerate(zip(row["loss_scale"], row["labels"], strict=True)):
                if more < 0 and not weight and label != -100:
                    row["labels"][i] = -100
                elif more > 0 and i and not weight and label == -100:
                    row["labels"][i] = row["input_ids"][i]
                else:
                    continue
                row["num_target_tokens"] += more
                return

    edited(folder, change)
    lines = faults(folder, tmp_path)
    assert len(lines) == 1
    assert "counts.counted_zeros: " in lines[0]


def test_rows_of_one_record_stay_together(yard: Yard, tmp_path: Path) -> None:
    """Of a fanned-out build: a row taken out of its record's and put after the next one's."""
    folder = copied(yard.build("mild", "--turns", "fan_out"), tmp_path)

    def change(rows: list[Row]) -> None:
        double = next(i for i in range(1, len(rows)) if rows[i]["row"] == rows[i - 1]["row"])
        after = next(i for i in range(double, len(rows)) if rows[i]["row"] > rows[double]["row"])
        rows.insert(after, rows.pop(double))

    edited(folder, change)
    assert any("comes after a later record's row" in line for line in faults(folder, tmp_path))


def test_a_row_that_is_a_reject_too_is_found(yard: Yard, tmp_path: Path) -> None:
    folder = copied(yard.build("mild"), tmp_path)
    path = folder / "rejects.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["source"], lines[0]["row"] = "a.jsonl", 2
    lines[1] = lines[2]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(folder / WORK)
    told = faults(folder, tmp_path)
    assert any("a.jsonl[2]: is a row and a reject" in line for line in told)
    assert any("b.jsonl[2]: is a reject twice" in line for line in told)
    assert any("b.jsonl[0]: it and the 1 after it are no row" in line for line in told)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda line: line.pop("raw"), "not a reject (Object missing required field `raw`)"),
        (lambda line: line.update(extra=1), "it has fields that a reject has not"),
        (lambda line: line.update(row="1"), "Expected `int`, got `str` - at `$.row`"),
        (lambda line: line.update(reason="other"), "1 rejects of reject.read.other, but"),
        (lambda line: line.update(source="zz"), "source: 'zz', which is no input"),
        (lambda line: line.update(row=10**15), "row: 1000000000000000, but b.jsonl has 22"),
    ],
)
def test_rejects_are_what_the_manifest_counts(
    change: Callable[[dict[str, Any]], object], fact: str, yard: Yard, tmp_path: Path
) -> None:
    folder = copied(yard.build("mild"), tmp_path)
    shutil.rmtree(folder / WORK)
    path = folder / "rejects.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines[0])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert any(fact in line for line in faults(folder, tmp_path))


def test_inputs_that_changed_are_named(yard: Yard, tmp_path: Path) -> None:
    folder = yard.build("mild")
    first, second = yard.inputs
    other = tmp_path / "b.jsonl"
    other.write_text(Path(second).read_text() + "\n{}\n")
    lines = faults(folder, tmp_path, first, str(other))
    assert any("b.jsonl: its records is 23, but was 22" in line for line in lines)
    assert any("b.jsonl: its sha256 is" in line for line in lines)
    assert (
        "b.jsonl given, but the build's were a.jsonl, b.jsonl"
        in faults(folder, tmp_path, second)[0]
    )
    absent = faults(folder, tmp_path, str(tmp_path / "absent.jsonl"))
    assert "no such file, folder or glob match" in absent[0]


def test_faults_of_one_kind_are_counted_after_the_first(yard: Yard, tmp_path: Path) -> None:
    folder = copied(yard.build("mild"), tmp_path)

    def change(rows: list[Row]) -> None:
        for row in rows:
            row["input_ids"] = [-1] * row["length"]
            row["labels"] = [-1 if label != -100 else label for label in row["labels"]]

    edited(folder, change)
    found = verified(folder, tmp_path).findings
    tokens = found.found["ids"]
    assert tokens > 100
    assert len([line for line in found.lines() if "no id" in line]) == SHOWN
    assert f"ids: {tokens - SHOWN:,} more of this kind; mend those above first" in found.lines()


# Damage of files.


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, (dict, list)) and item:
            yield from leaves(item, (*path, key))
        else:
            yield (*path, key)


def place_of(manifest: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        manifest = manifest[key]
    return manifest


# What certified an engine is told for people and cannot be had again.
_TOLD_ONLY = ("code_points", "engine", "reason", "strings", "versions")


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_every_value_of_the_manifest_is_held_against_something(
    form: str, yard: Yard, tmp_path: Path
) -> None:
    folder = copied(yard.build("mild", "--format", form), tmp_path)
    manifest = manifest_of(folder)
    missed = []
    for path in leaves(manifest):
        if path[0] == "engine" and path[1] in _TOLD_ONLY:
            continue
        changed = copy.deepcopy(manifest)
        owner = place_of(changed, path)
        value = owner[path[-1]]
        if isinstance(value, (int, float)):
            owner[path[-1]] = value + 1
        else:
            owner[path[-1]] = f"{value}x"
        write_manifest(folder, changed)
        if verified(folder, tmp_path).sound:
            missed.append(path)
    assert missed == []


HOSTILE: list[Any] = [
    *(None, True, -1, 0, 1 << 70, 10**400, 1e300, math.nan, math.inf, "", "x", "\ud800", "\x1b[2J"),
    *("../../etc/passwd", "/etc/passwd", [], {}, [[]], {"a": {"b": 1}}, [1, "x", None]),
]


@pytest.mark.parametrize("seed", range(4))
def test_no_value_in_a_manifest_makes_it_crash(seed: int, yard: Yard, tmp_path: Path) -> None:
    """Its fingerprint is mended, so that the value is believed as far as it can be."""
    folder = copied(yard.build("mild", "--format", "arrow"), tmp_path)
    numbers = random.Random(seed)
    manifest = manifest_of(folder)
    paths = [path[: numbers.randint(1, len(path))] for path in leaves(manifest)]
    if seed % 2:
        shutil.rmtree(folder / WORK)
    for path in numbers.choices(paths, k=120):
        changed = copy.deepcopy(manifest)
        owner = place_of(changed, path)
        owner[path[-1]] = copy.deepcopy(numbers.choice(HOSTILE))
        try:
            write_manifest(folder, changed, hashed=True)
        except (ValueError, TypeError, KeyError, AttributeError):
            write_manifest(folder, changed)
        lines = faults(folder, tmp_path, *yard.inputs)
        assert all(harmless(line) == line and "\n" not in line for line in lines)


def damage(path: Path, others: list[Path], numbers: random.Random) -> str:
    """One kind of damage to a file; its name."""
    raw = path.read_bytes()
    kinds = ["delete", "grow", "pipe", "folder", "dangling", "swap"]
    kinds += ["flip", "flip", "flip", "cut", "cut", "garbage", "empty"] if raw else []
    kind = numbers.choice(kinds)
    if kind == "flip":
        at, bit = numbers.randrange(len(raw)), 1 << numbers.randrange(8)
        path.write_bytes(raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :])
    elif kind == "cut":
        path.write_bytes(raw[: numbers.randrange(len(raw))])
    elif kind == "garbage":
        at = numbers.randrange(len(raw))
        path.write_bytes(raw[:at] + numbers.randbytes(40) + raw[at + 40 :])
    elif kind == "grow":
        path.write_bytes(raw + numbers.choice([b"x", b"{}\n", raw or b"y"]))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "swap":
        other = numbers.choice([p for p in others if p.read_bytes() != raw])
        path.write_bytes(other.read_bytes())
        other.write_bytes(raw)
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "dangling":
            path.symlink_to("nowhere")
    return kind


def unchanged(path: Path, original: Path) -> bool:
    """Whether a damaged JSON file says the same, but for what a manifest only tells."""
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        a, b = (json.loads(p.read_bytes()) for p in (path, original))
        for key in _TOLD_ONLY if path.name == "manifest.json" else ():
            a["engine"].pop(key, None)
            b["engine"].pop(key, None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(a == b)


@pytest.mark.parametrize("kind", ["weighed", "arrow", "fan_out"])
@pytest.mark.parametrize("seed", range(2))
def test_random_damage_is_found(kind: str, seed: int, yard: Yard, tmp_path: Path) -> None:
    original = yard.build(*KINDS[kind])
    numbers = random.Random(f"{kind} {seed}")
    for attempt in range(60):
        folder = tmp_path / str(attempt)
        shutil.copytree(original, folder)
        own = ("plan.json", "gathered.json", "lock")  # what a next run alone looks at
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in own)
        path = numbers.choice(files)
        done = damage(path, files, numbers)
        found = verified(folder, tmp_path)
        name = path.relative_to(folder)
        if not unchanged(path, original / name):
            assert not found.sound, (done, name)
        lines = found.findings.lines()
        assert all(harmless(line) == line and "\n" not in line for line in lines)
        assert all("; " in line or line.startswith("not checked: ") for line in lines), lines
        shutil.rmtree(folder)


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_bytes_that_a_hash_vouches_for_are_read_without_a_crash(
    form: str, yard: Yard, tmp_path: Path
) -> None:
    """In a process of its own: what Arrow does with damaged buffers is not an exception only."""
    folder = copied(yard.build("mild", "--format", form), tmp_path)
    code = (
        "import sys, json, random; from pathlib import Path\n"
        "from pipeline.files import file_digest\n"
        "from pipeline.verification import verify_output\n"
        "folder = Path(sys.argv[1]); numbers = random.Random(6)\n"
        "manifest = json.loads((folder / 'manifest.json').read_text())\n"
        "shard = manifest['shards'][0]; path = folder / shard['file']; raw = path.read_bytes()\n"
        "for _ in range(300):\n"
        "    damaged = bytearray(raw)\n"
        "    for _ in range(numbers.choice((1, 1, 4))):\n"
        "        damaged[numbers.randrange(len(raw))] ^= 1 << numbers.randrange(8)\n"
        "    path.write_bytes(damaged); shard['sha256'] = file_digest(path)\n"
        "    (folder / 'manifest.json').write_text(json.dumps(manifest))\n"
        "    assert verify_output(folder, spool=folder / 'x').findings.total\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_a_file_that_loaders_would_take_for_a_shard_is_found(yard: Yard, tmp_path: Path) -> None:
    folder = copied(yard.build("mild"), tmp_path)
    (folder / "more").mkdir()
    (folder / "README.md").write_text("Not a shard.")
    for name in ("train-00000-of-00001.parquet", "more/extra.parquet", "data-00009-of-00010.arrow"):
        (folder / name).write_bytes(b"")
        lines = faults(folder, tmp_path)
        assert len(lines) == 1
        assert f"{name}: looks like a shard, but manifest.json has none of that name" in lines[0]
        (folder / name).unlink()


def test_a_path_that_leaves_the_folder_is_not_opened(yard: Yard, tmp_path: Path) -> None:
    folder = copied(yard.build("mild"), tmp_path)
    manifest = manifest_of(folder)
    name = manifest["shards"][0]["file"]
    (folder / name).rename(tmp_path / name)  # its hash would be right
    manifest["shards"][0]["file"] = f"../{name}"
    write_manifest(folder, manifest)
    lines = faults(folder, tmp_path)
    assert f"shard '../{name}' is not in its folder" in lines[0]


def test_no_build_is_told_as_such(
    yard: Yard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "absent", tmp_path / "empty", Path(yard.inputs[0])):
        assert cli.run(verify.main, [str(folder), "--json"]) == 1
        out, err = capsys.readouterr()
        assert f"{folder / 'manifest.json'}: missing; give the folder of a finished build" in err
        assert json.loads(out)["sound"] is False
    unfinished = copied(yard.build("mild"), tmp_path)
    (unfinished / "manifest.json").unlink()
    assert cli.run(verify.main, [str(unfinished)]) == 1
    assert "the build is unfinished; run its command again" in capsys.readouterr().err


def test_a_build_at_work_is_told_as_such(yard: Yard, tmp_path: Path) -> None:
    folder = copied(yard.build("mild"), tmp_path)
    (folder / "manifest.json").unlink()
    assert "missing: the build is unfinished; run its command again" in faults(folder, tmp_path)[0]
    with locked(folder):
        (told,) = faults(folder, tmp_path)
    assert f"missing: a build is at work (process {os.getpid()} on " in told
    assert faults(folder, tmp_path)[0].endswith("run its command again")


def test_a_manifest_that_is_none_can_be_removed_and_made_anew(yard: Yard, tmp_path: Path) -> None:
    folder = copied(yard.build("mild"), tmp_path)
    before = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_text("{")
    assert "; remove it and run the build's command again" in faults(folder, tmp_path)[0]
    (folder / "manifest.json").unlink()
    words = ["--input", *yard.inputs, "--tokenizer", yard.tokenizer, "--shard-size", "2500"]
    words += ["--output", str(folder), "--rules", *yard.rules("mild"), "--max-reject-rate", "1"]
    assert cli.run(build.main, [*words, "--workers", "1", "--quiet"]) == 0
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_and_count_of_a_manifest_is_explained(kind: str, yard: Yard) -> None:
    told = (Path(__file__).parent.parent / "docs" / "manifest.md").read_text(encoding="utf-8")
    names = [
        name
        for line in told.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]
    known = [
        re.compile(re.sub(r"\b[A-Z]+\b", r"[^.]+", name.replace(".", r"\."))) for name in names
    ]
    manifest = manifest_of(yard.build(*KINDS[kind]))
    for name in (*manifest, *manifest["counts"]):
        assert any(one.fullmatch(name) for one in known), name


def test_usage_is_exit_code_two() -> None:
    with pytest.raises(SystemExit) as caught:
        verify.main([])
    assert caught.value.code == 2


def test_sums_add_field_by_field() -> None:
    total = Sums(rows=1, tokens=2, weight_sum=0.5)
    total.add(Sums(rows=3, tokens=MOST, weight_sum=0.25, turns=2))
    assert (total.rows, total.tokens, total.weight_sum, total.turns) == (4, MOST + 2, 0.75, 2)
