"""The job of a build, as its workers get it: small, and quick to import where it is sent from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.recipe import Recipe
from pipeline.task import Complete
from pipeline.tokens.fast import Loading
from pipeline.tokens.trust import Certificate

ROOM = "pipeline.building"  # what workers import for it


@dataclass(frozen=True, slots=True)
class BuildJob:
    """Shards from conversations."""

    recipe: Recipe
    certificate: Certificate
    output: Path
    fingerprint: str

    def begin(self, ahead: object = None) -> Complete:
        """Loads the tokenizer and the templates, if *ahead* has not begun with it."""
        # Here: the coordinator, which sends this, needs no template, engine or Arrow.
        from pipeline.building import begin

        loading = ahead if isinstance(ahead, Loading) else None
        return begin(
            self.recipe,
            self.certificate,
            loading,
            output=self.output,
            fingerprint=self.fingerprint,
        )
