"""Queries that are users: the clicks before the query are pooled with it, and see nothing of what is predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_graph_training import prepared, tiny_config

from fedquilt.graphs.log import InteractionLog
from models.graph_losses import softmax
from server.graph_training.batches import Batch, BatchMaker
from server.graph_training.pairs import Histories, click_pairs
from server.graph_training.trainer import query_vectors


def maker_of(rank: int = 0, world: int = 1, **graph_model) -> BatchMaker:
    config = tiny_config(user_clicks=4, **graph_model)
    return BatchMaker(config.graph_model, config.seed, prepared(config).task.material, rank, world)


@pytest.fixture
def two_users() -> InteractionLog:
    return InteractionLog("hand", np.array([0, 0, 0, 1, 1, 1]), np.array([5, 6, 7, 8, 9, 5]), 2, 10)


def test_a_history_is_what_the_same_user_clicked_before_the_query(two_users):
    histories = Histories.of(two_users, window=2)
    assert click_pairs(two_users, 2).tolist() == [[5, 6], [6, 7], [8, 9], [9, 5], [5, 7], [8, 5]]
    before = histories.before(np.arange(6), 2).tolist()
    assert before == [[-1, -1], [5, -1], [-1, -1], [8, -1], [-1, -1], [-1, -1]]


def test_queries_are_items_unless_users_are_asked_for():
    assert maker_of()[1, 0].earlier_BA.shape[1] == 0


def test_the_share_of_queries_that_are_users_is_kept():
    every, none = (maker_of(query_users=share)[1, 0].earlier_weights_BA.sum(1) for share in (1.0, 1e-9))
    some = maker_of(query_users=0.5)[1, 0].earlier_weights_BA.sum(1)
    assert (none == 0).all()
    assert 0 < (some > 0).sum() < (every > 0).sum()


def test_a_user_query_is_the_weighted_mean_of_its_clicks():
    batch = maker_of(query_users=1.0, user_decay=0.5)[1, 0]
    vectors_DF = torch.randn(len(batch.blocks[-1].weights_DT), 3, generator=torch.Generator().manual_seed(0))
    row = int(batch.earlier_weights_BA.sum(1).argmax())
    clicks = [int(batch.queries_B[row]), *batch.earlier_BA[row].tolist()]
    weights = torch.tensor([1.0, 0.5, 0.25, 0.125])[: 1 + int((batch.earlier_weights_BA[row] > 0).sum())]
    expected = (weights[:, None] * vectors_DF[clicks[: len(weights)]]).sum(0) / weights.sum()
    assert torch.allclose(query_vectors(vectors_DF, batch)[row], expected, atol=1e-6)


def test_the_shares_of_two_processes_are_together_the_batch_of_one():
    whole, *halves = (maker_of(*who, query_users=0.5)[2, 1] for who in ((0, 1), (0, 2), (1, 2)))

    def query_features(batch: Batch) -> torch.Tensor:
        return query_vectors(batch.features_NF, batch)  # targets stand first among the sources

    for rank, half in enumerate(halves):
        assert torch.allclose(query_features(half), query_features(whole)[rank::2], atol=1e-6)


def test_the_softmax_loss_by_hand():
    # scores 1 (positive), 0 and 0 (the last does not count), temperature 0.5: log(1 + e^-2)
    query, item, negatives = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 5.0]]), torch.tensor([[0.0, 1.0]] * 2)
    counts = torch.tensor([[True, False]])
    assert softmax(query, item, 0.5, negatives, None, counts).item() == pytest.approx(np.log1p(np.exp(-2)), abs=1e-6)
