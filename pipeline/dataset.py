"""A whole build: from inputs to a finished folder of shards."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.engine import local
from pipeline.engine.crew import Crew, hire
from pipeline.errors import BuildError, EngineMismatch, InputError
from pipeline.lock import locked
from pipeline.manifest import Manifest, make_manifest
from pipeline.order import Step
from pipeline.output import (
    SPOOL,
    Opened,
    discard_results,
    finish_output,
    open_output,
    prepare_output,
    require_rejects,
    require_space,
    require_unwritten,
)
from pipeline.plan import Plan, make_plan, piece_size
from pipeline.policy import ROW_TIMEOUT, SHARD_SIZE
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.source import survey
from pipeline.source.inputs import WORK
from pipeline.summary import Timing
from pipeline.task import BuildJob, TaskDone
from pipeline.tokens import Certificate
from pipeline.tokens.certificate import distrust, find_certificate

_LOG = logging.getLogger(__name__)
_SHOWN = ("conversations", "tokens", "rejects")


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build: its manifest, where the rejects went, and how long it took."""

    manifest: Manifest
    rejects: Path
    timing: Timing


def build_dataset(
    inputs: Sequence[str],
    recipe: Recipe,
    output: Path,
    *,
    workers: int | Crew = 1,
    shard_size: int = SHARD_SIZE,
    rejects: Path | None = None,
    overwrite: bool = False,
    verify: bool = False,
    row_timeout: float = ROW_TIMEOUT,
    check_space: bool = True,
    progress: Progress | None = None,
) -> Built:
    """Builds, or finishes, the shards of *inputs* in the folder *output*.

    What was finished before stays and is used by the next call with the same arguments; with
    *verify*, where its sha256 is as it was. A record that takes a worker longer than *row_timeout*
    seconds is rejected. Raises ConfigurationError, InputError or BuildError, also where another
    build is at work in *output*, or, with *check_space*, its disk is too full to begin.
    """
    started = time.monotonic()
    progress = progress or Progress(None)
    rejects = rejects or output / "rejects.jsonl"
    require_rejects(rejects, output)
    prepare_output(output)
    with locked(output), hire(workers) as crew:
        with progress.stage("reading the inputs"):
            spool = output / WORK / SPOOL
            sources = survey(
                inputs,
                spool=spool,
                piece_bytes=piece_size(shard_size),
                heed=partial(require_unwritten, output=output, rejects=rejects),
            )
        if not any(source.records for source in sources):
            names = ", ".join(source.name for source in sources[:3])
            raise InputError(
                f"{names}: no record in any input; check that the right files were passed"
            )
        plan = make_plan(sources, recipe, shard_size=shard_size)
        if overwrite:  # not before the inputs have proved readable
            discard_results(output)
        opened = open_output(output, plan, verify=verify)
        if check_space:
            require_space(output, opened.left, recipe.form)
        tell_kept(opened, plan)
        losses = Losses()
        run = _Run(plan, recipe, output, crew, progress, row_timeout, losses)
        certificate, done, made = run(opened)
        with progress.stage("finishing"):
            manifest = make_manifest(plan, recipe, done, _told(certificate))
            finish_output(output, plan, manifest, rejects)
    return Built(manifest, rejects, timed(started, done, made, losses))


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


def _told(certificate: Certificate) -> dict[str, Any]:
    """What decides which engine encoded which text; not how much it was tried, here or elsewhere.

    Of two machines one may have a certificate of its own, and their manifests have to be equal.
    """
    told = asdict(certificate)
    return {key: told[key] for key in ("engine", "code_points", "tokenizer", "versions")}


@dataclass(frozen=True, slots=True)
class _Run:
    """Makes the shards that are not there yet."""

    plan: Plan
    recipe: Recipe
    output: Path
    crew: Crew
    progress: Progress
    row_timeout: float
    losses: Losses

    def __call__(self, opened: Opened) -> tuple[Certificate, list[TaskDone], list[TaskDone]]:
        """The certificate that they were encoded under; all in order; those made now."""
        with self.progress.stage("trying the engines"):  # some ten seconds, the first time
            certificate = find_certificate(self.recipe.vocabulary)
        try:
            made = self._build(opened, certificate)
        except EngineMismatch as mismatch:
            # Nothing that the fast engine made is kept: the build starts anew with the reference.
            _LOG.warning("%s; the build starts anew with the reference", mismatch)
            certificate = distrust(self.recipe.vocabulary, str(mismatch))
            discard_results(self.output)
            opened = open_output(self.output, self.plan)
            made = self._build(opened, certificate)
        return certificate, sorted([*opened.done, *made], key=lambda d: d.index), made

    def _build(self, opened: Opened, certificate: Certificate) -> list[TaskDone]:
        total = sum(item["records"] for item in self.plan.parts["inputs"])
        job = BuildJob(self.recipe, certificate, self.output, self.plan.fingerprint)
        with self.progress.stage(
            "building", unit="conversations", total=total, kept=progress_of(opened.done)
        ) as tell:
            made = local.run(
                opened.left,
                job,
                crew=self.crew,
                progress=tell,
                row_timeout=self.row_timeout,
                replaced=self.losses,
            )
            return list(made)


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
