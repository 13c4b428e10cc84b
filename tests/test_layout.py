"""Turns that are established together, held to those that are established one by one."""

from __future__ import annotations

import datetime
import itertools
import json
import tracemalloc
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.preparation
from pipeline.batch import Encoder
from pipeline.laid import Laid
from pipeline.layout import lay
from pipeline.policy import Policy
from pipeline.recipe import BUNDLED
from pipeline.regions import Turn
from pipeline.rows import Prepared
from pipeline.rules import RuleSet, load_rules
from pipeline.source.record import Record
from pipeline.spans import Span
from pipeline.template import Template
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from pipeline.tokens.vocabulary import read_vocabulary

DAY = datetime.date(2026, 3, 14)
VOCABULARY = read_vocabulary(BUNDLED / "tokenizer")
TOKENIZER: Tokenizer = load_tokenizer(VOCABULARY)
RULES: RuleSet = load_rules(["ignore_empty_think"])
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
TEMPLATES = {
    "chatml": "{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT,
    "trimmed": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content|trim }}<|im_end|>\n"
    "{% endfor %}" + PROMPT,
    "tagged": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}"
    "<|im_end|>\n{% endif %}{% endfor %}" + PROMPT,
    "tagged twice": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content[:3] }}{% endgeneration %}"
    "{% generation %}{{ m.content[3:] }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}" + PROMPT,
    "tagged around all": "{% generation %}{% for m in messages %}" + TURN + "{% endfor %}"
    "{% endgeneration %}" + PROMPT,
    "system outside": "{% if messages[0].role == 'system' %}<|im_start|>system\n"
    "{{ messages[0].content }}<|im_end|>\n{% endif %}{% for m in messages %}"
    "{% if m.role != 'system' %}" + TURN + "{% endif %}{% endfor %}" + PROMPT,
    "system twice": "{{ messages[0].content }}|{{ messages[0].content }}<|im_end|>"
    "{% for m in messages[1:] %}" + TURN + "{% endfor %}" + PROMPT,
    "system dropped": "<|im_start|>{% for m in messages[1:] %}" + TURN + "{% endfor %}" + PROMPT,
    "gaps": "{% for m in messages[1:] %}" + TURN + "{% endfor %}{{ messages[0].content }}" + PROMPT,
    "backwards": "{% for m in messages|reverse %}" + TURN + "{% endfor %}" + PROMPT,
    "twice": "{% for m in messages %}" + TURN + "{% endfor %}{% for m in messages %}{{ m.content }}"
    "{% endfor %}" + PROMPT,
    "stopless": "{% for m in messages %}{{ '<|endoftext|>' if m.role == 'user' else '<|im_start|>' "
    "}}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}",
    "two stops": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
    "<|endoftext|>\n{% endfor %}" + PROMPT,
    "opened": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "<think>\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n<think>\n{% endif %}",
    "always thinking": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and '<think>' not in m.content %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + PROMPT,
    "history": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + PROMPT,
    "asked not to think": "{% for m in messages %}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if '/no_think' in messages[-1].content %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    "prefilled": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "closed by the next": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if not loop.last %}\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}",
    "closed outside": "{% for m in messages %}{% if m.role == 'user' and not loop.first %}"
    "<|im_end|>{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|im_end|>{% endif %}",
    "headed late": "{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}" + PROMPT,
    "some unsaid": "{% for m in messages %}{% if m.content|length > 2 %}" + TURN + "{% endif %}"
    "{% endfor %}" + PROMPT,
}
WORDS = [
    *("a", "Paris", " ", "\n", "\t\n ", " " * 70, "é", "🙂", "\u3000", "\u00a0", "e\u0301"),
    *("<think>", "</think>", "<think>\n\n</think>\n\n", "<think>\nhm\n</think>\n\n", "<thinking>"),
    *("</thinking>", "</mm:think>", "<", "</", "<|im_end|>", "<|im_start|>", "<|endoftext|>"),
    *("assistant\n", "/no_think"),
]
SAID = st.lists(st.sampled_from(WORDS), max_size=6).map("".join)
ROLES = st.sampled_from(["user", "assistant", "assistant", "user", "tool", "system", "developer"])


@st.composite
def talks(draw: st.DrawFn) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": draw(SAID)}] if draw(st.booleans()) else []
    if draw(st.booleans()):
        turns = itertools.islice(itertools.cycle(("user", "assistant")), draw(st.integers(1, 9)))
        return system + [{"role": role, "content": draw(SAID)} for role in turns]
    many = draw(st.lists(ROLES, min_size=1, max_size=5))
    return system + [{"role": role, "content": draw(SAID)} for role in many]


def encoder_of(source: str, **policy: Any) -> Encoder:
    names = {**VOCABULARY.special_tokens, "eos_token": "<|im_end|>"}
    template = Template(source, variables=names, today=DAY)
    return Encoder(TOKENIZER, template, RULES, policy=Policy(**policy))


@cache
def encoders(name: str, control: str) -> tuple[Encoder, Encoder]:
    """One that lays rows, and one that establishes their turns one by one."""
    together = encoder_of(TEMPLATES[name], control_tokens=control)
    alone = encoder_of(TEMPLATES[name], control_tokens=control)
    alone.preparation(alone.template)._lays = False
    return together, alone


def record(messages: list[dict[str, Any]], row: int = 0) -> Record:
    return Record("s", row, row + 1, raw=json.dumps({"messages": messages}).encode())


def told(prepared: Prepared) -> Any:
    lists = (list(prepared.turns), list(prepared.scales), list(prepared.quoted))
    cuts, parts = list(prepared.cuts), dict(prepared.parts)
    turns, scales, quoted = lists
    return prepared._replace(turns=turns, scales=scales, quoted=quoted, cuts=cuts, parts=parts)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(st.lists(talks(), min_size=1, max_size=6), st.sampled_from(["text", "allow"]))
def test_rows_laid_together_are_those_established_one_by_one(
    name: str, many: list[list[dict[str, Any]]], control: str
) -> None:
    together, alone = encoders(name, control)
    records = [record(messages, row) for row, messages in enumerate(many)]
    prepared, rejects = together.prepare(records)
    expected, refused = alone.prepare(records)
    assert list(map(told, prepared)) == list(map(told, expected))
    assert [(r.row, r.message) for r in rejects] == [(r.row, r.message) for r in refused]
    assert not any(isinstance(p.turns, Laid) for p in expected)
    # The numbers give the batch what the objects do.
    batch, reference = together.encode(records), alone.encode(records)
    assert batch.rows.equals(reference.rows)
    assert batch.counts == reference.counts


@pytest.mark.parametrize(
    "name", [n for n in TEMPLATES if n not in ("tagged twice", "backwards", "twice", "stopless")]
)
def test_ordinary_talks_are_laid(name: str) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "In Paris."},
    ]
    odd = name in ("gaps", "headed late", "two stops", "tagged around all")
    (prepared,), _ = encoder_of(TEMPLATES[name]).prepare([record(messages)])
    assert isinstance(prepared.turns, Laid) != odd


def test_a_laid_turn_is_the_turn_it_stands_for() -> None:
    messages = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "<think>\n\n</think>\n\nIn Paris."},
    ]
    (prepared,), _ = encoder_of(TEMPLATES["chatml"]).prepare([record(messages)])
    start = len("<|im_start|>user\nWhere?<|im_end|>\n")
    begin = start + len("<|im_start|>assistant\n")
    stop = begin + len("<think>\n\n</think>\n\nIn Paris.")
    end = stop + len("<|im_end|>")
    assert list(prepared.turns) == [
        Turn(0, "user", [Span(0, start)], [], -1, "", False),
        Turn(
            1, "assistant", [Span(start, end + 1)], [Span(begin, end)], stop, "prompt", opened=False
        ),
    ]
    assert isinstance(prepared.turns, Laid)
    assert prepared.turns.said() == [(1, begin, stop)]
    assert len(prepared.turns) == 2
    assert prepared.turns[-1].message == 1


def test_one_odd_row_leaves_its_neighbours_laid() -> None:
    plain = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    odd = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "  "}]
    prepared, _ = encoder_of(TEMPLATES["chatml"]).prepare(
        [record(plain, 0), record(odd, 1), record(plain, 2)]
    )
    assert [isinstance(p.turns, Laid) for p in prepared] == [True, False, True]


def test_large_rows_take_no_memory_for_being_laid() -> None:
    """Records of columnar files come by number, so many of them may be large."""
    said = "The quick brown fox. " * 5_000
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": said}]
    records = [Record("s", i, 0, value={"messages": messages}) for i in range(128)]
    encoder = encoder_of(TEMPLATES["chatml"])
    encoder.prepare(records[:1])
    tracemalloc.start()
    try:
        prepared, _ = encoder.prepare(records)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The strings that the conversations share are not held again; a text is.
    assert peak < 4 * sum(len(p.text) for p in prepared)
    assert isinstance(prepared[0].turns, Laid)


def test_rows_that_are_never_usual_are_seldom_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """To try and to fail takes as long as what is saved by success."""
    tried: list[int] = []

    def seen(rows: Any, *args: Any, **how: Any) -> Any:
        tried.append(len(rows))
        return lay(rows, *args, **how)

    monkeypatch.setattr(pipeline.preparation, "lay", seen)
    plain = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    odd = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "  "}]
    encoder = encoder_of(TEMPLATES["chatml"])
    for _ in range(50):
        encoder.encode([record(odd, row) for row in range(100)])
    assert 100 < sum(tried) < 1000
    # They may come to an end.
    for _ in range(50):
        prepared, _ = encoder.prepare([record(plain, row) for row in range(100)])
    assert isinstance(prepared[0].turns, Laid)
    others = encoder_of(TEMPLATES["chatml"])
    tried.clear()
    for _ in range(20):
        others.prepare([record(plain, row) for row in range(60)])
        others.prepare([record(odd, row) for row in range(40)])
    assert sum(tried) == 2000
