"""Real templates take their shortcut, and it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.supervision import cases, read_templates
from pipeline.callform import apply
from pipeline.conversation import Conversation
from pipeline.errors import RecordError

TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Finds <what> & 'where'.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}


@pytest.mark.corpus
@pytest.mark.slow
def test_nearly_all_renders_of_real_templates_take_the_shortcut_to_the_same(shared: Path) -> None:
    taken, left = 0, 0
    for name, template in read_templates(shared / "templates" / "templates.jsonl"):
        for case in cases():
            for tools in (None, [TOOL]):
                conversation = apply(template.form, Conversation(case.messages, tools))
                short = template.shortcut.render(conversation, tagged=template.tagged)
                try:
                    full = template.render_fully(conversation)
                except RecordError:
                    assert short is None, (name, case.name)
                    continue
                if short is None:
                    left += 1
                else:
                    taken += 1
                    assert short == full, (name, case.name)
    assert taken > 8000
    assert taken / (taken + left) > 0.95
