"""Rule files, tried on their own examples; and what one set of rules changes over another."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli, flags
from pipeline.errors import ConfigurationError, RuleError
from pipeline.policy import PROFILES, TURNS
from pipeline.rules import (
    bundled_rules,
    compose,
    find_rule_files,
    load_rules,
    read_rule_file,
)
from pipeline.rules.editor import render_schema
from pipeline.rules.entry import RuleFile
from pipeline.rules.example import Failure, check_coverage, check_examples


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; RuleError where a file is wrong, or an example is not as it is marked."""
    args = _parser().parse_args(argv)
    if args.json_schema:
        cli.put(render_schema().removesuffix("\n"))
        return 0
    if args.diff:
        return _compare(args)
    if args.on:
        raise ConfigurationError("--on: is what --diff compares two sets of rules on; add --diff")
    words = args.files or sorted(map(str, bundled_rules().rglob("*.yaml")))
    paths = [path for word in words for path in find_rule_files(word)]
    wrong = sum(not _check(path) for path in paths)
    for word in words:
        if "+" in word and not Path(word).is_file() and not wrong:
            compose(read_rule_file(path) for path in find_rule_files(word))
    if wrong:
        raise RuleError(f"{wrong} of {_files(len(paths))} wrong; see above")
    return 0


def _compare(args: argparse.Namespace) -> int:
    """Prints what the second set of rules changes over the first."""
    # Here, not above: rule files alone are checked in a fifth of the time that this takes to load.
    from pipeline.building import make_encoder
    from pipeline.comparison import compare, read_input, read_shards, tell
    from pipeline.manifest import read_manifest
    from pipeline.recipe import BUNDLED, recipe_of

    if args.files:
        raise ConfigurationError("--diff: takes two sets of rules; join files of one set with +")
    profile = args.profile
    old, new = (load_rules([word], profile=profile) for word in args.diff)
    word = args.on or str(BUNDLED / "sample.jsonl")
    if Path(word).is_dir() and read_manifest(Path(word)) is not None:
        _refuse_rendering(args)
        policy, batches = read_shards(
            Path(word), old, new, tokenizer=args.tokenizer, rows=args.rows
        )
        found = compare(batches, old, new, policy, examples=args.examples)
    else:
        flags.needs_tokenizer([args.on] if args.on else [], args.tokenizer)
        args.rules = [args.diff[0]]
        encoder = make_encoder(recipe_of(args))
        with tempfile.TemporaryDirectory(prefix="weighted-shards-") as spool:
            batches = read_input(word, encoder, new, spool=Path(spool), rows=args.rows)
            found = compare(batches, old, new, encoder.policy, examples=args.examples)
    for line in tell(found):
        _say(line)
    return 0


def _refuse_rendering(args: argparse.Namespace) -> None:
    """Flags that decide over text and tokens mean nothing on finished shards."""
    flags = ("chat_template", "template_kwargs", "control_tokens", "stop_token", "train_trailing")
    given = [flag for flag in (*flags, "edge", "keep") if getattr(args, flag)]
    given += ["turns"] if args.turns != TURNS[0] else []
    given += ["profile"] if args.profile != PROFILES[0] else []
    if given:
        raise ConfigurationError(
            f"--{given[0].replace('_', '-')}: the rows of finished shards are made already; "
            "compare on the source with it"
        )


def _check(path: Path) -> bool:
    """Whether the file at *path* is right; says so, or why not."""
    started = time.perf_counter()
    try:
        file = read_rule_file(path)
    except RuleError as error:
        _say(str(error))
        return False
    failures = check_examples(file)
    lack = check_coverage(file) if file.examples or not _is_config(file) else ""
    for failure in failures:
        _tell(failure)
    if lack:
        cli.put(f"{path.name}: {lack}; add one, so that the rules cannot change unseen")
    if failures or lack:
        return False
    told = f"{len(file.examples)} examples right" if file.examples else "read, has no examples"
    cli.put(f"{path.name}: {told} ({1000 * (time.perf_counter() - started):.0f} ms)")
    return True


def _say(line: str) -> None:
    """What standard output's encoding has no character for is escaped, never an error."""
    encoding = sys.stdout.encoding or "utf-8"
    cli.put(line.encode(encoding, "backslashreplace").decode(encoding))


def _tell(failure: Failure) -> None:
    _say(failure.message)
    if failure.shown:
        cli.put("  the rules change:")
        for line in failure.shown.splitlines():
            _say(f"    {line}")


def _is_config(file: RuleFile) -> bool:
    """One of ms-swift's JSON configs, which have no examples."""
    return file.text.lstrip().startswith("{")


def _files(count: int) -> str:
    return f"{count:,} rule file{'' if count == 1 else 's'}"


def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser("check", "Tries rule files on their own examples, in milliseconds.")
    parser.epilog = (
        "An example marks with ⟦ ⟧ what the rules change. missing: it is marked and the rules do "
        "not change it; noisy: the rules change what is not marked."
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="rule files, names of bundled rules, or several joined by + (default: all bundled)",
    )
    parser.add_argument(
        "--json-schema", action="store_true", help="print the JSON Schema that editors use, and end"
    )
    diff = parser.add_argument_group("what changes")
    diff.add_argument(
        "--diff",
        nargs=2,
        metavar=("OLD", "NEW"),
        help="two sets of rules (each a file, a name, or several joined by +): print what the "
        "second changes on the rows of --on",
    )
    diff.add_argument(
        "--on",
        metavar="SHARDS_OR_INPUT",
        help="the folder of a finished build, or conversations (default: the embedded sample)",
    )
    diff.add_argument(
        "--rows", type=flags.positive, default=10_000, metavar="N", help="at most (default: 10000)"
    )
    diff.add_argument(
        "--examples", type=flags.positive, default=10, metavar="N", help="at most (default: 10)"
    )
    flags.add_edge_flags(parser)
    flags.add_render_flags(parser)
    return parser


if __name__ == "__main__":
    cli.leave(main)
