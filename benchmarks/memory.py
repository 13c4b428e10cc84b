"""The largest memory of each process of a build, on a file and on the same file many times.

    python -m benchmarks.memory --input FILE --tokenizer DIR --times 1 10

What is read is the kernel's own high-water mark of each process (VmHWM): that of a child, as
``getrusage`` tells it, begins with its parent's. Exit code 1 where the largest process of the last
run takes over a tenth more than that of the first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.material import count, repeat
from benchmarks.process import build_command, run

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
    conversations = count(args.input)
    for times in args.times:
        with tempfile.TemporaryDirectory(prefix="memory-") as folder:
            source = Path(folder) / "input.jsonl"
            repeat(args.input, source, times * conversations)
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


def measure(source: Path, tokenizer: str, output: Path, workers: int) -> Peak:
    """One build in processes of its own."""
    recipe = ["--tokenizer", tokenizer, "--rules", "ignore_empty_think"]
    done = run(build_command(recipe, source, output, workers))
    counts = done.told["counts"]
    return Peak(
        counts["conversations"], counts["tokens"], done.memory, done.child_memory, done.seconds
    )


if __name__ == "__main__":
    sys.exit(main())
