"""Whether the labels and weights of a shard are what its build's own rules make of its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.columns import flat_column, numbers
from pipeline.errors import ConfigurationError, InputError
from pipeline.findings import Findings
from pipeline.lineage import recipe_of_manifest, require_same_ids, rules_of
from pipeline.manifest import Manifest
from pipeline.policy import Policy
from pipeline.restoration import Restoration, UnplacedError
from pipeline.reweighing import reweigh
from pipeline.rules import RuleSet

WEIGHTS = "labels and weights"


class Reckoning:
    """Weighs rows anew from what a shard holds of them: ids, spans, and the manifest's rules."""

    def __init__(self, rules: RuleSet, policy: Policy, restoration: Restoration) -> None:
        self._rules, self._policy, self._restoration = rules, policy, restoration

    def check(self, table: pa.Table, place: Callable[[int], str], findings: Findings) -> None:
        """Holds a row group whose columns keep the contract against what it should weigh."""
        try:
            made = reweigh(table, self._rules, self._policy, self._restoration)
        except UnplacedError as error:
            findings.pass_over(f"{WEIGHTS}: {error}")
            return
        except InputError as error:
            place_, _, fact = str(error).partition(": ")
            findings.add("weights", place_, fact.partition(";")[0])
            return
        if made.rows.num_rows != table.num_rows:
            lost = table.num_rows - made.rows.num_rows
            findings.add("weights", place(0), f"the rules leave nothing to train in {lost:,} rows")
            return
        firsts, _ = flat_column(table["input_ids"])
        for name in ("labels", "loss_scale"):
            stored = numbers(flat_column(table[name])[1])
            computed = numbers(made.rows.column(name).values)
            bad = np.flatnonzero(stored != computed)
            rows, first = np.unique(
                np.searchsorted(firsts, bad, side="right") - 1, return_index=True
            )
            told = {
                row: f"token {token - firsts[row]}: {name}: {stored[token]:g}, but the rules give "
                f"{computed[token]:g}"
                for row, token in zip(rows.tolist(), bad[first].tolist(), strict=True)
            }
            marked = np.zeros(table.num_rows, np.bool_)
            marked[rows] = True
            findings.add_rows("weights", marked, place, told.__getitem__)


def make_reckoning(
    manifest: Manifest, folder: Path, tokenizer: str, findings: Findings
) -> Reckoning | None:
    """None, and said so, where no shard holds all that its weights depend on."""
    try:
        rules = rules_of(manifest, folder)
        recipe = recipe_of_manifest(manifest, rules, tokenizer=tokenizer)
        require_same_ids(manifest, recipe)
    except ConfigurationError as error:
        fact = str(error).partition(": ")[2].partition(";")[0]
        findings.pass_over(f"{WEIGHTS}: {fact}")
        return None
    return Reckoning(rules, recipe.policy, Restoration(recipe.vocabulary))
