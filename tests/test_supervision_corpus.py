"""The right characters train, judged without knowledge of any template."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.supervision import judge_template

# Stopless templates whose separators depend on more than the next role, and two assistants in a
# row where the template prompts only after a user: 13 of 3,965 conversations are counted wrong.
KNOWN = {
    "hfjs-Llama-Guard-3-11B-Vision",
    "lcpp-Apriel-1.6-15b-Thinker-fixed",
    "vllm-alpaca",
    "vllm-chatglm",
    "vllm-chatglm2",
    "vllm-inkbot",
}


@pytest.mark.corpus
def test_words_train_where_the_assistant_says_them_on_real_templates(shared: Path) -> None:
    lines = (shared / "templates" / "templates.jsonl").read_text(encoding="utf-8").splitlines()
    totals: dict[str, Counter[str]] = {"ours": Counter(), "prefixes": Counter()}
    wrong = set()
    for entry in map(json.loads, lines):
        for _, method, verdict in judge_template(entry["template"]):
            totals[method][verdict.kind] += 1
            if method == "ours" and verdict.kind == "wrong":
                wrong.add(entry["name"])
    ours, prefixes = totals["ours"], totals["prefixes"]
    judged = ours["right"] + ours["reject"] + ours["wrong"]
    assert judged > 3900
    assert ours["right"] / judged > 0.95
    assert ours["wrong"] <= 13
    assert wrong <= KNOWN
    assert ours["right"] > prefixes["right"] + 800
