"""The instruments of speed: what they measure is what they say, and each command runs."""

from __future__ import annotations

import gzip
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import material, run, scaling, versus, workbench
from benchmarks.answers import Answer, Difference, compare, read_answer
from benchmarks.flags import make_parser, read_flags
from benchmarks.line import Point, fit
from benchmarks.measurement import Timing, alternate, is_quiet, spread_of
from benchmarks.process import Run, build_command
from benchmarks.process import run as run_command
from pipeline.errors import ConfigurationError, InputError
from pipeline.recipe import BUNDLED, recipe_of

SAMPLE = BUNDLED / "sample.jsonl"
PEERS = Path(versus.__file__).parent / "peers"
RULES = ["--rules", "ignore_empty_think"]
LISTS = {"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int64())}


def test_works_take_turns_and_each_round_begins_with_the_next() -> None:
    said: list[str] = []

    def say(name: str) -> int:
        said.append(name)
        return len(said)

    found = alternate({name: partial(say, name) for name in "abc"}, 2)
    assert said == ["a", "b", "c", "b", "c", "a"]
    assert found == {"a": [1, 6], "b": [2, 4], "c": [3, 5]}


def test_a_timing_tells_the_median_the_least_and_how_far_runs_lie_apart() -> None:
    timing = Timing((3.0, 1.0, 2.0))
    assert (timing.median, timing.least, timing.spread) == (2.0, 1.0, 1.0)
    assert spread_of([2.0, 3.0, 2.5]) == 0.5


def test_a_machine_whose_others_work_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert is_quiet([0.0, 0.1])
    assert is_quiet([])
    assert not capsys.readouterr().out
    assert not is_quiet([0.1, 1.5])
    assert "up to 1.5 cores; compare CPU seconds" in capsys.readouterr().out


def test_a_file_is_taken_again_until_there_are_enough_conversations(tmp_path: Path) -> None:
    source, target = tmp_path / "input.jsonl.gz", tmp_path / "target.jsonl"
    source.write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": 2}\n{"a": 3}'))
    assert material.count(source) == 3
    for number in (2, 7):
        material.repeat(source, target, number)
        taken = [json.loads(line)["a"] for line in target.read_text().splitlines()]
        assert taken == [1, 2, 3, 1, 2, 3, 1][:number]
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(SystemExit, match="has no lines"):
        material.repeat(tmp_path / "empty.jsonl", target, 1)


@given(st.integers(1, 7), st.integers(1, 300))
def test_talks_of_every_shape_are_cut_from_the_same_text(turns: int, size: int) -> None:
    text = "".join(map(chr, itertools.islice(itertools.cycle(range(0x61, 0x7B)), 1000)))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "talks.jsonl"
        talks = material.synthesize(text, target, turns=turns, size=size)
        records = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(records) == talks
    messages = [record["messages"] for record in records]
    assert {len(m) for m in messages} == {2 * turns}
    assert {m["role"] for m in messages[0][::2]} == {"user"}
    said = "".join(m["content"] for m in itertools.chain.from_iterable(messages))
    if len(said) <= len(text):  # one talk may be longer than all that there is
        assert text.startswith(said)


@given(st.floats(1e-6, 1e-2), st.floats(1e-9, 1e-6))
def test_points_on_a_line_give_back_its_costs(row: float, token: float) -> None:
    shapes = [(1000, 10_000), (100, 10_000), (10, 50_000), (1, 10_000)]
    points = [Point(0, r, t, 0, r * row + t * token, 0.0) for r, t in shapes]
    line = fit(points, rows=True)
    assert line.row == pytest.approx(row)
    assert line.token == pytest.approx(token, rel=1e-3)
    assert max(map(abs, line.off)) < 1e-6


def test_a_point_above_the_line_is_told_and_no_cost_is_negative() -> None:
    points = [Point(0, 1, n, 0, n * 1e-6, 0.0) for n in (1000, 2000, 4000)]
    slow = Point(0, 1, 3000, 0, 9e-3, 0.0)
    assert max(fit([*points, slow], rows=False).off) == fit([*points, slow], rows=False).off[-1] > 1
    shrinking = [Point(0, r, 1000, 0, 1e-3 / r, 0.0) for r in (1, 2, 3)]
    assert fit(shrinking, rows=True).row == 0.0
    assert fit(points[:1], rows=True).token == pytest.approx(1e-6)


def test_what_checks_take_beyond_their_share_is_off_no_line() -> None:
    points = [Point(0, r, 1000, 0, r * 1e-3 + 1e-2, 0.0) for r in (1, 10, 100)]
    checked = Point(0, 20, 1000, 0, 3e-2 + 5e-2, 0.0, checked=1, beyond=5e-2)
    assert max(map(abs, fit([*points, checked], rows=True).off)) < 1e-6


ROWS = st.lists(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=4), max_size=6)


def answer(rows: list[list[tuple[int, bool]]], numbers: list[int]) -> Answer:
    flat = [token for number in numbers for token in rows[number]]
    return Answer(
        np.array([i for i, _ in flat], np.int64),
        np.array([t for _, t in flat], np.bool_),
        np.cumsum([0, *(len(rows[number]) for number in numbers)]),
        np.array(numbers, np.int64),
    )


@given(ROWS, st.data())
def test_answers_are_compared_token_by_token(
    rows: list[list[tuple[int, bool]]], data: st.DataObject
) -> None:
    flips = st.sampled_from([None, "id", "mask", "more"])
    theirs, unequal, both, only = (
        [list(row) for row in rows],
        0,
        0,
        (Counter[int](), Counter[int]()),
    )
    kept = [n for n in range(len(rows)) if data.draw(st.booleans())]
    for number, row in enumerate(theirs):
        flip = data.draw(flips) if row else None
        if flip == "id":
            row[-1] = (row[-1][0] + 1, row[-1][1])
        elif flip == "more":
            row.append((9, True))
        elif flip == "mask":
            row[0] = (row[0][0], not row[0][1])
        if number not in kept:
            continue
        if flip in ("id", "more"):
            unequal += 1
            continue
        for (token, mine), (_, other) in zip(rows[number], row, strict=True):
            both += mine and other
            if mine != other:
                only[other][token] += 1
    found = compare(answer(rows, kept), answer(theirs, [*range(len(rows))]))
    expected = Difference(len(rows), len(rows) - len(kept), unequal, both, *only)
    assert found == expected
    assert found.none == (not unequal and not only[0] and not only[1])


def test_parquet_and_arrow_answers_are_read_alike(tmp_path: Path) -> None:
    table = pa.table(
        {"input_ids": [[1, 2, 3], [4]], "labels": [[-100, 2, 0], [-100]]}, schema=pa.schema(LISTS)
    )
    for folder in ("parquet", "arrow", "mute"):
        (tmp_path / folder).mkdir()
    pq.write_table(table, tmp_path / "parquet" / "rows.parquet")
    with pa.ipc.new_stream(str(tmp_path / "arrow" / "data.arrow"), table.schema) as file:
        file.write_table(table)
    for folder in ("parquet", "arrow"):
        found = read_answer(tmp_path / folder)
        assert found.ids.tolist() == [1, 2, 3, 4]
        assert found.trained.tolist() == [False, True, True, False]
        assert (found.firsts.tolist(), found.numbers.tolist()) == ([0, 3, 4], [0, 1])
    pq.write_table(table.drop_columns("labels"), tmp_path / "mute" / "rows.parquet")
    with pytest.raises(InputError, match="needs input_ids and one of"):
        read_answer(tmp_path / "mute")


def test_time_belongs_to_the_innermost_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 7.0, 15.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = workbench.Stopwatch()
    inner = watch.timed("encode", lambda: "done")
    with watch.running("read"):
        assert inner() == "done"
    assert {n: s for n, s in watch.seconds.items() if s} == {"rest": 1.0, "read": 10.0, "encode": 4}


def test_the_workbench_makes_the_shard_of_a_build_and_every_stage_is_seen(tmp_path: Path) -> None:
    request = read_flags(make_parser("x", None, runs=1), RULES)
    bench = workbench.Workbench(recipe_of(request.recipe), tmp_path)
    functions = [getattr(*place) for places in workbench.STAGES.values() for place in places]
    pieces = bench.survey([str(SAMPLE)])
    stages = bench.work_by_stages(pieces)
    assert set(stages) == set(workbench.NAMES)
    assert all(seconds > 0 for seconds in stages.values()), stages
    after = [getattr(*place) for places in workbench.STAGES.values() for place in places]
    assert after == functions
    watched = (tmp_path / "shard.parquet").read_bytes()
    load = bench.work(pieces)
    assert (tmp_path / "shard.parquet").read_bytes() == watched

    done = run_command(
        build_command(request.words, SAMPLE, tmp_path / "built", 1), output=tmp_path / "built"
    )
    (shard,) = (tmp_path / "built").glob("*.parquet")
    assert shard.read_bytes() == watched
    counts = done.told["counts"]
    assert (load.conversations, load.tokens) == (counts["conversations"], counts["tokens"])
    assert 0 < done.begun < done.begun + done.worked < done.seconds
    assert min(done.memory, done.child_memory) > 20


def test_a_process_is_measured_from_outside() -> None:
    code = "import time; held = bytearray(100_000_000); time.sleep(0.5); print('{\"a\": 1}')"
    done = run_command([sys.executable, "-c", code])
    assert done.told == {"a": 1}
    assert done.seconds > 0.5
    assert done.cpu < done.seconds + 0.5
    assert 95 < done.memory < 200
    assert done.begun == done.worked == 0.0
    with pytest.raises(SystemExit, match=r"exit code 1\s[^$]*ZeroDivisionError"):
        run_command([sys.executable, "-c", "1 / 0"])


def test_a_recipe_s_flags_reach_a_build_as_they_were_given() -> None:
    words = ["--runs", "2", "--rules", "a", "b", "--date", "2026-01-01", "--edge", "any"]
    request = read_flags(make_parser("x", None, runs=9), words)
    assert request.own.runs == 2
    assert request.recipe.rules == ["a", "b"]
    assert request.words == (*words[2:], "--tokenizer", str(BUNDLED / "tokenizer"))


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigurationError, match=r"a\.pdf: ends in neither"):
        run.main(["--plot", "a.pdf"])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"weighted-shards\[bench\]"):
        run.main(["--plot", "a.svg"])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--input", "absent.jsonl"], "absent.jsonl: no such file"),
        (["--input", "empty.jsonl", "--tokenizer", "t"], "empty.jsonl: holds no line"),
        (["--input", "some.jsonl"], "--tokenizer: not given"),
        (["--json", "nowhere/told.json"], "told.json: no such folder"),
    ],
)
def test_files_are_looked_at_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "some.jsonl").write_text("{}\n")
    with pytest.raises(ConfigurationError, match=complaint):
        run.main(words)


def test_a_build_of_little_else_than_its_start_has_no_speed_without_it() -> None:
    def ran(seconds: float, tokens: int) -> Run:
        told = json.dumps({"counts": {"conversations": 1, "tokens": tokens}})
        return Run(seconds, seconds, 0.0, 1.0, 1.0, 0.1, 0.1, told)

    one = [ran(1.0, 100)]
    speed = "tokens_per_second_without_start"
    assert run._summarize([ran(1.05, 300)], one, 1)[speed] == 0.0
    assert run._summarize([ran(3.0, 300)], one, 1)[speed] == pytest.approx(100)


def test_run_tells_stages_engines_and_builds(tmp_path: Path) -> None:
    told = tmp_path / "run.json"
    words = ["--runs", "1", "--workers", "1", "--conversations", "50", "--json", str(told)]
    assert run.main([*words, *RULES]) == 0
    report = json.loads(told.read_text())
    assert report["load"]["conversations"] == 50
    (build,) = report["builds"]
    assert build["conversations"] == material.count(SAMPLE)
    assert build["tokens_per_second"] == pytest.approx(build["tokens"] / build["seconds"])
    assert 0 < build["first_shard_begun"] < build["seconds"]
    stages = sum(stage["us_per_conversation"] for stage in report["stages"].values())
    assert stages == pytest.approx(report["watched"]["us_per_conversation"])
    assert len(report["engines"]) == 3
    assert report["machine"]["versions"]["jinja2"]


WRONG = """
from benchmarks.peers.phases import Phases, read_arguments
import pyarrow as pa
import pyarrow.parquet as pq

def main():
    arguments = read_arguments()
    arguments.output.mkdir()
    ids = [[1, 2] for _ in arguments.input.open()]
    pq.write_table(pa.table({"input_ids": ids, "labels": ids}), arguments.output / "a.parquet")
    Phases().tell(like=[])

if __name__ == "__main__":
    main()
"""
ABSENT = """
from benchmarks.peers.phases import give_up
if __name__ == "__main__":
    give_up("No module named 'elsewhere'")
"""


def test_versus_holds_answers_against_ours_before_the_race(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    peers = tmp_path / "peers"
    peers.mkdir()
    (peers / "script.py").write_text((PEERS / "script.py").read_text())
    (peers / "absent.py").write_text(ABSENT)
    (peers / "wrong.py").write_text(WRONG)
    words = ["--runs", "1", "--peers", str(peers), "--json", str(tmp_path / "told.json"), *RULES]
    assert versus.main(words) == 1  # for the wrong one
    report = json.loads((tmp_path / "told.json").read_text())
    assert report["answers"]["absent"] == {"unable": "No module named 'elsewhere'"}
    assert report["answers"]["script"]["equal"]
    assert not report["answers"]["wrong"]["equal"]
    assert "ids differ in 351;" in report["answers"]["wrong"]["ours"]
    programs = report["programs"]
    assert list(programs) == [versus.OURS, "script", "wrong"]
    ratio = programs["script"]["seconds"] / programs[versus.OURS]["seconds"]
    assert programs["script"]["ratio_of_seconds"] == pytest.approx(ratio)
    assert set(programs["script"]["phases"]) == {"imports", "load", "work"}
    # Of the template that ends a turn with a line break, the script trains that as well.
    assert "only theirs trains" in report["answers"]["script"]["ours"]
    assert "absent: left out: No module named 'elsewhere'" in capfd.readouterr().out


def test_scaling_tells_each_axis_and_its_line(tmp_path: Path) -> None:
    told = tmp_path / "scaling.json"
    words = ["--runs", "1", "--counts", "5", "20", "--turns-each", "1", "3", "--text", "9600"]
    words += ["--sizes", "100", "2400", "--json", str(told), *RULES]
    assert scaling.main(words) == 0
    axes = json.loads(told.read_text())["axes"]
    assert [[p["rows"] for p in axis["points"]] for axis in axes.values()] == [
        [5, 20],  # as asked
        [12, 4],  # 9600 characters in messages of 400
        [96, 4],
    ]
    for axis in axes.values():
        for point in axis["points"]:
            assert point["tokens_per_second"] == pytest.approx(point["tokens"] / point["seconds"])
            assert point["seconds"] > 0


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_same_numbers_draw_the_same_bytes(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra: pip install '.[bench]'")
    from benchmarks.picture import draw_bars, draw_lines

    drawn = []
    for moment in (0.0, 1e9):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        bars, lines = tmp_path / f"bars.{ending}", tmp_path / f"lines.{ending}"
        draw_bars(bars, {"ours": 3.0, "theirs": 1.5}, title="Speed", unit="tokens/s", note="here")
        series = {"turns": {"x": [1.0, 10.0, 100.0], "y": [1.0, 2.0, 1.5]}}
        draw_lines(lines, series, title="Speed", unit="tokens/s", note="here")
        drawn.append((bars.read_bytes(), lines.read_bytes()))
    assert drawn[0] == drawn[1]
    if ending == "svg":
        for word in (b"ours", b"theirs", b"Speed", b"tokens/s", b"here"):
            assert word in drawn[0][0]
    else:
        assert drawn[0][0].startswith(b"\x89PNG")
