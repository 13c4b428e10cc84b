"""What a prompt depends on, and talks that stand for conversations."""

from __future__ import annotations

import datetime
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.supervision import DAY, SPECIAL, cases
from pipeline.conversation import Conversation
from pipeline.errors import RecordError, TemplateError
from pipeline.quotation import join_strings
from pipeline.rendered import Rendered
from pipeline.situation import Heard, Setting, imagine
from pipeline.surroundings import Surroundings
from pipeline.template import Template

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>PROMPT{% endif %}"
)
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


def around(prompt: str) -> Surroundings:
    source = CHATML.replace("PROMPT", prompt)
    return Surroundings(Template(source, today=datetime.date(2026, 3, 14)))


def talk(*messages: tuple[str, str], **more: Any) -> Conversation:
    return Conversation([{"role": role, "content": content} for role, content in messages], **more)


def header(surroundings: Surroundings, conversation: Conversation) -> str:
    """What the prompt after the whole conversation supplies."""
    setting = surroundings.setting(conversation)
    return surroundings.before(setting, len(conversation.messages)).headers[0].text


@pytest.mark.parametrize(
    ("prompt", "word", "quiet"),
    [
        ("{% if '/no_think' in messages[-1].content %}<q>{% endif %}", "/no_think", "x /no_think"),
        ("{% if messages[0].content == 'quiet' %}<q>{% endif %}", "quiet", "quiet"),
        ("{% if messages[-1].content.endswith('/q') %}<q>{% endif %}", "/q", "please /q"),
        ("{% if messages[-1].content.startswith('#q') %}<q>{% endif %}", "#q", "#q please"),
    ],
)
def test_a_prompt_that_listens_for_a_word_is_asked_again_where_it_is_said(
    prompt: str, word: str, quiet: str
) -> None:
    surroundings = around(prompt)
    assert surroundings.telling == (word,)
    assert header(surroundings, talk(("user", "hello"))) == "<|assistant|>"
    assert header(surroundings, talk(("user", quiet))) == "<|assistant|><q>"
    assert header(surroundings, talk(("user", "hello again"))) == "<|assistant|>"


def test_a_prompt_that_listens_for_nothing_is_asked_once() -> None:
    surroundings = around("{{ '' if messages[0].role == 'system' else '' }}")
    assert surroundings.telling == ()
    first = surroundings.setting(talk(("user", "a")))
    prompt = surroundings.before(first, 1)
    assert surroundings.before(surroundings.setting(talk(("user", "b"))), 1) is prompt


@pytest.mark.parametrize(
    ("prompt", "changes"),
    [
        ("{% if tools %}<t>{% endif %}", {"tools": [{"function": {"name": "f"}}]}),
        ("{% if deep %}<t>{% endif %}", {"kwargs": {"deep": True}}),
    ],
)
def test_tools_and_a_records_own_kwargs_are_part_of_the_situation(
    prompt: str, changes: dict[str, Any]
) -> None:
    surroundings = around(prompt)
    for more, expected in (({}, ""), (changes, "<t>"), ({}, "")):
        conversation = talk(("user", "hello"), **more)
        assert header(surroundings, conversation) == f"<|assistant|>{expected}"


def test_the_role_before_and_its_calls_are_part_of_the_situation() -> None:
    surroundings = around("{{ messages[-1].role }}{{ '!' if messages[-1].tool_calls }}")
    call = talk(("user", "q"), ("assistant", ""))
    call.messages[1]["tool_calls"] = [CALL]
    result = Conversation([*call.messages, {"role": "tool", "content": "r"}])
    assert header(surroundings, call) == "<|assistant|>assistant!"
    assert header(surroundings, result) == "<|assistant|>tool"
    assert header(surroundings, talk(("system", "s"), ("user", "q"))) == "<|assistant|>user"
    assert header(surroundings, talk(("system", "s"))) == "<|assistant|>system"


@pytest.mark.parametrize("opening", ["", "system", "developer"])
@pytest.mark.parametrize("before", ["user", "tool", "assistant", "system"])
@pytest.mark.parametrize("spoken", [False, True])
def test_an_imagined_talk_is_in_the_situation_that_it_stands_for(
    opening: str, before: str, spoken: bool
) -> None:
    messages = [{"role": opening, "content": "s"}] if opening else []
    messages += [{"role": "user", "content": "q"}] if before != "system" else []
    if spoken:
        messages += [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]
    if before == "tool":
        messages.append({"role": "assistant", "content": "", "tool_calls": [CALL]})  # type: ignore[dict-item] # calls are no text
    if before != "user":
        messages.append({"role": before, "content": "x"})
    setting = Setting(Conversation(messages), ())
    situation = setting.situation(len(messages))
    imagined = imagine(situation, {})
    again = Setting(imagined, ()).situation(len(imagined.messages))
    assert again == situation


def test_words_are_heard_where_they_are_said() -> None:
    conversation = talk(("system", "a /x"), ("user", "/y"), ("assistant", "b"), ("user", "c /x /y"))
    situation = Setting(conversation, ("/x", "/y")).situation(4)
    assert situation.opening_words == Heard(("/x",))
    assert situation.earlier_words == Heard(("/y",))
    assert situation.words == Heard(("/x", "/y"))
    assert Setting(conversation, ("/y",)).situation(2).words == Heard(("/y",), True)


def written(rendered: Rendered, index: int) -> str:
    return "".join(rendered.text[start:end] for start, end in rendered.owned[index])


@pytest.mark.corpus
def test_imagined_talks_tell_what_real_prefixes_tell_on_real_templates(shared: Path) -> None:
    """The prompt's header before each message, and whether history rewrites it.

    Headers differ where the text before the prompt belongs to no message (unsloth prints the first
    question before its loop): then the prefix itself is asked.
    """
    headers: Counter[bool] = Counter()
    rewritten: Counter[tuple[bool, bool]] = Counter()
    for line in (shared / "templates" / "templates.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            template = Template(json.loads(line)["template"], variables=SPECIAL, today=DAY)
        except TemplateError:
            continue
        surroundings = Surroundings(template)
        for case in cases():
            conversation = Conversation(case.messages)
            try:
                whole = template.render(conversation)
            except RecordError:
                continue
            setting = surroundings.setting(conversation)
            for index, message in enumerate(case.messages):
                if message["role"] != "assistant":
                    continue
                real = surroundings.exactly_before(conversation, index)
                if real.headers or not real.asked:
                    imagined = surroundings.before(setting, index)
                    headers[imagined.headers[:1] == real.headers[:1] or not real.asked] += 1
                try:
                    alone = template.render(Conversation(case.messages[: index + 1]))
                except RecordError:
                    continue
                kept = written(whole, index).startswith(written(alone, index).rstrip())
                rewritten[not kept, surroundings.rewrites(setting, index)] += 1
    assert headers[True] > 6000
    assert headers[False] <= 8
    assert rewritten[True, True] > 250
    assert rewritten[False, True] == 0
    assert rewritten[True, False] <= 9


TELLING = Template(
    "{% for m in messages %}{% set later = loop.index0 < messages | length - 1 %}"
    "{% set said = m.content or '' %}{% if later and said.strip().endswith('</think>') %}"
    "{% set said = '' %}{% elif later %}{% set said = said.replace('<think>\\n\\n</think>', '') %}"
    "{% endif %}"
    "<|{{ m.role }}|>{{ m.reasoning_content if not later }}{{ said }}"
    "{{ 'C' if m.tool_calls }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{% if '/x' in messages[-1].content %}<q>{% endif %}"
    "{% if messages[0].role == 'system' %}S{% endif %}{% endif %}",
    today=DAY,
)
WORDS = [
    "Hi",
    "",
    " \n",
    "<think>\n\n</think>\n\nA",
    "<think>x</think>",
    "<think>x</think>A",
    "/x",
    "a /x",
]
EXTRAS: list[dict[str, Any]] = [{}, {"reasoning_content": "R"}, {"tool_calls": [CALL]}]
ROLES = [("user", "assistant", "user"), ("system", "user", "assistant", "assistant", "tool")]


@pytest.mark.parametrize("roles", ROLES, ids="-".join)
def test_conversations_that_are_alike_share_only_what_each_would_learn_alone(
    roles: tuple[str, ...],
) -> None:
    """Of a template whose prompt and history depend on words, think blocks, calls and roles."""
    shared = Surroundings(TELLING)
    for asked, said, more in itertools.product(("Hi", "a /x", " "), WORDS, EXTRAS):
        messages = [
            {"role": role, "content": said, **more}
            if role == "assistant"
            else {"role": role, "content": asked}
            for role in roles
        ]
        conversation = Conversation(messages, plain=not more)
        alone = Surroundings(TELLING)
        one = alone.setting(conversation)
        other = shared.setting(conversation, join_strings(conversation))
        for index, role in enumerate(roles):
            assert shared.before(other, index) == alone.before(one, index)
            if role == "assistant":  # of others nobody asks
                assert shared.rewrites(other, index) == alone.rewrites(one, index)


def test_a_word_of_the_talk_that_the_prompt_has_anyway_changes_nothing() -> None:
    """Qwen3's prompt says `assistant`; a message that says so is no reason to ask again."""
    assert around("assistant{% if messages[0].role == 'assistant' %}{% endif %}").telling == ()
