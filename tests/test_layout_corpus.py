"""Turns that are established together are those of each row alone, with real templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.supervision import cases, read_templates
from pipeline.batch import Encoder
from pipeline.laid import Laid
from pipeline.policy import Policy
from pipeline.recipe import BUNDLED
from pipeline.rules import load_rules
from pipeline.source.record import Record
from pipeline.tokens.tokenizer import load_tokenizer
from pipeline.tokens.vocabulary import read_vocabulary

PLAIN = [
    ["Where?", "Paris.", "And?", "Rome."],
    ["Be brief.", "Where?", "<think>\nHm.\n</think>\n\nIn Oslo."],
    ["Où?", "<think>\n\n</think>\n\nÀ Paris 🙂.", " ", "A"],
    ["Where?", "\n\nThere.  \n", "Go on.", "x" * 300],
]


@pytest.mark.corpus
@pytest.mark.slow
def test_rows_of_real_templates_are_laid_as_they_are_established_alone(shared: Path) -> None:
    tokenizer = load_tokenizer(read_vocabulary(BUNDLED / "tokenizer"))
    rules, policy = load_rules(["ignore_empty_think"]), Policy(control_tokens="allow")
    talks = [case.messages for case in cases()]
    for said in PLAIN:
        roles = ("user", "assistant") * 2 if len(said) == 4 else ("system", "user", "assistant")
        talks.append([{"role": r, "content": s} for r, s in zip(roles, said, strict=True)])
    raws = [json.dumps({"messages": messages}).encode() for messages in talks]
    records = [Record("s", i, i + 1, raw=raw) for i, raw in enumerate(raws)]
    laid = rows = 0
    for name, template in read_templates(shared / "templates" / "templates.jsonl"):
        together, alone = (Encoder(tokenizer, template, rules, policy=policy) for _ in range(2))
        alone.preparation(template)._lays = False
        found, expected = together.encode(records), alone.encode(records)
        assert found.rows.equals(expected.rows), name
        assert found.rejects == expected.rejects, name
        assert found.counts == expected.counts, name
        prepared, _ = together.prepare(records)
        laid += sum(isinstance(p.turns, Laid) for p in prepared)
        rows += len(prepared)
    assert laid > 800
    assert laid / rows > 0.1
