"""What a device does with a patch: batched over users, patch only, and it helps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tiny_recommender import (
    ALL_PARTS,
    CLICKED,
    DIM,
    GRAPH,
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

from fedquilt.config import MetaConfig
from fedquilt.graphs.cohorts import CohortBuilder
from fedquilt.graphs.subgraph import SubgraphBuilder
from models.losses import Examples, softmax_loss
from models.patches import initial_patch
from models.personalise import OuterStep, Personaliser

WEIGHTS = random_weights()
IDS = np.arange(8)
LOG = random_log(3)
INNER = ("item-bias", "readout")


def personaliser(parts=ALL_PARTS, **meta: Any) -> Personaliser:
    return Personaliser(WEIGHTS, spec_of(parts), meta_config(**{"inner_learning_rate": 0.05, **meta}))


def step(given: Personaliser, ids=IDS, personal_UR=None, patch_P=None) -> OuterStep:
    cohort = cohorts_of(LOG, given.meta).training_cohort(ids, 1, 0)
    personal_UR = np.zeros((len(ids), given.personal_size), np.float32) if personal_UR is None else personal_UR
    return given.outer_step(cohort, random_patch(given.spec, 1) if patch_P is None else patch_P, personal_UR)


def personal_rows(given: Personaliser) -> np.ndarray:
    return (0.2 * np.random.default_rng(4).standard_normal((8, given.personal_size))).astype(np.float32)


# --- one row a user ---


@pytest.mark.parametrize("second_order", [True, False], ids=["second order", "first order"])
@pytest.mark.parametrize("num_negatives", [0, 2])
@pytest.mark.parametrize("inner_parts", [ALL_PARTS, INNER], ids=["all", "some"])
def test_a_batch_gives_what_each_user_gives_alone(second_order, num_negatives, inner_parts):
    given = personaliser(
        second_order=second_order, num_negatives=num_negatives, inner_parts=inner_parts, carry=0.5, support_weight=0.3
    )
    personal_UR = personal_rows(given)
    together = step(given, personal_UR=personal_UR)
    for user in range(8):
        alone = step(given, IDS[user : user + 1], personal_UR[user : user + 1])
        for name in vars(together):
            wanted = getattr(together, name)[user]
            rounding = 1e-5 * max(1, np.abs(wanted).max(initial=0))  # float32, and products differ by processor
            np.testing.assert_allclose(getattr(alone, name)[0], wanted, atol=rounding, err_msg=name)


def test_an_update_is_minus_the_gradient_of_the_outer_loss():
    given = personaliser(inner_steps=0, support_weight=0.25)
    patch_P = random_patch(given.spec, 1)
    found = step(given, patch_P=patch_P)
    cohort = cohorts_of(LOG, given.meta).training_cohort(IDS, 1, 0)
    for user in range(8):
        flat_P = torch.from_numpy(patch_P).requires_grad_()
        support, query = (
            loss_by_hand(WEIGHTS, cohort, user, graphs, given.spec.views(flat_P)) for graphs in (range(2), range(2, 4))
        )
        (0.25 * support + 0.75 * query + 0 * flat_P.sum()).backward()  # a user may have no targets at all
        expected = -flat_P.grad
        np.testing.assert_allclose(found.updates_UP[user], expected, atol=1e-5)
        assert found.query_loss_U[user] == pytest.approx(query.item(), abs=1e-4)
        assert found.support_loss_U[user] == pytest.approx(support.item(), abs=1e-4)


def test_zero_support_weight_and_zero_carry_is_plain_maml():
    given = personaliser(support_weight=0.0, carry=0.0)
    with_personal = step(given, personal_UR=personal_rows(given))
    assert with_personal.updates_UP.tobytes() == step(given).updates_UP.tobytes()
    weighted = step(personaliser(support_weight=0.5))
    assert not np.allclose(weighted.updates_UP, with_personal.updates_UP, atol=1e-3)


def test_examples_are_counted_and_a_user_without_any_sends_zero():
    given = personaliser()
    found = step(given)
    cohort = cohorts_of(LOG, given.meta).training_cohort(IDS, 1, 0)
    assert found.num_examples_U.tolist() == (cohort.targets_UGT >= 0).sum((1, 2)).tolist()
    none = found.num_examples_U == 0
    assert none.any()
    assert not found.updates_UP[none].any()
    assert found.updates_UP[~none].any(1).all()
    assert np.abs(found.personal_UR[none]).max() == 0


# --- the personal patch ---


def test_personal_rows_are_the_adapted_patch_minus_the_shared_one_on_the_inner_parts():
    given = personaliser(inner_parts=INNER, carry=0.5)
    personal_UR, patch_P = personal_rows(given), random_patch(given.spec, 1)
    found = step(given, personal_UR=personal_UR, patch_P=patch_P)
    cohort = cohorts_of(LOG, given.meta).training_cohort(IDS, 1, 0)
    start_UP = np.repeat(patch_P[None], 8, 0)
    start_UP[:, given.inner_columns_R] += 0.5 * personal_UR
    for user in range(8):
        flat_P = torch.from_numpy(start_UP[user])
        for _ in range(2):
            flat_P = flat_P.detach().requires_grad_()
            loss = loss_by_hand(WEIGHTS, cohort, user, range(2), given.spec.views(flat_P))
            if not loss.requires_grad:
                break
            (gradient_P,) = torch.autograd.grad(loss, flat_P)
            moved_P = torch.zeros_like(gradient_P)
            moved_P[given.inner_columns_R] = gradient_P[given.inner_columns_R]
            flat_P = flat_P - 0.05 * moved_P
        expected_R = flat_P.detach().numpy()[given.inner_columns_R] - patch_P[given.inner_columns_R]
        np.testing.assert_allclose(found.personal_UR[user], expected_R, atol=1e-5)


def test_inner_columns_are_where_the_inner_tensors_lie():
    given = personaliser(inner_parts=("readout", "item-bias"))
    marked_P = np.zeros(given.spec.num_parameters)
    marked_P[given.inner_columns_R] = 1
    marked = {name for name, view in given.spec.views(marked_P).items() if view.all()}
    assert marked == {"item_bias", "readout.pool_logits", "readout.mix"}
    assert marked_P.sum() == given.personal_size == ITEMS + 3 * CLICKED + 4 * DIM * DIM


def test_without_inner_parts_nothing_is_personal():
    given = personaliser(inner_parts=())
    found = step(given)
    assert given.personal_size == 0
    assert found.personal_UR.shape == (8, 0)
    assert found.updates_UP.any()


def examples_of(given: Personaliser) -> Examples:
    cohort = cohorts_of(LOG, given.meta).serving_cohort(IDS)
    return Examples.of(cohort, ITEMS)[: cohort.num_support]


def test_no_steps_give_the_shared_patch_and_nothing_carried():
    given, patch_P = personaliser(carry=0.0), random_patch(spec_of(), 1)
    own = given.personal(examples_of(given), patch_P, personal_rows(given), 0, 0.1)
    for name, tensor in given.shared(patch_P, 8).items():
        assert own[name].equal(tensor)


@pytest.mark.parametrize("inner_parts", [*((part,) for part in ALL_PARTS), ALL_PARTS], ids=" ".join)
def test_personalising_lowers_the_support_loss(inner_parts):
    given, patch_P = personaliser(inner_parts=inner_parts), random_patch(spec_of(), 1)
    examples, nothing = examples_of(given), np.zeros((8, personaliser(inner_parts=inner_parts).personal_size))
    before, few, more = (
        softmax_loss(WEIGHTS, examples, given.personal(examples, patch_P, nothing, steps, 0.001)) for steps in (0, 1, 4)
    )
    learns = examples.num_targets > 0
    assert (few[learns] < before[learns]).all()
    assert (more[learns] < few[learns]).all()
    assert more[~learns].equal(before[~learns])


def test_personalising_changes_the_inner_parts_only():
    given, patch_P = personaliser(inner_parts=INNER), random_patch(spec_of(), 1)
    own = given.personal(examples_of(given), patch_P, np.zeros((8, given.personal_size)), 3, 0.05)
    shared = given.shared(patch_P, 8)
    assert {name for name in own if not own[name].equal(shared[name])} == set(given.inner)


# --- it helps: users of two planted groups click one half of the catalogue each ---


def planted_cohorts(meta: MetaConfig, num_users: int = 40) -> CohortBuilder:
    """Even users click items 0-9, odd users items 10-19, in a random order; no item has a neighbour."""
    rng = np.random.default_rng(0)
    log = log_of([(10 * (user % 2) + rng.permutation(10)[:8]).tolist() for user in range(num_users)])
    nobody = np.full((ITEMS, 1), -1, np.int32), np.zeros((ITEMS, 1), np.float32)
    subgraphs = SubgraphBuilder(*nobody, GRAPH.num_nodes, GRAPH.num_clicked, GRAPH.window)
    return CohortBuilder(log, subgraphs, GRAPH, meta)


def test_a_patch_learnt_from_earlier_clicks_predicts_later_ones_and_its_opposite_does_not():
    # Item vectors tell the halves apart; the base kernel makes nothing of a history (mix = 0, no convolution).
    vectors = 0.02 * WEIGHTS.item_vectors
    vectors[:, 0] += torch.tensor([1.0] * 10 + [-1.0] * 10)
    weights = dataclasses.replace(
        WEIGHTS,
        item_vectors=vectors,
        item_bias=torch.zeros(ITEMS),
        convolution=torch.zeros_like(WEIGHTS.convolution),
        mix=torch.zeros_like(WEIGHTS.mix),
    )
    given = Personaliser(weights, spec_of(("readout",)), meta_config(num_contexts=1, inner_parts=("readout",)))
    cohort = planted_cohorts(given.meta).training_cohort(np.arange(40), 1, 0)
    examples, patch_P = Examples.of(cohort, ITEMS), np.zeros(given.spec.num_parameters, np.float32)
    own = given.personal(examples[:1], patch_P, np.zeros((40, given.personal_size)), 5, 0.1)
    backwards = {**own, "readout.mix": -own["readout.mix"]}
    before, after, opposite = (
        softmax_loss(weights, examples[1:], patch) for patch in (given.shared(patch_P, 40), own, backwards)
    )
    assert (after < before).all()
    assert (opposite > before).all()


def test_outer_steps_of_all_users_lower_the_query_loss_on_fresh_moments():
    meta = meta_config(num_contexts=1, inner_steps=1, inner_learning_rate=0.1)
    given = Personaliser(WEIGHTS, spec_of(), meta)
    cohorts = planted_cohorts(meta)
    patch_P = initial_patch(given.spec, torch.Generator().manual_seed(0)).numpy()
    nothing = np.zeros((40, given.personal_size), np.float32)

    def judged(patch_P: np.ndarray) -> float:
        fresh = cohorts.training_cohort(np.arange(40), 999, 0)
        return float(given.outer_step(fresh, patch_P, nothing).query_loss_U.mean())

    trained_P = patch_P
    for round_ in range(25):
        update = given.outer_step(cohorts.training_cohort(np.arange(40), round_, 0), trained_P, nothing).updates_UP
        trained_P = trained_P + 0.1 * update.mean(0)
    assert judged(trained_P) < judged(patch_P) - 0.1
