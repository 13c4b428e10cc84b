"""A manifest that may say anything, read as what its numbers and names should be."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from pipeline.errors import BuildError
from pipeline.files import WORK, shard_name
from pipeline.findings import Findings
from pipeline.ledger import MOST, Inputs
from pipeline.lineage import BY_RULES
from pipeline.lock import holder_of
from pipeline.manifest import DENOMINATOR, NAME, Manifest, read_manifest
from pipeline.plan import Plan
from pipeline.policy import Policy
from pipeline.tokens.vocabulary import TOKENIZER

_BUILD_AGAIN = "restore the file, or build again with --overwrite"
_T = TypeVar("_T")


class Shard(msgspec.Struct, frozen=True):
    """What a manifest says of one shard."""

    file: str
    rows: int
    tokens: int
    targets: int
    bytes: int
    sha256: str


class Surveyed(msgspec.Struct, frozen=True):
    """What a manifest says of one input."""

    name: str
    sha256: str
    size: int
    records: int


@dataclass(frozen=True, slots=True)
class Outline:
    """What a manifest promises, in types; ``inputs`` is None where they make no sense.

    ``shards`` are only those whose names are what they must be, of ``named`` in all. ``own`` counts
    the rejects that this folder's file holds, ``elsewhere`` is how many records an earlier build
    left out.
    """

    form: str
    fingerprint: str
    parts: Mapping[str, Any]
    shards: Sequence[Shard]
    named: int
    surveyed: Sequence[Surveyed]
    inputs: Inputs | None
    counts: Mapping[str, int | float]
    policy: Policy
    shard_size: int
    own: Mapping[str, int | float]
    elsewhere: range
    reweighted: bool


def read_outline(folder: Path, findings: Findings) -> Outline | None:
    """Tells what of the folder's manifest contradicts itself; None where it cannot be read."""
    path = folder / NAME
    try:
        manifest = read_manifest(folder) if path.is_file() else None
    except BuildError as error:
        fact, _, remedy = str(error).removeprefix(f"{path}: ").rpartition("; ")
        findings.add("manifest", path, fact, remedy=remedy)
        return None
    except OSError as error:
        findings.add("manifest", path, f"cannot be read ({error.strerror})", remedy="mend that")
        return None
    if manifest is None:
        fact = "missing"
        remedy = "give the folder of a finished build"
        if (folder / WORK).is_dir():
            fact, remedy = "missing: the build is unfinished", "run its command again"
            holder = holder_of(folder)
            if holder:
                fact, remedy = f"missing: a build is at work ({holder})", "wait for its end"
        findings.add("manifest", path, fact, remedy=remedy)
        return None
    return _outline(manifest, path, findings)


def is_number(value: object) -> bool:
    """A finite number that can be added to others: JSON has 400 digits and NaN too."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST


def _outline(manifest: Manifest, path: Path, findings: Findings) -> Outline | None:
    def tell(field: str, fact: str) -> None:
        findings.add("manifest", f"{path}: {field}", fact, remedy=_BUILD_AGAIN)

    def convert(value: Any, kind: type[_T], field: str) -> _T | None:
        try:
            return msgspec.convert(value, kind)
        except (msgspec.ValidationError, ValueError, RecursionError) as error:
            tell(field, f"not what it should be ({error})")
            return None

    counts = convert(manifest.counts, dict[str, int | float], "counts")
    shards = convert(manifest.shards, list[Shard], "shards")
    surveyed = convert(manifest.parts.get("inputs"), list[Surveyed], "parts.inputs")
    size = convert(manifest.parts.get("shard_size"), int, "parts.shard_size")
    if counts is None or shards is None:
        return None
    for key, number in counts.items():
        count = isinstance(number, int) and number >= 0
        if not is_number(number) or not (count or key == "weight_sum"):
            tell(f"counts.{key}", f"{number} is no count")
            return None
    _hashes(manifest, tell)
    named = _shards(manifest.format, shards, tell)
    inputs = _inputs(surveyed or [], tell) if surveyed is not None else None
    reweighted = "reweighted_from" in manifest.parts
    rejects = {key: n for key, n in counts.items() if key.startswith("reject.")}
    own = {key: n for key, n in rejects.items() if not reweighted or key.startswith(BY_RULES)}
    _sums(counts, shards, rejects, inputs, tell)
    policy = msgspec.convert(manifest.parts["policy"], Policy)  # `read_manifest` has tried it
    before = int(sum(rejects.values()) - sum(own.values()))
    most = before + int(counts.get("missing", 0))
    # `missing` counts rows where one record has several: it is a bound then, no number of records.
    least = before if policy.turns == "fan_out" else most
    return Outline(
        form=manifest.format,
        fingerprint=manifest.fingerprint,
        parts=manifest.parts,
        shards=named,
        named=len(shards),
        surveyed=surveyed or [],
        inputs=inputs,
        counts=counts,
        policy=policy,
        shard_size=min(max(1, size or 1), MOST),
        own=own,
        elsewhere=range(least, most + 1),
        reweighted=reweighted,
    )


def _hashes(manifest: Manifest, tell: Any) -> None:
    """The fingerprint is the hash of its parts, and these are hashes of what the manifest holds."""
    parts = manifest.parts
    try:
        if Plan((), parts).fingerprint != manifest.fingerprint:
            tell("fingerprint", "not the hash of its parts")
    except (ValueError, RecursionError) as error:
        tell("parts", f"cannot be hashed ({error})")
    for field in ("rules", "chat_templates"):
        texts: Mapping[str, str] = getattr(manifest, field)
        told = parts.get(field)
        if not isinstance(told, dict) or {*told} != {*texts}:
            tell(field, f"not those of parts.{field}")
            continue
        for name, text in texts.items():
            if hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() != told[name]:
                tell(f"{field}.{name}", "its sha256 is not the one in parts")
    tokenizer = parts["tokenizer"].get(TOKENIZER)  # `read_manifest` has tried it
    if manifest.engine.get("tokenizer") != tokenizer:
        tell("engine.tokenizer", f"not the sha256 that parts have of {TOKENIZER}")
    for field in ("format", "template_variables"):
        if getattr(manifest, field) != parts.get(field):
            tell(field, f"not that of parts.{field}")
    if manifest.denominator != DENOMINATOR:
        tell("denominator", "not that of this version")


def _shards(form: str, shards: Sequence[Shard], tell: Any) -> list[Shard]:
    """The shards with the names that they must have, so that no path can leave the folder."""
    named: list[Shard] = []
    for index, shard in enumerate(shards):
        expected = shard_name(form, index, len(shards))
        if shard.file == expected:
            named.append(shard)
        else:
            tell(f"shards[{index}].file", f"{shard.file!r}, not {expected!r}")
    return named


def _inputs(surveyed: Sequence[Surveyed], tell: Any) -> Inputs | None:
    names = [source.name for source in surveyed]
    if len({*names}) < len(names):
        tell("parts.inputs", "a name stands twice")
        return None
    for index, source in enumerate(surveyed):
        if source.records < 0 or source.size < 0:
            tell(f"parts.inputs[{index}]", "a number below 0")
            return None
    if sum(source.records for source in surveyed) >= MOST:
        tell("parts.inputs", "more records than any machine holds")
        return None
    firsts = np.cumsum([0, *(source.records for source in surveyed)], dtype=np.int64)
    return Inputs(names, {name: i for i, name in enumerate(names)}, firsts)


def _sums(
    counts: Mapping[str, int | float],
    shards: Sequence[Shard],
    rejects: Mapping[str, int | float],
    inputs: Inputs | None,
    tell: Any,
) -> None:
    expected = {
        "rows": sum(shard.rows for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
        "targets": sum(shard.targets for shard in shards),
        "rejects": sum(rejects.values()),
    }
    if inputs is not None:
        expected["conversations"] = inputs.records
    found = {key: n for key, n in counts.items() if key.startswith("found.")}
    if found:
        expected["turns"] = sum(found.values())
    for key, total in expected.items():
        if counts.get(key, 0) != total:
            tell(f"counts.{key}", f"{counts.get(key, 0):,}, but its parts add up to {total:,}")
