"""What a build will do, before it does it: the tasks, and the fingerprint of their shards.

A task is a fixed range of the inputs and becomes one shard. How inputs are cut depends on their
contents and ``--shard-size`` alone, never on the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from pipeline import __version__
from pipeline.recipe import Recipe
from pipeline.source.record import Piece, Source

# What can change a shard's bytes. The rest (msgspec, zstandard, ...) reads, and reading is exact.
_VERSIONED = ("fastokens", "jinja2", "numpy", "pyarrow", "regex", "tokenizers")
# The flag of each part of a policy.
_FLAGS = {
    name: f"--{name.replace('_', '-')}"
    for name in ("turns", "control_tokens", "unsure", "edge", "profile", "keep", "max_length")
} | {"stop_tokens": "--stop-token", "trailing": "--train-trailing"}
_PIECES_PER_TASK = 8  # small pieces let a task end near its size, whatever the inputs' sizes


@dataclass(frozen=True, slots=True)
class Task:
    """One shard to build: pieces of the inputs, in order."""

    index: int
    count: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of input."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks of a build and the fingerprint's parts, by name."""

    tasks: tuple[Task, ...]
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """sha256 over the parts: equal fingerprints, equal bytes."""
        text = json.dumps(self.parts, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def piece_size(shard_size: int) -> int:
    """How large the pieces of the inputs should be, for shards of *shard_size* bytes of input."""
    return max(1, shard_size // _PIECES_PER_TASK)


def make_plan(sources: Sequence[Source], recipe: Recipe, *, shard_size: int) -> Plan:
    """Packs the sources' pieces, in order, into tasks of about *shard_size* bytes of input."""
    groups = list(_pack((p for source in sources for p in source.pieces), shard_size))
    tasks = tuple(Task(i, len(groups), group) for i, group in enumerate(groups))
    return Plan(tasks, _parts(sources, recipe, shard_size))


def _pack(pieces: Iterable[Piece], size: int) -> Iterable[tuple[Piece, ...]]:
    group: list[Piece] = []
    held = 0
    for piece in pieces:
        group.append(piece)
        held += piece.size
        if held >= size:
            yield tuple(group)
            group, held = [], 0
    if group:
        yield tuple(group)


def _parts(sources: Sequence[Source], recipe: Recipe, shard_size: int) -> dict[str, Any]:
    """Contents only: no path, time or host, so that two builds of the same data agree."""
    policy = asdict(recipe.policy)
    parts: dict[str, Any] = {
        "inputs": [
            {"name": s.name, "sha256": s.sha256, "size": s.size, "records": s.records}
            for s in sources
        ],
        "tokenizer": dict(recipe.vocabulary.digests),
        "chat_templates": {
            name: hashlib.sha256(text.encode()).hexdigest()
            for name, text in recipe.templates.items()
        },
        "template_variables": dict(recipe.variables),
        "rules": {f.name: f.digest for f in recipe.rules.files},
        "schema": recipe.schema,
        "policy": {k: list(v) if isinstance(v, tuple) else v for k, v in policy.items()},
        "format": recipe.form,
        "shard_size": shard_size,
        "versions": {
            "weighted-shards": __version__,
            # Unicode tables and the JSON writer come with the interpreter.
            "python": ".".join(platform.python_version_tuple()[:2]),
            **{name: version(name) for name in _VERSIONED},
        },
    }
    if any("strftime_now" in text for text in recipe.templates.values()):
        parts["date"] = recipe.date
    return parts


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Where two fingerprints' parts differ, as ``path: old is now new``."""
    out: list[str] = []
    for key in sorted(set(old) | set(new)):
        inner = f"{path}.{key}" if path else key
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += differences(a, b, inner)
        elif inner == "inputs" and isinstance(a, list) and isinstance(b, list):
            out += differences(_by_name(a), _by_name(b), inner) or [_reordered(a, b)]
        else:
            out.append(_told(inner, a, b))
    return out


def _told(path: str, old: Any, new: Any) -> str:
    """One difference, with how to have the old value where that is not obvious."""
    place, _, name = path.partition(".")
    if place == "policy":
        path = _FLAGS.get(name, path)
    elif place == "rules" and old and new:
        return f"{path}: the file's text has changed"
    elif place in ("rules", "inputs") and not (old and new):
        return f"{path}: is {'no longer' if old else 'now'} given"
    told = f"{path}: {_short(old)} is now {_short(new)}"
    return f"{told} (--date {old} goes on with it)" if path == "date" else told


def _reordered(old: list[Any], new: list[Any]) -> str:
    names = (", ".join(_by_name(items)) for items in (old, new))
    return "inputs: the order {} is now {}".format(*map(_short, names))


def _by_name(items: list[Any]) -> dict[str, Any]:
    return {
        str(x.get("name", i)) if isinstance(x, Mapping) else str(i): x for i, x in enumerate(items)
    }


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = ", ".join(value) or "none"
    text = "absent" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
