"""Killed, told to end, out of disk: then the same command, and the same bytes."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.soak import assert_equal, children_of, contents, soak
from pipeline import build, cli
from pipeline.built import Built
from pipeline.dataset import build_dataset
from pipeline.engine import local
from pipeline.engine.crew import Crew
from pipeline.errors import WeightedShardsError
from pipeline.order import Order, Watch
from pipeline.plan import Task
from pipeline.recipe import make_recipe
from pipeline.task import Job, TaskDone

BUNDLED = Path(build.__file__).parent / "bundled"
TOKENIZER = ["--tokenizer", str(BUNDLED / "tokenizer")]
RULES = ["--rules", "ignore_empty_think", "--date", "2026-01-01", "--quiet"]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.build", *RULES, *words]


def records(path: Path, words: Sequence[str], *, of: int = 60) -> str:
    """A file of conversations; those at the end say *words*."""
    said = ["Yes."] * (of - len(words)) + [*words]
    turns = [
        [{"role": "user", "content": "So?"}, {"role": "assistant", "content": w}] for w in said
    ]
    path.write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns))
    return str(path)


# Workers import the main script too, and so meet what it changes.
DEADLY = """
import os, signal, time
import pipeline.batch
honest = pipeline.batch.parse
def meet(record, **more):
    talk = honest(record, **more)
    said = talk.messages[-1]["content"]
    if said == "kill":
        os.kill(os.getpid(), signal.SIGSEGV)
    if said == "hang":
        time.sleep(3600)
    if said == "eat":
        raise MemoryError
    return talk
pipeline.batch.parse = meet
if __name__ == "__main__":
    from pipeline import build, cli
    cli.leave(build.main)
"""


def test_records_that_kill_and_hang_are_rejected_by_name_whatever_the_workers(
    tmp_path: Path,
) -> None:
    script = tmp_path / "deadly.py"
    script.write_text(DEADLY)
    source = records(tmp_path / "a.jsonl", ["kill", "Yes.", "hang", "Yes.", "eat"])
    made: list[dict[str, bytes]] = []
    for workers in ("1", "3"):
        output = tmp_path / workers
        words = [*RULES, *TOKENIZER, "--input", source, "--output", str(output)]
        words += ["--workers", workers]
        words += ["--row-timeout", "8", "--max-reject-rate", "1", "--shard-size", "2000"]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        done = subprocess.run(
            [sys.executable, str(script), *words], check=False, timeout=300, env=env
        )
        assert done.returncode == 0
        made.append(contents(output))
    assert_equal(*made)
    rejects = [json.loads(line) for line in made[0]["rejects.jsonl"].splitlines()]
    told = [(r["line"], r["stage"], r["reason"], r["field"]) for r in rejects]
    assert told == [
        (56, "work", "worker_died", ""),
        (58, "work", "row_timeout", ""),
        (60, "work", "worker_died", ""),
    ]
    assert "a.jsonl:56: its worker died (signal SIGSEGV)" in rejects[0]["message"]
    assert json.loads(rejects[0]["raw"])["messages"][1]["content"] == "kill"
    assert json.loads(made[0]["manifest.json"])["counts"]["rows"] == 57


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_the_bytes_are_the_same_after_any_kill(form: str, tmp_path: Path) -> None:
    told = soak(tmp_path, form=form, kills=25, seed=4)
    assert told["coordinator"] + told["worker"] >= 25
    assert min(told["coordinator"], told["worker"]) > 3


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_ends_a_build_within_seconds_and_it_can_go_on(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes((BUNDLED / "sample.jsonl").read_bytes() * 40)
    words = [*TOKENIZER, "--input", str(source), "--workers", "2", "--shard-size", "60000"]
    run = subprocess.Popen(
        command(*words, "--output", str(tmp_path / "o")),
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background ignores it.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - no thread runs
    )
    work = tmp_path / "o" / ".weighted-shards"
    while not list(work.glob("[0-9]*[0-9].json")):  # some shards are finished
        assert run.poll() is None
        time.sleep(0.02)
    children = children_of(run.pid)
    sent = time.monotonic()
    run.send_signal(number)
    error = run.communicate(timeout=30)[1]
    assert time.monotonic() - sent < 10
    assert run.returncode == code
    assert error.endswith("run the same command again to go on\n")
    assert "Traceback" not in error
    deadline = time.monotonic() + 10  # multiprocessing's own helper needs a moment
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (tmp_path / "o" / "manifest.json").exists()
    done = subprocess.run(
        command(*words, "--output", str(tmp_path / "o"), "--json"), capture_output=True, check=True
    )
    assert json.loads(done.stdout)["shards_kept"] > 0
    subprocess.run(command(*words, "--output", str(tmp_path / "clean")), check=True)
    assert_equal(contents(tmp_path / "o"), contents(tmp_path / "clean"))


def test_a_second_build_in_a_folder_is_refused_until_the_first_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.lock import locked
    from pipeline.output import prepare_output

    output = tmp_path / "o"
    prepare_output(output)
    words = [*RULES, "--output", str(output), "--workers", "1"]
    with locked(output):
        assert cli.run(build.main, words) == 1
        error = capsys.readouterr().err
        assert f"{output}: another build writes there (process {os.getpid()} on " in error
    assert cli.run(build.main, words) == 0


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    output = tmp_path / "o"
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom pipeline.lock import locked\n"
        "from pipeline.output import prepare_output\n"
        f"output = Path({str(output)!r})\nprepare_output(output)\n"
        "with locked(output):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    words = [*RULES, "--output", str(output), "--workers", "1"]
    assert cli.run(build.main, words) == 1
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert cli.run(build.main, words) == 0


def test_a_shard_damaged_in_place_is_found_with_verify_and_built_again(tmp_path: Path) -> None:
    words = [*RULES, "--output", str(tmp_path), "--workers", "1", "--shard-size", "60000"]
    assert cli.run(build.main, words) == 0
    before = contents(tmp_path)
    shard = sorted(tmp_path.glob("*.parquet"))[1]
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    shard.write_bytes(raw)
    rejects = tmp_path / ".weighted-shards" / "00000.rejects.jsonl"
    assert cli.run(build.main, words) == 0
    assert contents(tmp_path) != before  # its size is as it was
    assert cli.run(build.main, [*words, "--verify"]) == 0
    assert_equal(contents(tmp_path), before)
    rejects.write_bytes(b"{}\n")
    assert cli.run(build.main, [*words, "--verify"]) == 0
    assert_equal(contents(tmp_path), before)


def test_a_disk_without_a_byte_left_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a write names no file

    monkeypatch.setattr(Path, "write_text", full)
    assert cli.run(build.main, [*RULES, "--output", str(tmp_path), "--workers", "1"]) == 1
    place = tmp_path / ".weighted-shards" / "plan.json"
    told = f"{place}: cannot be written (No space left on device); make room"
    assert told in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    words = [*RULES, "--output", str(tmp_path), "--workers", "1"]
    assert cli.run(build.main, words) == 1
    assert "0 MB free, and the shards will take about" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.parquet"))
    assert cli.run(build.main, [*words, "--no-space-check"]) == 0


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_full_disk_ends_with_1_and_what_is_finished_stays(form: str, tmp_path: Path) -> None:
    """Files may grow to so many bytes: what the kernel says then comes from a write."""
    words = [*TOKENIZER, "--input", str(tmp_path / "a.jsonl"), "--workers", "1", "--format", form]
    words += ["--shard-size", "20000"]
    sample = (BUNDLED / "sample.jsonl").read_bytes().splitlines(keepends=True)
    huge = json.loads(sample[0])
    huge["messages"][-1]["content"] = " ".join(map(str, range(200_000)))
    (tmp_path / "a.jsonl").write_bytes(b"".join(sample[:200]) + json.dumps(huge).encode() + b"\n")
    limit = 200_000

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    full = subprocess.run(
        command(*words, "--output", str(tmp_path / "o")),
        preexec_fn=confine,
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.returncode == 1, full.stderr
    assert "make room" in full.stderr
    assert "Traceback" not in full.stderr
    finished = {p.name: p.read_bytes() for p in (tmp_path / "o").glob("*-of-*")}
    assert finished
    again = subprocess.run(
        command(*words, "--output", str(tmp_path / "o"), "--json"), capture_output=True, check=True
    )
    assert json.loads(again.stdout)["shards_kept"] == len(finished)
    subprocess.run(command(*words, "--output", str(tmp_path / "clean")), check=True)
    made = contents(tmp_path / "o")
    assert_equal(made, contents(tmp_path / "clean"))
    assert all(made[name] == raw for name, raw in finished.items())


def test_what_was_unpacked_goes_however_a_build_ends(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((BUNDLED / "sample.jsonl").read_bytes()))
    words = [*TOKENIZER, "--input", str(tmp_path / "a.jsonl.gz"), "--output", str(tmp_path / "o")]
    full = subprocess.run(
        command(*words),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.returncode == 1
    assert "spool/00000.jsonl: cannot be written" in full.stderr
    assert not (tmp_path / "o" / ".weighted-shards" / "spool").exists()


def test_a_finished_build_can_be_run_again_on_a_full_disk(tmp_path: Path) -> None:
    words = command("--output", str(tmp_path / "o"), "--workers", "1")
    subprocess.run(words, check=True)
    before = contents(tmp_path / "o")
    assert len(before["manifest.json"]) > 4096
    again = subprocess.run(
        words,
        # A page is what multiprocessing itself needs.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert_equal(contents(tmp_path / "o"), before)


def build_here(output: Path, *, form: str = "parquet") -> Built:
    """A build of a part of the sample, without any process of its own."""
    recipe = make_recipe(
        rules=["ignore_empty_think"],
        tokenizer=None,
        chat_template=None,
        template_kwargs={},
        date="2026-01-01",
        schema="auto",
        form=form,
    )
    source = output.parent / "a.jsonl"
    if not source.exists():
        sample = (BUNDLED / "sample.jsonl").read_bytes().splitlines(keepends=True)
        source.write_bytes(b"".join(sample[:12]) + b"{}\n")
    return build_dataset(
        [str(source)], recipe, output, workers=Crew(0, "pipeline.building"), shard_size=3000
    )


def here(tasks: Sequence[Task], job: Job, **_: Any) -> Iterator[TaskDone]:
    """The engine without processes, so that a test can break what a worker calls."""
    complete = job.begin()
    for task in tasks:
        done = complete(Order(task), Watch([0, 0, -1]), lambda _: None)
        assert done is not None
        yield done


def failing(honest: Callable[..., Any], at: int) -> tuple[Callable[..., Any], list[int]]:
    """*honest*, but its *at*-th call fails as a full or a broken disk does."""
    calls = [0]

    def call(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return honest(*args, **more)

    return call, calls


@pytest.mark.parametrize(
    ("owner", "name"),
    [(os, "fsync"), (Path, "replace"), (Path, "open"), (pq.ParquetWriter, "write_table")],
    ids=["fsync", "rename", "open", "write"],
)
def test_wherever_the_disk_fails_nothing_half_written_counts(
    owner: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every single call fails once, in builds of their own; what follows mends it."""
    monkeypatch.setattr(local, "run", here)
    assert len(build_here(tmp_path / "clean").manifest.shards) > 1
    expected = contents(tmp_path / "clean")
    honest = getattr(owner, name)
    for at in range(1, 200):
        output = tmp_path / str(at)
        faulty, calls = failing(honest, at)
        failed = False
        with monkeypatch.context() as broken:
            broken.setattr(owner, name, faulty)
            try:
                build_here(output)
            except (WeightedShardsError, OSError):  # the command tells both with exit code 1
                failed = True
        if calls[0] < at:  # no call is left that could fail
            assert at > 2
            assert not failed
            return
        if not failed:  # a cache that cannot be read is done without
            assert_equal(contents(output), expected)
        assert_whole(output, expected)
        build_here(output)
        assert_equal(contents(output), expected)
    pytest.fail("more calls than expected: is one of them endless?")


def assert_whole(output: Path, expected: dict[str, bytes]) -> None:
    """What stands under its last name is what it has to be."""
    for path in output.glob("*-of-*"):
        assert path.read_bytes() == expected[path.name]
    if (output / "manifest.json").exists():
        assert (output / "manifest.json").read_bytes() == expected["manifest.json"]


def test_an_input_that_comes_in_small_reads_is_the_same_input(tmp_path: Path) -> None:
    """A pipe gives what is there, however little is asked for."""
    raw = (BUNDLED / "sample.jsonl").read_bytes()
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "a.jsonl").write_bytes(raw)
    (tmp_path / "piped").mkdir()
    pipe = tmp_path / "piped" / "a.jsonl"
    os.mkfifo(pipe)

    def dribble() -> None:
        with pipe.open("wb", buffering=0) as file, contextlib.suppress(BrokenPipeError):
            for start in range(0, len(raw), 997):
                file.write(raw[start : start + 997])

    threading.Thread(target=dribble, daemon=True).start()
    for name in ("piped", "whole"):
        words = [*RULES, *TOKENIZER, "--input", str(tmp_path / name / "a.jsonl"), "--workers", "1"]
        assert cli.run(build.main, [*words, "--output", str(tmp_path / "o" / name)]) == 0
    assert_equal(contents(tmp_path / "o" / "piped"), contents(tmp_path / "o" / "whole"))
