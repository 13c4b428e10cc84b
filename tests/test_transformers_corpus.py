"""Our renders are transformers' renders, to the character."""

from __future__ import annotations

import datetime
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.supervision import DAY, SPECIAL, cases
from pipeline.callform import apply
from pipeline.conversation import Conversation
from pipeline.errors import RecordError
from pipeline.template import Template
from pipeline.tokens.vocabulary import read_vocabulary

pytestmark = pytest.mark.corpus
TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Finds <what> & 'where'.",
        "parameters": {
            "type": "object",
            "properties": {
                "at": {"type": "string", "description": "é 中"},
                "n": {"type": "integer"},
            },
            "required": ["at"],
        },
    },
}


class _Stopped:
    """The clock that transformers reads, standing at the start of a day as ours does."""

    @staticmethod
    def now() -> datetime.datetime:
        return datetime.datetime(DAY.year, DAY.month, DAY.day)


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    """transformers' renderer; its warning that there is no torch is the point."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import chat_template_utils
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", _Stopped)
        yield chat_template_utils.render_jinja_template


def test_every_real_template_renders_every_shape_alike(shared: Path, theirs: Any) -> None:
    """With and without tools and the prompt; what one refuses, the other refuses."""
    lines = (shared / "templates" / "templates.jsonl").read_text(encoding="utf-8").splitlines()
    compared = refused = 0
    for entry in map(json.loads, lines):
        source = entry["template"]
        template = Template(source, variables=SPECIAL, today=DAY)
        for case in cases():
            for tools, prompt in ((None, False), ([TOOL], True)):
                conversation = apply(template.form, Conversation(case.messages, tools))
                try:
                    text = theirs(
                        [conversation.messages],
                        tools=tools,
                        chat_template=source,
                        add_generation_prompt=prompt,
                        **SPECIAL,
                    )[0][0]
                except Exception:  # noqa: BLE001 - a template can raise anything
                    with pytest.raises(RecordError):
                        template.render(conversation, prompt=prompt)
                    refused += 1
                    continue
                rendered = template.render(conversation, prompt=prompt)
                assert rendered.text == text, (entry["name"], case.name)
                compared += 1
    assert compared > 7000
    assert refused < 1500


@pytest.mark.parametrize(
    "name",
    ["qwen3", "qwen2.5", "qwen3.5", "deepseek_r1", "llama8b-r1distill", "glm-4.7-flash", "gemma3"],
)
def test_a_real_tokenizer_gives_templates_the_tokens_that_transformers_gives(
    shared: Path, name: str, theirs: Any
) -> None:
    assert theirs
    folder = shared / "tokenizers" / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = read_vocabulary(folder)
    template = Template(
        vocabulary.templates["default"],
        variables=vocabulary.special_tokens,
        today=DAY,
    )
    compared = 0
    for case in cases():
        conversation = apply(template.form, Conversation(case.messages))
        try:
            text = tokenizer.apply_chat_template(conversation.messages, tokenize=False)
        except Exception:  # noqa: BLE001 - a template can raise anything
            with pytest.raises(RecordError):
                template.render(conversation)
            continue
        assert template.render(conversation).text == text
        compared += 1
    assert compared >= 10


def test_what_generation_tags_enclose_is_what_transformers_says(shared: Path, theirs: Any) -> None:
    lines = (shared / "templates" / "templates.jsonl").read_text(encoding="utf-8").splitlines()
    compared = 0
    for entry in map(json.loads, lines):
        if "generation %}" not in entry["template"].replace("endgeneration %}", ""):
            continue
        template = Template(entry["template"], variables=SPECIAL, today=DAY)
        for case in cases():
            conversation = apply(template.form, Conversation(case.messages))
            try:
                ours = template.render(conversation)
            except RecordError:
                continue
            text, tagged = theirs(
                [conversation.messages],
                chat_template=entry["template"],
                return_assistant_tokens_mask=True,
                **SPECIAL,
            )
            assert ours.text == text[0]
            assert ours.generated is not None
            assert list(ours.generated) == [tuple(s) for s in tagged[0] if s[0] < s[1]]
            compared += 1
    assert compared > 100
