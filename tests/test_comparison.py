"""What ``check --diff`` tells, on the embedded sample and on its shards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import build, check, cli
from pipeline.recipe import BUNDLED

RULES = "version: 1\nname: half\nrules:\n  - {pattern: '[A-Z]\\w+', weight: 0.5}\n"


@pytest.fixture
def half(tmp_path: Path) -> str:
    path = tmp_path / "half.yaml"
    path.write_text(RULES)
    return str(path)


def built(folder: Path, *rules: str) -> Path:
    arguments = ["--output", str(folder), "--workers", "1", "--quiet"]
    assert cli.run(build.main, [*arguments, *(["--rules", *rules] if rules else [])]) == 0
    return folder


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert cli.run(check.main, ["--diff", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_it_tells_what_two_builds_differ_in(
    tmp_path: Path, half: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: the columns of a build with each."""
    tables = [
        pq.read_table(next(built(tmp_path / name, rules).glob("*.parquet")))
        for name, rules in (("a", "default"), ("b", half))
    ]
    pairs = Counter[tuple[float, float]]()
    for old, new in zip(*(t["loss_scale"].to_pylist() for t in tables), strict=True):
        pairs.update(p for p in zip(old, new, strict=True) if p[0] != p[1])
    targets = [sum(t["num_target_tokens"].to_pylist()) for t in tables]
    for where in ((), ("--on", str(tmp_path / "a")), ("--on", str(tmp_path / "b"))):
        lines = told(capsys, "default", half, *where)
        assert [line for line in lines if line.startswith("  x")] == [
            f"  x{old:g} -> x{new:g}  {count:,} tokens" for (old, new), count in pairs.items()
        ]
        trained = next(line for line in lines if line.startswith("trained"))
        assert trained.endswith(f"({targets[0]:,} -> {targets[1]:,})")


def test_examples_mark_the_text_and_do_not_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "default", "ignore_empty_think", "--examples", "5")
    shown = [line for line in lines if "⟦" in line]
    assert shown == [shown[0]], "all empty blocks of the sample are alike"
    assert "⟦<think>\\n\\n</think>\\n\\n⟧" in shown[0]
    assert "sample.jsonl:1: message 1 assistant: x1 -> x0" in lines


def test_nothing_changes_over_itself(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "react", "react", "--rows", "7")
    assert lines[0] == "rows     7, of which 0 change"


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--diff", "default", "react", "--edge", "split"], "edges that split"),
        (["--diff", "default", "react", "hermes"], "takes two sets"),
        (["--on", str(BUNDLED / "sample.jsonl")], "add --diff"),
        (["--diff", "default", "nowhere"], "no such rule file"),
        (["--diff", "default", "react", "--on", "nowhere.jsonl"], "--tokenizer: missing"),
    ],
)
def test_what_cannot_be_compared_is_an_error(
    arguments: list[str], fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ["hermes"] if arguments[-1] == "hermes" else []
    code = cli.run(check.main, [*first, *(a for a in arguments if not first or a != "hermes")])
    assert code == 1
    assert fact in capsys.readouterr().err


def test_a_counted_zero_changes_labels_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for name, count in (("plain", "false"), ("counted", "true")):
        path = tmp_path / f"{name}.yaml"
        rule = f"{{pattern: '</think>', weight: 0, count: {count}}}"
        path.write_text(f"version: 1\nname: {name}\nrules:\n  - {rule}\n")
        paths.append(str(path))
    lines = told(capsys, *paths)
    (line,) = [line for line in lines if line.startswith("  x")]
    assert line.startswith("  x0 -> x0")


def test_flags_that_mean_nothing_on_shards_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = str(built(tmp_path / "a"))
    for flags in (["--turns", "fan_out"], ["--profile", "ms-swift"], ["--edge", "any"]):
        arguments = ["--diff", "default", "react", "--on", shards, *flags]
        assert cli.run(check.main, arguments) == 1
        assert f"{flags[0]}: the rows of finished shards" in capsys.readouterr().err
