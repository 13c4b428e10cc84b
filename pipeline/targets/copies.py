"""Code that has to run inside a trainer, copied into the export."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

CODE = "weighted_rows.py"
"""Its name there; not the trainer's own, which it would hide from imports beside it."""


def copy_recipe(name: str, folder: Path) -> None:
    """Puts ``pipeline/training/recipes/<name>.py`` into *folder* as ``weighted_rows.py``.

    As text: importing that package would take torch.
    """
    source = files("pipeline") / "training" / "recipes" / f"{name}.py"
    (folder / CODE).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
