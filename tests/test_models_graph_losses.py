"""Losses of the graph model by hand, their masks and their limits."""

from __future__ import annotations

import math

import pytest
import torch

from fedquilt.errors import DataError
from models.graph_losses import SUPERVISED, Scores, max_margin, not_in_pair, softmax, unsupervised


def scores(values: list[list[float]], counts: list[list[bool]] | None = None) -> Scores:
    tensor = torch.tensor(values)
    return Scores(tensor, torch.ones_like(tensor, dtype=torch.bool) if counts is None else torch.tensor(counts))


POSITIVE = scores([[0.5], [0.8]])
SHARED = scores([[0.6, 0.3], [0.7, 0.9]])
HARD = scores([[0.45], [0.1]])


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_max_margin_by_hand():
    # Margin .1. Row 0: .6 - .5 + .1 = .2 and 0. Row 1: 0 and .9 - .8 + .1 = .2. Means .1, .1.
    assert max_margin(POSITIVE, SHARED, 0.1).item() == pytest.approx(0.1)


def test_hard_negatives_join_the_expectation():
    # Hard hinges: .45 - .5 + .1 = .05 and 0. Rows: (.2 + 0 + .05) / 3 and (.2) / 3.
    assert max_margin(POSITIVE, SHARED.beside(HARD), 0.1).item() == pytest.approx(0.45 / 6)
    assert max_margin(POSITIVE, HARD, 0.1).item() == pytest.approx(0.05 / 2)


def test_negatives_that_do_not_count_are_left_out_of_the_expectation():
    # Row 0 without n_1: .2. Row 1 without anything: 0.
    some = scores([[0.6, 0.3], [0.7, 0.9]], [[True, False], [False, False]])
    assert max_margin(POSITIVE, some, 0.1).item() == pytest.approx(0.1)


def test_several_positives_of_a_row_are_averaged_and_padding_is_not_one():
    # Against .6, margin .1: .2 for .5 and 0 for .8; the third does not count. Row 1 has no positive: 0.
    positive = scores([[0.5, 0.8, -9.0], [0.5, 0.8, 0.0]], [[True, True, False], [False] * 3])
    assert max_margin(positive, scores([[0.6], [0.6]]), 0.1).item() == pytest.approx(0.1 / 2)


def test_many_positives_and_negatives_cost_what_the_plain_sum_says():
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (4, 9)]
    positive, negative = (Scores(v, torch.rand(v.shape, generator=generator) < 0.7) for v in values)
    hinges = torch.relu(negative.values[:, None] - positive.values[:, :, None] + 0.3) * negative.counts[:, None]
    by_positive = hinges.sum(2) / negative.counts.sum(1, keepdim=True).clamp(min=1) * positive.counts
    expected = (by_positive.sum(1) / positive.counts.sum(1).clamp(min=1)).mean()
    assert max_margin(positive, negative, 0.3).item() == pytest.approx(expected.item())


def test_a_wider_margin_costs_more_and_a_well_ranked_pair_nothing():
    assert max_margin(POSITIVE, SHARED, 1.0) > max_margin(POSITIVE, SHARED, 0.1)
    assert max_margin(scores([[5.0], [8.0]]), SHARED, 0.1).item() == 0


def test_the_unsupervised_loss_by_hand():
    rows = [
        log_sigmoid(0.5) + 3 * (log_sigmoid(-0.6) + log_sigmoid(-0.3)) / 2,
        log_sigmoid(0.8) + 3 * (log_sigmoid(-0.7) + log_sigmoid(-0.9)) / 2,
    ]
    assert unsupervised(POSITIVE, SHARED, Q=3).item() == pytest.approx(-sum(rows) / 2)
    some = scores([[0.6, 0.3], [0.7, 0.9]], [[True, True], [False, False]])
    rows[1] = log_sigmoid(0.8)
    assert unsupervised(POSITIVE, some, Q=3).item() == pytest.approx(-sum(rows) / 2)


def test_the_softmax_loss_by_hand():
    # 1 against 0 at temperature .5 (the other 0 does not count): log(1 + e^-2)
    negative = scores([[0.0, 0.0]], [[True, False]])
    assert softmax(scores([[1.0]]), negative, 0.5).item() == pytest.approx(math.log1p(math.exp(-2)))


def test_positives_of_one_row_do_not_stand_against_each_other():
    # each of 1 and 2 against 0 alone
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2
    assert softmax(scores([[1.0, 2.0]]), scores([[0.0]]), 1.0).item() == pytest.approx(expected)


LOSSES = {
    "max-margin": lambda positive, negative: max_margin(positive, negative, 5.0),
    "unsupervised": unsupervised,
    "softmax": lambda positive, negative: softmax(positive, negative, 0.5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_count_gets_no_gradient(name):
    positive, negative = (torch.randn(2, 3, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    counts = torch.tensor([[True, True, False], [True, False, True]])
    positive.requires_grad_(), negative.requires_grad_()
    LOSSES[name](Scores(positive, counts), Scores(negative, counts)).backward()
    assert ((positive.grad != 0) == counts).all()
    assert ((negative.grad != 0) == counts).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_without_a_positive_is_padding_and_costs_nothing(name):
    nothing = Scores(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    assert LOSSES[name](nothing, scores([[3.0, -3.0]])).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_without_any_negative_costs_nothing_finite_gradients_included(name):
    positive = torch.zeros(1, 2, requires_grad=True)
    none = Scores(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    cost = LOSSES[name](Scores(positive, torch.ones(1, 2, dtype=torch.bool)), none)
    cost.backward()
    assert cost.item() == pytest.approx(0 if name != "unsupervised" else math.log(2))
    assert positive.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(4, n, generator=generator, dtype=torch.float64).requires_grad_() for n in (2, 5)]
    counts = torch.ones(4, 5, dtype=torch.bool)
    assert torch.autograd.gradcheck(
        lambda positive, negative: LOSSES[name](Scores(positive, counts[:, :2]), Scores(negative, counts)), tensors
    )


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
    with pytest.raises(DataError, match="do not fit scores"):
        Scores(torch.zeros(2, 2), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(DataError, match="label 2, but logits are for 2 classes"):
        SUPERVISED["cross-entropy"](torch.zeros(1, 2), torch.tensor([2]))
    with pytest.raises(DataError, match="one label a row"):
        SUPERVISED["cross-entropy"](torch.zeros(1, 2), torch.tensor([0, 1]))
    with pytest.raises(DataError, match="0 or 1 a class"):
        SUPERVISED["multi-label"](torch.zeros(1, 2), torch.tensor([0]))
