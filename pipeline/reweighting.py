"""Finished shards under other rules, without their source, their template, or tokenizing."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.built import Built, Losses, progress_of, tell_kept, timed
from pipeline.engine import local
from pipeline.engine.crew import Crew, hire
from pipeline.errors import ConfigurationError
from pipeline.lineage import (
    plan_reweighting,
    read_finished,
    recipe_of_manifest,
    require_same_ids,
    succeed,
)
from pipeline.lock import locked
from pipeline.output import (
    discard_results,
    finish_output,
    open_output,
    prepare_output,
)
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.rejection import require_own, require_rejects
from pipeline.rules import load_rules
from pipeline.task import Complete


def reweight_dataset(
    shards: Path,
    rules: Sequence[str | Path],
    output: Path,
    *,
    tokenizer: str | None = None,
    edge: str = "",
    workers: int | Crew = 1,
    rejects: Path | None = None,
    overwrite: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Writes the folder *shards* again as *output*, weighed by *rules* alone.

    What a build of the same inputs with these rules would hold, less what the old rules rejected.
    *tokenizer* is that of the build, the embedded one without. Raises ConfigurationError,
    InputError or BuildError; a second call goes on from what is finished, with *verify* where its
    sha256 is as it was.
    """
    started = time.monotonic()
    progress = progress or Progress(None)
    if os.path.realpath(output) == os.path.realpath(shards):
        raise ConfigurationError(f"--output {output}: is the folder of the shards; choose another")
    rejects = rejects or output / "rejects.jsonl"
    if os.path.dirname(os.path.realpath(rejects)) == os.path.realpath(shards):  # noqa: PTH120 - of text
        raise ConfigurationError(f"--rejects {rejects}: lies among the shards; choose another")
    old = read_finished(shards)
    recipe = recipe_of_manifest(old, load_rules(rules), tokenizer=tokenizer)
    recipe = replace(recipe, policy=replace(recipe.policy, edge=edge or recipe.policy.edge))
    require_same_ids(old, recipe)
    require_rejects(rejects, output)
    prepare_output(output)
    plan = plan_reweighting(old, recipe)
    job = ReweightJob(recipe, shards, tuple(old.shards), output, plan.fingerprint)
    with locked(output), hire(workers, "pipeline.reweighing") as crew:
        if overwrite:
            discard_results(output)
        else:
            require_own(rejects, output)
        opened = open_output(output, plan, verify=verify)
        tell_kept(opened, plan)
        losses, kept = Losses(), progress_of(opened.done)
        with progress.stage("weighing", unit="rows", total=old.counts["rows"], kept=kept) as tell:
            made = list(local.run(opened.left, job, crew=crew, progress=tell, replaced=losses))
        done = sorted([*opened.done, *made], key=lambda d: d.index)
        with progress.stage("finishing"):
            manifest = succeed(old, plan, recipe, done)
            finish_output(output, plan, manifest, rejects)
    return Built(manifest, rejects, timed(started, done, made, losses))


@dataclass(frozen=True, slots=True)
class ReweightJob:
    """Shards from shards: task *i* is the one that the manifest tells in ``shards[i]``."""

    recipe: Recipe
    folder: Path
    shards: tuple[Mapping[str, Any], ...]
    output: Path
    fingerprint: str

    def begin(self, ahead: object = None) -> Complete:  # noqa: ARG002 - nothing is loaded ahead
        """What does one task after another."""
        # Here: the coordinator, which sends this, needs neither numpy nor Arrow.
        from pipeline.reweighing import begin

        return begin(
            self.recipe,
            self.folder,
            self.shards,
            output=self.output,
            fingerprint=self.fingerprint,
        )
