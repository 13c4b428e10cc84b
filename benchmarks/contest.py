"""The programs of a comparison, each run in the same way on the same conversations."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.flags import Request
from benchmarks.peers.phases import UNABLE
from benchmarks.process import Run, build_command, run
from pipeline.recipe import recipe_of

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Contest:
    """What all programs get, and a folder where each may write."""

    request: Request
    tokenizer: Path
    template: Path
    scratch: Path

    def build(self, source: Path, output: Path, *, like: Sequence[str] | None = None) -> Run:
        """Ours, with one worker; *like* are a peer's flags in place of the recipe's rules."""
        shutil.rmtree(output, ignore_errors=True)
        words = [*self.request.words] if like is None else [*_without_rules(self.request), *like]
        words += ["--chat-template", str(self.template)]
        return run(build_command(words, source, output, 1), output=output)

    def try_peer(self, peer: Path, source: Path, output: Path) -> dict[str, Any]:
        """What it tells of itself; ``unable``, and why, where it cannot run here.

        SystemExit, with what it complained of, where it fails.
        """
        tried = subprocess.run(
            self._command(peer, source, output),
            env=self._environment(output),
            capture_output=True,
            text=True,
            check=False,
        )
        if tried.returncode not in (0, UNABLE):
            raise SystemExit(f"{peer}: exit code {tried.returncode}\n{tried.stderr}")
        told: dict[str, Any] = json.loads(tried.stdout.rstrip().rpartition("\n")[2])
        return told

    def run_peer(self, peer: Path, source: Path, output: Path) -> Run:
        """A peer, which finds nothing that an earlier run left."""
        command = self._command(peer, source, output)
        return run(command, environment=self._environment(output))

    def _command(self, peer: Path, source: Path, output: Path) -> list[str]:
        words = [self.request.own.python, str(peer), "--input", str(source)]
        words += ["--output", str(output), "--tokenizer", str(self.tokenizer)]
        return [*words, "--template", str(self.template)]

    def _environment(self, output: Path) -> Mapping[str, str]:
        """One thread for the tokenizer, as ours has; no network, and caches that are empty."""
        shutil.rmtree(output, ignore_errors=True)
        cache = self.scratch / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HOME": str(cache),
            "HF_DATASETS_CACHE": str(cache / "datasets"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }


def enter(request: Request, scratch: Path) -> Contest:
    """Fixes the template as a file, so that no program chooses its own."""
    recipe = recipe_of(request.recipe)
    template = scratch / "template.jinja"
    template.write_text(recipe.templates["default"], encoding="utf-8")
    return Contest(request, recipe.vocabulary.folder, template, scratch)


def find_peers(folder: Path) -> list[Path]:
    """The files that run by themselves, by name; SystemExit where there are none."""
    marker = '__name__ == "__main__"'
    found = [p for p in sorted(folder.glob("*.py")) if marker in p.read_text(encoding="utf-8")]
    if not found:
        raise SystemExit(f"--peers {folder}: holds no program; see benchmarks/peers/phases.py")
    return found


def _without_rules(request: Request) -> list[str]:
    """The words less ``--rules`` and what follows it."""
    kept, skipping = list[str](), False
    for word in request.words:
        skipping = word == "--rules" or (skipping and not word.startswith("--"))
        if not skipping:
            kept.append(word)
    return kept
