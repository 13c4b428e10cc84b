"""Every word that survives a real template has the origin of its message and field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.supervision import DAY, SPECIAL, Case, cases
from pipeline.conversation import Conversation
from pipeline.errors import RecordError, TemplateError
from pipeline.rendered import Rendered
from pipeline.template import Template
from pipeline.tracing import Origin

pytestmark = pytest.mark.corpus


def traces(shared: Path) -> Iterator[tuple[str, Case, Rendered, Rendered]]:
    """(template's name, case, hooked render, traced render) of all that templates accept."""
    path = shared / "templates" / "templates.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        try:
            template = Template(entry["template"], variables=SPECIAL, today=DAY)
        except TemplateError:
            continue
        for case in cases():
            conversation = Conversation(case.messages)
            try:
                plain = template.render(conversation)
            except RecordError:
                continue
            yield entry["name"], case, plain, template.trace(conversation)


def field_of(word: str, message: dict[str, Any]) -> str:
    return next(key for key, value in message.items() if word in json.dumps(value))


@pytest.mark.slow
def test_no_word_has_the_origin_of_another_message_or_field(shared: Path) -> None:
    """And none is lost: what these templates do to strings is followed to the character."""
    traced, seen = 0, 0
    for name, case, plain, rendered in traces(shared):
        assert (rendered.text, rendered.generated) == (plain.text, plain.generated), name
        assert len(rendered.marks) == len(rendered.text)
        traced += 1
        codes = rendered.codes()
        for index, message in enumerate(case.messages):
            for word in case.words[index]:
                said = Origin(index, field_of(word, message))
                for match in re.finditer(word, rendered.text):
                    found = {rendered.origins[k] for k in np.unique(codes[slice(*match.span())])}
                    assert found == {said}, (name, case.name, word)
                    seen += 1
    assert traced > 3900
    assert seen > 12000


@pytest.mark.slow
def test_hooks_and_marks_agree_on_whose_an_assistants_text_is(shared: Path) -> None:
    """But for a last turn printed after the loop, and a function's name in its result's header."""
    differ: set[tuple[str, tuple[str, ...]]] = set()
    for name, case, plain, rendered in traces(shared):
        for index, message in enumerate(case.messages):
            if message["role"] != "assistant" or plain.owned[index] == rendered.owned[index]:
                continue
            ours, theirs = np.zeros((2, len(plain.text)), bool)
            for mine, ranges in ((ours, rendered.owned[index]), (theirs, plain.owned[index])):
                for start, end in ranges:
                    mine[start:end] = True
            assert not (theirs & ~ours).any(), name
            codes = np.unique(rendered.codes()[ours & ~theirs])
            differ.add((name, tuple(rendered.origins[k].field for k in codes)))
    fields = [fields for _, fields in differ]
    assert set(fields) == {("content",), ("tool_calls",)}
    assert fields.count(("content",)) == 1
    assert len(fields) == 10
