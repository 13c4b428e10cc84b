"""A finished folder read again from the first byte to the last, and held against its manifest."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from pipeline.contract import Sums, check_rows
from pipeline.errors import BuildError, InputError
from pipeline.files import WORK, file_digest
from pipeline.findings import Findings
from pipeline.ledger import Ledger
from pipeline.manifest import NAME, read_manifest
from pipeline.outline import Outline, Shard, read_outline
from pipeline.plan import piece_size
from pipeline.reckoning import Reckoning, make_reckoning
from pipeline.remains import check_rejects, check_sidecars, check_state
from pipeline.shards import SCHEMA, read_groups
from pipeline.source import survey
from pipeline.tokens.spelling import read_spellings
from pipeline.tokens.vocabulary import TOKENIZER, Vocabulary, read_definition, read_vocabulary

REJECTS = "rejects.jsonl"
_LIKE_A_SHARD = re.compile(r"(train|data)-\d+-of-\d+\.(parquet|arrow)|.*\.parquet")
_REMAKE = "remove it and run the build again, which makes it anew"
_COUNTED = ("rows", "tokens", "targets", "counted_zeros", "turns", "turns_without_stop")
# What reading a file raises that is no shard, whatever it is instead.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError, BuildError)


@dataclass(slots=True)
class Verified:
    """What was found, and how much was looked at; ``inputs`` and ``ids`` are None without.

    ``ids`` is the size of the vocabulary; ``weighed``: what rows weigh was computed anew.
    """

    folder: Path
    findings: Findings = field(default_factory=Findings)
    outline: Outline | None = None
    sums: Sums = field(default_factory=Sums)
    shards: int = 0
    bytes: int = 0
    records: int = 0
    rejects: int = 0
    sidecars: int = 0
    inputs: int | None = None
    ids: int | None = None
    weighed: bool = False
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether there is nothing to tell."""
        return not self.findings.total


def verify_output(
    folder: Path,
    *,
    spool: Path,
    rejects: Path | None = None,
    inputs: Sequence[str] = (),
    tokenizer: str | None = None,
) -> Verified:
    """Reads the folder of a finished build whole, a row group at a time; raises for no damage.

    With a *tokenizer*, which must be the build's, ids are held against its vocabulary, and labels
    and weights against what the build's rules make of the rows; without, nothing tells either.
    Raises TokenizerError where it cannot be read.

    *rejects* is where the build put them, rejects.jsonl in the folder without. *inputs* are the
    words that it was given: they are surveyed again, what cannot be read in place unpacked into
    *spool*.
    """
    started = time.monotonic()
    verified = Verified(folder)
    vocabulary = read_vocabulary(tokenizer) if tokenizer else None
    outline = verified.outline = read_outline(folder, verified.findings)
    if outline is not None:
        reckoning = None
        if vocabulary is not None and tokenizer is not None:
            verified.ids = _count_ids(vocabulary, outline, verified.findings)
            manifest = read_manifest(folder) if verified.ids else None
            if manifest is not None:
                reckoning = make_reckoning(manifest, folder, tokenizer, verified.findings)
            verified.weighed = reckoning is not None
        _verify_rows(outline, rejects or folder / REJECTS, verified, reckoning)
        verified.sidecars = check_sidecars(
            folder, outline, rejects or folder / REJECTS, verified.findings
        )
        if outline.form == "arrow":
            check_state(folder, outline, verified.findings)
        _check_strays(folder, outline, verified.findings)
        if inputs:
            _verify_inputs(inputs, outline, spool, verified)
    verified.seconds = time.monotonic() - started
    return verified


def _count_ids(vocabulary: Vocabulary, outline: Outline, findings: Findings) -> int | None:
    """One more than the largest id of the build's tokenizer; None where this is another."""
    told, found = outline.parts["tokenizer"].get(TOKENIZER), vocabulary.digests[TOKENIZER]
    if told != found:
        fact = f"its {TOKENIZER} is {found[:12]}..., but the shards were made with {told!s:.12}..."
        findings.add("ids", "--tokenizer", fact, remedy="give the build's own tokenizer")
        return None
    place = vocabulary.folder / TOKENIZER
    return len(read_spellings(read_definition(place.read_bytes(), place)).words)


def _verify_rows(
    outline: Outline, rejects: Path, verified: Verified, reckoning: Reckoning | None
) -> None:
    """Shards and rejects, and that together they hold every record once."""
    findings = verified.findings
    ledger = None
    if outline.inputs is not None:
        ledger = Ledger(outline.inputs, fanned=outline.policy.turns == "fan_out")
    whole = len(outline.shards) == outline.named
    for shard in outline.shards:
        whole &= _verify_shard(shard, outline, ledger, verified, reckoning)
    if whole:
        _check_totals(verified.sums, outline, verified.folder / NAME, findings)
    else:
        findings.pass_over("the sums over all shards: some are damaged")
    told = check_rejects(rejects, outline, ledger, findings)
    verified.rejects = told or 0
    if ledger is None or ledger.broken or not whole or told is None:
        findings.pass_over("that every record is a row or a reject, once: see above")
        return
    ledger.settle(findings, elsewhere=outline.elsewhere)
    verified.records = ledger.records


def _verify_shard(
    shard: Shard,
    outline: Outline,
    ledger: Ledger | None,
    verified: Verified,
    reckoning: Reckoning | None,
) -> bool:
    """Whether all its rows could be added up; only a file of the right hash is read as a shard."""
    path, findings = verified.folder / shard.file, verified.findings
    if not _same_bytes(path, shard, findings):
        return False
    verified.shards += 1
    verified.bytes += shard.bytes
    sums, whole = Sums(), True
    first = 0

    def place(row: int) -> str:
        return f"{path}[{first + row}]"

    try:
        for table in read_groups(path, outline.form, SCHEMA.names):
            found = check_rows(
                table,
                place,
                findings,
                keep=outline.policy.keep,
                counting="counted_zeros" in outline.counts,
                ids=verified.ids or 1 << 31,
            )
            if found is None:
                whole = False
            else:
                sums.add(found)
                if reckoning is not None:
                    reckoning.check(table, place, findings)
                if ledger is not None:
                    ledger.enter_rows(table, place, findings, shard=shard.file)
            first += table.num_rows
    except _UNREADABLE as error:
        fact = str(error).strip().partition("\n")[0].removeprefix(f"{path}: ")
        findings.add("shard", path, f"cannot be read as a shard ({fact})", remedy=_REMAKE)
        return False
    if whole:
        for name in ("rows", "tokens", "targets"):
            told, counted = getattr(shard, name), getattr(sums, name)
            if told != counted:
                findings.add("counts", path, f"holds {counted:,} {name}, but {NAME} says {told:,}")
        verified.sums.add(sums)
    return whole


def _same_bytes(path: Path, shard: Shard, findings: Findings) -> bool:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a named pipe would be waited for
            findings.add("shard", path, "is no file", remedy=_REMAKE)
        elif status.st_size != shard.bytes:
            fact = f"is {status.st_size:,} bytes, but {NAME} says {shard.bytes:,}"
            findings.add("shard", path, fact, remedy=_REMAKE)
        elif file_digest(path) != shard.sha256:
            findings.add("shard", path, f"its sha256 is not the one in {NAME}", remedy=_REMAKE)
        else:
            return True
    except FileNotFoundError:
        findings.add("shard", path, "missing", remedy="run the build again, which makes it anew")
    except OSError as error:
        fact = f"cannot be read ({error.strerror})"
        findings.add("shard", path, fact, remedy="mend that and verify again")
    return False


def _check_totals(sums: Sums, outline: Outline, manifest: Path, findings: Findings) -> None:
    for name in _COUNTED:
        told, counted = outline.counts.get(name), getattr(sums, name)
        if told is not None and told != counted:
            fact = f"{told:,}, but the shards have {counted:,}"
            findings.add("counts", f"{manifest}: counts.{name}", fact)
    told = outline.counts.get("weight_sum", 0.0)
    if not abs(told - sums.weight_sum) <= 1e-9 * sums.heft:
        fact = f"{told:g}, but the shards have {sums.weight_sum:g}"
        findings.add("counts", f"{manifest}: counts.weight_sum", fact)


def _check_strays(folder: Path, outline: Outline, findings: Findings) -> None:
    """Files that a loader of the folder would take for shards of it."""
    known = {shard.file for shard in outline.shards}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name not in known and _LIKE_A_SHARD.fullmatch(path.name):
            fact = f"looks like a shard, but {NAME} has none of that name"
            findings.add("stray", path, fact, remedy="remove it: loaders would read it too")


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - {WORK})
        yield from (Path(parent, name) for name in sorted(names))


def _verify_inputs(words: Sequence[str], outline: Outline, spool: Path, verified: Verified) -> None:
    """Whether the inputs are still those that the shards were made of."""
    findings, remedy = verified.findings, "give the build's own inputs, or build again"
    try:
        found = survey(words, spool=spool, piece_bytes=piece_size(outline.shard_size))
    except (InputError, BuildError) as error:
        place, _, rest = str(error).partition(": ")
        fact, _, mending = rest.rpartition("; ")
        findings.add("inputs", place, fact, remedy=mending)
        return
    verified.inputs = len(found)
    told = [source.name for source in outline.surveyed]
    names = [source.name for source in found]
    if told != names:
        fact = f"{_list(names)} given, but the build's were {_list(told)}"
        findings.add("inputs", "--input", fact, remedy="give the build's words, in its order")
        return
    for before, now in zip(outline.surveyed, found, strict=True):
        for name in ("sha256", "size", "records"):
            old, new = getattr(before, name), getattr(now, name)
            if old != new:
                fact = f"its {name} is {new}, but was {old} when the shards were built"
                findings.add("inputs", now.name, fact, remedy=remedy)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
