"""The words of a benchmark: its own flags, and those of a recipe, which its builds get as given."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import material
from benchmarks.picture import require_plots
from pipeline import flags
from pipeline.errors import ConfigurationError
from pipeline.recipe import BUNDLED


@dataclass(frozen=True, slots=True)
class Request:
    """``own`` flags, those of the ``recipe``, and the recipe's ``words`` for a build."""

    own: argparse.Namespace
    recipe: argparse.Namespace
    words: tuple[str, ...]


def make_parser(command: str, summary: str | None, *, runs: int) -> argparse.ArgumentParser:
    """A parser of what all speed benchmarks take: the input, the runs, where to tell of them."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{command}",
        description=summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Also: every flag of a build's recipe, such as --tokenizer, --chat-template and "
        "--rules; see python -m pipeline.build --help.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--input",
        type=flags.path,
        default=BUNDLED / "sample.jsonl",
        metavar="FILE",
        help="JSON lines, in any compression (default: the embedded sample)",
    )
    parser.add_argument("--runs", type=flags.positive, default=runs, help=f"(default: {runs})")
    parser.add_argument("--json", type=flags.path, metavar="FILE", help="write what was measured")
    parser.add_argument("--plot", type=flags.path, metavar="FILE", help="draw it: .svg or .png")
    return parser


def read_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Request:
    """What *parser* does not know are the recipe's; raises where a plot could not be drawn."""
    own, words = parser.parse_known_args(argv)
    recipe = argparse.ArgumentParser(prog=parser.prog, allow_abbrev=False)
    flags.add_recipe_flags(recipe)
    found = recipe.parse_args(words)
    require_plots(own.plot)
    _require_files(own)
    if not found.tokenizer:
        if own.input != BUNDLED / "sample.jsonl":
            raise ConfigurationError(
                "--tokenizer: not given, and only the embedded sample has one of its own; name the "
                "model's folder"
            )
        words += ["--tokenizer", str(BUNDLED / "tokenizer")]
    if "--date" not in words:
        words += ["--date", found.date]  # runs that see midnight are still alike
    return Request(own, found, tuple(words))


def _require_files(own: argparse.Namespace) -> None:
    """Before anything is measured: an input that holds something, folders to write to."""
    if not own.input.is_file():
        raise ConfigurationError(f"--input {own.input}: no such file; check the path")
    if not material.count(own.input):
        raise ConfigurationError(f"--input {own.input}: holds no line; give a file of JSON lines")
    for flag, path in (("--json", own.json), ("--plot", own.plot)):
        if path is not None and not path.parent.is_dir():
            raise ConfigurationError(f"{flag} {path}: no such folder; make it first")


def vocabulary_folder(request: Request) -> Path:
    """The folder of the recipe's tokenizer, for programs that are not ours."""
    return Path(request.recipe.tokenizer or BUNDLED / "tokenizer")
