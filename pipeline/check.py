"""Rule files, tried on their own examples; and what one set of rules changes over another."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.errors import RuleError
from pipeline.rules import bundled_rules, compose, find_rule_files, read_rule_file
from pipeline.rules.entry import RuleFile
from pipeline.rules.example import Failure, check_coverage, check_examples


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; RuleError where a file is wrong, or an example is not as it is marked."""
    args = _parser().parse_args(argv)
    words = args.files or sorted(map(str, bundled_rules().rglob("*.yaml")))
    paths = [path for word in words for path in find_rule_files(word)]
    wrong = sum(not _check(path) for path in paths)
    for word in words:
        if "+" in word and not Path(word).is_file() and not wrong:
            compose(read_rule_file(path) for path in find_rule_files(word))
    if wrong:
        raise RuleError(f"{wrong} of {_files(len(paths))} wrong; see above")
    return 0


def _check(path: Path) -> bool:
    """Whether the file at *path* is right; says so, or why not."""
    started = time.perf_counter()
    try:
        file = read_rule_file(path)
    except RuleError as error:
        print(error)
        return False
    failures = check_examples(file)
    lack = check_coverage(file) if file.examples or not _is_config(file) else ""
    for failure in failures:
        _tell(failure)
    if lack:
        print(f"{path.name}: {lack}; add one, so that the rules cannot change unseen")
    if failures or lack:
        return False
    told = f"{len(file.examples)} examples right" if file.examples else "read, has no examples"
    print(f"{path.name}: {told} ({1000 * (time.perf_counter() - started):.0f} ms)")
    return True


def _tell(failure: Failure) -> None:
    print(failure.message)
    if failure.shown:
        print("  the rules change:")
        for line in failure.shown.splitlines():
            print(f"    {line}")


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
    return parser


if __name__ == "__main__":
    cli.leave(main)
