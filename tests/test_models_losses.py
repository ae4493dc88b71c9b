"""The softmax loss of targets against unseen items or drawn negatives."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tiny_recommender import (
    ALL_PARTS,
    CLICKED,
    ITEMS,
    cohorts_of,
    log_of,
    loss_by_hand,
    meta_config,
    random_log,
    random_patch,
    random_weights,
    spec_of,
)

from fedquilt.types import Cohort
from models.kernel import KernelWeights
from models.losses import Examples, seen_mask, softmax_loss

WEIGHTS = random_weights()
# Bias alone decides the scores: e^s = 1, 2, 3, 4.
BIAS_ONLY = KernelWeights(
    item_vectors=torch.zeros(4, 2),
    item_bias=torch.tensor([1.0, 2.0, 3.0, 4.0]).log(),
    convolution=torch.zeros(2, 2, 2),
    pool_logits=torch.zeros(1, CLICKED),
    mix=torch.zeros(4, 2),
)


def cohort_of(targets: list[int], seen: list[int], negatives: list[list[int]] | None = None) -> Cohort:
    """One user, one subgraph of one clicked node."""
    return Cohort(
        client_ids_U=np.zeros(1, np.int64),
        nodes_UGN=np.zeros((1, 1, 1), np.int32),
        node_mask_UGN=np.ones((1, 1, 1), bool),
        recency_UGN=np.zeros((1, 1, 1), np.int16),
        edges_UGNN=np.zeros((1, 1, 1, 1), np.float32),
        targets_UGT=np.array([[targets]], np.int32),
        num_support=1,
        seen=(np.zeros(len(seen), np.int64), np.array(seen, np.int64)),
        negatives_UGTM=None if negatives is None else np.array([[negatives]], np.int64),
    )


def loss(cohort: Cohort, weights: KernelWeights = WEIGHTS, patch=None) -> torch.Tensor:
    return softmax_loss(weights, Examples.of(cohort, weights.num_items), patch)


def test_the_full_loss_by_hand():
    # Seen: 0 and 1, so items 2 and 3 (3 + 4 of mass) compete. Targets 0 and 1: mass 1 and 2.
    expected = (-math.log(1 / (1 + 7)) - math.log(2 / (2 + 7))) / 2
    assert loss(cohort_of([0, 1, -1], seen=[0, 1]), BIAS_ONLY).item() == pytest.approx(expected)


def test_the_sampled_loss_by_hand():
    # Target 0 against item 3 drawn twice; target 1 against item 2, and nothing in the second place.
    expected = (-math.log(1 / (1 + 4 + 4)) - math.log(2 / (2 + 3))) / 2
    cohort = cohort_of([0, 1], seen=[0, 1], negatives=[[3, 3], [2, -1]])
    assert loss(cohort, BIAS_ONLY).item() == pytest.approx(expected)


def test_a_target_without_any_competitor_costs_nothing():
    assert loss(cohort_of([2], seen=[0, 1, 2, 3]), BIAS_ONLY).item() == 0
    assert loss(cohort_of([2], seen=[2], negatives=[[-1, -1]]), BIAS_ONLY).item() == 0


@pytest.mark.parametrize("num_negatives", [0, 3])
def test_the_loss_is_that_of_plain_loops(num_negatives):
    meta = meta_config(num_negatives=num_negatives)
    cohort = cohorts_of(random_log(4, num_users=5), meta).training_cohort(np.arange(5), 2, 1)
    spec = spec_of()
    patch = spec.views(torch.from_numpy(np.stack([random_patch(spec, seed) for seed in range(5)])))
    found = loss(cohort, patch=patch)
    for user in range(5):
        own = {name: tensor[user] for name, tensor in patch.items()}
        assert found[user].item() == pytest.approx(loss_by_hand(WEIGHTS, cohort, user, range(4), own).item(), abs=1e-4)


@pytest.mark.parametrize("num_negatives", [0, 3])
def test_a_user_without_targets_has_no_loss_and_no_gradient(num_negatives):
    cohorts = cohorts_of(log_of([[1, 2], list(range(10)), []]), meta_config(num_negatives=num_negatives))
    examples = Examples.of(cohorts.training_cohort(np.arange(3), 1, 0), ITEMS)
    assert examples.num_targets.tolist()[::2] == [0, 0]
    assert examples.num_targets[1] > 0
    spec = spec_of()
    patch_UP = torch.from_numpy(np.stack([random_patch(spec)] * 3)).requires_grad_()
    losses = softmax_loss(WEIGHTS, examples, spec.views(patch_UP))
    losses.sum().backward()
    assert losses[[0, 2]].tolist() == [0, 0]
    assert losses[1] > 0
    assert not patch_UP.grad[[0, 2]].any()
    assert patch_UP.grad[1].any()


def test_scores_far_apart_stay_finite():
    steep = dataclasses.replace(BIAS_ONLY, item_bias=torch.tensor([-1e4, 0.0, 1e4, 0.0]))
    assert loss(cohort_of([0], seen=[0]), steep).item() == pytest.approx(2e4)
    assert loss(cohort_of([2], seen=[2]), steep).item() == 0


def test_what_a_user_has_clicked_is_masked_for_that_user_only():
    cohort = cohorts_of(log_of([[3, 5], [], [19]])).serving_cohort(np.array([2, 0, 1]))
    mask = seen_mask(cohort, ITEMS)
    assert [row.nonzero().flatten().tolist() for row in mask] == [[19], [3, 5], []]


@pytest.mark.parametrize("num_negatives", [0, 3])
def test_examples_are_sliced_into_support_and_query(num_negatives):
    cohort = cohorts_of(random_log(4), meta_config(num_negatives=num_negatives)).training_cohort(np.arange(8), 1, 0)
    examples = Examples.of(cohort, ITEMS)
    support, query = examples[:2], examples[2:]
    assert (support.num_targets + query.num_targets).equal(examples.num_targets)
    spec = spec_of(ALL_PARTS)
    patch = spec.views(torch.from_numpy(np.stack([random_patch(spec, seed) for seed in range(8)])))
    shares = [part.num_targets * softmax_loss(WEIGHTS, part, patch) for part in (support, query)]
    whole = examples.num_targets * softmax_loss(WEIGHTS, examples, patch)
    np.testing.assert_allclose(sum(shares), whole, rtol=1e-4)
