"""MAML over the user axis: against hand arithmetic, a loop over users with its own autograd, and finite differences."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_recommender import (
    ALL_PARTS,
    ITEMS,
    cohorts_of,
    double,
    log_of,
    loss_by_hand,
    meta_config,
    random_patch,
    random_weights,
    spec_of,
)

from fedquilt.types import Cohort, PatchSpec
from models.kernel import KernelWeights
from models.losses import Examples, softmax_loss
from models.meta import MetaResult, adapt, meta_gradients
from models.patches import names_of

# --- a loss that can be differentiated by hand: L = a · p^2 / 2 for one number p a user ---

CURVES = torch.tensor([1.0, 2.0, 4.0])
START = {"p": torch.tensor([[1.0], [1.0], [-3.0]])}
RATE = 0.1


def bowl(curves: torch.Tensor):
    return lambda patch: (curves[:, None] * patch["p"] ** 2 / 2).sum(1)


def quadratic(**given) -> MetaResult:
    options = {"inner": ["p"], "learning_rate": RATE, "steps": 1, **given}
    return meta_gradients(bowl(CURVES), bowl(CURVES + 1), START, **options)


def test_an_inner_step_is_a_gradient_step_of_the_support_loss():
    result = quadratic()
    np.testing.assert_allclose(result.adapted["p"], START["p"] * (1 - RATE * CURVES[:, None]))
    np.testing.assert_allclose(result.support_loss, bowl(CURVES)(START))
    np.testing.assert_allclose(result.query_loss, bowl(CURVES + 1)(result.adapted))


def test_the_second_order_gradient_by_hand():
    # d/dp of b/2 · ((1 - r·a) p)^2 = b (1 - r·a)^2 p, with b = a + 1
    shrink = 1 - RATE * CURVES[:, None]
    expected = (CURVES[:, None] + 1) * shrink**2 * START["p"]
    np.testing.assert_allclose(quadratic().gradients["p"], expected, rtol=1e-6)


def test_the_first_order_gradient_by_hand():
    # the query gradient at the adapted patch: b (1 - r·a) p
    expected = (CURVES[:, None] + 1) * (1 - RATE * CURVES[:, None]) * START["p"]
    np.testing.assert_allclose(quadratic(second_order=False).gradients["p"], expected, rtol=1e-6)


def test_several_steps_by_hand():
    shrink = (1 - RATE * CURVES[:, None]) ** 3
    result = quadratic(steps=3)
    np.testing.assert_allclose(result.adapted["p"], shrink * START["p"], rtol=1e-6)
    np.testing.assert_allclose(result.gradients["p"], (CURVES[:, None] + 1) * shrink**2 * START["p"], rtol=1e-6)


@pytest.mark.parametrize("second_order", [True, False])
def test_support_weight_mixes_in_the_support_gradient_at_the_start(second_order):
    plain = quadratic(second_order=second_order).gradients["p"]
    mixed = quadratic(second_order=second_order, support_weight=0.25).gradients["p"]
    np.testing.assert_allclose(mixed, 0.75 * plain + 0.25 * CURVES[:, None] * START["p"], rtol=1e-6)


@pytest.mark.parametrize("options", [{"steps": 0}, {"inner": []}, {"steps": 0, "second_order": False}])
def test_without_inner_steps_the_gradient_is_the_plain_query_gradient(options):
    result = quadratic(**options)
    np.testing.assert_allclose(result.gradients["p"], (CURVES[:, None] + 1) * START["p"])
    assert result.adapted["p"].equal(START["p"])
    np.testing.assert_allclose(result.support_loss, bowl(CURVES)(START))


def test_adapting_leaves_the_patch_that_came_in_as_it_was():
    patch = {"p": START["p"].clone().requires_grad_()}
    adapt(bowl(CURVES), patch, ["p"], RATE, 5)
    assert patch["p"].equal(START["p"])


# --- the recommender's losses, in float64 ---


class Problem(NamedTuple):
    """Four users with long histories, their patches, and the losses of all of them and of each alone."""

    weights: KernelWeights
    spec: PatchSpec
    cohort: Cohort
    examples: Examples
    patch_UP: torch.Tensor

    def loss(self, graphs: slice, patch) -> torch.Tensor:
        return softmax_loss(self.weights, self.examples[graphs], patch)

    def meta(self, patch_UP: torch.Tensor, inner_parts=ALL_PARTS, **options) -> MetaResult:
        given = {"learning_rate": 0.05, "steps": 2, "second_order": True, "support_weight": 0.0, **options}
        split = self.cohort.num_support
        return meta_gradients(
            lambda patch: self.loss(slice(None, split), patch),
            lambda patch: self.loss(slice(split, None), patch),
            self.spec.views(patch_UP),
            names_of(inner_parts, self.spec),
            **given,
        )

    def flat(self, tensors) -> torch.Tensor:
        return torch.cat([tensors[name].reshape(len(self.cohort), -1) for name, _ in self.spec.shapes], dim=1)


def problem(seed: int = 0, num_negatives: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    log = log_of([rng.permutation(ITEMS)[: 8 + 2 * user].tolist() for user in range(4)])
    cohort = cohorts_of(log, meta_config(num_negatives=num_negatives)).training_cohort(np.arange(4), 1, seed)
    weights, spec = random_weights(seed), spec_of()
    patch_UP = torch.from_numpy(np.stack([random_patch(spec, 10 * seed + user) for user in range(4)]))
    examples = Examples.of(cohort, ITEMS)
    return Problem(double(weights), spec, cohort, double(examples), patch_UP.double())


def one_user_by_hand(given: Problem, user: int, inner, learning_rate, steps, second_order, support_weight):
    """MAML for one user with the plain loss: -> (gradient, adapted), flat."""
    split = given.cohort.num_support

    def support(flat_P):
        return loss_by_hand(given.weights, given.cohort, user, range(split), given.spec.views(flat_P))

    def query(flat_P):
        return loss_by_hand(given.weights, given.cohort, user, range(split, 2 * split), given.spec.views(flat_P))

    moves_P = torch.zeros(given.spec.num_parameters, dtype=torch.double)
    for name in inner:
        moves_P[given.spec.slices[name]] = 1
    start_P = given.patch_UP[user].clone().requires_grad_()
    flat_P = start_P
    for _ in range(steps):
        (gradient_P,) = torch.autograd.grad(support(flat_P), flat_P, create_graph=True)
        flat_P = flat_P - learning_rate * moves_P * (gradient_P if second_order else gradient_P.detach())
    outer = (1 - support_weight) * query(flat_P) + support_weight * support(start_P)
    (gradient_P,) = torch.autograd.grad(outer, start_P)
    return gradient_P, flat_P.detach()


@pytest.mark.parametrize("second_order", [True, False], ids=["second order", "first order"])
@pytest.mark.parametrize(
    ("inner_parts", "support_weight", "num_negatives"),
    [(ALL_PARTS, 0.0, 0), (("bottleneck", "item-bias"), 0.3, 2)],
    ids=["all parts", "two parts, support weight, negatives"],
)
def test_batched_gradients_are_those_of_a_loop_over_users(second_order, inner_parts, support_weight, num_negatives):
    given = problem(1, num_negatives)
    options = {"learning_rate": 0.05, "steps": 2, "second_order": second_order, "support_weight": support_weight}
    result = given.meta(given.patch_UP, inner_parts, **options)
    gradients_UP, adapted_UP = given.flat(result.gradients), given.flat(result.adapted)
    for user in range(4):
        expected, adapted_P = one_user_by_hand(given, user, names_of(inner_parts, given.spec), **options)
        np.testing.assert_allclose(gradients_UP[user], expected, atol=1e-5)
        np.testing.assert_allclose(adapted_UP[user], adapted_P, atol=1e-5)


def slopes(given: Problem, direction_UP: torch.Tensor, inner_parts=ALL_PARTS, step: float = 1e-5, **options):
    """Central difference of each user's outer loss along a direction, [U]."""
    weight = options.get("support_weight", 0.0)

    def outer(sign: int) -> torch.Tensor:
        result = given.meta(given.patch_UP + sign * step * direction_UP, inner_parts, **options)
        return (1 - weight) * result.query_loss + weight * result.support_loss

    return (outer(1) - outer(-1)) / (2 * step)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(0, 3),
    weight=st.sampled_from([0.0, 0.4]),
    inner=st.sets(st.sampled_from(ALL_PARTS)),
    num_negatives=st.sampled_from([0, 2]),
)
def test_the_second_order_gradient_is_the_slope_of_the_outer_loss(seed, steps, weight, inner, num_negatives):
    given, inner_parts = problem(seed, num_negatives), tuple(sorted(inner))
    direction_UP = torch.from_numpy(np.random.default_rng(seed).standard_normal(given.patch_UP.shape))
    options = {"steps": steps, "support_weight": weight}
    gradients_UP = given.flat(given.meta(given.patch_UP, inner_parts, **options).gradients)
    expected_U = slopes(given, direction_UP, inner_parts, **options)
    np.testing.assert_allclose((gradients_UP * direction_UP).sum(1), expected_U, rtol=1e-4, atol=1e-5)


def test_the_first_order_gradient_is_another_one_and_finite_differences_tell():
    given = problem(2)
    second, first = (given.flat(given.meta(given.patch_UP, second_order=order).gradients) for order in (True, False))
    direction_UP = (second - first) / (second - first).norm(dim=1, keepdim=True)
    expected_U = slopes(given, direction_UP)
    np.testing.assert_allclose((second * direction_UP).sum(1), expected_U, rtol=1e-4)
    off_U = ((first * direction_UP).sum(1) - expected_U).abs() / expected_U.abs()
    assert (off_U > 0.05).all()


def test_inner_steps_change_the_inner_parts_and_nothing_else():
    given = problem(3)
    inner = names_of(("item-bias", "readout"), given.spec)
    adapted = given.meta(given.patch_UP, ("item-bias", "readout")).adapted
    start = given.spec.views(given.patch_UP)
    assert {name for name in adapted if not adapted[name].equal(start[name])} == set(inner)


def test_the_tensors_that_inner_steps_leave_still_get_an_outer_gradient():
    gradients = problem(3).meta(problem(3).patch_UP, ("item-bias",)).gradients
    assert all(gradient.flatten(1).any(1).all() for gradient in gradients.values())


def test_a_user_without_targets_stays_where_they_are():
    cohort = cohorts_of(log_of([[1, 2], list(range(12))])).training_cohort(np.arange(2), 1, 0)
    spec = spec_of()
    patch_UP = torch.from_numpy(np.stack([random_patch(spec)] * 2))
    given = Problem(random_weights(), spec, cohort, Examples.of(cohort, ITEMS), patch_UP)
    result = given.meta(patch_UP, support_weight=0.5)
    assert not given.flat(result.gradients)[0].any()
    assert given.flat(result.adapted)[0].equal(patch_UP[0])
    assert given.flat(result.gradients)[1].any()
