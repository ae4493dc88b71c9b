"""LightGCN's propagation, SASRec's windows and causality, and strict negatives, on logs that fit in a line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.peers import lightgcn, sasrec
from experiments.peers.interface import BestEpoch, StrictNegatives
from fedquilt.graphs.log import InteractionLog


def log_of(*histories: list[int], num_items: int) -> InteractionLog:
    users = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    return InteractionLog("hand", users, np.concatenate(histories), len(histories), num_items)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_lightgcn_averages_the_layers_of_a_three_node_graph(generator):
    # user 0 clicked items 0 and 1: nodes u, a, b, edges u-a and u-b, each weighing 1 / sqrt(2 * 1)
    log = log_of([0, 1], num_items=2)
    model = lightgcn.lightgcn(log, dim=1, num_layers=2, generator=generator)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.tensor([[1.0], [2.0], [4.0]]))
    out_ND = model.get_embedding(lightgcn.normalised_adjacency(log))
    # layer 1: u = (2 + 4)/√2, a = b = 1/√2; layer 2: u = 2 · (1/√2)/√2 = 1, a = b = (6/√2)/√2 = 3
    root = 2**0.5
    expected = [(1 + 6 / root + 1) / 3, (2 + 1 / root + 3) / 3, (4 + 1 / root + 3) / 3]
    assert out_ND.squeeze(1).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_symmetric_product_has_the_gradient_of_a_dense_product(generator):
    adjacency = lightgcn.normalised_adjacency(log_of([0, 1], [1], num_items=3))
    x_ND = torch.randn(5, 2, generator=generator, requires_grad=True)
    weights_ND = torch.randn(5, 2, generator=generator)
    (lightgcn.SymmetricLGConv(normalize=False)(x_ND, adjacency) * weights_ND).sum().backward()
    assert torch.allclose(x_ND.grad, adjacency.to_dense().T @ weights_ND, atol=1e-6)


def test_strict_negatives_are_anything_outside_the_users_training_items(generator):
    negatives = StrictNegatives(log_of([0, 1, 2], [4], num_items=5), generator)
    drawn = negatives.draw(torch.tensor([0, 1]).repeat(2000).reshape(2000, 2))
    assert set(drawn[:, 0].tolist()) == {3, 4}  # 4 may be user 0's held-out click: nobody is told
    assert set(drawn[:, 1].tolist()) == {0, 1, 2, 3}


def test_a_user_who_clicked_everything_has_no_negatives(generator):
    with pytest.raises(ValueError, match="every item"):
        StrictNegatives(log_of([0, 1], num_items=2), generator)


@pytest.mark.parametrize("length", [2, 3, 5, 9, 50])
def test_every_click_but_the_first_is_a_target_once_after_the_clicks_before_it(generator, length):
    history = [5, 3, 8, 1, 9, 0, 7, 2, 6, 4]
    seen = []
    for _, inputs_BL, targets_BL in sasrec.windows(log_of(history, num_items=10), length, 2, generator):
        for inputs, targets in zip(inputs_BL.tolist(), targets_BL.tolist(), strict=True):
            for place, (before, target) in enumerate(zip(inputs, targets, strict=True)):
                if before == 10:
                    continue
                seen.append(target)
                at = history.index(target)
                known = [item for item in inputs[: place + 1] if item != 10]
                assert known == history[at - len(known) : at]
    assert sorted(seen) == sorted(history[1:])


def test_a_sasrec_vector_depends_on_earlier_clicks_only(generator):
    torch.manual_seed(0)
    model = sasrec.SASRec(num_items=6, dim=8, length=4, num_blocks=2, heads=2, dropout=0.5).eval()
    before, after = model(torch.tensor([[0, 1, 2, 3]])), model(torch.tensor([[0, 1, 2, 5]]))
    assert torch.allclose(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_padding_on_the_left_does_not_change_a_sasrec_vector():
    torch.manual_seed(0)
    model = sasrec.SASRec(num_items=6, dim=8, length=4, num_blocks=2, heads=2, dropout=0.5).eval()
    assert torch.allclose(model(torch.tensor([[6, 6, 1, 2]]))[:, 2:], model(torch.tensor([[1, 2]])), atol=1e-6)


def test_the_best_epoch_is_kept_and_patience_ends_training():
    values = iter([0.1, 0.3, 0.2, 0.3])
    best = BestEpoch(lambda scores: next(values), patience=2)
    over = [best.is_over(epoch, np.full((1, 1), epoch)) for epoch in (1, 2, 3, 4)]
    assert over == [False, False, False, True]
    assert best.result().epoch == 2
    assert best.result()(np.array([0])).tolist() == [[2]]
