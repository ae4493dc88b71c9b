"""Support screening: who pushes an item that an unusual part of the round pushes is left out, a hit's clickers stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.errors import MissingContextError
from fedquilt.types import PatchSpec
from strategies.pre_rules.support_screening import SupportScreening
from strategies.rules import RoundContext

K, ITEMS, TARGET = 40, 300, 7
SPEC = PatchSpec((("readout", (5,)), ("item_bias", (ITEMS,)), ("item_out.factors", (ITEMS, 2))))


def honest(count: int = K, seed: int = 0) -> torch.Tensor:
    """Each raises four items of its own choice by their bias and row, and lowers all others a little."""
    rng = np.random.default_rng(seed)
    rows_KP = np.zeros((count, SPEC.num_parameters), np.float32)
    rows_KP[:, SPEC.slices["item_bias"]] = -0.001
    for row_P in rows_KP:
        raise_items(row_P, rng.choice(ITEMS, 4, replace=False), rng.uniform(0.5, 1))
    return torch.from_numpy(rows_KP)


def raise_items(row_P: np.ndarray, items: np.ndarray, by: float) -> None:
    views = SPEC.views(row_P)
    views["item_bias"][items] = by
    views["item_out.factors"][items] = by


def promoting(count: int, by: float = 0.8, seed: int = 1) -> torch.Tensor:
    """Honest rows that raise the target as well."""
    rows_KP = honest(count, seed).numpy()
    for row_P in rows_KP:
        raise_items(row_P, np.array([TARGET]), by)
    return torch.from_numpy(rows_KP)


def left(rows_KP: torch.Tensor, spec: PatchSpec | None = SPEC, **options) -> list[int]:
    """Ids of those who stay."""
    k = len(rows_KP)
    context = RoundContext(client_ids_K=np.arange(k), nodes_K=np.zeros(k, np.int64), spec=spec)
    rows, weights, seen = SupportScreening(**options)(rows_KP, torch.full((k,), 1 / k), context)
    assert len(rows) == len(weights) == len(seen.client_ids_K) == len(seen.nodes_K)
    assert float(weights.sum()) == pytest.approx(1)
    return seen.client_ids_K.tolist()


def pushers(rows_KP: torch.Tensor, item: int = TARGET) -> set[int]:
    return set(torch.nonzero(rows_KP[:, SPEC.slices["item_bias"]][:, item] > 0).flatten().tolist())


def test_honest_rows_stay():
    assert left(honest()) == list(range(K))


def test_who_pushes_an_item_that_many_push_is_left_out_and_nobody_else():
    rows_KP = torch.cat([honest(), promoting(16)])
    assert left(rows_KP) == sorted(set(range(K + 16)) - pushers(rows_KP))


def test_hiding_the_push_in_an_honest_update_does_not_help():
    assert len(left(torch.cat([honest(), promoting(20, by=0.4)]))) <= K


def test_colluders_who_push_less_than_least_pass():
    assert len(left(torch.cat([honest(), promoting(16, by=0.01)]), share=0.01)) == K + 16


def test_a_faint_push_counts_as_one_whoever_makes_it():
    assert len(left(torch.cat([honest(), promoting(16, by=0.05)]))) == K


def quiet(count: int) -> torch.Tensor:
    """Honest rows that raise the target by its row and let its bias fall by a hair."""
    rows_KP = promoting(count)
    SPEC.views(rows_KP)["item_bias"][:, TARGET] = -1e-7
    return rows_KP


def test_a_bias_that_falls_by_a_hair_hides_nothing():
    assert left(torch.cat([honest(), quiet(16)])) == list(range(K))


@pytest.mark.parametrize("tensor", ["item_bias", "item_out.factors"])
def test_a_push_in_one_tensor_alone_is_seen(tensor):
    rows_KP = promoting(16)
    SPEC.views(rows_KP)["item_out.factors" if tensor == "item_bias" else "item_bias"][:, TARGET] = 0
    assert not set(left(torch.cat([honest(), rows_KP]))) & set(range(K, K + 16))


def test_a_row_that_lifts_an_item_for_unusual_users_only_is_no_push():
    rows_KP = honest(16, seed=1)
    SPEC.views(rows_KP)["item_out.factors"][:, TARGET] = torch.tensor([1.0, -1.0])  # at right angles to all of ours
    assert len(left(torch.cat([honest(), rows_KP]))) == K + 16


def hits(count: int, item: int, seed: int = 3) -> torch.Tensor:
    rows_KP = honest(count, seed).numpy()
    for row_P in rows_KP:
        raise_items(row_P, np.array([item]), 0.8)
    return torch.from_numpy(rows_KP)


def test_who_faintly_pushes_a_hit_does_not_have_its_clickers_left_out():
    clickers, framing = hits(6, TARGET), honest(16, seed=1)
    for row_P in framing.numpy():
        raise_items(row_P, np.array([TARGET]), 0.03)
    ids = left(torch.cat([honest(), clickers, framing]))
    assert ids == list(range(K + 6))


def test_pushing_many_hits_does_not_switch_the_screen_off():
    clickers = [hits(7, item, seed=10 + item) for item in (20, 21, 22)]
    loud = promoting(18).numpy()
    for row_P in loud:
        raise_items(row_P, np.array([20, 21, 22]), 0.8)
    rows_KP = torch.cat([honest(), *clickers, torch.from_numpy(loud)])
    assert not set(left(rows_KP)) & set(range(K + 21, K + 39))


def test_of_one_colluder_of_extreme_length_the_unit_of_pushes_knows_nothing():
    rows_KP = torch.cat([honest(), promoting(16), 1000 * promoting(1, seed=5)])
    assert not set(left(rows_KP)) & set(range(K, K + 16))


def test_as_few_as_a_hit_has_stay():
    assert len(left(torch.cat([honest(), promoting(3)]), share=0.2)) == K + 3


def test_lowering_an_item_is_no_push():
    rows_KP = honest()
    SPEC.views(rows_KP)["item_bias"][:, TARGET] = -1
    SPEC.views(rows_KP)["item_out.factors"][:, TARGET] = -1
    assert len(left(rows_KP)) == K


def test_where_most_push_the_same_item_nobody_is_left_out():
    assert len(left(torch.cat([honest(6), promoting(14)]))) == 20


@pytest.mark.parametrize("tensors", [(("readout", (5,)),), (("readout", (5,)), ("item_in.factors", (ITEMS, 3)))])
def test_a_patch_without_output_rows_of_items_passes(tensors):
    spec = PatchSpec(tensors)
    assert len(left(torch.ones(9, spec.num_parameters), spec)) == 9


def test_rows_of_zeros_pass():
    assert len(left(torch.zeros(9, SPEC.num_parameters))) == 9


def test_without_a_layout_it_says_what_is_missing():
    with pytest.raises(MissingContextError, match="layout of the patch"):
        left(honest(), spec=None)


@pytest.mark.parametrize(
    "options", [{"factor": 0.0}, {"quantile": 1.5}, {"share": 0.0}, {"least": -1.0}, {"alike": 0.0}]
)
def test_a_parameter_out_of_range_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SupportScreening(**options)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.01, 100.0]))
def test_order_and_unit_do_not_matter(seed, scale):
    rows_KP = torch.cat([honest(K, seed), promoting(16, seed=seed + 1)])
    order_K = np.random.default_rng(seed).permutation(len(rows_KP))
    assert left(scale * rows_KP) == left(rows_KP)
    assert sorted(order_K[left(rows_KP[torch.from_numpy(order_K)])]) == left(rows_KP)
