"""Inputs become tasks by their contents alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan import Plan, differences, make_plan
from pipeline.policy import Policy
from pipeline.recipe import Recipe, make_recipe
from pipeline.source.record import Piece, Source


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return make_recipe(
        rules=["ignore_empty_think"],
        tokenizer=None,
        chat_template=None,
        template_kwargs={},
        date="2026-03-14",
        schema="auto",
    )


def source(name: str, sizes: list[int]) -> Source:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(Piece(name, f"/x/{name}", "lines", start, start + size, start, 1, size))
        start += size
    return Source(name, f"sha-{name}", start, len(sizes), tuple(pieces))


@given(st.lists(st.lists(st.integers(1, 50), max_size=6), max_size=5), st.integers(1, 100))
def test_every_piece_is_in_one_task_and_in_order(sizes: list[list[int]], size: int) -> None:
    sources = [source(str(i), s) for i, s in enumerate(sizes)]
    plan = make_plan(sources, _RECIPE, shard_size=size)
    assert [p for t in plan.tasks for p in t.pieces] == [p for s in sources for p in s.pieces]
    assert [t.index for t in plan.tasks] == list(range(len(plan.tasks)))
    assert all(t.count == len(plan.tasks) for t in plan.tasks)
    assert all(t.size >= size for t in plan.tasks[:-1])
    assert all(sum(p.size for p in t.pieces[:-1]) < size for t in plan.tasks)


_RECIPE = make_recipe(
    rules=[],
    tokenizer=None,
    chat_template=None,
    template_kwargs={},
    date="2026-03-14",
    schema="auto",
)


def fingerprint(recipe: Recipe, sources: list[Source], shard_size: int = 10) -> str:
    return make_plan(sources, recipe, shard_size=shard_size).fingerprint


def test_the_fingerprint_knows_contents_and_no_path(recipe: Recipe) -> None:
    here = source("a", [5])
    there = replace(here, pieces=(replace(here.pieces[0], path="/elsewhere/a"),))
    assert fingerprint(recipe, [here]) == fingerprint(recipe, [there])
    assert fingerprint(recipe, [here]) != fingerprint(recipe, [replace(here, sha256="other")])
    assert fingerprint(recipe, [here]) != fingerprint(recipe, [replace(here, name="b")])


def test_whatever_changes_bytes_changes_the_fingerprint(recipe: Recipe) -> None:
    sources = [source("a", [5])]
    known = {fingerprint(recipe, sources)}
    variants = [
        replace(recipe, variables={"enable_thinking": False}),
        replace(recipe, templates={"default": "{{ messages }}"}),
        replace(recipe, rules=_RECIPE.rules),
        replace(recipe, schema="alpaca"),
        replace(recipe, form="arrow"),
        replace(recipe, vocabulary=replace(recipe.vocabulary, digests={"tokenizer.json": "x"})),
    ]
    known |= {fingerprint(variant, sources) for variant in variants}
    known.add(fingerprint(recipe, sources, shard_size=11))
    assert len(known) == len(variants) + 2


def test_the_day_counts_only_where_the_template_tells_it(recipe: Recipe) -> None:
    sources = [source("a", [5])]
    tomorrow = replace(recipe, date="2026-03-15")
    assert fingerprint(recipe, sources) == fingerprint(tomorrow, sources)
    told = {"default": "{{ strftime_now('%d') }}"}
    assert fingerprint(replace(recipe, templates=told), sources) != fingerprint(
        replace(tomorrow, templates=told), sources
    )


def test_differences_name_what_is_another_now(recipe: Recipe) -> None:
    old = make_plan([source("a", [5])], recipe, shard_size=10)
    new = make_plan(
        [replace(source("a", [5]), sha256="sha-changed")],
        replace(recipe, schema="alpaca"),
        shard_size=10,
    )
    assert differences(old.parts, new.parts) == [
        "inputs.a.sha256: sha-a is now sha-changed",
        "schema: auto is now alpaca",
    ]
    assert differences(old.parts, old.parts) == []


def test_differences_say_how_to_have_the_old_value_back(recipe: Recipe) -> None:
    a, b = source("a", [5]), source("b", [5])
    telling = replace(recipe, templates={"default": "{{ strftime_now('%d') }}"})
    old = make_plan([a, b], telling, shard_size=10)
    later = replace(telling, date="2026-03-15", policy=Policy(keep=("id", "when"), max_length=4000))
    new = make_plan([b, a], later, shard_size=10)
    assert differences(old.parts, new.parts) == [
        f"date: {recipe.date} is now 2026-03-15 (--date {recipe.date} goes on with it)",
        "inputs: the order a, b is now b, a",
        "--keep: none is now id, when",
        "--max-length: 0 is now 4000",
    ]
    assert differences(old.parts, make_plan([a], telling, shard_size=10).parts) == [
        "inputs.b: is no longer given"
    ]
    one, another = ({**old.parts, "rules": {"f": digest * 64}} for digest in "01")
    assert differences(one, another) == ["rules.f: the file's text has changed"]
    assert differences({"rules": {}}, {"rules": one["rules"]}) == ["rules.f: is now given"]


def test_no_machine_shows_in_the_fingerprint(recipe: Recipe, tmp_path: Path) -> None:
    plan: Plan = make_plan([source("a", [5])], recipe, shard_size=10)
    text = repr(plan.parts)
    assert str(recipe.vocabulary.folder) not in text
    assert str(tmp_path.parent) not in text
