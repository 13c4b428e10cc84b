"""What a build leaves beside its shards: rejects, sidecars, and what Arrow's loaders read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from pipeline.files import WORK, arrow_state, file_digest
from pipeline.findings import Findings
from pipeline.ledger import Ledger
from pipeline.manifest import NAME
from pipeline.outline import Outline, Shard, is_number
from pipeline.reject import Reject
from pipeline.source.record import is_reject
from pipeline.task import reject_file, sidecar

_MEND = "restore the file, or build again"
_MAKE = "run the build again, which makes it anew"
_ABSENT = object()
_LONGEST = 1 << 31  # bytes of one line: a reject holds one record


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
                value = msgspec.json.decode(raw)
                line = msgspec.convert(value, Reject)
                if not is_reject(value):
                    raise msgspec.ValidationError("it has fields that a reject has not")
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
    """How many sidecars are there, if any; then all must be, and agree with the manifest."""
    paths = [sidecar(folder, index) for index in range(outline.named)]
    if not any(path.is_symlink() or path.exists() for path in paths):
        return 0
    found = 0
    counts: Counter[str] = Counter()
    rejected: dict[int, object] = {}
    for index, path in enumerate(paths):
        value = _read_object(path, findings, "sidecar")
        if value is None:
            if not path.exists():
                findings.add("sidecar", path, "missing, though others are there", remedy=_MAKE)
            continue
        found += 1
        if len(outline.shards) == outline.named:
            _check_sidecar(value, path, index, outline.shards[index], outline, findings)
        if _is_object(told := value.get("counts")):
            counts.update({key: n for key, n in told.items() if is_number(n)})
            rejected[index] = told.get("rejects")
    if found == outline.named and not outline.reweighted and not findings.found["sidecar"]:
        for key in sorted({*counts, *outline.counts}):
            told, total = outline.counts.get(key), counts.get(key)
            if told != total:
                fact = f"counts.{key} add up to {total}, but {NAME} says {told}"
                findings.add("sidecar", folder / WORK, fact, remedy=_MAKE)
    plan = folder / WORK / "plan.json"
    value = _read_object(plan, findings, "sidecar")
    if value is not None:
        for name, wanted in (("fingerprint", outline.fingerprint), ("parts", outline.parts)):
            if value.get(name) != wanted:
                findings.add("sidecar", plan, f"{name}: not that of {NAME}", remedy=_MAKE)
    _check_parts(folder, rejected, outline, rejects, findings)
    return found


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _check_sidecar(
    value: dict[str, Any],
    path: Path,
    index: int,
    shard: Shard,
    outline: Outline,
    findings: Findings,
) -> None:
    counts = value.get("counts")
    found = counts if _is_object(counts) else {}
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
    part = path.with_suffix(".rejects.jsonl")
    if part.is_file() and file_digest(part) != value.get("rejects_sha256"):
        fact = f"rejects_sha256: not that of {part.name}"
        findings.add("sidecar", path, fact, remedy=_MAKE)


def _check_parts(
    folder: Path,
    rejected: Mapping[int, object],
    outline: Outline,
    rejects: Path,
    findings: Findings,
) -> None:
    """The tasks' rejects: as many as each counted, and joined they are the file of rejects."""
    joined = hashlib.sha256()
    for index in range(outline.named):
        part = reject_file(folder, index)
        lines = 0
        try:
            if not part.is_file():
                raise FileNotFoundError
            with part.open("rb") as file:
                while chunk := file.read(1 << 20):
                    joined.update(chunk)
                    lines += chunk.count(b"\n")
        except OSError as error:
            fact = f"missing, or no file ({error.strerror})" if error.strerror else "missing"
            findings.add("sidecar", part, fact, remedy=_MAKE)
            return
        if lines != rejected.get(index, lines):
            fact = f"{lines:,} rejects, but its task counted {rejected[index]}"
            findings.add("sidecar", part, fact, remedy=_MAKE)
    try:
        if not rejects.is_file() or file_digest(rejects) == joined.hexdigest():
            return
    except OSError:
        return  # `check_rejects` has told it
    fact = f"not what the tasks' own files in {WORK} hold"
    findings.add("rejects", rejects, fact, remedy=_MAKE)


def check_state(folder: Path, outline: Outline, findings: Findings) -> None:
    """The two files by which ``datasets.load_from_disk`` finds Arrow shards."""
    files = [shard.file for shard in outline.shards]
    for name, expected in arrow_state(files, outline.fingerprint).items():
        path = folder / name
        found = _read_object(path, findings, "state")
        if found is None:
            if not path.exists():
                findings.add("state", path, "missing: load_from_disk needs it", remedy=_MAKE)
            continue
        for key in sorted({*found, *expected}):
            if found.get(key, _ABSENT) != expected.get(key, _ABSENT):
                fact = f"{key}: not what {NAME} and the shards call for"
                findings.add("state", path, fact, remedy=_MAKE)


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
