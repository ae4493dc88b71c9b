"""Blocks: the layers of a mini-batch say the same as the sampled rows, every item once, targets first."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.blocks import Block, build_blocks, table_sampler
from fedquilt.graphs.importance import Neighbourhoods


def line(num_items: int) -> Neighbourhoods:
    """Item i has the one neighbour i + 1; the last item has none."""
    items = np.append(np.arange(1, num_items), -1).astype(np.int32)[:, None]
    return Neighbourhoods(items, (items >= 0).astype(np.float32))


def random_table(num_items: int, top: int, seed: int) -> Neighbourhoods:
    """Rows of 0 .. top other items with weights that sum to 1."""
    generator = np.random.default_rng(seed)
    items = np.full((num_items, top), -1, np.int32)
    weights = np.zeros((num_items, top), np.float32)
    for item in range(num_items):
        others = generator.permutation(np.delete(np.arange(num_items), item))[: generator.integers(0, top + 1)]
        items[item, : len(others)] = others
        weights[item, : len(others)] = generator.dirichlet(np.ones(len(others))) if len(others) else []
    return Neighbourhoods(items, weights)


def rows_of(block: Block) -> dict[int, dict[int, float]]:
    """Target item -> {neighbour item: weight}, padding left out."""
    return {
        int(block.sources_N[d]): {
            int(block.sources_N[n]): float(w)
            for n, w in zip(block.neighbours_DT[d], block.weights_DT[d], strict=True)
            if w > 0
        }
        for d in range(block.num_targets)
    }


def row_in(table: Neighbourhoods, item: int) -> dict[int, float]:
    kept = table.mask_ST[item]
    return dict(zip(table.items_ST[item, kept].tolist(), table.weights_ST[item, kept].tolist(), strict=True))


def test_two_layers_of_a_line_reach_two_items_further():
    lower, upper = build_blocks(np.array([4, 0]), table_sampler(line(8)), num_layers=2)
    assert upper.sources_N.tolist() == [4, 0, 5, 1]
    assert upper.neighbours_DT.tolist() == [[2], [3]]
    assert lower.sources_N.tolist() == [4, 0, 5, 1, 6, 2]
    assert lower.neighbours_DT.tolist() == [[2], [3], [4], [5]]


def test_a_target_without_neighbours_has_weights_of_zero():
    (block,) = build_blocks(np.array([7]), table_sampler(line(8)), num_layers=1)
    assert block.sources_N.tolist() == [7]
    assert block.neighbours_DT.tolist() == [[0]]
    assert block.weights_DT.tolist() == [[0]]


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 3), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_blocks_say_what_the_sampled_rows_say(num_items, top, num_layers, seed):
    table = random_table(num_items, top, seed)
    targets = np.random.default_rng(seed).permutation(num_items)[: 1 + seed]
    blocks = build_blocks(targets, table_sampler(table), num_layers)
    assert len(blocks) == num_layers
    assert blocks[-1].sources_N[: blocks[-1].num_targets].tolist() == targets.tolist()
    for lower, upper in pairwise(blocks):
        assert lower.sources_N[: lower.num_targets].tolist() == upper.sources_N.tolist()
    for block in blocks:
        assert len(np.unique(block.sources_N)) == len(block.sources_N)
        used = np.union1d(np.arange(block.num_targets), block.neighbours_DT[block.weights_DT > 0])
        assert used.tolist() == list(range(len(block.sources_N)))  # nothing gathered in vain
        for target, neighbours in rows_of(block).items():
            expected = {item: weight for item, weight in row_in(table, target).items() if weight > 0}
            assert neighbours == expected


def test_types_are_those_that_torch_gathers_by():
    (block,) = build_blocks(np.array([3], np.int32), table_sampler(line(8)), num_layers=1)
    assert block.sources_N.dtype == block.neighbours_DT.dtype == np.int64
    assert block.weights_DT.dtype == np.float32


def test_no_targets_make_empty_blocks():
    (block,) = build_blocks(np.empty(0, np.int64), table_sampler(line(3)), num_layers=1)
    assert block.num_targets == len(block.sources_N) == 0


def test_repeated_targets_no_layers_and_unknown_items_are_refused_in_words():
    with pytest.raises(DataError, match="a target occurs twice"):
        build_blocks(np.array([1, 1]), table_sampler(line(3)), 1)
    with pytest.raises(ConfigError, match="num_layers"):
        build_blocks(np.array([1]), table_sampler(line(3)), 0)
    with pytest.raises(DataError, match=r"items 3 \.\. 3 in a table of 3"):
        build_blocks(np.array([3]), table_sampler(line(3)), 1)
