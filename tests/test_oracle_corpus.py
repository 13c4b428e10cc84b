"""ms-swift's own output against ours: equal, or different for a cause that the data file names."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.differences import read_differences
from benchmarks.oracle import (
    VERSIONS,
    Verdict,
    find_faults,
    judge,
    names_of,
    read_conversations,
    read_rows,
    tabulate,
    version_of,
)

SYSTEMS = {
    "4.6.0.dev0": 21,
    "3.6.4": 10,
}


@pytest.fixture(scope="module")
def verdicts(shared: Path) -> list[Verdict]:
    return _judge(shared, profile="ms-swift")


def _judge(shared: Path, *, profile: str) -> list[Verdict]:
    return judge(
        read_rows(shared / "oracle"),
        read_conversations(shared / "oracle"),
        shared / "tokenizers",
        profile=profile,
        differences=read_differences(),
    )


def test_every_cause_has_its_own_name_and_a_reason() -> None:
    differences = read_differences()
    names = Counter(d.name for d in differences)
    assert set(names.values()) == {1}
    assert all(d.reason and d.kind in ("bug", "version", "choice") for d in differences)


@pytest.mark.corpus
def test_rows_equal_ms_swift_under_its_profile_but_for_listed_ones(
    verdicts: list[Verdict],
) -> None:
    differences = read_differences()
    assert find_faults(verdicts, differences, profile="ms-swift") == []
    found = names_of(verdicts)
    for difference in differences:
        if "ms-swift" in difference.profiles:
            assert found.pop(difference.name, set()) == difference.rows
    assert found == {}


@pytest.mark.corpus
def test_the_docs_have_the_table_that_the_command_prints(verdicts: list[Verdict]) -> None:
    docs = Path(__file__).parent.parent / "docs" / "ms-swift.md"
    told = set(docs.read_text(encoding="utf-8").splitlines())
    printed = [line for line in tabulate(verdicts, profile="ms-swift") if line.startswith("|")]
    assert [line for line in printed if line not in told] == []


@pytest.mark.corpus
def test_every_row_that_ms_swift_made_is_compared(verdicts: list[Verdict]) -> None:
    kinds = Counter(v.kind for v in verdicts)
    assert kinds["other text"] == 0
    assert kinds["equal"] > 15 * kinds["differs"]
    systems = {(version_of(v.row), v.row.system) for v in verdicts}
    assert Counter(version for version, _ in systems) == SYSTEMS
    assert set(SYSTEMS) == set(VERSIONS.values())


@pytest.mark.corpus
def test_rows_of_the_tokenizers_own_templates_are_among_them(verdicts: list[Verdict]) -> None:
    assert sum(v.own for v in verdicts) > 3000


@pytest.mark.corpus
def test_tokens_that_both_have_weigh_the_same_in_the_default_profile(shared: Path) -> None:
    """But for the causes that the data file names, each of which there is."""
    verdicts = _judge(shared, profile="default")
    differences = read_differences()
    assert find_faults(verdicts, differences, profile="default") == []
    assert set(names_of(verdicts)) == {d.name for d in differences if "default" in d.profiles}


@pytest.mark.corpus
def test_a_weight_that_nobody_explains_is_a_fault(shared: Path) -> None:
    rows = [r for r in read_rows(shared / "oracle") if r.key[1:] == ("react", "140_react")]
    wrong = [replace(r, weights=[*r.weights[:-1], r.weights[-1] + 1]) for r in rows]
    judged = judge(
        wrong,
        read_conversations(shared / "oracle"),
        shared / "tokenizers",
        profile="ms-swift",
        differences=read_differences(),
    )
    assert len(judged) == 6
    assert all(v.left for v in judged)


@pytest.mark.corpus
def test_a_config_of_3_6_4_read_as_it_is_does_what_it_did_there(
    shared: Path, tmp_path: Path
) -> None:
    """The bundled rule is otherwise on some of these rows: it knows more empty blocks."""
    config = tmp_path / "empty.json"
    config.write_text(json.dumps({r"<think>\s*</think>\s*": [0.0]}), encoding="utf-8")
    rows = [
        r
        for r in read_rows(shared / "oracle")
        if r.file.startswith("v364") and r.system == "ignore_empty_think"
    ]
    judged = judge(
        rows,
        read_conversations(shared / "oracle"),
        shared / "tokenizers",
        profile="ms-swift",
        differences=read_differences(),
        forms={"ignore_empty_think": str(config)},
    )
    assert len(judged) == 212
    assert {name for v in judged for name in v.names} == {"own_weights_unread"}
    assert not any(v.left for v in judged)
