"""Our tokens and weights beside ms-swift's own, system by system.

An oracle folder holds conversations, and for each of ms-swift's templates and loss scales what it
made of them: text, ids, labels, weights. A row is compared where a chat template of a tokenizer, or
the ChatML of ``renderings``, gives exactly its text. Under ``--profile ms-swift`` ids, labels and
weights must be equal; in the default profile the weights of the tokens that both have. What differs
must have a cause in ``swift_differences.json``, where each has a name and a reason.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.differences import Difference, Key, Row, Span, explain, read_differences, write_rows
from benchmarks.renderings import choose, make_renderings
from pipeline.batch import Encoder
from pipeline.policy import Policy
from pipeline.rules import load_rules
from pipeline.source.record import Record
from pipeline.tokens.offsets import read_model
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer, read_tokenizer
from pipeline.tokens.vocabulary import TOKENIZER, read_definition, read_vocabulary

VERSIONS = {"head": "4.6.0.dev0", "v364": "3.6.4"}
PROFILES = ("ms-swift", "default")


@dataclass(frozen=True, slots=True)
class Verdict:
    """``equal``, ``differs``, ``raised`` (ms-swift did) or ``other text``, and who rendered.

    ``own``: with a tokenizer's own template. ``tokens`` are how many were compared, ``spans`` those
    that differ, in bytes, as ``told``; ``names`` are the causes, ``left`` the spans that no cause
    explains.
    """

    row: Row
    kind: str
    rendering: str = ""
    own: bool = False
    tokens: int = 0
    spans: tuple[Span, ...] = ()
    told: str = ""
    names: tuple[str, ...] = ()
    left: tuple[Span, ...] = ()


def read_rows(folder: Path) -> list[Row]:
    """All rows of all files but the conversations'."""
    rows: list[Row] = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        file = path.name.removesuffix(".jsonl.gz")
        if file == "conversations":
            continue
        for entry in _lines(path):
            labels = entry["labels"] or []
            weights = entry["loss_scale_full"] or entry["loss_scale"]
            rows.append(
                Row(
                    file,
                    entry["loss_scale_name"],
                    entry["id"],
                    entry["text"] or "",
                    entry["input_ids"] or [],
                    labels,
                    weights or [float(label >= 0) for label in labels],
                    [(text, weight) for text, weight in entry["segments"] or ()],
                    entry["error"] or "",
                )
            )
    return rows


def read_conversations(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by id, as ms-swift was given them."""
    keys = ("messages", "tools")
    return {
        entry["id"]: {key: entry[key] for key in keys if key in entry}
        for entry in _lines(folder / "conversations.jsonl.gz")
    }


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def version_of(row: Row) -> str:
    """Of ms-swift, by the row's file."""
    return VERSIONS[row.file.partition(".")[0]]


def make_policy(profile: str, version: str) -> Policy:
    """3.6.4 ends its texts with the stop token, and trains no white space after any."""
    if profile == "default":
        return Policy()
    trailing = version != VERSIONS["v364"]
    return Policy(profile=profile, edge="split", control_tokens="allow", trailing=trailing)


def judge(
    rows: Iterable[Row],
    conversations: Mapping[str, dict[str, Any]],
    tokenizers: Path,
    *,
    profile: str,
    differences: Sequence[Difference],
    forms: Mapping[str, str] = MappingProxyType({}),
) -> list[Verdict]:
    """A verdict for each row, in their order; *forms* are rule files instead of a system's name."""

    def name(verdict: Verdict) -> Verdict:
        record = conversations[verdict.row.id]
        names, left = explain(verdict.row, record, verdict.spans, differences, profile=profile)
        return replace(verdict, names=tuple(names), left=tuple(left))

    renderings = make_renderings(conversations, tokenizers)
    tokenizer = load_tokenizer(read_vocabulary(tokenizers / "qwen3"))
    lengths = _lengths(tokenizer)
    verdicts: dict[tuple[str, str, str], Verdict] = {}
    groups: dict[tuple[int, str, str], list[tuple[Row, dict[str, Any]]]] = defaultdict(list)
    for row in rows:
        verdicts[row.key] = Verdict(row, "other text")
        if row.error:
            verdict = Verdict(row, "raised", spans=((0, 1),), told=row.error)
            verdicts[row.key] = name(verdict)
        else:
            index, record = choose(row, conversations[row.id], renderings)
            if index >= 0:
                groups[index, row.system, version_of(row)].append((row, record))
    for (index, system, version), group in groups.items():
        rendering, policy = renderings[index], make_policy(profile, version)
        rules = load_rules([forms.get(system, system)], profile=policy.profile)
        encoder = Encoder(tokenizer, rendering.template, rules, policy=policy)
        ours = _encode(encoder, [record for _, record in group])
        for (row, _), mine in zip(group, ours, strict=True):
            verdict = _compare(row, mine, lengths, exactly=policy.swift)
            verdict = replace(verdict, rendering=rendering.name, own=rendering.own)
            verdicts[row.key] = name(verdict)
    return list(verdicts.values())


def _lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    vocabulary = tokenizer.vocabulary
    model = read_model(read_definition(read_tokenizer(vocabulary), vocabulary.folder / TOKENIZER))
    assert model.lengths is not None  # Qwen's is a byte-level BPE
    return model.lengths


def _encode(
    encoder: Encoder, conversations: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any] | str]:
    """Of each record our columns, or why it is rejected."""
    records = [
        Record(source="", row=i, line=0, raw=json.dumps(record).encode())
        for i, record in enumerate(conversations)
    ]
    batch = encoder.encode(records)
    built = {entry["row"]: entry for entry in batch.rows.to_pylist()}
    rejected = {r.row: f"rejected: {r.reason}: {r.message}" for r in batch.rejects}
    for i in range(len(records)):
        yield built[i] if i in built else rejected[i]


def _compare(
    row: Row, ours: dict[str, Any] | str, lengths: npt.NDArray[np.int64], *, exactly: bool
) -> Verdict:
    """All tokens where *exactly*, else those of the same characters in both.

    A row that we reject as training nothing differs in each token that ms-swift trains.
    """
    theirs = dict(_by_span(row.ids, row.labels, row.weights, lengths))
    if isinstance(ours, str):
        live = tuple(span for span, (_, _, weight) in theirs.items() if weight)
        return Verdict(row, "differs", tokens=len(theirs), spans=live, told=ours)
    mine = dict(_by_span(ours["input_ids"], ours["labels"], ours["loss_scale"], lengths))
    common = theirs.keys() & mine.keys()
    spans = sorted(span for span in common if mine[span] != theirs[span])
    if exactly:
        spans = sorted([*spans, *(theirs.keys() ^ mine.keys())])
    if not spans:
        return Verdict(row, "equal", tokens=len(common))
    text = unicodedata.normalize("NFC", row.text).encode()
    told = "; ".join(
        f"{text[a:b].decode(errors='replace')!r} {_told(mine.get((a, b)))}, "
        f"there {_told(theirs.get((a, b)))}"
        for a, b in spans
    )
    return Verdict(row, "differs", tokens=len(common), spans=tuple(spans), told=told)


def _told(token: tuple[int, bool, float] | None) -> str:
    if token is None:
        return "cut otherwise"
    _, live, weight = token
    return f"{weight:g}{'' if live == (weight != 0) else ' (label)'}"


def _by_span(
    ids: Sequence[int],
    labels: Sequence[int],
    weights: Sequence[float],
    lengths: npt.NDArray[np.int64],
) -> Iterator[tuple[tuple[int, int], tuple[int, bool, float]]]:
    """(start, end) in bytes of each token: id, whether its label is live, weight."""
    ends = np.cumsum(lengths[np.asarray(ids)]).tolist()
    starts = [0, *ends[:-1]]
    for start, end, token, label, weight in zip(starts, ends, ids, labels, weights, strict=True):
        yield (start, end), (token, label != -100, weight)


def tabulate(verdicts: Sequence[Verdict], *, profile: str) -> Iterator[str]:
    """A Markdown table, one line for each of the versions' systems, none left out."""
    exactly = profile != "default"
    last = "rows that differ" if exactly else "rows with a token of another weight"
    heads = ("works", "raises there", "compared", "equal", f"{last}, because")
    yield f"| version | system of ms-swift | {' | '.join(heads)} |"
    yield "|---|---|---|--:|--:|--:|---|"
    groups: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for v in verdicts:
        groups[version_of(v.row), f"`{v.row.system}`"].append(v)
    groups["", "all of them"] = list(verdicts)
    for (version, system), group in groups.items():
        kinds = Counter(v.kind for v in group)
        compared = kinds["equal"] + kinds["differs"]
        names = Counter(name for v in group for name in v.names)
        names["**no known cause**"] = sum(bool(v.left) for v in group)
        why = ", ".join(f"{name} {count:,}" for name, count in names.most_common() if count)
        numbers = (kinds["raised"], compared, kinds["equal"])
        cells = ["yes" if compared else "-", *(f"{number:,}" for number in numbers), why]
        yield f"| {version} | {system} | {' | '.join(cells)} |"
    others = sum(v.kind == "other text" for v in verdicts)
    yield f"\n{others:,} rows have a text that no template here gives."
    own = sum(v.own for v in verdicts)
    tokens = sum(v.tokens for v in verdicts)
    differing = sum(len(v.spans) for v in verdicts if v.kind == "differs")
    yield (
        f"{own:,} rows have the text of a tokenizer's own template. Of {tokens:,} tokens "
        f"{'' if exactly else 'that both have '}{differing:,} differ."
    )


def names_of(verdicts: Iterable[Verdict]) -> dict[str, set[Key]]:
    """The rows that differ, by cause."""
    rows: dict[str, set[Key]] = defaultdict(set)
    for v in verdicts:
        for name in v.names:
            rows[name].add(v.row.key)
    return rows


def find_faults(
    verdicts: Sequence[Verdict], differences: Sequence[Difference], *, profile: str
) -> list[str]:
    """Rows that differ for no known cause, and what the data file tells of them that is not so."""
    faults = [
        f"{' '.join(v.row.key)}: differs for no known cause: {v.told}" for v in verdicts if v.left
    ]
    if profile == "default":
        return faults
    known = {v.row.key for v in verdicts}
    found = names_of(verdicts)
    for difference in differences:
        stale = (difference.rows & known) - found.get(difference.name, set())
        faults += [f"{' '.join(key)}: {difference.name} is listed, and is not so" for key in stale]
    return sorted(faults)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table of one profile; exit code 1 where a row differs for no known cause."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oracle", description=__doc__)
    parser.add_argument("oracle", type=Path, help="folder of ms-swift's output")
    parser.add_argument("--tokenizers", type=Path, required=True, help="folder of tokenizers")
    parser.add_argument("--profile", choices=PROFILES, default=PROFILES[0])
    parser.add_argument("--rows", action="store_true", help="print each row that differs")
    parser.add_argument("--write", action="store_true", help="list the rows anew in the data file")
    args = parser.parse_args(argv)
    differences = read_differences()
    verdicts = judge(
        read_rows(args.oracle),
        read_conversations(args.oracle),
        args.tokenizers,
        profile=args.profile,
        differences=differences,
    )
    for v in verdicts:
        if args.rows and v.kind == "differs":
            names = ", ".join(v.names) + ", ?" * bool(v.left)
            print(f"{' '.join(v.row.key)} ({v.rendering}): {names}: {v.told}")
    for line in tabulate(verdicts, profile=args.profile):
        print(line)
    if args.write:
        write_rows(names_of(verdicts))
    faults = find_faults(verdicts, differences, profile=args.profile)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
