"""The examples run as the documents say, and are short enough to be read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra: pip install '.[train]'")
pytest.importorskip("trl", reason="needs the extra: pip install '.[train]'")

from pipeline import build, cli

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
pytestmark = [pytest.mark.train, pytest.mark.slow]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("examples") / "shards"
    words = ["--rules", "ignore_empty_think", "--output", str(output), "--quiet"]
    assert cli.run(build.main, words) == 0
    return output


def run(example: str, *words: str, cwd: Path) -> str:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), *words],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "XDG_CACHE_HOME": str(cwd / "cache"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran.stdout


def losses(told: str) -> list[float]:
    """Of each step: as the loop prints them, or as Trainer logs them."""
    return [float(found) for found in re.findall(r"loss'?:? '?([\d.]+)", told)]


@pytest.mark.parametrize("example", [path.name for path in EXAMPLES])
def test_it_takes_steps_on_which_the_loss_falls_and_saves_the_model(
    example: str, shards: Path, tmp_path: Path
) -> None:
    told = losses(run(example, str(shards), "--steps", "6", "--lr", "1e-2", cwd=tmp_path))
    assert len(told) >= 6
    assert told[5] < told[0] - 0.3
    assert json.loads((tmp_path / "trained" / "config.json").read_text())["vocab_size"] == 5120
    assert (tmp_path / "trained" / "model.safetensors").is_file()


def test_the_loop_goes_on_with_the_rows_that_are_left(shards: Path, tmp_path: Path) -> None:
    words = (str(shards), "--batch", "50", "--accumulate", "1", "--lr", "1e-2")
    targets = []
    for _ in range(3):  # 351 rows: seven batches and one of a single row
        told = run("train_loop.py", *words, "--steps", "3", cwd=tmp_path)
        targets += [int(found) for found in re.findall(r"(\d+) targets", told)]
    manifest = json.loads((shards / "manifest.json").read_text())
    assert len(targets) == 8
    assert sum(targets) == manifest["counts"]["targets"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_under_sixty_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
