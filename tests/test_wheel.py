"""What a user installs: the wheel holds all that the first command of the README needs."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def commands() -> list[str]:
    """The README's two one-line commands."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^    (pip install .+ && .+)$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_carries_rules_sample_and_tokenizer(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "rules/ignore_empty_think.yaml",
        "rules/ms-swift/ignore_empty_think.yaml",
        "rules.schema.json",
        "sample.jsonl",
        "certificates.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/chat_template.jinja",
    ):
        assert f"pipeline/bundled/{name}" in names
    assert "pipeline/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert all(top == "pipeline" or top.endswith(".dist-info") for top in tops)
    bundled = [i for i in zipfile.ZipFile(wheel).infolist() if "/bundled/" in i.filename]
    assert sum(i.file_size for i in bundled) < 2_000_000


def test_the_first_command_works_from_the_wheel_in_a_fresh_environment(
    wheel: Path, tmp_path: Path
) -> None:
    """In an empty folder, so that nothing comes from the checkout."""
    install, main_job = commands()[0].split(" && ")
    assert install == "pip install ."
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    work = tmp_path / "work"
    work.mkdir()
    assert main_job.startswith("python -m pipeline.build --rules ignore_empty_think.yaml")
    done = subprocess.run(
        [python, *main_job.split()[1:]], cwd=work, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "351" in done.stdout
    assert (work / "shards" / "manifest.json").is_file()
    assert list((work / "shards").glob("train-*.parquet"))


def test_the_readme_has_a_command_to_run_one_to_test_and_one_to_train() -> None:
    run, test, train = (c.split(" && ")[1].split() for c in commands())
    assert (run[0], test[0]) == ("python", "pytest")
    assert train[0] == "python"
    assert (ROOT / train[1]).is_file()  # tests/test_training_examples.py runs it
