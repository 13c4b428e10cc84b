"""Builds that are killed again and again, and what is in the folder in the end.

    python -m benchmarks.soak --kills 1000 --seed 7

The coordinator, a worker, or another child is killed with SIGKILL at a random moment; the same
command is run again, until it ends well. Then every file must be, byte for byte, that of a build
that nobody disturbed. Prints what was killed and how often; exits with 1 at the first difference.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

SAMPLE = Path(__file__).parent.parent / "pipeline" / "bundled"
_LONGEST = 300.0  # seconds for one run: longer, and it hangs
_MENDED = (0, 1)  # how a run may end whose workers are killed: it finishes, or says why not


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where a build hangs, shows a traceback, or ends in other bytes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="of each format (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for form in ("parquet", "arrow"):
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            killed = soak(Path(folder), form=form, kills=args.kills, seed=args.seed)
        told = ", ".join(f"{name} {number:,}" for name, number in sorted(killed.items()))
        print(f"{form}: {told}; {time.monotonic() - started:.0f} s; all bytes equal")
    return 0


def soak(folder: Path, *, form: str, kills: int, seed: int, copies: int = 8) -> Counter[str]:
    """Kills so many processes of builds in *folder*; what was killed, and how the runs ended.

    Raises AssertionError where a finished folder is not that of an undisturbed build.
    """
    source = folder / "input.jsonl"
    source.write_bytes((SAMPLE / "sample.jsonl").read_bytes() * copies)
    chance = Random(seed)
    clean, disturbed = folder / "clean", folder / "disturbed"
    assert _finish(_command(source, clean, form)) == 0
    expected = contents(clean)
    told: Counter[str] = Counter()
    while told["coordinator"] + told["worker"] < kills:
        code = _disturb(_command(source, disturbed, form), chance, told)
        if code == 0:
            assert_equal(contents(disturbed), expected)
            told["finished"] += 1
            _undo(disturbed, chance)
    while _finish(_command(source, disturbed, form)):
        pass
    assert_equal(contents(disturbed), expected)
    return told


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a build."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_equal(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> None:
    """Raises AssertionError with the names of the files that differ."""
    names = [n for n in sorted({*found, *expected}) if found.get(n) != expected.get(n)]
    assert not names, f"not the bytes of an undisturbed build: {', '.join(names)}"


def _command(source: Path, output: Path, form: str) -> list[str]:
    tokenizer = str(SAMPLE / "tokenizer")
    words = ["--input", str(source), "--tokenizer", tokenizer, "--output", str(output)]
    words += ["--rules", "ignore_empty_think", "--format", form, "--date", "2026-01-01"]
    words += ["--workers", "2", "--shard-size", "100000", "--quiet"]
    return [sys.executable, "-m", "pipeline.build", *words]


def _finish(command: Sequence[str]) -> int:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST, check=False)
    assert done.returncode in _MENDED, done.stderr
    return done.returncode


def _disturb(command: Sequence[str], chance: Random, told: Counter[str]) -> int:
    """Runs it and kills now and then, until it ends or its coordinator was killed."""
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + _LONGEST
    while True:
        try:
            run.wait(chance.uniform(0.02, 2.0))
            break
        except subprocess.TimeoutExpired:
            assert time.monotonic() < deadline, "a build hangs"
        children = children_of(run.pid)
        if children and chance.random() < 0.6:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(children), signal.SIGKILL)
                told["worker"] += 1
        else:
            run.kill()
            told["coordinator"] += 1
    error = run.communicate()[1]
    assert run.returncode in (*_MENDED, -signal.SIGKILL), error
    # A process that its coordinator was starting when it was killed reads half a message, and
    # multiprocessing says so before any code of ours runs.
    started = run.returncode == -signal.SIGKILL and "/pipeline/" not in error
    assert "Traceback" not in error or started, error
    told["gave up"] += run.returncode == 1
    return run.returncode


def children_of(parent: int) -> list[int]:
    """The processes that *parent* has started, by what the kernel tells of each."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                state = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(state[1]) == parent and state[0] != "Z":
                    found.append(int(folder.name))
    return sorted(found)


def _undo(folder: Path, chance: Random) -> None:
    """Leaves something to build: nothing of the folder, or less of a file or two."""
    if chance.random() < 0.5:
        shutil.rmtree(folder)
        return
    shards = sorted(folder.glob("*-of-*"))
    for shard in chance.sample(shards, k=min(6, len(shards))):
        if chance.random() < 0.5:
            shard.unlink()
        else:
            os.truncate(shard, chance.randrange(shard.stat().st_size))


if __name__ == "__main__":
    sys.exit(main())
