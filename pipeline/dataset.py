"""A whole build: from inputs to a finished folder of shards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from pipeline.engine import local
from pipeline.engine.crew import Crew, hire
from pipeline.errors import BuildError, ConfigurationError, EngineMismatch, InputError
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
)
from pipeline.plan import Plan, Task, make_plan, piece_size
from pipeline.policy import ROW_TIMEOUT, SHARD_SIZE
from pipeline.recipe import Recipe
from pipeline.source import survey
from pipeline.source.inputs import WORK
from pipeline.summary import Timing
from pipeline.task import BuildJob, TaskDone
from pipeline.tokens import Certificate
from pipeline.tokens.certificate import distrust, find_certificate


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
    bar: bool = False,
) -> Built:
    """Builds, or finishes, the shards of *inputs* in the folder *output*.

    What was finished before stays and is used by the next call with the same arguments; with
    *verify*, where its sha256 is as it was. A record that takes a worker longer than *row_timeout*
    seconds is rejected. Raises ConfigurationError, InputError or BuildError, also where another
    build is at work in *output*, or, with *check_space*, its disk is too full to begin.
    """
    started = time.monotonic()
    rejects = rejects or output / "rejects.jsonl"
    if rejects.resolve() in {Path(word).resolve() for word in inputs}:
        raise ConfigurationError(f"--rejects {rejects}: is an input; choose another file")
    require_rejects(rejects, output)
    prepare_output(output)
    with locked(output), hire(workers) as crew:
        sources = survey(inputs, spool=output / WORK / SPOOL, piece_bytes=piece_size(shard_size))
        total = sum(source.records for source in sources)
        if not total:
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
        with tqdm(total=total, unit="conv", smoothing=0.1, disable=not bar) as shown:
            done, certificate = _run(plan, opened, recipe, output, crew, shown, row_timeout)
        manifest = make_manifest(plan, recipe, done, _told(certificate))
        finish_output(output, plan, manifest, rejects)
    kept = {d.index for d in opened.done}
    return Built(manifest, rejects, _timed(started, done, [d for d in done if d.index not in kept]))


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


def _run(
    plan: Plan,
    opened: Opened,
    recipe: Recipe,
    output: Path,
    crew: Crew,
    shown: tqdm[NoReturn],
    row_timeout: float,
) -> tuple[list[TaskDone], Certificate]:
    """All tasks' results in order, and the certificate that they were encoded under."""
    # The first time with a tokenizer this takes some ten seconds.
    shown.set_description("trying the engines")
    certificate = find_certificate(recipe.vocabulary)
    shown.set_description("")
    shown.update(sum(d.counts.get("conversations", 0) for d in opened.done))

    def tell(step: Step) -> None:
        shown.update(step.records)

    def labour(tasks: Sequence[Task]) -> list[TaskDone]:
        job = BuildJob(recipe, certificate, output, plan.fingerprint)
        made = local.run(tasks, job, crew=crew, progress=tell, row_timeout=row_timeout)
        return list(made)

    try:
        done = [*opened.done, *labour(opened.left)]
    except EngineMismatch as mismatch:
        # Nothing that the fast engine made is kept: the build starts anew with the reference.
        certificate = distrust(recipe.vocabulary, str(mismatch))
        discard_results(output)
        shown.reset()
        done = labour(open_output(output, plan).left)
    return sorted(done, key=lambda d: d.index), certificate


def _told(certificate: Certificate) -> dict[str, Any]:
    """What decides which engine encoded which text; not how much it was tried, here or elsewhere.

    Of two machines one may have a certificate of its own, and their manifests have to be equal.
    """
    told = asdict(certificate)
    return {key: told[key] for key in ("engine", "code_points", "tokenizer", "versions")}


def _timed(started: float, done: list[TaskDone], built: list[TaskDone]) -> Timing:
    tokens = sum(d.counts.get("tokens", 0) for d in built)
    return Timing(time.monotonic() - started, tokens, len(done) - len(built))
