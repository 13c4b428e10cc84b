"""A whole build: from inputs to a finished folder of shards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from pipeline.engine import local
from pipeline.errors import BuildError, ConfigurationError, EngineMismatch, InputError
from pipeline.manifest import Manifest, make_manifest, write_manifest
from pipeline.output import (
    SPOOL,
    discard_results,
    finish_output,
    gather_rejects,
    open_output,
    prepare_output,
)
from pipeline.plan import Plan, make_plan, piece_size
from pipeline.recipe import Recipe
from pipeline.shards import write_arrow_state
from pipeline.source import survey
from pipeline.source.inputs import WORK
from pipeline.summary import Timing
from pipeline.task import BuildJob, TaskDone
from pipeline.tokens import Certificate
from pipeline.tokens.certificate import distrust, find_certificate

SHARD_SIZE = 8 << 20  # bytes of input: a shard of two million tokens, a task of seconds


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
    workers: int = 1,
    shard_size: int = SHARD_SIZE,
    rejects: Path | None = None,
    overwrite: bool = False,
    bar: bool = False,
) -> Built:
    """Builds, or finishes, the shards of *inputs* in the folder *output*.

    Raises ConfigurationError, InputError or BuildError; what was finished before stays and is
    used by the next call with the same arguments.
    """
    started = time.monotonic()
    rejects = rejects or output / "rejects.jsonl"
    if rejects.resolve() in {Path(word).resolve() for word in inputs}:
        raise ConfigurationError(f"--rejects {rejects}: is an input; choose another file")
    prepare_output(output)
    sources = survey(inputs, spool=output / WORK / SPOOL, piece_bytes=piece_size(shard_size))
    total = sum(source.records for source in sources)
    if not total:
        names = ", ".join(source.name for source in sources[:3])
        raise InputError(f"{names}: no record in any input; check that the right files were passed")
    plan = make_plan(sources, recipe, shard_size=shard_size)
    if overwrite:  # not before the inputs have proved readable
        discard_results(output)
    with tqdm(total=total, unit="conv", smoothing=0.1, disable=not bar) as shown:
        # The first time with a tokenizer this takes some ten seconds.
        shown.set_description("trying the engines")
        certificate = find_certificate(recipe.vocabulary)
        shown.set_description("")
        try:
            done, built = _run(plan, recipe, certificate, output, workers, shown)
        except EngineMismatch as mismatch:
            # Nothing that the fast engine made is kept: the build starts anew with the reference.
            certificate = distrust(recipe.vocabulary, str(mismatch))
            discard_results(output)
            shown.reset()
            done, built = _run(plan, recipe, certificate, output, workers, shown)
    gather_rejects(output, plan, rejects)
    if recipe.form == "arrow":
        write_arrow_state(output, [d.file for d in done], plan.fingerprint)
    manifest = make_manifest(plan, recipe, done, asdict(certificate))
    write_manifest(manifest, output)
    finish_output(output)
    return Built(manifest, rejects, _timed(started, done, built))


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
    recipe: Recipe,
    certificate: Certificate,
    output: Path,
    workers: int,
    shown: tqdm[NoReturn],
) -> tuple[list[TaskDone], list[TaskDone]]:
    """All tasks' results in order, and those of them that this run has built."""
    opened = open_output(output, plan)
    shown.update(sum(d.counts.get("conversations", 0) for d in opened.done))
    job = BuildJob(recipe, certificate, output, plan.fingerprint)

    def tell(records: int) -> None:
        shown.update(records)

    built = list(local.run(opened.left, job, workers=workers, progress=tell))
    done = sorted([*opened.done, *built], key=lambda d: d.index)
    return done, built


def _timed(started: float, done: list[TaskDone], built: list[TaskDone]) -> Timing:
    tokens = sum(d.counts.get("tokens", 0) for d in built)
    return Timing(time.monotonic() - started, tokens, len(done) - len(built))
