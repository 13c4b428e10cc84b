"""The right characters train, judged without knowledge of any template."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.supervision import judge_template

# Nemotron prints nothing for an empty answer at the end, and a header and a stop token where it is
# history: the judge's border, from the render that ends there, is another.
KNOWN = {("lcpp-NVIDIA-Nemotron-Nano-v2", "empty content")}


@pytest.mark.corpus
def test_words_train_where_the_assistant_says_them_on_real_templates(shared: Path) -> None:
    lines = (shared / "templates" / "templates.jsonl").read_text(encoding="utf-8").splitlines()
    totals: dict[str, Counter[str]] = {"ours": Counter(), "prefixes": Counter()}
    wrong = set()
    for entry in map(json.loads, lines):
        for case, method, verdict in judge_template(entry["template"]):
            totals[method][verdict.kind] += 1
            if method == "ours" and verdict.kind == "wrong":
                wrong.add((entry["name"], case))
    ours, prefixes = totals["ours"], totals["prefixes"]
    judged = ours["right"] + ours["reject"] + ours["wrong"]
    assert judged > 4200
    assert ours["right"] / judged >= 0.997
    assert wrong <= KNOWN
    assert ours["right"] > prefixes["right"] + 800
