"""Skew screening: rows of a loss over clicks stay, their negatives go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.errors import MissingContextError
from fedquilt.types import PatchSpec
from strategies.pre_rules.skew_screening import SkewScreening, skewness
from strategies.rules import RoundContext

ITEMS = 100
SPEC = PatchSpec((("readout", (3,)), ("item_bias", (ITEMS,))))


def steps(count: int, seed: int = 0) -> torch.Tensor:
    """One step each down a softmax loss over four clicks, from even chances."""
    rng = np.random.default_rng(seed)
    rows_KP = rng.normal(size=(count, SPEC.num_parameters)).astype(np.float32)
    bias_KI = rows_KP[:, SPEC.slices["item_bias"]]
    bias_KI[:] = -4 / ITEMS
    for row_I in bias_KI:
        row_I[rng.choice(ITEMS, 4, replace=False)] += 1
    return torch.from_numpy(rows_KP)


def noise(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(count, SPEC.num_parameters)).astype(np.float32))


def left(rows_KP: torch.Tensor, spec: PatchSpec | None = SPEC, **options) -> list[int]:
    k = len(rows_KP)
    context = RoundContext(client_ids_K=np.arange(k), nodes_K=np.zeros(k, np.int64), spec=spec)
    rows, weights, seen = SkewScreening(**options)(rows_KP, torch.full((k,), 1 / k), context)
    assert len(rows) == len(weights) == len(seen.client_ids_K) == len(seen.nodes_K)
    assert float(weights.sum()) == pytest.approx(1)
    return seen.client_ids_K.tolist()


def test_steps_down_a_loss_over_clicks_stay():
    assert left(steps(20)) == list(range(20))


def test_their_negatives_are_left_out_and_nobody_else():
    assert left(torch.cat([steps(16), -steps(4, seed=1)])) == list(range(16))


def test_noise_is_left_out():
    assert left(torch.cat([steps(16), noise(4)])) == list(range(16))


def test_who_stays_keeps_its_row():
    rows_KP = torch.cat([-steps(1), steps(2, seed=1)])
    context = RoundContext(client_ids_K=np.arange(3), spec=SPEC)
    kept_KP, weights_K, _ = SkewScreening()(rows_KP, torch.tensor([0.5, 0.2, 0.3]), context)
    assert torch.equal(kept_KP, rows_KP[1:])
    torch.testing.assert_close(weights_K, torch.tensor([0.4, 0.6]))


def test_a_row_without_biases_stays():
    rows_KP = steps(4)
    rows_KP[2, SPEC.slices["item_bias"]] = 0
    assert left(rows_KP) == [0, 1, 2, 3]


def test_where_most_of_a_round_is_skewed_downwards_its_loss_is_another_one():
    assert len(left(torch.cat([steps(4), -steps(5, seed=1)]))) == 9


def test_more_skewness_can_be_asked_for():
    # Hand: biases 1, 1, -1 and zeros have mean cube 1/100 and mean square 3/100, so 0.01 / 0.03 ** 1.5 = 1.925.
    rows_KP = steps(4)
    rows_KP[0, SPEC.slices["item_bias"]] = torch.tensor([1.0, 1.0, -1.0] + [0.0] * (ITEMS - 3))
    assert left(rows_KP, least=1.92) == [0, 1, 2, 3]
    assert left(rows_KP, least=1.93) == [1, 2, 3]


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1.0, 1e30]))
def test_skewness_does_not_depend_on_scale_and_turns_with_the_sign(seed, scale):
    values_KI = torch.from_numpy(np.random.default_rng(seed).normal(size=(300, 7)).astype(np.float32))
    found_K = skewness(values_KI)
    torch.testing.assert_close(skewness(values_KI * scale), found_K, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(skewness(-values_KI), -found_K)
    assert (found_K.abs() <= 7**0.5).all()


def test_a_patch_without_item_biases_passes():
    rows_KP = -steps(5)[:, :3]
    assert len(left(rows_KP, PatchSpec((("readout", (3,)),)))) == 5


def test_without_the_layout_of_the_patch_it_says_what_it_lacks():
    with pytest.raises(MissingContextError, match="layout of the patch"):
        left(steps(3), None)


def test_a_bound_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="least"):
        SkewScreening(least=float("nan"))
