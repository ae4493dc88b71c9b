"""User vectors and the score of an epoch; checkpoints of training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedquilt.config import GraphModelConfig
from fedquilt.errors import RunError
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import HeldOut
from server.graph_training.checkpoint import (
    Progress,
    load_progress,
    optimizer_moments,
    restore_moments,
    save_progress,
)
from server.graph_training.judge import user_vectors, validation_ndcg

ITEM_VECTORS = np.float32([[1, 0], [0, 1], [2, 0], [0, 4]])


@pytest.fixture
def log():
    """User 0 clicked 0, 1, 2; user 1 nothing; user 2 clicked 3."""
    return InteractionLog("tiny", np.array([0, 0, 0, 2]), np.array([0, 1, 2, 3]), 3, 4)


def test_a_user_is_the_decayed_mean_of_the_latest_clicks(log):
    config = GraphModelConfig(user_pooling="decay", user_decay=0.5, user_clicks=2)
    # Hand: items 2 and 1 with weights 2/3 and 1/3: (2·2/3, 1/3).
    assert user_vectors(ITEM_VECTORS, log, np.array([0]), config) == pytest.approx(np.array([[4 / 3, 1 / 3]]))


def test_a_mean_forgets_the_order(log):
    config = GraphModelConfig(user_pooling="mean", user_clicks=20)
    assert user_vectors(ITEM_VECTORS, log, np.array([0]), config) == pytest.approx(np.array([[1, 1 / 3]]))


def test_item_to_item_is_the_latest_click_alone(log):
    config = GraphModelConfig(judge="item")
    assert user_vectors(ITEM_VECTORS, log, np.array([0, 2]), config).tolist() == [[2, 0], [0, 4]]


def test_a_user_without_a_click_has_a_zero_vector(log):
    assert user_vectors(ITEM_VECTORS, log, np.array([1]), GraphModelConfig()).tolist() == [[0, 0]]


def test_the_score_of_an_epoch_is_the_ndcg_among_unclicked_items(log):
    # Hand: user 2's vector is (0, 4), scores of the unclicked 0, 1, 2 are 0, 4, 0: item 1 is first, item 0 ties with 2.
    config = GraphModelConfig()
    assert validation_ndcg(ITEM_VECTORS, log, HeldOut(np.array([2]), np.array([1])), config) == pytest.approx(1.0)
    tied = validation_ndcg(ITEM_VECTORS, log, HeldOut(np.array([2]), np.array([0])), config)
    assert tied == pytest.approx((1 / np.log2(3) + 1 / np.log2(4)) / 2)


# --- checkpoints ---


def progress_after(epoch: int) -> Progress:
    weights = {"layer": torch.arange(4.0) + epoch}
    return Progress(epoch, "data", weights, weights, {"0/step": torch.tensor(float(epoch))}, epoch, 0.5, ({"a": 1},))


def test_a_checkpoint_comes_back_to_the_bit(tmp_path):
    save_progress(tmp_path, progress_after(3))
    found, complaints = load_progress(tmp_path)
    assert not complaints
    assert (found.epoch, found.best_epoch, found.best_score, found.history) == (3, 3, 0.5, ({"a": 1},))
    assert torch.equal(found.weights["layer"], torch.arange(4.0) + 3)
    assert found.moments["0/step"].shape == ()


def test_two_checkpoints_are_kept_and_a_damaged_one_falls_back(tmp_path):
    newest = [save_progress(tmp_path, progress_after(epoch)) for epoch in (1, 2, 3)][-1]
    assert len(list(tmp_path.iterdir())) == 2
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    found, complaints = load_progress(tmp_path)
    assert found.epoch == 2
    assert "checksum" in complaints[0]


def test_a_folder_with_damaged_checkpoints_alone_is_refused(tmp_path):
    save_progress(tmp_path, progress_after(1)).write_bytes(b"no")
    with pytest.raises(RunError, match="no checkpoint can be read"):
        load_progress(tmp_path)


def test_an_empty_folder_has_no_progress(tmp_path):
    assert load_progress(tmp_path) == (None, [])


def test_adam_goes_on_from_its_moments_as_if_never_stopped():
    def steps(optimizer, weight, count):
        for _ in range(count):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            optimizer.step()

    whole = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    steps(torch.optim.Adam([whole]), whole, 6)
    first = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    adam = torch.optim.Adam([first])
    steps(adam, first, 3)
    second = torch.nn.Parameter(first.detach().clone())
    resumed = torch.optim.Adam([second])
    restore_moments(resumed, optimizer_moments(adam))
    steps(resumed, second, 3)
    assert torch.equal(whole, second)
