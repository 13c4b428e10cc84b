"""What a build leaves beside its shards: rejects, sidecars, and what Arrow's loaders read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pipeline.findings import Findings
from pipeline.ledger import Ledger
from pipeline.manifest import NAME
from pipeline.outline import Outline, Shard
from pipeline.shards import SPLIT, file_digest
from pipeline.source.inputs import WORK
from pipeline.task import reject_file, sidecar

_MEND = "restore the file, or build again"
_MAKE = "run the build again, which makes it anew"
_LONGEST = 1 << 31  # bytes of one line: a reject holds one record


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """A line of the rejects: exactly these keys."""

    source: str
    row: int
    line: int
    place: str
    stage: str
    reason: str
    field: str
    message: str
    raw: str


def check_rejects(
    path: Path, outline: Outline, ledger: Ledger | None, findings: Findings
) -> int | None:
    """The number of rejects, each entered in the *ledger*; None where not all could be read."""
    if not path.exists() and not sum(outline.own.values()):
        return 0  # nothing is lost with an empty file
    counts: Counter[str] = Counter()
    number, whole = 0, True
    try:
        for number, raw in enumerate(_lines(path), 1):
            place = f"{path}:{number}"
            try:
                line = msgspec.json.decode(raw, type=_Line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                findings.add("rejects", place, f"not a reject ({error})", remedy=_MEND)
                whole = False
                continue
            if not raw.endswith(b"\n"):
                findings.add("rejects", place, "the line is cut off", remedy=_MEND)
            counts[f"reject.{line.stage}.{line.reason}"] += 1
            if ledger is not None:
                ledger.enter_reject(line.source, line.row, place, findings)
    except OSError as error:
        fact = f"cannot be read ({error.strerror})"
        if isinstance(error, FileNotFoundError):
            fact = f"missing, but {NAME} counts {sum(outline.own.values()):,} rejects"
        remedy = "name the file with --rejects, if the build put it elsewhere"
        findings.add("rejects", path, fact, remedy=remedy)
        return None
    for reason in sorted({*counts, *outline.own}):
        found, told = counts[reason], outline.own.get(reason, 0)
        if found != told and whole:
            fact = f"{found:,} rejects of {reason}, but {NAME} counts {told:,}"
            findings.add("rejects", path, fact, remedy=_MEND)
    return number if whole else None


def _lines(path: Path) -> Iterator[bytes]:
    if not path.is_file():  # a named pipe would be waited for
        raise FileNotFoundError if not path.exists() else OSError(0, "no file")
    with path.open("rb") as file:
        while line := file.readline(_LONGEST):
            yield line


def check_sidecars(folder: Path, outline: Outline, rejects: Path, findings: Findings) -> int:
    """How many sidecars are there; those that are must agree with the manifest."""
    if not (folder / WORK).is_dir():
        return 0
    found = 0
    counts: Counter[str] = Counter()
    for index, shard in enumerate(outline.shards):
        path = sidecar(folder, index)
        value = _read_object(path, findings, "sidecar")
        if value is None:
            continue
        found += 1
        _check_sidecar(value, path, index, shard, outline, findings)
        told = value.get("counts")
        if isinstance(told, dict):
            counts.update({k: n for k, n in told.items() if isinstance(n, (int, float))})
    if found == outline.named and not outline.reweighted and not findings.found["sidecar"]:
        for key in sorted({*counts, *outline.counts}):
            told, total = outline.counts.get(key, 0), counts[key]
            if told != total:
                fact = f"counts.{key} add up to {total:,}, but {NAME} says {told:,}"
                findings.add("sidecar", folder / WORK, fact, remedy=_MAKE)
    plan = folder / WORK / "plan.json"
    value = _read_object(plan, findings, "sidecar")
    if value is not None and value.get("fingerprint") != outline.fingerprint:
        findings.add("sidecar", plan, f"its fingerprint is not that of {NAME}", remedy=_MAKE)
    _check_parts(folder, outline, rejects, findings)
    return found


def _check_sidecar(
    value: dict[str, Any],
    path: Path,
    index: int,
    shard: Shard,
    outline: Outline,
    findings: Findings,
) -> None:
    counts = value.get("counts")
    found = counts if isinstance(counts, dict) else {}
    expected = {
        "index": (value.get("index"), index),
        "fingerprint": (value.get("fingerprint"), outline.fingerprint),
        **{name: (value.get(name), getattr(shard, name)) for name in ("file", "rows", "bytes")},
        "sha256": (value.get("sha256"), shard.sha256),
        "counts.tokens": (found.get("tokens", 0), shard.tokens),
        "counts.targets": (found.get("targets", 0), shard.targets),
    }
    for name, (told, wanted) in expected.items():
        if told != wanted:
            fact = f"{name}: {told!r}, but {NAME} says {wanted!r}"
            findings.add("sidecar", path, fact, remedy=_MAKE)


def _check_parts(folder: Path, outline: Outline, rejects: Path, findings: Findings) -> None:
    """The tasks' rejects, where all of them are there, joined are the file of rejects."""
    parts = [reject_file(folder, index) for index in range(outline.named)]
    if not parts or not rejects.is_file() or not all(part.is_file() for part in parts):
        return
    try:
        joined = hashlib.sha256()
        for part in parts:
            with part.open("rb") as file:
                while chunk := file.read(1 << 20):
                    joined.update(chunk)
        same = joined.hexdigest() == file_digest(rejects)
    except OSError as error:
        fact = f"cannot be read ({error.strerror})"
        findings.add("sidecar", error.filename or folder / WORK, fact, remedy="mend that")
        return
    if not same:
        fact = f"not what the tasks' own files in {WORK} hold"
        findings.add("rejects", rejects, fact, remedy=_MAKE)


def check_state(folder: Path, outline: Outline, findings: Findings) -> None:
    """The two files by which ``datasets.load_from_disk`` finds Arrow shards."""
    for name in ("dataset_info.json", "state.json"):
        path = folder / name
        value = _read_object(path, findings, "state")
        if value is None:
            if not path.exists():
                findings.add("state", path, "missing: load_from_disk needs it", remedy=_MAKE)
        elif name == "state.json":
            _check_files(value, path, outline, findings)


def _check_files(value: dict[str, Any], path: Path, outline: Outline, findings: Findings) -> None:
    told = value.get("_data_files")
    if told != [{"filename": shard.file} for shard in outline.shards]:
        findings.add("state", path, f"_data_files: not the shards of {NAME}", remedy=_MAKE)
    if value.get("_fingerprint") != outline.fingerprint[:16]:
        findings.add("state", path, f"_fingerprint: not that of {NAME}", remedy=_MAKE)
    if value.get("_split") != SPLIT:
        fact = f"_split: {value.get('_split')!r}, not {SPLIT!r}"
        findings.add("state", path, fact, remedy=_MAKE)
    # Any of these would show a loader other rows or columns than the shards have.
    for key in ("_indices_files", "_indices_data_files", "_format_columns", "_format_type"):
        if value.get(key):
            findings.add("state", path, f"{key}: {value[key]!r}, not null", remedy=_MAKE)


def _read_object(path: Path, findings: Findings, kind: str) -> dict[str, Any] | None:
    """A JSON object; None where there is none, told unless it is absent."""
    try:
        if not path.is_file():
            if path.exists() or path.is_symlink():
                findings.add(kind, path, "is no file", remedy=_MAKE)
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        findings.add(kind, path, f"cannot be read ({error.strerror})", remedy="mend that")
        return None
    except (ValueError, RecursionError) as error:
        findings.add(kind, path, f"not JSON ({error})", remedy=_MAKE)
        return None
    if not isinstance(value, dict):
        findings.add(kind, path, "no JSON object", remedy=_MAKE)
        return None
    return value
