"""One order of all rows, in windows of row groups, dealt to ranks and workers without a rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.block import Block
from pipeline.training.blocks import Blocks
from pipeline.training.order import make_order
from pipeline.training.passage import pass_over
from pipeline.training.share import Share, even_out


def blocks_of(sizes: list[int]) -> Blocks:
    """Row groups of those sizes in memory; row r of all has r + 1 tokens, which say r."""
    firsts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    blocks = []
    for first, size in zip(firsts.tolist(), sizes, strict=False):
        rows = np.arange(first, first + size)
        stops = np.cumsum(rows + 1)
        facts = {"length": rows + 1}
        ids = np.repeat(rows, rows + 1).astype(np.int32)
        blocks.append(Block(stops - rows - 1, stops, {"input_ids": ids}, facts))
    zeros = np.zeros(len(sizes), np.int64)
    return Blocks((Path("x"),), ("",), "arrow", zeros, np.arange(len(sizes)), firsts, "", 0,
                  _mapped={0: blocks})  # fmt: skip


def walk(blocks: Blocks, share: Share, start: int, stop: int, given: int, **how: Any) -> list[int]:
    order = make_order(blocks.firsts, **how)
    passage = pass_over(blocks, order, share, start=start, stop=stop, given=given)
    rows = [row for window in passage for row in window.rows(("input_ids", "length"), None)]
    assert all(row["input_ids"].tolist() == [row["length"] - 1] * row["length"] for row in rows)
    return [row["length"] - 1 for row in rows]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=9),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from(["drop", "pad", "none"]),
    st.sampled_from([(), (0, 0), (7, 3)]),
    st.integers(1, 4),
    st.integers(0, 90),
    st.integers(0, 20),
)
def test_shares_are_those_of_one_order_dealt_by_hand(
    sizes: list[int],
    world: int,
    workers: int,
    batch: int,
    even: str,
    key: tuple[int, ...],
    window: int,
    start: int,
    given: int,
) -> None:
    blocks, how = blocks_of(sizes), {"key": key, "window": window}
    order = walk(blocks, Share(0, 1), 0, sum(sizes), 0, **how)
    assert sorted(order) == list(range(sum(sizes)))
    start = min(start, len(order))
    rest = order[start:]
    extra = -len(rest) % world
    rest = {
        "drop": rest[: len(rest) // world * world],
        "pad": rest + (order * world)[:extra],
        "none": rest,
    }[even]
    stop = start + even_out(len(order) - start, world, even)
    for rank in range(world):
        mine = rest[rank::world]
        batches = [mine[i : i + batch] for i in range(0, len(mine), batch)]
        for worker in range(workers):
            expected = [row for one in batches[worker::workers] for row in one]
            share = Share(rank, world, worker, workers, batch)
            assert walk(blocks, share, start, stop, given, **how) == expected[given:]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.data())
def test_a_copy_of_rows_equals_their_view(sizes: list[int], data: st.DataObject) -> None:
    stops = np.cumsum(sizes)
    ids = np.arange(stops[-1], dtype=np.int32)
    block = Block(stops - sizes, stops, {"input_ids": ids}, {"length": np.array(sizes)})
    rows = np.array(data.draw(st.lists(st.integers(0, len(sizes) - 1))), np.int64)
    copy, view = block.copy(rows), block.view(rows)
    assert len(copy) == len(view) == len(rows)
    assert len(copy.tokens["input_ids"]) == sum(sizes[row] for row in rows)
    for number, row in enumerate(rows):
        expected = list(range(stops[row] - sizes[row], stops[row]))
        for block in (copy, view):
            found = block.row(number, ("input_ids", "length"))
            assert (found["input_ids"].tolist(), found["length"]) == (expected, sizes[row])


def test_each_window_is_some_row_groups_whole() -> None:
    sizes = [3, 1, 4, 1, 5, 9, 2, 6]
    block_of = np.repeat(np.arange(8), sizes)
    order = walk(blocks_of(sizes), Share(0, 1), 0, 31, 0, key=(1, 2), window=3)
    taken: list[int] = []
    while order:
        chosen = {int(block_of[order[0]])}
        length = 0
        for length, row in enumerate(order, 1):
            chosen.add(int(block_of[row]))
            if length == sum(sizes[block] for block in chosen) and len(chosen) == 3:
                break
        assert len(chosen) <= 3
        assert sorted(order[:length]) == [r for r in range(31) if block_of[r] in chosen]
        taken += sorted(chosen)
        order = order[length:]
    assert sorted(taken) == list(range(8))


def test_each_row_comes_anywhere() -> None:
    """Of 2,000 epochs: the mean place of each row is the middle, by five standard errors."""
    blocks = blocks_of([4, 4, 4])
    places = np.zeros((12, 12))
    for epoch in range(2000):
        order = walk(blocks, Share(0, 1), 0, 12, 0, key=(5, epoch), window=8)
        places[order, range(12)] += 1
    expected = 2000 / 12
    assert abs(places - expected).max() < 5 * np.sqrt(expected)


def test_each_row_group_comes_first_and_has_an_order_of_its_own() -> None:
    blocks = blocks_of([20] * 4)
    firsts = set()
    for epoch in range(40):
        order = np.array(walk(blocks, Share(0, 1), 0, 80, 0, key=(5, epoch), window=1))
        firsts.add(int(order[0]) // 20)
        assert len({tuple(part % 20) for part in np.split(order, 4)}) == 4
    assert firsts == {0, 1, 2, 3}
