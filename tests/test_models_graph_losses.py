"""Losses of the graph model by hand, their masks and their limits."""

from __future__ import annotations

import math

import pytest
import torch

from fedquilt.errors import DataError
from models.graph_losses import SUPERVISED, max_margin, not_in_pair, unsupervised

# z_q · z_i = .5 and .8; against the shared n_0, n_1: (.6, .3) and (.7, .9); against the hard one of each row: .45, .1
QUERIES = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
ITEMS = torch.tensor([[0.5, 9.0], [9.0, 0.8]])
SHARED = torch.tensor([[0.6, 0.7], [0.3, 0.9]])
HARD = torch.tensor([[[0.45, 9.0]], [[9.0, 0.1]]])


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_max_margin_by_hand():
    # Margin .1. Row 0: .6 - .5 + .1 = .2 and 0. Row 1: 0 and .9 - .8 + .1 = .2. Means .1, .1.
    assert max_margin(QUERIES, ITEMS, 0.1, SHARED).item() == pytest.approx(0.1)


def test_hard_negatives_join_the_expectation():
    # Hard hinges: .45 - .5 + .1 = .05 and 0. Rows: (.2 + 0 + .05) / 3 and (.2) / 3.
    assert max_margin(QUERIES, ITEMS, 0.1, SHARED, HARD).item() == pytest.approx(0.45 / 6)
    assert max_margin(QUERIES, ITEMS, 0.1, hard_BHF=HARD).item() == pytest.approx(0.05 / 2)


def test_what_does_not_count_is_left_out_of_the_expectation():
    # Row 0 without n_1: .2. Row 1 without anything: 0.
    counts = torch.tensor([[True, False], [False, False]])
    assert max_margin(QUERIES, ITEMS, 0.1, SHARED, shared_counts_BM=counts).item() == pytest.approx(0.1)
    # Row 0: .2 of n_0 alone; its hard one does not count. Row 1: its hard one, 0.
    hard_counts = torch.tensor([[False], [True]])
    found = max_margin(QUERIES, ITEMS, 0.1, SHARED, HARD, counts, hard_counts)
    assert found.item() == pytest.approx(0.1)


def test_a_wider_margin_costs_more_and_a_well_ranked_pair_nothing():
    assert max_margin(QUERIES, ITEMS, 1.0, SHARED) > max_margin(QUERIES, ITEMS, 0.1, SHARED)
    assert max_margin(QUERIES, 10 * ITEMS, 0.1, SHARED).item() == 0


def test_the_unsupervised_loss_by_hand():
    rows = [
        log_sigmoid(0.5) + 3 * (log_sigmoid(-0.6) + log_sigmoid(-0.3)) / 2,
        log_sigmoid(0.8) + 3 * (log_sigmoid(-0.7) + log_sigmoid(-0.9)) / 2,
    ]
    assert unsupervised(QUERIES, ITEMS, SHARED, Q=3).item() == pytest.approx(-sum(rows) / 2)
    counts = torch.tensor([[True, True], [False, False]])
    rows[1] = log_sigmoid(0.8)
    found = unsupervised(QUERIES, ITEMS, SHARED, shared_counts_BM=counts, Q=3)
    assert found.item() == pytest.approx(-sum(rows) / 2)


@pytest.mark.parametrize("loss", [lambda *z, **n: max_margin(*z, margin=5.0, **n), unsupervised])
def test_a_negative_that_does_not_count_gets_no_gradient(loss):
    shared, hard = SHARED.clone().requires_grad_(), HARD.clone().requires_grad_()
    counts, hard_counts = torch.tensor([[True, False], [True, False]]), torch.tensor([[True], [False]])
    loss(
        QUERIES, ITEMS, shared_MF=shared, hard_BHF=hard, shared_counts_BM=counts, hard_counts_BH=hard_counts
    ).backward()
    assert shared.grad[0].any()
    assert not shared.grad[1].any()
    assert hard.grad[0].any()
    assert not hard.grad[1].any()


@pytest.mark.parametrize("loss", [lambda *z: max_margin(*z[:2], 0.3, *z[2:]), unsupervised])
def test_gradients_are_those_of_finite_differences(loss):
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3), (4, 3), (5, 3), (4, 2, 3))
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(loss, tensors)


def test_a_row_is_not_told_apart_from_its_own_query_and_item():
    queries, items = torch.tensor([1, 2]), torch.tensor([3, 4])
    # Shared: row 0 holds 1 and 3 itself; row 1 holds 4.
    assert not_in_pair(torch.tensor([1, 3, 4, 7]), queries, items).tolist() == [
        [False, False, True, True],
        [True, True, False, True],
    ]
    # Hard ones belong to their row; -1 is none.
    assert not_in_pair(torch.tensor([[3, 4], [-1, 3]]), queries, items).tolist() == [[False, True], [False, True]]


def test_cross_entropy_by_hand():
    # e^logits: (1, 3) with label 1 -> log(4 / 3); label -1 does not count.
    logits = torch.tensor([[1.0, 3.0], [5.0, 1.0]]).log()
    loss = SUPERVISED["cross-entropy"]
    assert loss(logits, torch.tensor([1, -1])).item() == pytest.approx(math.log(4 / 3))
    assert loss(logits, torch.tensor([-1, -1])).item() == 0


def test_multi_label_by_hand():
    # sigmoid(log 3) = 3/4: labels 1, 0 cost -log(3/4) and -log(1/4).
    logits = torch.tensor([[3.0, 3.0]]).log()
    expected = (math.log(4 / 3) + math.log(4)) / 2
    assert SUPERVISED["multi-label"](logits, torch.tensor([[1, 0]])).item() == pytest.approx(expected)


def test_wrong_shapes_and_labels_are_refused():
    with pytest.raises(DataError, match="got neither"):
        max_margin(QUERIES, ITEMS, 0.1)
    with pytest.raises(DataError, match=r"expected \(2, 2\)"):
        max_margin(QUERIES, ITEMS, 0.1, SHARED, shared_counts_BM=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(DataError, match="label 2, but logits are for 2 classes"):
        SUPERVISED["cross-entropy"](torch.zeros(1, 2), torch.tensor([2]))
    with pytest.raises(DataError, match="one label a row"):
        SUPERVISED["cross-entropy"](torch.zeros(1, 2), torch.tensor([0, 1]))
    with pytest.raises(DataError, match="0 or 1 a class"):
        SUPERVISED["multi-label"](torch.zeros(1, 2), torch.tensor([0]))
