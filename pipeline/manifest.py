"""``manifest.json``: what a finished build holds, and how it came to be.

It has no path, time or host: two builds of the same data differ in nothing. It is written last,
so a folder that has one is finished.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import BuildError, ConfigurationError
from pipeline.files import write_json
from pipeline.plan import Plan
from pipeline.policy import FORMATS, Policy
from pipeline.recipe import Recipe
from pipeline.task import TaskDone

NAME = "manifest.json"
VERSION = 1
DENOMINATOR = (
    "sum over tokens of loss_scale * cross-entropy, divided by the number of labels that are "
    "not -100 (num_target_tokens) in the global batch"
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """``counts`` are sums over all shards, by dotted name; ``parts`` are the fingerprint's."""

    version: int
    fingerprint: str
    parts: dict[str, Any]
    format: str
    denominator: str
    shards: list[dict[str, Any]]
    counts: dict[str, Any]
    engine: dict[str, Any]
    rules: dict[str, str] = field(default_factory=dict)
    chat_templates: dict[str, str] = field(default_factory=dict)
    template_variables: dict[str, Any] = field(default_factory=dict)


def make_manifest(
    plan: Plan, recipe: Recipe, done: Iterable[TaskDone], engine: dict[str, Any]
) -> Manifest:
    """Sums the tasks' counts in the order of the tasks, so that floats add up alike each time."""
    ordered = sorted(done, key=lambda d: d.index)
    # Of no tasks at all, too: without rows it would be no manifest to those who read it.
    counts: Counter[str] = Counter(conversations=0, rejects=0, rows=0)
    for d in ordered:
        counts.update(d.counts)
    return Manifest(
        version=VERSION,
        fingerprint=plan.fingerprint,
        parts=dict(plan.parts),
        format=recipe.form,
        denominator=DENOMINATOR,
        shards=[
            {
                "file": d.file,
                "rows": d.rows,
                "tokens": d.counts.get("tokens", 0),
                "targets": d.counts.get("targets", 0),
                "bytes": d.bytes,
                "sha256": d.sha256,
            }
            for d in ordered
        ],
        counts=dict(sorted(counts.items())),
        engine=engine,
        rules={f.name: f.text for f in recipe.rules.files},
        chat_templates=dict(recipe.templates),
        template_variables=dict(recipe.variables),
    )


def write_manifest(manifest: Manifest, output: Path) -> None:
    """The last file of a build."""
    write_json(output / NAME, asdict(manifest))


def read_manifest(output: Path) -> Manifest | None:
    """The folder's manifest, None where it has none; BuildError where it is not one of ours."""
    path = output / NAME
    try:
        value = json.loads(read_state(path))
        return _require_known(msgspec.convert(value, Manifest))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BuildError(
            f"{path}: cannot be read ({error.strerror}); see to its permissions"
        ) from error
    except (ValueError, TypeError, KeyError, RecursionError, ConfigurationError) as error:
        raise BuildError(
            f"{path}: not a manifest of this version: {error}; remove it and run the build's "
            "command again, which writes it anew, or choose another folder"
        ) from error


def read_state(path: Path) -> str:
    """Text of a file that a build has written; OSError where a pipe would be waited for."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no file")
    return path.read_text(encoding="utf-8")


def _require_known(manifest: Manifest) -> Manifest:
    """The manifest, if it is of this version and has what later commands read."""
    if manifest.version != VERSION:
        raise ValueError(f"version {manifest.version}, not {VERSION}")
    msgspec.convert(manifest.parts["policy"], Policy)
    msgspec.convert(manifest.parts["tokenizer"], dict[str, str])
    for shard in msgspec.convert(manifest.shards, list[_Shard]):
        if Path(shard.file).name != shard.file:
            raise ValueError(f"shard {shard.file!r} is not in its folder")
    if "rows" not in manifest.counts or "default" not in manifest.chat_templates:
        raise ValueError("it lacks counts.rows or chat_templates.default")
    if manifest.format not in FORMATS:
        raise ValueError(f"format {manifest.format!r}")
    return manifest


class _Shard(msgspec.Struct):
    """What a manifest tells of each shard."""

    file: str
    rows: int
    bytes: int
    sha256: str
