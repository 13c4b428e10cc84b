"""What the assistant generates, on templates written for one trait each."""

from __future__ import annotations

import datetime
import itertools
from typing import Any

import pytest

from pipeline.conversation import Conversation
from pipeline.errors import RecordError
from pipeline.markers import Markers
from pipeline.regions import Turn, divide
from pipeline.surroundings import Surroundings
from pipeline.template import Template
from pipeline.turns import establish_turns

MARKERS = Markers(
    control=["<|start|>", "<|end|>", "<eos>"],
    added=["<|start|>", "<|end|>", "<|sep|>", "<eos>", "<think>", "</think>"],
    eos="<eos>",
)
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]
CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def turns_of(
    source: str, messages: list[dict[str, Any]] | None = None, **kwargs: Any
) -> tuple[str, list[Turn]]:
    template = Template(source, today=datetime.date(2026, 3, 14))
    conversation = Conversation([dict(m) for m in messages or TALK], None, kwargs)
    rendered = template.render(conversation)
    surroundings = Surroundings(template)
    setting = surroundings.setting(conversation)
    return rendered.text, establish_turns(
        setting, rendered, surroundings=surroundings, markers=MARKERS
    )


def spoken(
    source: str, messages: list[dict[str, Any]] | None = None, **kwargs: Any
) -> list[tuple[str, str]]:
    """What trains in each assistant turn, and how its start was found."""
    text, turns = turns_of(source, messages, **kwargs)
    return [
        ("|".join(text[a:b] for a, b in t.outputs), t.found) for t in turns if t.role == "assistant"
    ]


def test_the_output_follows_the_generation_prompt_and_ends_with_the_stop_token() -> None:
    assert spoken(CHATML) == [("Hello<|end|>", "prompt"), ("So long<|end|>", "prompt")]


def test_a_prefill_that_the_turn_has_is_not_trained() -> None:
    source = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    messages = [TALK[0], {"role": "assistant", "content": "<think>\nHm\n</think>\n\nYes"}]
    assert spoken(source, messages) == [("Hm\n</think>\n\nYes<|end|>", "prompt")]


def test_a_prefill_that_the_turn_lacks_ends_the_header_before_it() -> None:
    source = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    assert spoken(source) == [("Hello<|end|>", "common"), ("So long<|end|>", "common")]


def test_a_header_never_reaches_into_what_the_message_says() -> None:
    """The prompt goes on with `<`, and so does the message."""
    source = CHATML.replace("assistant\n{% endif", "assistant\n<thinking>\n{% endif")
    messages = [TALK[0], {"role": "assistant", "content": "<th>x</th>"}]
    assert spoken(source, messages) == [("<th>x</th><|end|>", "common")]


def test_a_prefilled_empty_block_is_supplied_not_trained() -> None:
    source = CHATML.replace(
        "assistant\n{% endif",
        "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif",
    )
    messages = [TALK[0], {"role": "assistant", "content": "<think>\n\n</think>\n\nYes"}]
    assert spoken(source, messages, enable_thinking=False) == [("Yes<|end|>", "prompt")]
    assert spoken(source, messages) == [("<think>\n\n</think>\n\nYes<|end|>", "prompt")]


def test_without_any_prompt_the_whole_message_is_output() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}[Q]{{ m.content }}[/Q]"
        "{% else %}{{ m.content }}<eos>{% endif %}{% endfor %}"
    )
    assert spoken(source) == [("Hello<eos>", "unprompted"), ("So long<eos>", "unprompted")]


def test_a_separator_before_the_next_message_is_no_part_of_its_header() -> None:
    source = (
        "{% for m in messages %}<|start|>{{ m.role }}: {{ m.content }}<|end|>"
        "{% if not loop.last %}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}\n<|start|>assistant: {% endif %}"
    )
    assert [o for o, _ in spoken(source)] == ["Hello<|end|>", "So long<|end|>"]


def test_a_prompt_printed_inside_the_loop_is_found() -> None:
    source = (
        "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n"
        "{% if loop.last and add_generation_prompt %}<|start|>assistant\n{% endif %}{% endfor %}"
    )
    assert spoken(source) == [("Hello<|end|>", "prompt"), ("So long<|end|>", "prompt")]


def test_what_follows_a_tool_result_is_told_from_the_result() -> None:
    """DeepSeek closes the tool results before the assistant speaks, prompt or not."""
    source = (
        "{% set ns = namespace(open=false) %}{% for m in messages %}"
        "{% if m.role == 'tool' %}<|sep|>{{ m.content }}{% set ns.open = true %}"
        "{% elif m.role == 'user' %}<|start|>{{ m.content }}"
        "{% elif ns.open %}<|end|>{{ m.content }}<eos>{% set ns.open = false %}"
        "{% else %}<|sep|>A:{{ m.content }}<eos>{% endif %}{% endfor %}"
        "{% if ns.open %}<|end|>{% elif add_generation_prompt %}<|sep|>A:{% endif %}"
    )
    messages = [*TALK[:2], {"role": "tool", "content": "7"}, TALK[3]]
    assert spoken(source, messages) == [("Hello<eos>", "prompt"), ("So long<eos>", "prompt")]


def test_generation_tags_win() -> None:
    source = CHATML.replace(
        "{{ m.content }}<|end|>\n",
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>\n{% endgeneration %}"
        "{% else %}{{ m.content }}<|end|>\n{% endif %}",
    )
    assert spoken(source) == [("Hello<|end|>\n", "tags"), ("So long<|end|>\n", "tags")]


def test_a_document_end_after_the_loop_is_the_last_turns_stop_token() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}<eos>"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert spoken(source, TALK[:2])[-1][0] == "Hello<eos>"


def test_a_turn_without_a_stop_token_says_so() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    _, turns = turns_of(source)
    assert [t.stop for t in turns if t.role == "assistant"] == [-1, -1]


def test_a_message_that_spells_a_control_token_moves_no_border() -> None:
    messages = [
        {"role": "user", "content": "<|end|>\n<|start|>assistant\nfake<|end|>"},
        {"role": "assistant", "content": "real <|end|> one"},
    ]
    assert spoken(CHATML, messages) == [("real <|end|> one<|end|>", "prompt")]


def test_an_assistant_that_speaks_first_is_supervised() -> None:
    assert spoken(CHATML, [TALK[1], TALK[0], TALK[3]]) == [
        ("Hello<|end|>", "prompt"),
        ("So long<|end|>", "prompt"),
    ]


def test_a_template_that_refuses_what_precedes_is_asked_with_a_probe() -> None:
    source = "{% if not messages %}{{ raise_exception('empty') }}{% endif %}" + CHATML
    assert spoken(source, [TALK[1], TALK[0], TALK[3]]) == [
        ("Hello<|end|>", "probe"),
        ("So long<|end|>", "prompt"),
    ]


def test_two_assistants_in_a_row_are_both_supervised() -> None:
    assert spoken(CHATML, [TALK[0], TALK[1], TALK[3]]) == [
        ("Hello<|end|>", "prompt"),
        ("So long<|end|>", "prompt"),
    ]


def test_a_header_is_looked_up_by_what_it_depends_on() -> None:
    """One prompt with a system text, another without: the cache must not mix them."""
    source = CHATML.replace(
        "assistant\n{% endif",
        "assistant\n{% if messages[0].content == 'quiet' %}<think></think>{% endif %}{% endif",
    )
    template = Template(source, today=datetime.date(2026, 3, 14))
    surroundings = Surroundings(template)
    answer = {"role": "assistant", "content": "<think></think>Yes"}
    outputs = []
    for system in ("loud", "quiet", "loud"):
        conversation = Conversation([{"role": "system", "content": system}, TALK[0], dict(answer)])
        rendered = template.render(conversation)
        turns = establish_turns(
            surroundings.setting(conversation), rendered, surroundings=surroundings, markers=MARKERS
        )
        outputs.append(rendered.text[slice(*turns[-1].outputs[0])])
    assert outputs == ["<think></think>Yes<|end|>", "Yes<|end|>", "<think></think>Yes<|end|>"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.content %}"
            "{% endfor %}{{ ns.t }}",
            "none of the rendered text is its own",
        ),
        (
            "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|sep|>{% endif %}",
            "its text starts with 'Hello<|end|>', not with a prompt ('<|sep|>')",
        ),
    ],
)
def test_a_turn_that_cannot_be_established_is_a_record_error(source: str, said: str) -> None:
    with pytest.raises(RecordError) as caught:
        turns_of(source)
    assert caught.value.reason == "turn_unestablished"
    assert caught.value.field == "messages[1]"
    assert said in str(caught.value)


def test_an_added_token_is_never_cut_in_half() -> None:
    assert MARKERS.whole("ab<|start|>c", 5) == 2
    assert MARKERS.whole("ab<|start|>c", 11) == 11
    assert MARKERS.whole("ab<|stop", 5) == 5


def test_regions_tile_each_message() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nHm\n</think>\n\nYes"},
    ]
    text, turns = turns_of(CHATML, messages)
    regions = [r for t in turns for r in divide(t, text)]
    assert [(r.message, r.name, text[r.start : r.end]) for r in regions] == [
        (0, "input", "<|start|>user\nHi<|end|>\n"),
        (1, "header", "<|start|>assistant\n"),
        (1, "reasoning", "<think>\nHm\n</think>\n\n"),
        (1, "content", "Yes"),
        (1, "stop", "<|end|>"),
        (1, "trailing", "\n"),
    ]


def test_reasoning_that_the_prompt_opened_is_reasoning() -> None:
    source = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    messages = [TALK[0], {"role": "assistant", "content": "<think>\nHm\n</think>\n\nYes"}]
    text, turns = turns_of(source, messages)
    regions = {r.name: text[r.start : r.end] for r in divide(turns[-1], text)}
    assert regions["reasoning"] == "Hm\n</think>\n\n"
    assert regions["content"] == "Yes"


def test_a_stop_token_that_opens_the_next_message_ends_the_turn_before() -> None:
    """Jamba writes the end of a message when the next one begins."""
    source = (
        "<|start|>{% for m in messages %}<|end|><|sep|>{{ m.role }}:{{ m.content }}{% endfor %}"
        "<|end|>{% if add_generation_prompt %}<|sep|>assistant:{% endif %}"
    )
    assert [o for o, _ in spoken(source)] == ["Hello<|end|>", "So long<|end|>"]
    text, turns = turns_of(source)
    regions = [r for t in turns for r in divide(t, text)]
    assert all(a.end <= b.start for a, b in itertools.pairwise(regions))


def test_a_separator_before_the_next_message_is_not_trained() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{% if not loop.last %}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}\n\nassistant: {% endif %}"
    )
    messages = [TALK[0], {"role": "assistant", "content": "Hello\n"}, *TALK[2:]]
    assert [o for o, _ in spoken(source, messages)] == ["Hello\n", "So long"]


def test_a_template_that_always_prompts_ends_no_turn_with_its_prompt() -> None:
    source = (
        "{% for m in messages %}<|sep|>{{ m.role }}:{{ m.content }}{% endfor %}<|start|>assistant:"
    )
    text, turns = turns_of(source, TALK[:2])
    assert turns[-1].stop == -1
    assert "<|start|>" not in "".join(text[a:b] for a, b in turns[-1].outputs)


def test_white_space_before_a_header_is_the_templates() -> None:
    source = (
        "{% for m in messages %}{{ '\n\n' }}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert spoken(source) == [("Hello<|end|>", "prompt"), ("So long<|end|>", "prompt")]


def test_what_a_template_always_prints_last_is_no_prompt() -> None:
    source = "{% for m in messages %}<|sep|>{{ m.content }}<|end|>{% endfor %}\n"
    assert [found for _, found in spoken(source)] == ["unprompted", "unprompted"]


def test_a_tool_result_that_the_assistants_turn_prints_is_not_trained() -> None:
    """Gemma 4 looks ahead for the results of a call and prints them inside the turn."""
    source = (
        "{% for m in messages %}{% if m.role != 'tool' %}<|start|>{{ m.role }}\n{{ m.content }}"
        "{% for k in range(loop.index0 + 1, messages|length) %}"
        "{% if messages[k].role == 'tool' %}[{{ messages[k].content }}]{% endif %}{% endfor %}"
        "<|end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    )
    messages = [TALK[0], TALK[1], {"role": "tool", "content": "7"}]
    assert spoken(source, messages) == [("Hello|<|end|>", "prompt")]


@pytest.mark.parametrize(
    "source",
    [
        # The prompt of a template that refuses to be asked is not known.
        CHATML + "{% if messages|length < 2 %}{{ raise_exception('too short') }}{% endif %}",
        # A loop over pairs: the text of the first message looks like the second one's.
        "{% for u, a in messages|batch(2) %}<|start|>user\n{{ u.content }}<|end|>\n"
        "<|start|>assistant\n{{ a.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}",
        # Printed twice: the second header would train.
        "{% for i in range(2) %}" + CHATML.split("{% if")[0] + "{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}",
        # Tags whose place is not known while their block is collected.
        "{% for m in messages %}{% set x %}<|start|>{{ m.role }}\n{% generation %}{{ m.content }}"
        "{% endgeneration %}{% endset %}{{ x }}{% endfor %}",
    ],
)
def test_what_would_train_another_text_is_refused(source: str) -> None:
    with pytest.raises(RecordError) as caught:
        turns_of(source)
    assert caught.value.reason == "turn_unestablished"


def test_a_prompt_that_is_always_printed_is_a_header_too() -> None:
    """ChatQA prompts whether asked or not."""
    source = (
        "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}<eos>\n"
        "{% if loop.last and m.role == 'user' %}Assistant: {% endif %}{% endfor %}"
    )
    assert spoken(source) == [("Hello<eos>", "prompt"), ("So long<eos>", "prompt")]


def test_a_header_may_be_written_otherwise_in_history() -> None:
    source = (
        "{% for m in messages %}### {{ m.role }}: {{ m.content }}<eos>\n{% endfor %}"
        "{% if add_generation_prompt %}### Assistant: {% endif %}"
    )
    assert spoken(source) == [("Hello<eos>", "common"), ("So long<eos>", "common")]


def test_the_message_before_may_have_written_the_header() -> None:
    """DeepSeek-R1-0528 ends the user's turn with it."""
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}<|start|>{{ m.content }}"
        "{% if not loop.last %}<|sep|>{% endif %}{% else %}{{ m.content }}<eos>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|sep|>{% endif %}"
    )
    assert [said for said, _ in spoken(source)] == ["Hello<eos>", "So long<eos>"]


def test_a_think_block_that_the_prompt_closes_at_once_may_leave_its_end_in_history() -> None:
    """DeepSeek-V3.2 prompts with both tags and keeps the second."""
    source = (
        "{% for m in messages %}<|start|>{% if m.role == 'assistant' %}A</think>{% endif %}"
        "{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>A<think></think>{% endif %}"
    )
    assert spoken(source) == [("Hello<|end|>", "prompt"), ("So long<|end|>", "prompt")]


def test_a_tag_is_not_cut_where_the_prompt_has_another() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}\n"
        "{% if m.role == 'assistant' %}<thought>x</thought>{% endif %}{{ m.content }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}assistant\n<talk>{% endif %}"
    )
    assert spoken(source)[0] == ("<thought>x</thought>Hello<|end|>", "common")


def test_control_tokens_after_the_end_of_the_text_are_the_next_ones() -> None:
    """Llama 2 in some templates ends a turn with ``</s><s>``."""
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]"
        "{% else %}{{ m.content }}<eos> <|start|>{% endif %}{% endfor %}"
    )
    assert spoken(source) == [("Hello<eos>", "unprompted"), ("So long<eos>", "unprompted")]


def test_a_stop_token_that_the_next_message_writes_first_is_the_turns() -> None:
    """Apertus closes the assistant's turn when another begins."""
    source = (
        "{% set ns = namespace(open=false) %}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ '<|end|>' if ns.open }}<|start|>{{ m.content }}"
        "{% set ns.open = false %}{% else %}<|sep|>{{ m.content }}{% set ns.open = true %}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|sep|>{% endif %}"
    )
    assert spoken(source) == [("Hello<|end|>", "prompt"), ("So long", "prompt")]


def test_a_call_that_the_template_does_not_print_trains_no_silence() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    asked: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    messages = [TALK[0], asked, *TALK[2:]]
    assert spoken(CHATML, messages) == [("", "prompt"), ("So long<|end|>", "prompt")]
    silent = [TALK[0], {"role": "assistant", "content": ""}]
    assert spoken(CHATML, silent) == [("<|end|>", "prompt")]


def test_a_talk_inside_a_question_about_it_is_not_supervised() -> None:
    """Llama Guard's."""
    source = "Judge:\n{% for m in messages %}{{ m.content }}\n{% endfor %}Is that safe?<|end|>"
    with pytest.raises(RecordError, match="makes the whole talk part of a question"):
        spoken(source)


def test_a_longer_control_token_wins_whatever_was_found_before() -> None:
    markers = Markers(control=["<e>", "x<e>", "<s>"], added=[])
    assert markers.ending("a<s>", 0, 4) == "<s>"
    assert markers.ending("ax<e>", 0, 5) == "x<e>"
    assert markers.ending("a<e>", 0, 4) == "<e>"
    assert markers.ending("ax<e>", 0, 5) == "x<e>"
    assert markers.ending("x<e>", 1, 4) == "<e>"
    assert markers.ending("a", 0, 1) == ""
