"""The cloud learns, from what it may see and nothing else, and always the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny_recommender import random_table, tiny_run

from fedquilt.config import CloudConfig, Config
from fedquilt.graphs.assemble import standardised
from fedquilt.graphs.datasets import load_split
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import Split, split_log
from models.cloud_model import build_cloud_model, feature_vectors, importance_matrix
from models.item_encoder import ImportanceConv, ItemEncoder
from models.kernel import KernelWeights
from server.cloud import train_cloud

CONFIG = tiny_run()
BASE_NAMES = {"item_vectors", "item_bias", "convolution", "pool_logits", "mix", "neighbour_items", "neighbour_weights"}


def split_of(config: Config) -> Split:
    return load_split(config.data, config.split)


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


@pytest.fixture(scope="module")
def trained():
    return train_cloud(CONFIG, split_of(CONFIG))


# --- it learns ---


def test_training_lowers_the_loss_and_raises_validation_ndcg():
    config = tiny_run(cloud={"epochs": 12, "patience": 12, "dropout": 0.0, "batch_size": 16, "learning_rate": 0.01})
    history = train_cloud(config, split_of(config)).history
    assert [record["epoch"] for record in history] == list(range(1, 13))
    assert np.mean([r["loss"] for r in history[-3:]]) < 0.95 * history[0]["loss"]
    assert max(record["valid_ndcg"] for record in history) > history[0]["valid_ndcg"]


def test_the_base_is_of_the_epoch_with_the_best_validation_score():
    config = tiny_run(cloud={"epochs": 6, "patience": 2, "learning_rate": 0.3})  # so steep that later epochs are worse
    result = train_cloud(config, split_of(config))
    scores = [record["valid_ndcg"] for record in result.history]
    best = int(np.argmax(scores)) + 1
    assert len(scores) in (6, best + 2)
    until_best = tiny_run(cloud={"epochs": best, "patience": 6, "learning_rate": 0.3})
    assert same(train_cloud(until_best, split_of(config)).base, result.base)


def test_the_base_is_what_a_device_can_hold(trained):
    assert trained.base.keys() == BASE_NAMES
    assert all(np.isfinite(array).all() for array in trained.base.values())
    weights = KernelWeights.of(trained.base)
    assert (weights.num_items, weights.dim) == (100, 8)
    assert weights.pool_logits.shape[1] == CONFIG.graph.num_clicked
    assert trained.base["neighbour_items"].dtype == np.int32
    assert trained.graph["edges"] > 0


def test_epochs_are_told_as_they_end():
    told: list[dict] = []
    assert train_cloud(CONFIG, split_of(CONFIG), told.append).history == told
    assert [record["epoch"] for record in told] == [1, 2]


# --- always the same ---


def test_training_is_the_same_to_the_bit_for_the_same_seed_whatever_was_drawn_before(trained):
    torch.manual_seed(12345)
    np.random.default_rng().random(10)
    again = train_cloud(CONFIG, split_of(CONFIG))
    assert same(again.base, trained.base)
    assert again.history == trained.history


def test_another_seed_trains_another_model(trained):
    other = train_cloud(CONFIG.model_copy(update={"seed": 4}), split_of(CONFIG)).base
    assert not np.allclose(other["item_vectors"], trained.base["item_vectors"], atol=1e-3)


# --- it sees its own part of the log only ---


def unseen_changed(split: Split) -> Split:
    """The same split where all that the cloud may not see is different: later training clicks and held-out ones."""
    rng = np.random.default_rng(0)
    train = split.train
    later_C = train.times_C > split.cut
    assert later_C.sum() > 100
    items_C = np.where(later_C, rng.permutation(train.num_items)[train.items_C], train.items_C)
    held_out = {
        name: dataclasses.replace(part, items_H=rng.integers(0, train.num_items, len(part)))
        for name, part in (("valid", split.valid), ("test", split.test))
    }
    return dataclasses.replace(split, train=dataclasses.replace(train, items_C=items_C), **held_out)


def test_a_stale_cloud_learns_nothing_from_later_clicks_or_held_out_ones(trained):
    changed = unseen_changed(split_of(CONFIG))
    assert same(train_cloud(CONFIG, changed).base, trained.base)


def test_a_stale_cloud_learns_from_every_click_that_it_sees(trained):
    split = split_of(CONFIG)
    items_C = split.cloud.items_C.copy()
    items_C[0] = (items_C[0] + 1) % 100
    changed = dataclasses.replace(split, cloud=dataclasses.replace(split.cloud, items_C=items_C))
    assert not same(train_cloud(CONFIG, changed).base, trained.base)


def test_a_warm_cloud_never_sees_test_clicks():
    config = tiny_run(split={"cloud_share": 1.0})
    split = split_of(config)
    other = dataclasses.replace(split.test, items_H=(split.test.items_H + 1) % 100)
    changed = dataclasses.replace(split, test=other)
    assert same(train_cloud(config, changed).base, train_cloud(config, split).base)


# --- edges of the possible ---


@pytest.mark.parametrize("num_negatives", [0, 2])
def test_a_cloud_that_sees_nothing_starts_from_features_and_an_averaging_kernel(num_negatives):
    config = tiny_run(split={"cloud_share": 0.0}, meta={"num_negatives": num_negatives})
    split = split_of(config)
    result = train_cloud(config, split)
    assert result.history == []
    assert (result.base["neighbour_items"] == -1).all()
    assert not result.base["convolution"].any()
    expected = feature_vectors(split.train.item_features_IF, 100, 8, np.random.default_rng())
    np.testing.assert_array_equal(result.base["item_vectors"], expected)


def test_no_epochs_give_the_untrained_base_with_the_graphs_neighbours():
    config = tiny_run(cloud={"epochs": 0})
    base = train_cloud(config, split_of(config)).base
    assert not base["item_bias"].any()
    assert (base["neighbour_items"] >= 0).any()


def test_an_item_that_nobody_has_clicked_gets_a_finite_vector_too():
    split = split_of(CONFIG)
    unclicked = split.cloud.popularity_I == 0
    cloud = split.cloud.where(split.cloud.items_C != int(np.argmax(split.cloud.popularity_I)))
    base = train_cloud(CONFIG, dataclasses.replace(split, cloud=cloud)).base
    missing = cloud.popularity_I == 0
    assert missing.sum() > unclicked.sum()
    assert np.isfinite(base["item_vectors"][missing]).all()
    assert base["item_vectors"][missing].any(1).all()


@pytest.mark.parametrize(
    "cloud", [{"use_ids": False}, {"use_features": False}, {"num_layers": 0}, {"dropout": 0.5, "weight_decay": 0.1}]
)
def test_every_kind_of_encoder_trains(cloud):
    config = tiny_run(cloud={"epochs": 1, **cloud})
    base = train_cloud(config, split_of(config)).base
    assert np.isfinite(base["item_vectors"]).all()
    assert base["item_vectors"].std(0).all()


def test_a_log_without_features_and_times_trains_on_ids():
    rng = np.random.default_rng(0)
    clicks = np.concatenate([rng.permutation(30)[:10] for _ in range(40)])
    log = InteractionLog("plain", np.repeat(np.arange(40), 10), clicks, 40, 30)
    config = tiny_run(cloud={"use_ids": False})  # without features only ids can tell items apart
    result = train_cloud(config, split_log(log, config.split))
    assert np.isfinite(result.base["item_vectors"]).all()
    assert len(result.history) == 2


# --- the parts of the model ---


def test_importance_pooling_by_hand():
    # One dimension, W = [w_self, w_pooled]: h_0 + tanh(w_self h_0 + w_pooled (0.25 h_1 + 0.75 h_2) + b)
    convolution = ImportanceConv(1)
    with torch.no_grad():
        convolution.linear.weight.copy_(torch.tensor([[0.5, 2.0]]))
        convolution.linear.bias.copy_(torch.tensor([0.1]))
    neighbours = importance_matrix(
        np.array([[1, 2], [-1, -1], [0, -1]], np.int32), np.array([[0.25, 0.75], [0, 0], [1, 0]])
    )
    out = convolution(torch.tensor([[1.0], [2.0], [4.0]]), neighbours).flatten().tolist()
    expected = [
        1 + np.tanh(0.5 * 1 + 2 * (0.25 * 2 + 0.75 * 4) + 0.1),
        2 + np.tanh(0.5 * 2 + 0.1),
        4 + np.tanh(0.5 * 4 + 2 * 1 + 0.1),
    ]
    assert out == pytest.approx(expected)


def test_an_importance_table_becomes_its_matrix():
    items, weights = random_table(0)
    matrix = importance_matrix(items, weights).to_dense().numpy()
    assert matrix.shape == (20, 20)
    for i in range(20):
        expected = {int(j): w for j, w in zip(items[i], weights[i], strict=True) if j >= 0}
        assert {j: matrix[i, j] for j in np.flatnonzero(matrix[i])} == expected


def test_an_encoder_of_neither_ids_nor_features_is_refused():
    with pytest.raises(ValueError, match="needs ids, features or both"):
        ItemEncoder(3, 2, None, use_ids=False, hidden=2, num_layers=1, dropout=0.0)


def test_neighbours_reach_as_far_as_there_are_layers():
    # A chain 0 <- 1 <- 2: with two layers item 2's id moves item 0's vector, with one it does not.
    items, weights = np.array([[1], [2], [-1]], np.int32), np.array([[1.0], [1.0], [0.0]], np.float32)
    for layers, reached in ((1, False), (2, True)):
        torch.manual_seed(0)
        config = CloudConfig(dim=2, hidden=2, num_layers=layers, dropout=0.0)
        model = build_cloud_model(config, 3, 4, None, items, weights)
        model.weights().item_vectors[0].sum().backward()
        assert model.encoder.ids.weight.grad[2].any().item() is reached


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=st.floats(-100, 100, width=16))
)
def test_standardised_columns_have_mean_0_and_deviation_1_or_are_0(features_IF):
    found = standardised(features_IF)
    assert np.isfinite(found).all()
    for column, given_ in zip(found.T, features_IF.T, strict=True):
        if np.ptp(given_) == 0:
            assert not column.any()
        elif np.ptp(given_) > 1e-3 * np.abs(given_).max():
            assert column.mean() == pytest.approx(0, abs=1e-3)
            assert column.std() == pytest.approx(1, abs=1e-3)


def test_an_unknown_value_is_the_mean_and_an_unknown_column_is_0():
    found = standardised(np.array([[1.0, np.nan], [np.nan, np.nan], [3.0, np.nan]]))
    assert found.tolist() == [[-1, 0], [0, 0], [1, 0]]


def test_feature_vectors_keep_the_angles_between_centred_features():
    features = np.random.default_rng(0).standard_normal((50, 5))
    vectors = feature_vectors(features, 50, 8, np.random.default_rng(0))
    assert vectors.shape == (50, 8)
    assert not vectors[:, 5:].any()
    np.testing.assert_allclose(vectors[:, :5].std(0), 0.3, rtol=1e-5)
    # Whitened components: the projection onto their span is that onto the centred features' span.
    left = vectors[:, :5] / 0.3 / np.sqrt(50)
    basis, _ = np.linalg.qr(features - features.mean(0))
    np.testing.assert_allclose(left @ left.T, basis @ basis.T, atol=1e-5)


def test_constant_features_give_zero_vectors_and_none_give_noise():
    assert not feature_vectors(np.ones((6, 3)), 6, 4, np.random.default_rng(0)).any()
    noise = feature_vectors(None, 500, 4, np.random.default_rng(0))
    assert noise.std() == pytest.approx(0.1, rel=0.1)
