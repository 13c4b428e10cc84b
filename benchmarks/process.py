"""A command in processes of its own: its time, its memory, and when its first shard was begun."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measurement import busy_seconds
from benchmarks.soak import children_of
from pipeline.files import WORK

_LOOK = 0.005  # seconds between looks for the first shard
_MEASURE = 40  # looks between two at the memory, which reads much of /proc
_LONGEST = 7200.0
_SHARDS = ("train-", "data-")  # the plan has a temporary file too, a second earlier


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of the clock and of CPU; MB of the process and of its largest child.

    ``others`` are the cores that the rest of the machine used meanwhile: near 0, or the clock is
    not to be trusted. ``begun`` is the second at which the first shard was begun, ``worked`` how
    long after it the last one was finished; 0 for a command that is no build.
    """

    seconds: float
    cpu: float
    others: float
    memory: float
    child_memory: float
    begun: float
    worked: float
    output: str

    @property
    def told(self) -> Any:
        """What its last line of standard output says, as JSON."""
        return json.loads(self.output.rstrip().rpartition("\n")[2])


def run(
    command: Sequence[str], *, output: Path | None = None, environment: Mapping[str, str] = {}
) -> Run:
    """Runs it to its end; SystemExit, with what it complained of, unless that is exit code 0."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy, epoch, started = busy_seconds(), time.time(), time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(environment) or None,
    )
    watcher = _Watcher(process.pid, output, started)
    try:
        told, complaint = process.communicate(timeout=_LONGEST)
        seconds = time.perf_counter() - started
    finally:
        process.kill()
        watcher.stop()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{complaint}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    others = max(0.0, busy_seconds() - busy - cpu) / seconds
    last = max((p.stat().st_mtime for p in _sidecars(output)), default=0.0)
    worked = last - epoch - watcher.begun if watcher.begun and last else 0.0
    return Run(
        seconds, cpu, others, watcher.own, watcher.largest, watcher.begun, max(0.0, worked), told
    )


def build_command(flags: Sequence[str], source: Path, output: Path, workers: int) -> list[str]:
    """A build of *source* with a recipe's *flags*, whose last line is its summary."""
    words = ["--input", str(source), "--output", str(output), "--workers", str(workers)]
    words += ["--json", "--max-reject-rate", "1", *flags]
    return [sys.executable, "-m", "pipeline.build", *words]


class _Watcher:
    """Reads high-water marks (``VmHWM``) while a process lives.

    What ``getrusage`` tells of a child begins with its parent's.
    """

    def __init__(self, process: int, output: Path | None, started: float) -> None:
        self.own = self.largest = self.begun = 0.0
        self._process, self._output, self._started = process, output, started
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        looks = 0
        while not self._stopped.wait(_LOOK if self._output and not self.begun else _LOOK * 10):
            if self._output and not self.begun and self._has_shard():
                self.begun = time.perf_counter() - self._started
            looks += 1 if self._output and not self.begun else 10
            if looks >= _MEASURE:
                looks = 0
                self._measure()

    def _has_shard(self) -> bool:
        assert self._output is not None
        names = (path.name for path in (self._output / WORK).glob("*.tmp"))
        return any(name.lstrip(".").startswith(_SHARDS) for name in names)

    def _measure(self) -> None:
        self.own = max(self.own, _peak(self._process))
        self.largest = max([self.largest, *map(_peak, children_of(self._process))])


def _peak(process: int) -> float:
    """MB; 0 for one that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _sidecars(output: Path | None) -> list[Path]:
    """What is written last of each shard."""
    return [] if output is None else sorted((output / WORK).glob("[0-9]*[0-9].json"))
