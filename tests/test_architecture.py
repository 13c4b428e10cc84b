"""Who may import whom: dependencies point one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "pipeline"
MODULES = sorted(ROOT.rglob("*.py"))
COMMANDS = {"build", "certify", "check", "export", "reweight", "show", "verify"}
ONLY = {
    "tokenizers": {"tokenizer"},
    "fastokens": {"fast"},
    "datasets": {"hub"},
    "huggingface_hub": {"vocabulary"},
}
NEVER = {"torch", "transformers", "ray"}
TRAINING = "training"  # the one room where torch may be


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_library_has_one_importer(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path)}
    if name_of(path).split(".")[0] != TRAINING:
        assert not tops & NEVER
    for library, importers in ONLY.items():
        if library in tops:
            assert name_of(path).split(".")[-1] in importers


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_imports_a_command(path: Path) -> None:
    assert not imports(path) & {f"pipeline.{command}" for command in COMMANDS}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_cli_exits_and_only_commands_print(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)]
    if name_of(path) != "cli":
        assert not {"sys.exit", "exit", "quit"} & set(calls)
    if not name_of(path).startswith(("cli", "engine.")):  # a worker may end itself
        assert "os._exit" not in calls
    if name_of(path) not in {"cli", *COMMANDS}:
        assert "print" not in calls


def test_commands_are_the_modules_that_run() -> None:
    running = {
        name_of(path)
        for path in MODULES
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    assert running == COMMANDS


def test_import_cycles_do_not_exist() -> None:
    graph = {
        # `from pipeline.source import lines` in the package itself names its own room.
        f"pipeline.{name_of(p)}": imports(p) - {f"pipeline.{name_of(p)}"}
        for p in MODULES
    }
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != 1, " -> ".join((*path, name))
        if name in state or name not in graph:
            return
        state[name] = 1
        for other in sorted(graph[name]):
            visit(other, (*path, name))
        state[name] = 2

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_comes_without_the_tokenizers(command: str) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['x', '--help']\n"
        "try:\n"
        f"    runpy.run_module('pipeline.{command}', run_name='__main__')\n"
        "except SystemExit as e:\n"
        "    assert e.code == 0, e.code\n"
        "heavy = {'tokenizers', 'fastokens', 'datasets', 'torch', 'transformers', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert f"python -m pipeline.{command}" in run.stdout
