"""The examples run as the documents say, and are short enough to be read."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra: pip install '.[train]'")
pytest.importorskip("trl", reason="needs the extra: pip install '.[train]'")

from pipeline import build, cli
from pipeline.errors import ConfigurationError
from pipeline.recipe import BUNDLED
from pipeline.training import require_tokenizer

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
    (config,) = tmp_path.glob("trained*/config.json")
    assert json.loads(config.read_text())["vocab_size"] == 5120
    assert (config.parent / "model.safetensors").is_file()


def test_the_loop_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    """36 rows are four batches of 8 and one of 4, and then the next epoch."""
    lines = (BUNDLED / "sample.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "some.jsonl").write_text("".join(lines[:36]), encoding="utf-8")
    words = ["--input", tmp_path / "some.jsonl", "--tokenizer", BUNDLED / "tokenizer"]
    words += ["--output", tmp_path / "shards", "--quiet"]
    assert cli.run(build.main, [str(word) for word in words]) == 0
    told = {}
    for folder, steps in (("whole", ["7"]), ("parts", ["2", "5", "7"])):
        (tmp_path / folder).mkdir()
        flags = (str(tmp_path / "shards"), "--accumulate", "1", "--lr", "1e-2", "--steps")
        told[folder] = "".join(
            run("train_loop.py", *flags, n, cwd=tmp_path / folder) for n in steps
        )
    assert told["parts"] == told["whole"]
    targets = [int(found) for found in re.findall(r"(\d+) targets", told["whole"])]
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert len(targets) == 7
    assert sum(targets[:5]) == manifest["counts"]["targets"]


def test_shards_of_another_tokenizer_are_refused(shards: Path, tmp_path: Path) -> None:
    require_tokenizer(shards, BUNDLED / "tokenizer")
    shutil.copytree(BUNDLED / "tokenizer", tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"made with another tokenizer\.json"):
        require_tokenizer(shards, tmp_path / "other")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_under_sixty_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
