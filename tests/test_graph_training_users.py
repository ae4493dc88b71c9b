"""Batches of users: every click from the others, what is hidden, and the loss by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_graph_training import prepared, tiny_config

from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.log import InteractionLog
from models.graph_losses import softmax
from server.graph_training.objective import _of_users, batch_loss
from server.graph_training.trainer import fresh, train
from server.graph_training.user_batches import UserBatch, UserBatchMaker, draw_columns, draw_runs, rows_of

USERS = {"pairs": "users", "batch_size": 16, "user_clicks": 6, "user_pooling": "mean", "loss": "softmax"}


def maker_of(rank: int = 0, world: int = 1, **graph_model) -> UserBatchMaker:
    config = tiny_config(**{**USERS, **graph_model})
    return UserBatchMaker(config.graph_model, config.seed, prepared(config).task.material, rank, world)


def log_of(*histories: list[int]) -> InteractionLog:
    users = np.repeat(np.arange(len(histories)), [len(items) for items in histories])
    return InteractionLog("hand", users, np.concatenate(histories).astype(np.int64), len(histories), 10)


def test_users_of_one_click_are_no_rows_and_a_log_of_them_is_refused():
    assert rows_of(log_of([1, 2], [3], [4, 5, 6])).tolist() == [0, 2]
    with pytest.raises(DataError, match="no user has two clicks"):
        rows_of(log_of([1], [2]))


@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=8), min_size=1, max_size=5), st.integers(2, 6))
def test_a_run_is_some_clicks_in_a_row_latest_first_and_no_item_twice(histories, longest):
    log = log_of(*histories)
    runs_BA = draw_runs(log, np.arange(len(histories)), longest, np.random.default_rng(0))
    for history, row in zip(histories, runs_BA.tolist(), strict=True):
        length = min(len(history), longest)
        windows = [history[at : at + length][::-1] for at in range(len(history) - length + 1)]
        kept = [[item if item not in window[:at] else -1 for at, item in enumerate(window)] for window in windows]
        assert row in [window + [-1] * (len(row) - length) for window in kept]


def test_runs_begin_anywhere():
    log = log_of([0, 1, 2, 3])
    generator = np.random.default_rng(0)
    first = {int(draw_runs(log, np.zeros(1, np.int64), 2, generator)[0, 1]) for _ in range(100)}
    assert first == {0, 1, 2}


def test_single_queries_are_different_clicks_before_padding():
    columns_BQ = draw_columns(np.array([[5, -1, 6, 7], [5, -1, -1, -1]]), 3, np.random.default_rng(0))
    assert sorted(columns_BQ[0].tolist()) == [0, 2, 3]
    assert columns_BQ[1, 0] == 0


def test_a_negative_that_counts_is_never_what_its_user_clicked():
    config = tiny_config(**{**USERS, "user_clicks": 1000}).graph_model  # rows are whole histories
    material = prepared(tiny_config(**USERS)).task.material
    named = replace(material, values_IF=np.eye(material.graph.num_items, dtype=np.float32))  # features name the item
    batch = UserBatchMaker(config, 5, named)[3, 0]
    item_D = batch.features_NF.argmax(1)  # targets come first
    for row in range(batch.rows):
        clicked = set(item_D[batch.clicked_BA[row]][batch.clicked_counts_BA[row]].tolist())
        shared = item_D[batch.shared_M]
        assert [item in clicked for item in shared.tolist()] == (~batch.shared_counts_BM[row]).tolist()
        assert not clicked & set(item_D[batch.hard_BQH[row]][batch.hard_counts_BQH[row]].tolist())


def test_a_batch_of_everybody_sees_no_neighbour_that_anybody_clicked_too():
    config = tiny_config(**{**USERS, "batch_size": 1000}).graph_model
    material = prepared(tiny_config(**USERS)).task.material
    named = replace(material, values_IF=np.eye(material.graph.num_items, dtype=np.float32))
    batch, log = UserBatchMaker(config, 5, named)[1, 0], material.log
    clicked_UI = np.zeros((log.num_users, log.num_items), bool)
    clicked_UI[log.users_C, log.items_C] = True
    together_II = clicked_UI.T.astype(int) @ clicked_UI
    item_N, block = batch.features_NF.argmax(1).numpy(), batch.blocks[0]
    rows, columns = np.nonzero(block.weights_DT.numpy())
    assert not together_II[item_N[rows], item_N[block.neighbours_DT.numpy()[rows, columns]]].any()


def test_the_others_mean_has_the_weights_of_recency():
    batch = maker_of(user_pooling="decay", user_decay=0.5)[1, 0]
    vectors_DF = torch.randn(len(batch.blocks[-1].weights_DT), 3, generator=torch.Generator().manual_seed(0))
    (positive, _, _), _ = _of_users(vectors_DF, batch, None)
    row = int(batch.clicked_counts_BA.sum(1).argmax())
    clicks = vectors_DF[batch.clicked_BA[row]][batch.clicked_counts_BA[row]]
    weights = 0.5 ** torch.arange(len(batch.clicked_BA[row]))[batch.clicked_counts_BA[row]]
    others = (weights[1:, None] * clicks[1:]).sum(0) / weights[1:].sum()
    assert positive.values[row, 0].item() == pytest.approx(float(clicks[0] @ others), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pairs": "users", "user_clicks": 1}, "user_clicks to 2 or more"),
        ({"user_map": True}, 'set pairs = "users"'),
        ({"pairs": "users", "user_map": True, "query_users": 0}, "query_users above 0"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        tiny_config(**settings)


def test_the_shares_of_two_processes_are_together_the_batch_of_one():
    whole, *halves = (maker_of(*who)[2, 1] for who in ((0, 1), (0, 2), (1, 2)))

    def clicked_features(batch: UserBatch) -> torch.Tensor:
        return batch.features_NF[batch.clicked_BA] * batch.clicked_counts_BA[:, :, None]  # targets come first

    for rank, half in enumerate(halves):
        assert torch.equal(clicked_features(half), clicked_features(whole)[rank::2])


def test_a_click_is_predicted_from_the_mean_of_the_others():
    batch = maker_of()[1, 0]
    generator = torch.Generator().manual_seed(0)
    vectors_DF = torch.randn(len(batch.blocks[-1].weights_DT), 3, generator=generator)
    user_map = torch.nn.Linear(3, 3, bias=False)
    (positive, _, _), _ = _of_users(vectors_DF, batch, user_map)
    row = int(batch.clicked_counts_BA.sum(1).argmax())
    clicks = batch.clicked_BA[row][batch.clicked_counts_BA[row]].tolist()
    expected = [
        vectors_DF[item] @ user_map(vectors_DF[[other for other in clicks if other != item]].mean(0)) for item in clicks
    ]
    assert torch.allclose(positive.values[row][batch.clicked_counts_BA[row]], torch.stack(expected), atol=1e-5)


def test_a_single_query_s_positives_are_the_row_s_other_clicks():
    batch = maker_of(single_queries=2)[1, 0]
    vectors_DF = torch.eye(len(batch.blocks[-1].weights_DT))  # a score is 1 for the item itself
    _, (positive, _, _) = _of_users(vectors_DF, batch, None)
    assert positive.counts.any()
    assert not positive.values[positive.counts].any()
    several = batch.clicked_counts_BA.sum(1).repeat_interleave(2)
    assert positive.counts.sum(1).tolist() == (several - 1).tolist()


def test_the_share_of_users_weighs_the_two_questions():
    batch, config = maker_of()[1, 0], tiny_config(**USERS).graph_model
    vectors_DF = torch.randn(len(batch.blocks[-1].weights_DT), 3, generator=torch.Generator().manual_seed(0))
    of_users, of_singles = _of_users(vectors_DF, batch, None)
    users = softmax(of_users[0], of_users[1].beside(of_users[2]), config.user_temperature)
    singles = softmax(of_singles[0], of_singles[1].beside(of_singles[2]), config.temperature)
    found = batch_loss(config.model_copy(update={"query_users": 0.25}), vectors_DF, batch)
    assert found.item() == pytest.approx(float(0.25 * users + 0.75 * singles), rel=1e-5)


@pytest.mark.parametrize("loss", ["max-margin", "softmax", "unsupervised"])
def test_training_on_users_lowers_the_loss_and_moves_the_user_map(loss):
    config = tiny_config(
        **{**USERS, "loss": loss, "user_map": True, "skip": True, "hard_negatives": False, "epochs": 8}
    )
    task = prepared(config).task
    model, _ = fresh(config.graph_model, task)
    history = train(config.graph_model, task)
    assert history.history[-1]["loss"] < history.history[1]["loss"]
    assert not torch.equal(history.weights["user_map.weight"], model.state_dict()["user_map.weight"])
