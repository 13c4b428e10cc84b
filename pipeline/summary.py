"""What a person, or a job's log, wants to know of a finished build."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.manifest import Manifest

_NO_ROLES = ("tool_calls", "reasoning")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of the whole build; tokens encoded in it; shards that an earlier run had finished.

    ``replaced`` are workers that died or hung. None of it is in the manifest, which knows no luck.
    """

    seconds: float
    fresh_tokens: int
    kept_shards: int
    replaced: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Zero where nothing was left to build."""
        return self.fresh_tokens / self.seconds if self.seconds else 0.0


def summarize(manifest: Manifest, output: Path, rejects: Path, timing: Timing) -> str:
    """A few aligned lines."""
    counts = manifest.counts
    tokens, targets = counts.get("tokens", 0), counts.get("targets", 0)
    file = f"{manifest.format} file"
    lines = [
        ("shards", f"{output}  ({_count(len(manifest.shards), file)})"),
        ("input", _inputs(manifest)),
        ("conversations", f"{counts.get('conversations', 0):,}"),
        ("rows", f"{counts.get('rows', 0):,}"),
        ("tokens", f"{tokens:,}"),
        ("trained", f"{targets:,}  ({_part(targets, tokens)} of the tokens)"),
    ]
    for name in rule_names(manifest):
        spans, claimed = counts[f"rule.{name}.spans"], counts[f"rule.{name}.tokens"]
        cut = counts[f"rule.{name}.straddling"]
        across = f"  ({cut:,} tokens lay across an edge)" if cut else ""
        told = f"{_count(spans, 'span')}, {_count(claimed, 'token')}{across}"
        told = told if spans else "claimed nothing"
        lines.append((f"rule {name}", told))
    lines += _turn_lines(counts)
    lines.append(("rejects", _reject_line(counts, rejects)))
    if counts.get("missing"):
        told = f"{counts['missing']:,}: rules before these rejected them; build anew to have them"
        lines.append(("missing", told))
    if timing.replaced:
        told = f"{timing.replaced:,} died or hung, and were replaced"
        lines.append(("workers", told))
    lines.append(("speed", _speed_line(timing)))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def summarize_as_json(
    manifest: Manifest, output: Path, rejects: Path, timing: Timing, *, error: str = ""
) -> str:
    """The same as one line of JSON, in ASCII; *error* where the command will end with exit 1."""
    return json.dumps(
        {
            "exit": 1 if error else 0,
            **({"error": error} if error else {}),
            "output": str(output),
            "rejects_file": str(rejects),
            "format": manifest.format,
            "fingerprint": manifest.fingerprint,
            "shards": len(manifest.shards),
            "shards_kept": timing.kept_shards,
            "counts": manifest.counts,
            "seconds": round(timing.seconds, 3),
            "tokens_per_second": round(timing.tokens_per_second),
            "workers_replaced": timing.replaced,
            "inputs_without_records": _empty(manifest),
        }
    )


def rule_names(manifest: Manifest) -> list[str]:
    """The rules that have counts, in the order of the counts."""
    ending = ".spans"
    return [
        key[len("rule.") : -len(ending)]
        for key in manifest.counts
        if key.startswith("rule.") and key.endswith(ending)
    ]


def _turn_lines(counts: dict[str, Any]) -> list[tuple[str, str]]:
    found = ", ".join(
        f"{key.removeprefix('found.')} {n:,}"
        for key, n in counts.items()
        if key.startswith("found.")
    )
    lines = (
        [("turns trained", f"{counts.get('turns', 0):,}  (start found by {found})")]
        if found
        else []
    )
    without = counts.get("turns_without_stop", 0)
    if without:
        told = (
            f"{_count(without, 'turn')}: the template writes none that is theirs; see --stop-token"
        )
        lines.append(("no stop token", told))
    rewritten = counts.get("rewritten_turns", 0)
    if rewritten:
        told = f"{rewritten:,}: history shows them otherwise than they are generated"
        fanned = counts.get("rows", 0) > counts.get("conversations", 0)
        remedy = "each trains as generated" if fanned else "see --turns fan_out"
        lines.append(("rewritten turns", f"{told}; {remedy}"))
    quoted = counts.get("quoted_control_tokens", 0)
    if quoted:
        lines.append(("control tokens", f"{quoted:,} spelled by the data, encoded as text"))
    for key, number in counts.items():
        if key.startswith("unrendered."):
            role = key.removeprefix("unrendered.")
            what = f"{number:,} {'' if role in _NO_ROLES else 'messages '}".rstrip()
            lines.append((f"left out ({role})", f"{what}: the template prints nothing of them"))
    return lines


def _inputs(manifest: Manifest) -> str:
    names = [str(item["name"]) for item in manifest.parts["inputs"]]
    empty = _empty(manifest)
    return _first(names) + (f"  (without any record: {_first(empty)})" if empty else "")


def _empty(manifest: Manifest) -> list[str]:
    return [str(item["name"]) for item in manifest.parts["inputs"] if not item["records"]]


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", and {len(names) - 3:,} more" if len(names) > 3 else "")


def _reject_line(counts: dict[str, Any], rejects: Path) -> str:
    total = counts.get("rejects", 0)
    if not total:
        return "0"
    reasons = ", ".join(
        f"{key.split('.', 2)[2]} {n:,}" for key, n in counts.items() if key.startswith("reject.")
    )
    return f"{total:,}  ({reasons}; see {rejects})"


def _speed_line(timing: Timing) -> str:
    if not timing.fresh_tokens:
        return f"nothing was left to build ({timing.seconds:.1f} s)"
    kept = f"; {timing.kept_shards:,} shards were there already" if timing.kept_shards else ""
    return f"{timing.tokens_per_second:,.0f} tokens/s  ({timing.seconds:.1f} s{kept})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _part(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
