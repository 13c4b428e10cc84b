"""An export under attack: paths that need quoting, shards that lie, and what is there to lose."""

from __future__ import annotations

import ast
import glob
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import build
from pipeline.errors import BuildError, ConfigurationError
from pipeline.exporting import export_dataset
from pipeline.files import WORK, file_digest
from pipeline.lock import locked
from pipeline.targets import TARGETS, delivery
from tests import exports
from tests.exports import exported

plain = exports.plain

SHELL = ("megatron-lm", "ms-swift", "verl")
YAML = ("axolotl", "llamafactory", "torchtune")
NAMES = ("a b", 'it\'s "quoted"', "back\\slash", "#: no, comment", "$HOME`id`")


def recipe_of(shards: Path, target: str, folder: Path) -> str:
    pack = 8192 if "pack" in TARGETS[target].needs else None
    return export_dataset(shards, target, folder, pack=pack).recipe


def texts_of(value: Any) -> Iterator[str]:
    """All strings of a YAML document."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_of(inner)
    elif isinstance(value, str):
        yield value


def texts_in(recipe: str, target: str) -> list[str]:
    """The words or strings that the shell, a YAML reader or Python finds in it."""
    if target in SHELL:
        return shlex.split(recipe, comments=True)
    if target in YAML or recipe.startswith("data:"):
        return list(texts_of(yaml.safe_load(recipe)))
    nodes = ast.walk(ast.parse(recipe))
    return [str(node.value) for node in nodes if isinstance(node, ast.Constant)]


@pytest.mark.parametrize("target", TARGETS)
def test_a_recipe_names_any_folder_so_that_its_reader_finds_it(
    plain: Path, tmp_path: Path, target: str
) -> None:
    for name in NAMES:
        recipe = recipe_of(plain, target, tmp_path / name / target)
        folder = str(tmp_path / name / target)
        if target == "verl":  # a second grammar, Hydra's, in which only quotes are escaped here
            folder = folder.replace("'", "\\'")
        assert any(folder in text for text in texts_in(recipe, target)), name


@pytest.mark.parametrize("target", ["levanter", "megatron-bridge", "olmo-core"])
def test_patterns_find_the_files_of_a_folder_with_brackets(
    plain: Path, tmp_path: Path, target: str
) -> None:
    texts = texts_in(recipe_of(plain, target, tmp_path / "run[1]*"), target)
    ours = [text for text in texts if "*." in text]
    found = [glob.glob(pattern) for pattern in ours]  # noqa: PTH207 - as the recipe
    assert found
    assert all(len(paths) == 2 for paths in found)  # one of each shard


def test_shards_that_lie_in_the_output_are_not_removed_with_an_old_export(
    plain: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    export_dataset(plain, "datasets", output)
    shutil.copytree(plain, output / "shards")
    with pytest.raises(ConfigurationError, match="the shards lie in it"):
        export_dataset(output / "shards", "datasets", output, overwrite=True)
    assert (output / "shards" / "manifest.json").is_file()


def test_what_is_not_of_an_export_is_not_replaced_with_it(plain: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    exported(plain, "llamafactory", output)
    (output / "__pycache__").mkdir()  # what its readers leave
    (output / "cache-0123.arrow").touch()
    exported(plain, "trl", output, "--overwrite")
    (output / "checkpoint-500").mkdir()
    with pytest.raises(BuildError, match=r"holds what no export wrote \(checkpoint-500\)"):
        export_dataset(plain, "datasets", output, overwrite=True)
    assert (output / "checkpoint-500").is_dir()
    (output / "checkpoint-500").rmdir()
    (output / "export.json").write_text("{}")  # somebody else's, for all that is known
    with pytest.raises(BuildError, match=r"holds what no export wrote \(export.json\)"):
        export_dataset(plain, "datasets", output, overwrite=True)


def test_what_is_replaced_comes_back_when_an_export_ends_between_the_renames(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    exported(plain, "trl", output)
    before = (output / "export.json").read_bytes()
    rename = Path.rename

    def interrupted(path: Path, to: Path) -> Path:
        if path.name.endswith(".exporting"):
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_dataset(plain, "datasets", output, overwrite=True)
    assert (output / "export.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # Killed there, so that nothing could be done any more: the next one puts it back.
    rename(output, tmp_path / ".out.replaced")
    with pytest.raises(BuildError, match="holds an export already"):
        export_dataset(plain, "datasets", output)
    assert (output / "export.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_ends_before_the_lock_is_taken_is_neither_emptied_nor_replaced(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"

    @contextmanager
    def late(folder: Path) -> Iterator[None]:
        monkeypatch.setattr(delivery, "locked", locked)
        shutil.rmtree(folder)  # the other's, which becomes the output
        export_dataset(plain, "trl", output)
        (folder / WORK).mkdir(parents=True)
        with locked(folder):
            yield

    monkeypatch.setattr(delivery, "locked", late)
    with pytest.raises(BuildError, match="holds an export already"):
        export_dataset(plain, "datasets", output)
    assert json.loads((output / "export.json").read_text())["target"] == "trl"


def test_the_lock_is_there_until_the_export_is_in_place(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one that comes just then takes a lock of its own, and empties what is finished."""
    rename, seen = Path.rename, []

    def watched(path: Path, to: Path) -> Path:
        seen.append((path / WORK / "lock").is_file())
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", watched)
    export_dataset(plain, "datasets", tmp_path / "out")
    assert seen == [True]
    assert not (tmp_path / "out" / WORK).exists()


def test_dots_behind_a_link_lead_where_the_system_leads(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    output = tmp_path / "link" / ".." / "out"  # far/out, as any program opens it
    export_dataset(plain, "datasets", output)
    assert (tmp_path / "far" / "out" / "export.json").is_file()
    assert (output / "export.json").is_file()


def test_a_weight_next_to_1_is_told_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(
        "version: 1\nname: near\nrules:\n  - {pattern: '[A-Z]', weight: 1.0000001}\n"
    )
    words = ["--rules", str(tmp_path / "rules.yaml"), "--output", str(tmp_path / "shards")]
    assert build.main([*words, "--workers", "1", "--quiet"]) == 0
    with pytest.raises(
        BuildError, match=r"weighs 1\.0000001, and trl holds no weights but 0 and 1"
    ):
        export_dataset(tmp_path / "shards", "trl", tmp_path / "out")


def weigh(weight: float | None) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["loss_scale"].__setitem__(-1, weight)


def train_first(row: dict[str, Any]) -> None:
    row["labels"][0], row["loss_scale"][0] = row["input_ids"][0], 1.0


def change_label(row: dict[str, Any]) -> None:
    row["labels"][-1], row["loss_scale"][-1] = row["input_ids"][-1] + 1, 1.0


def drop_label(row: dict[str, Any]) -> None:
    row["labels"][-1], row["loss_scale"][-1] = -100, 1.0


def negate_id(row: dict[str, Any]) -> None:
    row["input_ids"][1] = -7


@pytest.mark.parametrize(
    "breach",
    [
        *(weigh(weight) for weight in (None, float("nan"), float("inf"))),
        train_first,
        change_label,
        drop_label,
        negate_id,
    ],
)
def test_shards_that_break_their_contract_are_refused_though_their_digest_is_right(
    plain: Path, tmp_path: Path, breach: Callable[[dict[str, Any]], None]
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(plain, shards)
    path = min(shards.glob("*.parquet"))
    table = pq.read_table(path)
    rows = table.to_pylist()
    breach(rows[0])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    manifest = json.loads((shards / "manifest.json").read_text())
    (told,) = (shard for shard in manifest["shards"] if shard["file"] == path.name)
    told |= {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    (shards / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BuildError, match=r"parquet: its columns break the contract .*verify"):
        export_dataset(shards, "datasets", tmp_path / "out", binarize=0.5)
    assert not (tmp_path / "out").exists()
