"""Other people's trainers, each in a process of its own: their code reads what we export.

They cannot be installed beside each other (their pins exclude one another), so they lie without
their dependencies in one folder, which the variable TRAINERS names:

    pip install --no-deps --target DIR -r tests/trainers.txt
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
REASON = "no trainers: TRAINERS names no folder (see tests/trainers.py)"


def run_with_trainers(
    script: str, *words: str | Path, needs: Sequence[str] = (), timeout: float = 300
) -> Any:
    """The JSON that the last line of *script*'s output is; *words* are its ``sys.argv[1:]``.

    *needs* are folders that must be in TRAINERS. Skips without it, but never under CI.
    """
    home = os.environ.get("TRAINERS", "")
    missing = [name for name in needs if not home or not Path(home, name).is_dir()]
    if not home or missing:
        reason = f"TRAINERS={home}: has no {', '.join(missing)}" if home else REASON
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}; under CI it must run")
        pytest.skip(reason)
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, words)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(ROOT), home)),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert ran.returncode == 0, f"exit {ran.returncode}\n{ran.stdout[-3000:]}\n{ran.stderr[-6000:]}"
    return json.loads(ran.stdout.strip().splitlines()[-1])
