"""Finished shards that others are made of: whether they can be, and what passes on."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from pipeline import __version__
from pipeline.errors import BuildError, ConfigurationError
from pipeline.files import WORK, file_digest
from pipeline.manifest import NAME, Manifest, make_manifest, read_manifest
from pipeline.plan import Plan, Task
from pipeline.policy import Policy
from pipeline.recipe import BUNDLED, Recipe, require_turns
from pipeline.rules import RuleSet, compose, parse_rule_file
from pipeline.task import TaskDone
from pipeline.tokens.vocabulary import TOKENIZER, Vocabulary, read_vocabulary

_VERSIONED = ("numpy", "pyarrow", "regex")  # what can change a weight
# Counts of what trains: other rules change them.
_COUNTED_ANEW = (
    *("rows", "tokens", "targets", "weight_sum", "turns", "turns_without_stop"),
    *("untrained_rows", "counted_zeros"),
)
_RULED = ("rule.", "straddling.", "rejects")
# Rejects of the rules that were: their records may train under others, and are in no shard.
BY_RULES = ("reject.weigh.", "reject.match.")
_BY_BASE = "reject.parse.unsupported_weight"  # what only base all allows
# Of the rows of a build, and not stored with each: unknown once other rules leave some out.
_OF_ALL_ROWS = ("found.", "unrendered.", "rewritten_turns", "quoted_control_tokens")
MISSING = "missing"
_NO_DATE = "1970-01-01"  # nothing is rendered again


def read_finished(folder: Path) -> Manifest:
    """The manifest of shards that can be reweighted; BuildError or ConfigurationError if not.

    Their contents are compared when they are read.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        unfinished = (folder / WORK).is_dir()
        raise BuildError(
            f"{folder}: "
            + (
                f"an unfinished build: it has no {NAME} yet; run its command again to finish it"
                if unfinished
                else f"no {NAME} there; give the folder of a finished build"
            )
        )
    for shard in manifest.shards:
        path = folder / shard["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard["bytes"]:
            told = "missing" if size is None else f"{size:,} bytes"
            raise BuildError(
                f"{path}: is {told}, but {NAME} says {shard['bytes']:,} bytes; run the build "
                "again, which makes such shards anew"
            )
    return manifest


def recipe_of_manifest(manifest: Manifest, rules: RuleSet, *, tokenizer: str | None) -> Recipe:
    """The recipe of a build, with *rules*; the *tokenizer*'s files are not in its manifest.

    Raises ConfigurationError where that is another one than the build's.
    """
    return Recipe(
        vocabulary=_vocabulary_of(manifest, tokenizer),
        templates=manifest.chat_templates,
        variables=manifest.template_variables,
        date=_NO_DATE,
        rules=rules,
        schema="auto",
        form=manifest.format,
        policy=policy_of(manifest),
    )


def rules_of(manifest: Manifest, folder: Path | None = None) -> RuleSet:
    """The rules of a build, as its manifest tells them; errors name that of *folder*."""
    place = NAME if folder is None else folder / NAME
    return compose(
        parse_rule_file(text, place=f"{place}: rules.{name}", name=name)
        for name, text in manifest.rules.items()
    )


def policy_of(manifest: Manifest) -> Policy:
    """The policy of a build, as its manifest tells it."""
    return msgspec.convert(manifest.parts["policy"], Policy)


def _vocabulary_of(manifest: Manifest, name: str | None) -> Vocabulary:
    """The tokenizer of that *name*, or the embedded one, if it is the build's."""
    vocabulary = read_vocabulary(name or BUNDLED / "tokenizer")
    wanted, found = manifest.parts["tokenizer"][TOKENIZER], vocabulary.digests[TOKENIZER]
    if found == wanted:
        return vocabulary
    told = f"--tokenizer {name}: its" if name else "--tokenizer: missing; the embedded one's"
    raise ConfigurationError(
        f"{told} {TOKENIZER} is {found[:12]}..., but the shards were made with {wanted[:12]}... "
        "(sha256); name the folder or hub id of that tokenizer"
    )


def require_same_ids(old: Manifest, recipe: Recipe) -> None:
    """Raises ConfigurationError where other rules would make other rows of the same records."""
    policy, rules = recipe.policy, recipe.rules
    before = rules_of(old)
    told = old.parts["policy"]
    if policy.swift:
        raise ConfigurationError(
            "--rules: the shards were made with --profile ms-swift, whose weights depend on what "
            "no shard keeps (which messages had a weight of 1, or were switched on); build again "
            "with the new rules"
        )
    edges = {policy.edge, told["edge"], *(r.edge for r in (*before.rules, *rules.rules))}
    if "split" in edges:
        raise ConfigurationError(
            "--rules: edges that split change ids, which stay as they are in finished shards; "
            "build again with the new rules"
        )
    require_turns(policy, rules)
    missing = not_kept(rules, policy)
    if missing:
        raise ConfigurationError(
            f"--rules: ask for the record's {missing[0]}, which the shards do not keep; build "
            f"again with the new rules, or once with --keep {missing[0]}"
        )
    if before.base == "all" != rules.base and old.counts.get("weighted_inputs"):
        raise ConfigurationError(
            "--rules: some records weigh what a user says, which only base all allows; build again "
            "with the new rules, which rejects them"
        )


def not_kept(rules: RuleSet, policy: Policy) -> list[str]:
    """The record's fields that *rules* ask for and rows do not keep, nor what holds them."""
    kept = {*policy.keep}
    return [
        path
        for path in rules.fields
        if not any(path == k or path.startswith(f"{k}.") for k in kept)
    ]


def require_digest(folder: Path, shard: Mapping[str, Any]) -> Path:
    """The shard's path; BuildError where its contents are not what the manifest says."""
    path = folder / str(shard["file"])
    try:
        digest = file_digest(path)
    except OSError as error:
        raise BuildError(
            f"{path}: cannot be read ({error.strerror}); see to the disk or the permissions"
        ) from error
    if digest != shard["sha256"]:
        raise BuildError(
            f"{path}: its sha256 is not the one in {NAME}: it has changed since it was built; "
            "remove it and run the build again"
        )
    return path


def plan_reweighting(old: Manifest, recipe: Recipe) -> Plan:
    """One task a shard, which is known by its index; the fingerprint is the old one's and more."""
    count = len(old.shards)
    parts: dict[str, Any] = {
        **old.parts,
        "rules": {file.name: file.digest for file in recipe.rules.files},
        "policy": {**old.parts["policy"], "edge": recipe.policy.edge},
        "reweighted_from": old.fingerprint,
        "reweighted_with": {
            "weighted-shards": __version__,
            "python": ".".join(platform.python_version_tuple()[:2]),
            **{name: version(name) for name in _VERSIONED},
        },
    }
    return Plan(tuple(Task(index, count, ()) for index in range(count)), parts)


def succeed(old: Manifest, plan: Plan, recipe: Recipe, done: Iterable[TaskDone]) -> Manifest:
    """The manifest of reweighted shards: what rules decide is counted anew, the rest as it was.

    ``counts["missing"]`` are the records that some rules before have rejected: a build of the same
    inputs may keep them.
    """
    new = make_manifest(plan, recipe, done, dict(old.engine))
    return replace(
        new,
        counts=dict(
            sorted(_counts(old.counts, new.counts, everything=recipe.rules.base == "all").items())
        ),
    )


def _counts(old: Mapping[str, Any], new: Mapping[str, Any], *, everything: bool) -> dict[str, Any]:
    # What a base allows: a build with base all keeps these.
    allowed = old.get(_BY_BASE, 0) if everything else 0
    lost = _sum(old, BY_RULES) + old.get("untrained_rows", 0) + allowed
    counts = {
        key: number
        for key, number in old.items()
        if key not in _COUNTED_ANEW
        and not key.startswith((*_RULED, *BY_RULES))
        # A build tells these of the rows that it keeps.
        and not (new["rejects"] and key.startswith(_OF_ALL_ROWS))
    }
    counts |= {
        key: number
        for key, number in new.items()
        if key in _COUNTED_ANEW or key.startswith((*_RULED, *BY_RULES))
    }
    if allowed:
        del counts[_BY_BASE]
    counts["rejects"] = old.get("rejects", 0) - _sum(old, BY_RULES) - allowed + new["rejects"]
    counts[MISSING] = old.get(MISSING, 0) + lost
    return counts


def _sum(counts: Mapping[str, Any], beginnings: tuple[str, ...]) -> int:
    return sum(n for key, n in counts.items() if key.startswith(beginnings))
