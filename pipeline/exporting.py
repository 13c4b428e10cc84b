"""Finished shards in a trainer's own layout: whole or not at all, with what was done to them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BuildError, ConfigurationError
from pipeline.files import WORK, file_digest, write_json
from pipeline.targets import TARGETS, Target, takers
from pipeline.targets.conversion import Conversion
from pipeline.targets.delivery import NAME, put_together, settle
from pipeline.targets.rows import Rows, Wishes, open_rows

VERSION = 1
RECIPE = "recipe.txt"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written; ``receipt`` is what export.json holds, ``recipe`` how it is loaded."""

    folder: Path
    receipt: Mapping[str, Any]
    recipe: str
    seconds: float


def export_dataset(
    shards: Path,
    target: str,
    output: Path,
    *,
    binarize: float | None = None,
    uncount: bool = False,
    pack: int | None = None,
    validation: float | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes the finished build *shards* as *target* reads it into the folder *output*.

    *output* is absent or empty, or with *overwrite* an earlier export, and appears whole or stays
    as it is. *binarize* and *uncount* allow what `Conversion` tells, *pack* and *validation* what
    `Wishes` does. Raises ConfigurationError, and BuildError where the shards are damaged or hold
    what the target cannot.
    """
    started = time.monotonic()
    known = _require_target(target, Wishes(pack, validation))
    if binarize is not None and not 0 < binarize < np.inf:
        raise ConfigurationError(f"--binarize {binarize}: not a number above 0; give one")
    conversion = Conversion(known, binarize, uncount)
    rows = open_rows(shards, conversion, Wishes(pack, validation))
    if not rows.rows:
        raise BuildError(f"{shards}: has no rows; build with inputs of which something is left")
    if pack is not None:
        _require_fit(rows, pack)
    module = import_module(known.module)
    with put_together(output, shards, overwrite=overwrite) as folder:
        told = module.write(rows, folder, rows.wishes)
        if binarize is not None and not conversion.trained:
            raise BuildError(
                f"--binarize {binarize:g}: no token of {shards} weighs that much, and none would "
                "train; give less"
            )
        # Without the place, which a copy of the folder would not know.
        recipe = module.recipe(Path("DIR"), told)
        (folder / RECIPE).write_text(f"DIR is this folder.\n\n{recipe}\n", encoding="utf-8")
        receipt = _receipt(known, rows, conversion, told, folder)
        write_json(folder / NAME, receipt)
    recipe = module.recipe(settle(output), told)
    return Exported(output, receipt, recipe, time.monotonic() - started)


def _require_target(name: str, wishes: Wishes) -> Target:
    target = TARGETS.get(name)
    if target is None:
        raise ConfigurationError(f"--to {name}: no such target; choose {', '.join(TARGETS)}")
    for flag in ("pack", "validation"):
        given = getattr(wishes, flag) is not None
        if given and flag not in target.takes:
            raise ConfigurationError(
                f"--{flag}: nothing that {name} has a use for; leave it out (it is for "
                f"{takers(flag)})"
            )
        if flag in target.needs and not given:
            raise ConfigurationError(f"--{flag}: missing, which {name} needs; give it")
    if wishes.pack is not None and wishes.pack < 1:
        raise ConfigurationError(f"--pack {wishes.pack}: not a number above 0; give one")
    if wishes.validation is not None and not 0 < wishes.validation < 1:
        raise ConfigurationError(
            f"--validation {wishes.validation}: not a share between 0 and 1; give one such as 0.01"
        )
    return target


def _require_fit(rows: Rows, capacity: int) -> None:
    lengths = rows.lengths()
    over = int((lengths > capacity).sum())
    if over:
        raise BuildError(
            f"{rows.folder}: {over:,} of {len(lengths):,} rows are longer than --pack "
            f"{capacity:,}, the longest {int(lengths.max()):,} tokens; pack to more, or build "
            f"with --max-length {capacity}"
        )


def _receipt(
    target: Target, rows: Rows, conversion: Conversion, told: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    counts = rows.manifest.counts
    kept = (path for path in folder.rglob("*") if WORK not in path.relative_to(folder).parts)
    files = sorted(path for path in kept if path.is_file())
    return {
        "version": VERSION,
        "target": target.name,
        "fingerprint": rows.manifest.fingerprint,
        "rows": rows.rows,
        "tokens": rows.tokens,
        "weights": target.weights,
        "binarized_at": conversion.threshold,
        "changed": {name: n for name, n in sorted(conversion.counts.items()) if n},
        "built": {name: counts.get(name, 0) for name in ("rows", "tokens", "targets")},
        "denominator": rows.manifest.denominator,
        "pack": rows.wishes.pack,
        "validation": rows.wishes.validation,
        "told": dict(told),
        "files": [
            {
                "file": path.relative_to(folder).as_posix(),
                "bytes": path.stat().st_size,
                "sha256": file_digest(path),
            }
            for path in files
        ],
    }
