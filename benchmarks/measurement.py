"""Timings taken turn about, the machine they were taken on, and how they are told."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import pipeline

_T = TypeVar("_T")
_QUIET = 0.2  # cores
_TOLD = ("fastokens", "jinja2", "msgspec", "numpy", "pyarrow", "regex", "tokenizers")


@dataclass(frozen=True, slots=True)
class Load:
    """What was worked on; ``repaired`` rows have offsets from the reference, ``checked`` ids."""

    conversations: int
    tokens: int
    repaired: int = 0
    checked: int = 0


def load_of(counts: Mapping[str, int]) -> Load:
    """What a build, or a batch of it, counted."""
    names = ("conversations", "tokens", "encoded.repaired", "encoded.checked")
    return Load(*(counts.get(name, 0) for name in names))


@dataclass(frozen=True, slots=True)
class Timing:
    """The seconds that the same work took, run by run."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """What is told of a whole."""
        return statistics.median(self.runs)

    @property
    def least(self) -> float:
        """What the work costs where nobody disturbs it: other load only ever adds."""
        return min(self.runs)

    @property
    def spread(self) -> float:
        """Between the longest and the shortest run, as a share of the median."""
        return (max(self.runs) - self.least) / self.median if self.median else 0.0


def alternate(works: Mapping[str, Callable[[], _T]], runs: int) -> dict[str, list[_T]]:
    """What each of *works* gives, *runs* times, turn about; each round begins with another.

    Load that comes and goes, or a processor that grows warm, then falls on all of them.
    """
    names, found = list(works), {name: list[_T]() for name in works}
    for round_ in range(runs):
        first = round_ % len(names) if names else 0
        for name in names[first:] + names[:first]:
            found[name].append(works[name]())
    return found


def spread_of(speeds: Sequence[float]) -> float:
    """How much faster the fastest is than the slowest, less one."""
    return max(speeds) / min(speeds) - 1 if speeds and min(speeds) > 0 else 0.0


def busy_seconds() -> float:
    """CPU time that all processes of this machine have used, since it began; 0 where untold."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, *interrupts = map(int, fields[:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def is_quiet(others: Sequence[float]) -> bool:
    """Whether clocks can be compared: the rest of the machine never used much of a core.

    Where others used 1.5 of two cores, a script took 61 s for 30 s of CPU; where they used 1.0, a
    build took 7.4 s for 7.2.
    """
    quiet = max(others, default=0.0) <= _QUIET
    if not quiet:
        print(
            f"NOT QUIET: others used up to {max(others):.1f} cores; compare CPU seconds, not the "
            "clock's, or measure again\n"
        )
    return quiet


def describe_machine() -> dict[str, Any]:
    """Processor, memory, system, and the versions that speed depends on."""
    versions = {"weighted-shards": pipeline.__version__, "python": platform.python_version()}
    for name in _TOLD:
        versions[name] = metadata.version(name)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine_line(machine: Mapping[str, Any]) -> str:
    """The same for a person, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['system']}, load {machine['load_before']}; {versions}"
    )


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need: the first to the left, the others to the right."""
    lines = [heading, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    for line in lines:
        first, *others = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())
    print(flush=True)


def write_json(path: Path | None, value: Mapping[str, Any]) -> None:
    """Nothing where no path was given."""
    if path is not None:
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {path}", file=sys.stderr)
