"""What a peer tells `benchmarks.versus`, in any Python: its flags, its phases, its last line.

A peer is a file that runs by itself. It reads ``--input FILE`` (JSON lines with ``messages``),
writes Parquet files or Arrow streams to ``--output DIR`` with ``input_ids`` and one of ``labels``,
``assistant_masks`` or ``loss_weight``, a row for each line, and ends with one line of JSON. Import
this first, and what the peer needs after it: the clock of ``imports`` starts here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NoReturn

UNABLE = 3  # the exit code of a peer that cannot run here
# What others do who render whole texts: white space after a stop token trains if their mask has it,
# and a message that spells a control token gives that token.
LIKE = ["--train-trailing", "--control-tokens", "allow"]


class Phases:
    """Seconds by name; each phase ends when its name is called."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._since = _IMPORTED

    def end(self, name: str) -> None:
        """What was done since the last phase ended was *name*."""
        now = time.perf_counter()
        self._seconds[name] = now - self._since
        self._since = now

    def tell(self, *, like: list[str]) -> None:
        """*like*: the flags of a build that trains the same tokens."""
        print(json.dumps({"phases": self._seconds, "like": like}), flush=True)


def read_arguments() -> argparse.Namespace:
    """``input``, ``tokenizer`` (a folder), ``template`` (a file), ``output``."""
    parser = argparse.ArgumentParser()
    for name in ("input", "tokenizer", "template", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args()


def give_up(reason: object) -> NoReturn:
    """Says why this peer cannot run here."""
    print(json.dumps({"unable": str(reason)}), flush=True)
    sys.exit(UNABLE)


def require_tags(template: str) -> None:
    """Gives up on a template without ``{% generation %}``, where such a peer would mask nothing."""
    if "endgeneration" not in template:
        give_up("the template has no {% generation %} tags, and this peer masks by them")


_IMPORTED = time.perf_counter()
