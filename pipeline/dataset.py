"""A whole build: from inputs to a finished folder of shards."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.built import Built, Losses, progress_of, tell_kept, timed
from pipeline.engine import local
from pipeline.engine.crew import Crew, hire
from pipeline.errors import EngineMismatch, InputError
from pipeline.job import ROOM, BuildJob
from pipeline.lock import locked
from pipeline.manifest import make_manifest
from pipeline.order import Step
from pipeline.output import (
    Opened,
    discard_results,
    finish_output,
    open_output,
    prepare_output,
    require_space,
    unpacking,
)
from pipeline.plan import Plan, make_plan, piece_size
from pipeline.policy import ROW_TIMEOUT, SHARD_SIZE
from pipeline.progress import BYTES, Progress
from pipeline.recipe import Recipe
from pipeline.rejection import require_own, require_rejects, require_unwritten
from pipeline.source import survey
from pipeline.task import TaskDone
from pipeline.tokens.certificate import distrust, find_certificate
from pipeline.tokens.trust import Certificate

_LOG = logging.getLogger(__name__)


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

    def heed(found: Iterable[Path]) -> None:
        require_unwritten(found, output=output, rejects=rejects)
        if not overwrite:
            require_own(rejects, output)

    with locked(output), unpacking(output) as spool, hire(workers, ROOM) as crew:
        with progress.stage("reading the inputs", unit=BYTES) as tell:
            sources = survey(
                inputs,
                spool=spool,
                piece_bytes=piece_size(shard_size),
                heard=lambda total, size: tell(Step(size), of=total),
                heed=heed,
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
