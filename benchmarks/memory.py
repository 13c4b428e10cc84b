"""The largest memory of each process of a build, on a file and on the same file many times.

    python -m benchmarks.memory --input FILE --tokenizer DIR --times 1 10

What is read is the kernel's own high-water mark of each process (VmHWM): that of a child, as
``getrusage`` tells it, begins with its parent's. Exit code 1 where the largest process of the last
run takes over a tenth more than that of the first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak import children_of
from pipeline.source.spool import chunks, sniff

_POLL = 0.1  # seconds
_ALLOWED = 1.1


@dataclass(frozen=True, slots=True)
class Peak:
    """MB of the coordinator and of its largest worker; what was built, in how many seconds."""

    conversations: int
    tokens: int
    coordinator: float
    worker: float
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--input", type=Path, required=True, metavar="FILE")
    parser.add_argument("--tokenizer", required=True, metavar="DIR")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    peaks: list[Peak] = []
    for times in args.times:
        with tempfile.TemporaryDirectory(prefix="memory-") as folder:
            source = Path(folder) / "input.jsonl"
            _repeat(args.input, source, times)
            peak = measure(source, args.tokenizer, Path(folder) / "shards", args.workers)
        peaks.append(peak)
        print(
            f"{peak.conversations:>9,} conversations {peak.tokens:>12,} tokens: coordinator "
            f"{peak.coordinator:.0f} MB, worker {peak.worker:.0f} MB, {peak.seconds:.0f} s",
            flush=True,
        )
    first, last = (max(p.coordinator, p.worker) for p in (peaks[0], peaks[-1]))
    print(f"largest process: {last / first:.3f} times")
    return int(last > _ALLOWED * first)


def _repeat(source: Path, target: Path, times: int) -> None:
    content = sniff(source, name=source.name, label=str(source))
    with target.open("wb") as file:
        for _ in range(times):
            file.writelines(chunks(source, content.codec, label=str(source)))


def measure(source: Path, tokenizer: str, output: Path, workers: int) -> Peak:
    """One build in processes of its own."""
    words = ["--input", str(source), "--tokenizer", tokenizer, "--output", str(output), "--json"]
    words += ["--rules", "ignore_empty_think", "--workers", str(workers)]
    started = time.monotonic()
    run = subprocess.Popen(
        [sys.executable, "-m", "pipeline.build", *words], stdout=subprocess.PIPE, text=True
    )
    coordinator = worker = 0.0
    while run.poll() is None:
        coordinator = max(coordinator, _peak(run.pid))
        worker = max([worker, *map(_peak, children_of(run.pid))])
        time.sleep(_POLL)
    told = json.loads(run.communicate()[0])
    if run.returncode:
        raise SystemExit(f"the build ended with {run.returncode}")
    counts = told["counts"]
    seconds = time.monotonic() - started
    return Peak(counts["conversations"], counts["tokens"], coordinator, worker, seconds)


def _peak(process: int) -> float:
    """MB; 0 for one that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
