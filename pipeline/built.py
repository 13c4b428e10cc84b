"""A finished run: what it made, what it found made, and whether too much was rejected."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BuildError
from pipeline.manifest import Manifest
from pipeline.order import Step
from pipeline.output import Opened
from pipeline.plan import Plan
from pipeline.summary import Timing
from pipeline.task import TaskDone

_LOG = logging.getLogger(__name__)
_SHOWN = ("conversations", "tokens", "rejects")


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build: its manifest, where the rejects went, and how long it took."""

    manifest: Manifest
    rejects: Path
    timing: Timing


def require_few_rejects(built: Built, *, allowed: float) -> None:
    """BuildError where more than that share of the conversations was rejected."""
    counts = built.manifest.counts
    rejected, conversations = counts.get("rejects", 0), counts.get("conversations", 0)
    if rejected > allowed * conversations:
        raise BuildError(
            f"{built.rejects}: {rejected:,} of {conversations:,} conversations were rejected "
            f"({rejected / conversations:.2%}), more than {allowed:.2%}; the shards are whole "
            "without them: mend the records, or allow more with --max-reject-rate"
        )


@dataclass(slots=True)
class Losses:
    """Counts the workers that were replaced, and logs each."""

    count: int = 0

    def __call__(self, told: str) -> None:
        self.count += 1
        _LOG.warning("%s", told)


def progress_of(done: Iterable[TaskDone]) -> Step:
    """What finished tasks are worth."""
    counts: Counter[str] = Counter()
    for d in done:
        counts.update({name: d.counts.get(name, 0) for name in _SHOWN})
    return Step(*(counts[name] for name in _SHOWN))


def tell_kept(opened: Opened, plan: Plan) -> None:
    """Logs what an earlier run has finished."""
    if opened.done:
        _LOG.info("%d of %d shards were finished before", len(opened.done), len(plan.tasks))


def timed(started: float, done: list[TaskDone], made: list[TaskDone], losses: Losses) -> Timing:
    """How a run went that began at *started* and made *made* of what is *done* now."""
    tokens = sum(d.counts.get("tokens", 0) for d in made)
    return Timing(time.monotonic() - started, tokens, len(done) - len(made), losses.count)
