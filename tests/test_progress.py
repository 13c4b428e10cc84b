"""What a job shows while it runs: bars, lines, logs; and that showing harms no build."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import build, cli, reweight
from pipeline.order import Step
from pipeline.progress import BYTES, Progress, Stage
from pipeline.source import survey

ROOT = Path(__file__).resolve().parent.parent
NOTHING = Step(0)
SMALL = ["--workers", "1", "--shard-size", "30000"]


def building(kept: Step = NOTHING) -> Stage:
    return Stage("building", 0.0, "conversations", 50_000, kept)


def test_a_line_tells_what_is_done_how_fast_and_what_is_left() -> None:
    stage = building()
    stage.add(Step(12_000, 31_000_000, 12))
    told = stage.line(10.0)
    assert told == (
        "building: 12,000 of 50,000 conversations, 1,200/s, 3.1 M tokens/s, 12 rejects, 0:32 left"
    )


def test_resumed_shards_count_as_done_but_not_for_the_speed() -> None:
    stage = building(kept=Step(40_000, 9_000_000, 3))
    stage.add(Step(1_000, 50_000, 1))
    told = stage.line(10.0)
    assert told == (
        "building: 41,000 of 50,000 conversations, 100/s, 5,000 tokens/s, 4 rejects, 1:30 left"
    )


def test_work_that_a_dead_worker_lost_is_taken_back() -> None:
    stage = building()
    steps = [Step(500, 900, 2), Step(300, 700, 1), Step(-500, -900, -2)]
    for step in steps:
        stage.add(step)
    assert stage.line(1.0).startswith("building: 300 of 50,000 conversations, 300/s, 700 tokens/s")
    assert "1 reject," in stage.line(1.0)


def test_a_loss_gives_no_negative_speed_and_no_time_left() -> None:
    stage = building()
    stage.add(Step(100, 100))
    stage.line(40.0)
    stage.add(Step(-100, -100))
    stage.line(80.0)
    assert stage.line(120.0) == ("building: 0 of 50,000 conversations, 0/s, 0 tokens/s, 0 rejects")


def test_the_speed_is_that_of_the_last_half_minute() -> None:
    """An hour at 1 a second, then a minute at 100: what is left goes at 100."""
    stage = building()
    for second in range(1, 3661):
        stage.add(Step(1 if second <= 3600 else 100))
        told = stage.line(float(second))
    assert ", 100/s, " in told


def test_bytes_are_told_in_millions_and_nothing_of_tokens() -> None:
    stage = Stage("reading the inputs", 0.0, BYTES)
    stage.add(Step(90_000_000))
    assert stage.line(1.0) == "reading the inputs: 90 MB, 90 MB/s"
    stage.total = 270_000_000
    assert stage.line(1.0) == "reading the inputs: 90 of 270 MB, 90 MB/s, 0:02 left"


@pytest.mark.parametrize(("ending", "pack"), [("jsonl", bytes), ("jsonl.gz", gzip.compress)])
def test_a_survey_tells_the_bytes_of_the_files_as_they_lie_on_disk(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % number for number in range(1_000_000))
    for name in "ab":
        (tmp_path / f"{name}.{ending}").write_bytes(pack(lines))
    size = 2 * (tmp_path / f"a.{ending}").stat().st_size
    told: list[tuple[int, int]] = []
    survey(
        [str(tmp_path)],
        spool=tmp_path / "spool",
        piece_bytes=1 << 20,
        heard=lambda total, read: told.append((total, read)),
    )
    assert {total for total, _ in told} == {size}
    assert sum(read for _, read in told) == size
    assert len(told) > 4  # not only when a file is done


@pytest.mark.parametrize(("seconds", "told"), [(0.2, "0:00"), (61, "1:01"), (3725, "1:02:05")])
def test_a_stage_that_counts_nothing_tells_its_time(seconds: float, told: str) -> None:
    assert Stage("trying the engines", 5.0).line(5.0 + seconds) == f"trying the engines: {told}"


def wait_for(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lines_come_also_where_a_stage_tells_nothing_for_long() -> None:
    stream = io.StringIO()
    with Progress(stream, every=0.02) as progress, progress.stage("trying the engines"):
        wait_for(lambda: stream.getvalue().count("\n") > 2)
    assert set(stream.getvalue().splitlines()) == {"trying the engines: 0:00"}


def test_what_is_over_before_a_line_is_due_shows_nothing() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        for name in ("reading the inputs", "building"):
            with progress.stage(name, unit="conversations", total=5) as tell:
                tell(Step(5))
    assert stream.getvalue() == ""


def test_quiet_has_no_thread_and_tells_nobody() -> None:
    before = threading.active_count()
    with Progress(None) as progress, progress.stage("building", unit="rows", total=1) as tell:
        tell(Step(1))
        assert threading.active_count() == before


class Gone(io.StringIO):
    """A terminal that was closed, or a reader of lines that has ended."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal, self.tried = terminal, 0

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str, /) -> int:  # noqa: ARG002 - as a stream has it
        self.tried += 1
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_reader_that_has_gone_ends_no_build(terminal: bool) -> None:
    stream = Gone(terminal=terminal)
    with Progress(stream, every=0.01) as progress:
        for _ in range(2):
            with progress.stage("building", unit="rows", total=2) as tell:
                tell(Step(1))
                wait_for(lambda: stream.tried > 0)
    assert stream.tried <= 3


def run_in_terminal(*argv: str) -> str:
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    command = [sys.executable, "-m", *argv]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, cwd=ROOT) as running:
        os.close(theirs)
        shown = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    assert running.returncode == 0
    return shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux's way to say that nobody writes any more
        return b""


def test_both_jobs_show_a_bar_on_a_terminal_and_none_if_quiet(tmp_path: Path) -> None:
    made, other = ["--output", str(tmp_path / "a")], ["--output", str(tmp_path / "b")]
    shown = run_in_terminal("pipeline.build", *made, "--workers", "1")
    assert re.search(r"building: 100%\|█+\| 351/351, [\d,]+/s, [\d,]+ tokens/s, 0 rejects", shown)
    weigh = ["pipeline.reweight", str(tmp_path / "a"), "--rules", "all", *other, "--workers", "1"]
    assert "weighing: 100%" in run_in_terminal(*weigh)
    assert run_in_terminal("pipeline.build", *made, "--quiet") == ""


UNLUCKY = """
import os, signal, sys
from pathlib import Path
import pipeline.building
honest, marker = pipeline.building.encode_task, Path(os.environ["MARKER"])
def encode(order, encoder, watch):
    if order.task.index == 2 and not marker.exists():
        marker.touch()
        watch.at(0, 3)
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(order, encoder, watch)
pipeline.building.encode_task = encode
if __name__ == "__main__":
    from pipeline import build, cli
    cli.leave(build.main)
"""


def test_a_worker_that_dies_is_logged_and_counted_but_not_in_the_manifest(tmp_path: Path) -> None:
    script = tmp_path / "unlucky.py"
    script.write_text(UNLUCKY)
    told: dict[str, tuple[str, str]] = {}
    for name, more in (("a", []), ("b", []), ("c", ["--quiet"])):
        if name != "b":  # the second has no bad luck
            (tmp_path / "marker").unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, script, *SMALL, "--output", tmp_path / name, "--json", *more],
            env={**os.environ, "PYTHONPATH": str(ROOT), "MARKER": str(tmp_path / "marker")},
            capture_output=True,
            text=True,
            check=True,
        )
        told[name] = done.stdout, done.stderr
    replaced = [json.loads(told[name][0])["workers_replaced"] for name in "abc"]
    assert replaced == [1, 0, 1]
    assert re.fullmatch(
        r"[\d-]{10} [\d:]{8} WARNING: task 2: its worker died \(signal SIGKILL\); "
        r"the task is done again\n",
        told["a"][1],
    )
    assert [told[name][1] for name in "bc"] == ["", ""]
    manifests = {(tmp_path / name / "manifest.json").read_bytes() for name in "abc"}
    assert len(manifests) == 1


def test_info_tells_what_an_earlier_run_has_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--output", str(tmp_path / "a"), *SMALL, "--log-level", "info", "--json"]
    assert cli.run(build.main, flags) == 0
    shards = json.loads(capsys.readouterr().out)["shards"]
    assert cli.run(build.main, flags) == 0
    assert f"INFO: {shards} of {shards} shards were finished before" in capsys.readouterr().err
    weigh = [str(tmp_path / "a"), "--rules", "all", "--output", str(tmp_path / "b")]
    for _ in range(2):
        assert cli.run(reweight.main, [*weigh, "--workers", "1", "--log-level", "info"]) == 0
    assert f"INFO: {shards} of {shards} shards were finished before" in capsys.readouterr().err


def test_a_library_configures_no_logging() -> None:
    code = (
        "import logging, pipeline, pipeline.dataset, pipeline.reweighting\n"
        "loggers = [logging.getLogger(), logging.getLogger('pipeline')]\n"
        "assert not any(logger.handlers for logger in loggers)\n"
        "assert logging.getLogger('pipeline').level == logging.NOTSET\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_command_takes_its_log_handler_away_again(tmp_path: Path) -> None:
    for name in itertools.islice("ab", 2):
        assert cli.run(build.main, ["--output", str(tmp_path / name), "--workers", "1"]) == 0
    assert not logging.getLogger("pipeline").handlers
